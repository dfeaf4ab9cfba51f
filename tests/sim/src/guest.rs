//! The model guest: a vCPU, pages, disks and a little key-value service that answers when the disk has its
//! value.
//!
//! Key *k* lives in page *k* and in block *k*. Blocks take turns on the disks. Each event of the guest is one
//! step; every step changes its history.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ft::guest::{GuestError, Memory};
use ft_proto::Epoch;

use crate::mutation::Mutation;
use crate::truth::Point;

/// Keys of the service; pages and blocks after them hold noise.
pub(crate) const KEYS: usize = 4;
pub(crate) const PAGES: usize = 24;
/// Pages from here on, but for the last one, are touched now and then only.
const COLD: usize = 16;
/// One in so many steps touches one of them.
const SELDOM: u64 = 128;
pub(crate) const BLOCKS: usize = 8;

/// Blocks of a disk, or of all disks of a VM.
pub(crate) type Blocks = [u64; BLOCKS];

/// Which of so many disks a block is on.
pub(crate) fn disk_of(block: usize, disks: usize) -> usize {
    block % disks
}

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
    /// Anything, on the serial console.
    Printed,
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
    pub(crate) done: Blocks,
    /// Requests that the disk has and has not answered.
    pub(crate) in_flight: VecDeque<Write>,
}

/// Memory of a process: real pages, each with one word; `None`: nobody has touched it.
#[derive(Debug, Default)]
pub(crate) struct SimMemory {
    pages: Mutex<[Option<u64>; PAGES]>,
    /// It is never cleared: a defect.
    stays: AtomicBool,
}

impl SimMemory {
    /// All words.
    pub(crate) fn pages(&self) -> Pages {
        self.lock().map(Option::unwrap_or_default)
    }

    pub(crate) fn set(&self, page: usize, word: u64) {
        self.lock()[page] = Some(word);
    }

    /// From now on it is not cleared.
    fn stays(&self) {
        self.stays.store(true, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, [Option<u64>; PAGES]> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, page: u64, word: u64) -> Result<(), GuestError> {
        let mut pages = self.lock();
        let place = usize::try_from(page).ok().and_then(|page| pages.get_mut(page));
        *place.ok_or_else(|| GuestError::plain("a page that is not RAM"))? = Some(word);
        Ok(())
    }
}

impl Memory for SimMemory {
    fn ranges(&self) -> Vec<Range<u64>> {
        std::iter::once(0..PAGES as u64).collect()
    }

    fn populated(&self) -> Result<Vec<Range<u64>>, GuestError> {
        let pages = (0..).zip(*self.lock());
        Ok(pages.filter(|(_, word)| word.is_some()).map(|(page, _)| page..page + 1).collect())
    }

    fn copy_out(&self, page: u64, into: &mut [u8]) -> Result<(), GuestError> {
        into.fill(0);
        into[..8].copy_from_slice(&self.lock()[page as usize].unwrap_or_default().to_le_bytes());
        Ok(())
    }

    fn copy_in(&self, page: u64, from: &[u8]) -> Result<(), GuestError> {
        self.write(page, from.first_chunk().map_or(0, |word| u64::from_le_bytes(*word)))
    }

    fn zero(&self, page: u64) -> Result<(), GuestError> {
        self.write(page, 0)
    }

    fn clear(&self) -> Result<(), GuestError> {
        if !self.stays.load(Ordering::Relaxed) {
            self.lock().fill(None);
        }
        Ok(())
    }
}

/// Memory and vCPU of one process.
#[derive(Debug, Default)]
pub(crate) struct Guest {
    pub(crate) memory: Arc<SimMemory>,
    pub(crate) vcpu: Vcpu,
    /// Whether writes are tracked.
    pub(crate) tracked: bool,
    pub(crate) dirty: BTreeSet<usize>,
    /// Whether it executes.
    pub(crate) running: bool,
    /// Whether it is paused for a cut.
    pub(crate) stopped: bool,
    /// How many it has.
    disks: usize,
}

impl Guest {
    pub(crate) fn new(disks: usize, mutation: Option<Mutation>) -> Self {
        let guest = Self { disks, ..Self::default() };
        if mutation == Some(Mutation::KeepOldMemory) {
            guest.memory.stays();
        }
        guest
    }

