//! A split virtqueue in memory, without any rule about what may be written to it.

use crate::machine::{Machine, Width};

/// Entries that rings have here, unless the device has less.
pub(crate) const SIZE: u16 = 64;
/// Bytes from one queue's memory to the next one's: table, rings, a page of buffers.
pub(crate) const STRIDE: u64 = 0x4000;

/// Descriptor flags.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// A queue of the device that is set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ring {
    pub(crate) queue: u16,
    pub(crate) size: u16,
    pub(crate) table: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
    /// A page that nothing else is in.
    pub(crate) page: u64,
    /// The avail index.
    pub(crate) next: u16,
    /// Used entries that were taken.
    pub(crate) seen: u16,
}

impl Ring {
    /// Of queue `queue`, in clear memory at `base`.
    pub(crate) fn new(machine: &mut dyn Machine, base: u64, queue: u16, size: u16) -> Self {
        for at in (0..STRIDE).step_by(8) {
            machine.write(base + at, Width::Quad, 0);
        }
        Self {
            queue,
            size,
            table: base,
            avail: base + 0x1000,
            used: base + 0x2000,
            page: base + 0x3000,
            next: 0,
            seen: 0,
        }
    }

    /// Table and rings.
    pub(crate) fn places(&self) -> [u64; 3] {
        [self.table, self.avail, self.used]
    }

    /// Writes an entry of this queue's table.
    pub(crate) fn entry(&self, machine: &mut dyn Machine, index: u16, buffer: (u64, u32, u16), next: u16) {
        descriptor(machine, self.table, index, buffer, next);
    }

    /// Makes `head` available.
    pub(crate) fn offer(&mut self, machine: &mut dyn Machine, head: u16) {
        machine.write(self.avail + 4 + 2 * u64::from(self.next % self.size), Width::Word, head.into());
        self.set_index(machine, self.next.wrapping_add(1));
    }

    /// Writes one descriptor at `head`, and makes it available.
    pub(crate) fn offer_one(&mut self, machine: &mut dyn Machine, head: u16, buffer: (u64, u32, u16)) {
        self.entry(machine, head, buffer, 0);
        self.offer(machine, head);
    }

    /// Writes buffers as one chain from entry `head` on, and makes it available.
    pub(crate) fn offer_chain(&mut self, machine: &mut dyn Machine, head: u16, buffers: &[(u64, u32, u16)]) {
        for (index, (address, len, flags)) in (head..).zip(buffers) {
            let more = if usize::from(index - head) + 1 < buffers.len() { NEXT } else { 0 };
            self.entry(machine, index, (*address, *len, flags | more), index.wrapping_add(1));
        }
        self.offer(machine, head);
    }

    /// Writes the avail index.
    pub(crate) fn set_index(&mut self, machine: &mut dyn Machine, index: u16) {
        self.next = index;
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        machine.write(self.avail + 2, Width::Word, index.into());
    }

    /// Used entries that the device has written.
    pub(crate) fn used_index(&self, machine: &mut dyn Machine) -> u16 {
        machine.read(self.used + 2, Width::Word) as u16
    }

    /// The next used entry: head and length.
    pub(crate) fn take(&mut self, machine: &mut dyn Machine) -> Option<(u32, u32)> {
        if self.used_index(machine) == self.seen {
            return None;
        }
        let at = self.used + 4 + 8 * u64::from(self.seen % self.size);
        self.seen = self.seen.wrapping_add(1);
        Some((machine.read(at, Width::Double) as u32, machine.read(at + 4, Width::Double) as u32))
    }
}

/// Writes a descriptor of any table.
pub(crate) fn descriptor(
    machine: &mut dyn Machine,
    table: u64,
    index: u16,
    (address, len, flags): (u64, u32, u16),
    next: u16,
) {
    let at = table + 16 * u64::from(index);
    machine.write(at, Width::Quad, address);
    machine.write(at + 8, Width::Double, len.into());
    machine.write(at + 12, Width::Word, flags.into());
    machine.write(at + 14, Width::Word, next.into());
}
