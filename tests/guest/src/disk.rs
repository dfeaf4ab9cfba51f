//! virtio-blk and a writer of self-checking blocks that reads back what it wrote before.
//!
//! Write `n` goes to slot `n % slots` of the region at the start of the disk.

use pollux_guest::pattern::{Block, PAGE, WORDS, mix};

use crate::machine::Memory;
use crate::println;
use crate::virtio::{Buffer, Device, Queue};

/// Requests in flight at most.
pub const DEPTH: usize = 8;

const KIND: u16 = 2;
const FEATURE_FLUSH: u64 = 1 << 9;
const SECTORS_PER_SLOT: u64 = (PAGE / 512) as u64;
/// Descriptors per request: header, data, status.
const CHAIN: usize = 3;
/// Every how many writes a block is read back.
const READ_EVERY: u64 = 4;

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Job {
    Free,
    Write { seq: u64 },
    Read { seq: u64 },
    Flush,
}

/// The disk and its writer.
pub struct Disk {
    device: Device,
    queue: Queue,
    features: u64,
    /// `DEPTH` pages of data, then the headers and status bytes.
    data: &'static mut [u64],
    headers: &'static mut [u64],
    jobs: [Job; DEPTH],
    /// For each slot the number of the latest completed write, 0 for none.
    slots: &'static mut [u64],
    boot: u64,
    /// Number of the latest write.
    pub issued: u64,
    /// Blocks read back.
    pub checked: u64,
    /// Blocks with wrong contents, and failed requests.
    pub violations: u64,
    failed: bool,
}

impl Disk {
    /// The first disk, with a writer's region of `slots` blocks; `bare`: without any feature.
    pub fn find(memory: &mut Memory, slots: usize, boot: u64, bare: bool) -> Option<Self> {
        let device = Device::find(memory, KIND)?;
        let features = device.negotiate(FEATURE_FLUSH, bare);
        let capacity = u64::from(device.config::<u32>(0)) | u64::from(device.config::<u32>(4)) << 32;
        let slots = slots.min((capacity / SECTORS_PER_SLOT) as usize);
        assert!(slots >= 2 * DEPTH, "disk: {capacity} sectors are too few");
        let queue = device.queue(memory, 0);
        assert!(usize::from(queue.size) >= DEPTH * CHAIN, "disk: queue of {}", queue.size);
        device.start();
        Some(Self {
            device,
            queue,
            features,
            data: memory.words(DEPTH * WORDS),
            headers: memory.words(DEPTH * 4),
            jobs: [Job::Free; DEPTH],
            slots: memory.words(slots),
            boot,
            issued: 0,
            checked: 0,
            violations: 0,
            failed: false,
        })
    }

    /// Blocks in the region.
    pub fn slots(&self) -> u64 {
        self.slots.len() as u64
    }

    /// All writes up to this one have completed.
    pub fn done(&self) -> u64 {
        let in_flight = self.jobs.iter().filter_map(|job| if let Job::Write { seq } = job { Some(*seq) } else { None });
        in_flight.min().map_or(self.issued, |oldest| oldest - 1)
    }

    fn slot_of(&self, seq: u64) -> usize {
        (seq % self.slots.len() as u64) as usize
    }

    fn busy(&self, slot: usize) -> bool {
        self.jobs.iter().any(|job| matches!(job, Job::Write { seq } | Job::Read { seq } if self.slot_of(*seq) == slot))
    }

    /// Write the next block, and now and then read an earlier one, if there is room.
    pub fn write_next(&mut self) -> bool {
        let seq = self.issued + 1;
        let free = self.jobs.iter().filter(|job| **job == Job::Free).count();
        if free < 2 || self.busy(self.slot_of(seq)) {
            return false;
        }
        self.issued = seq;
        self.submit(Job::Write { seq });
        if seq.is_multiple_of(READ_EVERY) {
            let slot = (mix(seq) % self.slots.len() as u64) as usize;
            let expected = self.slots[slot];
            if expected != 0 && !self.busy(slot) {
                self.submit(Job::Read { seq: expected });
            }
        }
        true
    }

