//! KVM's dirty ring of one vCPU: an entry for each page that the vCPU writes first since the page was watched.
//!
//! In: a vCPU of a VM for which [`crate::kvm::enable_dirty_rings`] succeeded. Out: (slot, page in the slot) of each entry. Never:
//! an entry taken twice. The pages are watched again by [`crate::kvm::reset_dirty_rings`].

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn};
use kvm_ioctls::VcpuFd;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::layout::PAGE_SIZE;

/// The kernel has filled the entry.
const DIRTY: u32 = 1;
/// We have taken it.
const TAKEN: u32 = 2;

/// The ring.
#[derive(Debug)]
pub struct Ring {
    entries: NonNull<kvm_dirty_gfn>,
    len: usize,
    at: usize,
}

// SAFETY: the mapping is used through this value only, by one thread at a time, and by the kernel, which keeps to the flags.
unsafe impl Send for Ring {}

impl Ring {
    /// That of `vcpu`, of `len` entries.
    ///
    /// # Errors
    /// When it cannot be mapped.
    pub fn new(vcpu: &VcpuFd, len: NonZeroUsize) -> io::Result<Self> {
        let offset = i64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE_SIZE as i64;
        let bytes = len.saturating_mul(NonZeroUsize::new(size_of::<kvm_dirty_gfn>()).unwrap_or(NonZeroUsize::MIN));
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the descriptor is open while `vcpu` lives, which is longer than this call.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let mapped = unsafe { mmap(None, bytes, rights, MapFlags::MAP_SHARED, fd, offset) }?;
        Ok(Self { entries: mapped.cast(), len: len.get(), at: 0 })
    }
}

impl Iterator for Ring {
    type Item = (u32, u64);

    fn next(&mut self) -> Option<Self::Item> {
        // SAFETY: `at` is below `len`, and the mapping has so many entries.
        let entry = unsafe { self.entries.add(self.at) }.as_ptr();
        // SAFETY: the kernel and we look at the flags atomically; they are aligned and live as long as the mapping.
        let flags = unsafe { AtomicU32::from_ptr(&raw mut (*entry).flags) };
        if flags.load(Ordering::Acquire) & DIRTY == 0 {
            return None;
        }
        // SAFETY: the kernel has filled the entry before it set the flag, and leaves it alone until the rings are reset.
        let (slot, page) = unsafe { ((*entry).slot, (*entry).offset) };
        flags.store(TAKEN, Ordering::Release);
        self.at = (self.at + 1) % self.len;
        Some((slot, page))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, so long, and not used any more.
        let _ = unsafe { munmap(self.entries.cast(), self.len * size_of::<kvm_dirty_gfn>()) };
    }
}
