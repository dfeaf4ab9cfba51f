//! Guest memory and the driver's side of split virtqueues.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};

use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::{MEMORY, NEXT, PATIENCE_MS, QUEUE_SIZE, readable};

/// A split virtqueue, driver's side.
pub struct Queue {
    pub index: usize,
    pub base: u64,
    pub event_idx: bool,
    pub avail: u16,
    pub seen: u16,
    next: u16,
    pub kick: EventFd,
    pub call: EventFd,
    /// Written by the device when the queue makes no sense to it.
    pub broken: EventFd,
}

impl Queue {
    pub fn new(index: usize, event_idx: bool) -> Self {
        let base = index as u64 * 0x4000;
        let new = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).unwrap();
        Self { index, base, event_idx, avail: 0, seen: 0, next: 0, kick: new(), call: new(), broken: new() }
    }

    pub fn desc_at(&self, i: u16) -> u64 {
        self.base + u64::from(i) * 16
    }

    pub fn avail_at(&self) -> u64 {
        self.base + 0x1000
    }

    pub fn used_at(&self) -> u64 {
        self.base + 0x2000
    }

    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Waits until the device has found the queue broken. False: it has not after `ms`.
    pub fn is_broken(&self, ms: i32) -> bool {
        readable(self.broken.as_raw_fd(), ms)
    }

    /// Interrupts since the last call.
    pub fn interrupts(&self) -> u64 {
        self.call.read().unwrap_or(0)
    }
}

/// Guest memory.
pub struct Guest {
    pub memory: GuestMemoryMmap,
    pub file: File,
}

pub fn memfd(len: usize) -> File {
    // SAFETY: a constant name.
    let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: just made.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len as u64).unwrap();
    file
}

impl Guest {
    pub fn new() -> Self {
        let file = memfd(MEMORY);
        let range = (GuestAddress(0), MEMORY, Some(FileOffset::new(file.try_clone().unwrap(), 0)));
        Self { memory: GuestMemoryMmap::from_ranges_with_files([range]).unwrap(), file }
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    pub fn u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.read(at, 2).try_into().unwrap())
    }

    pub fn put_u16(&self, at: u64, value: u16) {
        self.write(at, &value.to_le_bytes());
    }

    pub fn descriptor(&self, at: u64, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.write(at, &bytes);
    }

    /// Makes `head` available, without a kick.
    pub fn offer(&self, queue: &mut Queue, head: u16) {
        self.put_u16(queue.avail_at() + 4 + 2 * u64::from(queue.avail % QUEUE_SIZE), head);
        queue.avail = queue.avail.wrapping_add(1);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.put_u16(queue.avail_at() + 2, queue.avail);
    }

    /// Puts (address, len, flags) pieces into the table as one chain and makes it available, without a kick.
    pub fn add(&self, queue: &mut Queue, pieces: &[(u64, u32, u16)]) -> u16 {
        let head = queue.next;
        for (i, (address, len, flags)) in pieces.iter().enumerate() {
            let (at, next) = (queue.next, (queue.next + 1) % QUEUE_SIZE);
            let chained = if i + 1 < pieces.len() { NEXT } else { 0 };
            self.descriptor(queue.desc_at(at), *address, *len, flags | chained, next);
            queue.next = next;
        }
        self.offer(queue, head);
        head
    }

    pub fn used_idx(&self, queue: &Queue) -> u16 {
        self.u16(queue.used_at() + 2)
    }

    /// Waits, by interrupt, for `n` used entries; returns (head, len) of each.
    pub fn used(&self, queue: &mut Queue, n: u16) -> Vec<(u16, u32)> {
        let target = queue.seen.wrapping_add(n);
        if queue.event_idx {
            self.put_u16(queue.avail_at() + 4 + 2 * u64::from(QUEUE_SIZE), target.wrapping_sub(1));
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        }
        while self.used_idx(queue).wrapping_sub(queue.seen) < n {
            assert!(readable(queue.call.as_raw_fd(), PATIENCE_MS), "queue {} stands still", queue.index);
            queue.interrupts();
        }
        (0..n)
            .map(|_| {
                let at = queue.used_at() + 4 + 8 * u64::from(queue.seen % QUEUE_SIZE);
                queue.seen = queue.seen.wrapping_add(1);
                let bytes = self.read(at, 8);
                let word = |i: usize| u32::from_le_bytes(bytes[i..i + 4].try_into().unwrap());
                (word(0) as u16, word(4))
            })
            .collect()
    }
}