    fn submit(&mut self, job: Job) -> bool {
        let Some(i) = self.jobs.iter().position(|job| *job == Job::Free) else { return false };
        let (kind, sector) = match job {
            Job::Write { seq } => (TYPE_OUT, self.slot_of(seq) as u64 * SECTORS_PER_SLOT),
            Job::Read { seq } => (TYPE_IN, self.slot_of(seq) as u64 * SECTORS_PER_SLOT),
            Job::Flush | Job::Free => (TYPE_FLUSH, 0),
        };
        let data = &mut self.data[i * WORDS..][..WORDS];
        match job {
            Job::Write { seq } => Block { boot: self.boot, slot: seq % self.slots.len() as u64, seq }.fill(data),
            _ => data.fill(0),
        }
        let data = Buffer { address: data.as_ptr() as u64, len: PAGE as u32, writable: kind == TYPE_IN };
        let header = &mut self.headers[i * 4..][..4];
        header.copy_from_slice(&[u64::from(kind), sector, 0xff, 0]);
        let address = header.as_ptr() as u64;
        let head = Buffer { address, len: 16, writable: false };
        let status = Buffer { address: address + 16, len: 1, writable: true };
        self.jobs[i] = job;
        let descriptor = (i * CHAIN) as u16;
        if kind == TYPE_FLUSH {
            self.queue.add(descriptor, &[head, status]);
        } else {
            self.queue.add(descriptor, &[head, data, status]);
        }
        self.queue.kick();
        true
    }

    /// Take what the device has completed.
    pub fn poll(&mut self) {
        while let Some((head, _)) = self.queue.take() {
            let i = usize::from(head) / CHAIN;
            let status = self.headers[i * 4 + 2] & 0xff;
            let job = core::mem::replace(&mut self.jobs[i], Job::Free);
            if status != 0 || job == Job::Free {
                self.failed = true;
                self.violation(format_args!("request {job:?} has status {status}"));
                continue;
            }
            match job {
                Job::Write { seq } => {
                    let slot = self.slot_of(seq);
                    self.slots[slot] = seq;
                }
                Job::Read { seq } => self.check(i, seq),
                Job::Flush | Job::Free => {}
            }
        }
    }

    fn check(&mut self, i: usize, seq: u64) {
        self.checked += 1;
        let wanted = Block { boot: self.boot, slot: seq % self.slots.len() as u64, seq };
        let found = Block::parse(&self.data[i * WORDS..][..WORDS]);
        if found != Some(wanted) {
            self.violation(format_args!("{found:?} where {wanted:?} was written"));
        }
    }

    fn violation(&mut self, what: core::fmt::Arguments) {
        self.violations += 1;
        if self.violations <= 8 {
            println!("disk: {what}");
        }
    }

    /// Write `count` blocks and flush; returns whether all went well. `tick` is called while waiting.
    pub fn write_durably(&mut self, count: u64, tick: &mut dyn FnMut()) -> bool {
        self.failed = false;
        for _ in 0..count {
            while !self.write_next() {
                self.poll();
                tick();
            }
        }
        self.wait_idle(tick);
        if self.features & FEATURE_FLUSH != 0 {
            self.submit(Job::Flush);
            self.wait_idle(tick);
        }
        !self.failed
    }

    /// Reset the disk, as a driver does that is loaded anew, and go on with it.
    pub fn reset(&mut self, tick: &mut dyn FnMut()) {
        self.wait_idle(tick);
        self.device.restart(self.features, &mut self.queue);
    }

    fn wait_idle(&mut self, tick: &mut dyn FnMut()) {
        while self.jobs.iter().any(|job| *job != Job::Free) {
            self.poll();
            tick();
        }
    }
}
