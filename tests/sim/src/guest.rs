//! The model guest: a vCPU, pages, a disk and a little key-value service that answers when the disk has its value.
//!
//! Key *k* lives in page *k* and in block *k*. Each event of the guest is one step; every step changes its history.

use std::collections::{BTreeSet, VecDeque};

use ft_proto::Epoch;

use crate::truth::Point;

/// Keys of the service; pages and blocks after them hold noise.
pub(crate) const KEYS: usize = 4;
pub(crate) const PAGES: usize = 16;
pub(crate) const BLOCKS: usize = 8;

/// Pages of a guest, for those who hold a copy.
pub(crate) type Pages = [u64; PAGES];

/// Something outside asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Request {
    Put { key: usize, value: u64 },
    Get { key: usize, ticket: u64 },
}

/// Something that the guest says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Saying {
    /// The value is in memory and on disk.
    Stored { key: usize, value: u64 },
    /// The answer to a `Get`.
    Value { key: usize, value: u64, ticket: u64 },
    /// Anything.
    Chatter,
}

/// What the guest sends, and the point of its history at which it did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Frame {
    pub(crate) at: Point,
    pub(crate) saying: Saying,
}

/// A disk write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Write {
    pub(crate) block: usize,
    pub(crate) value: u64,
    /// Whether somebody outside is told when it is done.
    pub(crate) asked: bool,
}

/// All state that is not in pages: what a checkpoint saves.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Vcpu {
    pub(crate) at: Point,
    /// A digest of everything that ever happened.
    pub(crate) history: u64,
    /// The last write to each block that the guest knows to be done.
    pub(crate) done: [u64; BLOCKS],
    /// Requests that the disk has and has not answered.
    pub(crate) in_flight: VecDeque<Write>,
}

/// Memory and vCPU of one process.
#[derive(Debug, Default)]
pub(crate) struct Guest {
    pub(crate) pages: [u64; PAGES],
    pub(crate) vcpu: Vcpu,
    pub(crate) dirty: BTreeSet<usize>,
    /// Whether it executes.
    pub(crate) running: bool,
    /// Whether it stands still for a cut.
    pub(crate) stopped: bool,
}

/// A checkpoint: pages that changed, and state.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) epoch: Epoch,
    pub(crate) pages: Vec<(usize, u64)>,
    pub(crate) vcpu: Vcpu,
    /// The disk has nothing of it.
    pub(crate) idle: bool,
}

impl Guest {
    fn write(&mut self, page: usize, value: u64) {
        self.pages[page] = value;
        self.dirty.insert(page);
    }

    fn step(&mut self, what: u64) -> Point {
        self.vcpu.at.step += 1;
        self.vcpu.history = mix(self.vcpu.history, what);
        // One page always says how far the guest is: a half applied epoch cannot hide.
        self.write(PAGES - 1, self.vcpu.at.step);
        self.vcpu.at
    }

    /// Computes something.
    pub(crate) fn work(&mut self, chance: u64) -> Option<Write> {
        let at = self.step(chance);
        let page = KEYS + (chance as usize >> 8) % (PAGES - 1 - KEYS);
        self.write(page, chance);
        if !chance.is_multiple_of(8) {
            return None;
        }
        let block = KEYS + (chance as usize >> 16) % (BLOCKS - KEYS);
        Some(self.submit(Write { block, value: at.step, asked: false }))
    }

    pub(crate) fn chatter(&mut self, chance: u64) -> Frame {
        Frame { at: self.step(chance), saying: Saying::Chatter }
    }

    /// Serves a request: an answer, or a write that must be done first.
    pub(crate) fn serve(&mut self, request: Request) -> Result<Frame, Option<Write>> {
        match request {
            Request::Put { key, value } => {
                // A request that was overtaken by a later one.
                if value <= self.pages[key] {
                    return Err(None);
                }
                self.step(value);
                self.write(key, value);
                Err(Some(self.submit(Write { block: key, value, asked: true })))
            }
            Request::Get { key, ticket } => {
                let at = self.step(ticket);
                Ok(Frame { at, saying: Saying::Value { key, value: self.pages[key], ticket } })
            }
        }
    }

    fn submit(&mut self, write: Write) -> Write {
        self.vcpu.in_flight.push_back(write);
        write
    }

    /// The disk has done the oldest request.
    pub(crate) fn completed(&mut self) -> Option<Frame> {
        let write = self.vcpu.in_flight.pop_front()?;
        self.vcpu.done[write.block] = write.value;
        let at = self.step(write.value);
        write.asked.then_some(Frame { at, saying: Saying::Stored { key: write.block, value: write.value } })
    }

    pub(crate) fn digest(&self) -> u64 {
        digest(&self.pages, &self.vcpu)
    }
}

/// One number for a whole guest.
pub(crate) fn digest(pages: &[u64; PAGES], vcpu: &Vcpu) -> u64 {
    let words = pages.iter().chain(&vcpu.done).copied();
    let words = words.chain(vcpu.in_flight.iter().map(|write| write.value));
    words.fold(vcpu.history, mix)
}

fn mix(hash: u64, word: u64) -> u64 {
    (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}