    fn write(&mut self, page: usize, value: u64) {
        self.memory.set(page, value);
        if self.tracked {
            self.dirty.insert(page);
        }
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
        let place = chance as usize >> 8;
        self.write(KEYS + place % (COLD - KEYS), chance);
        if (chance >> 32).is_multiple_of(SELDOM) {
            self.write(COLD + place % (PAGES - 1 - COLD), chance);
        }
        if !chance.is_multiple_of(8) {
            return None;
        }
        let block = KEYS + (chance as usize >> 16) % (BLOCKS - KEYS);
        Some(self.submit(Write { block, value: at.step, asked: false }))
    }

    /// Says something, one time in four on its console.
    pub(crate) fn chatter(&mut self, chance: u64) -> Frame {
        let saying = if chance.is_multiple_of(4) { Saying::Printed } else { Saying::Chatter };
        Frame { at: self.step(chance), saying }
    }

    /// Serves a request: an answer, or a write that must be done first.
    pub(crate) fn serve(&mut self, request: Request) -> Result<Frame, Option<Write>> {
        match request {
            Request::Put { key, value } => {
                // A request that was overtaken by a later one.
                if value <= self.memory.pages()[key] {
                    return Err(None);
                }
                self.step(value);
                self.write(key, value);
                Err(Some(self.submit(Write { block: key, value, asked: true })))
            }
            Request::Get { key, ticket } => {
                let at = self.step(ticket);
                Ok(Frame { at, saying: Saying::Value { key, value: self.memory.pages()[key], ticket } })
            }
        }
    }

    fn submit(&mut self, write: Write) -> Write {
        self.vcpu.in_flight.push_back(write);
        write
    }

    /// The oldest request that a disk has not answered.
    pub(crate) fn oldest(&self, disk: usize) -> Option<Write> {
        self.vcpu.in_flight.iter().find(|write| disk_of(write.block, self.disks) == disk).copied()
    }

    /// The disk has done it.
    pub(crate) fn completed(&mut self, disk: usize) -> Option<Frame> {
        let oldest = self.vcpu.in_flight.iter().position(|write| disk_of(write.block, self.disks) == disk)?;
        let write = self.vcpu.in_flight.remove(oldest)?;
        self.vcpu.done[write.block] = write.value;
        let at = self.step(write.value);
        write.asked.then_some(Frame { at, saying: Saying::Stored { key: write.block, value: write.value } })
    }

    pub(crate) fn digest(&self) -> u64 {
        digest(&self.memory.pages(), &self.vcpu)
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

/// A checkpoint's state: whose it is, and the vCPU.
pub(crate) fn encode(session: u64, epoch: Epoch, vcpu: &Vcpu) -> Vec<u8> {
    let head = [session, epoch.0, vcpu.at.branch as u64, vcpu.at.step, vcpu.history];
    let write = |write: &Write| [write.block as u64, write.value, u64::from(write.asked)];
    let words = head.into_iter().chain(vcpu.done).chain(vcpu.in_flight.iter().flat_map(write));
    words.flat_map(u64::to_le_bytes).collect()
}

/// The state back: its session, its epoch, the vCPU.
pub(crate) fn decode(state: &[u8]) -> (u64, Epoch, Vcpu) {
    let (chunks, _) = state.as_chunks();
    let mut words = chunks.iter().map(|bytes| u64::from_le_bytes(*bytes));
    let mut next = || words.next().unwrap_or_default();
    let (session, epoch) = (next(), Epoch(next()));
    let at = Point { branch: next() as usize, step: next() };
    let mut vcpu = Vcpu { at, history: next(), ..Vcpu::default() };
    vcpu.done = std::array::from_fn(|_| next());
    for _ in 0..(chunks.len().saturating_sub(5 + BLOCKS) / 3) {
        vcpu.in_flight.push_back(Write { block: next() as usize, value: next(), asked: next() == 1 });
    }
    (session, epoch, vcpu)
}
