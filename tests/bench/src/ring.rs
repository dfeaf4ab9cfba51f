//! KVM's dirty ring of one vCPU: the kernel adds an entry for each page that the vCPU writes for the first
//! time.
//!
//! In: a VM without vCPUs, then its vCPU. Out: how many entries there were since the last look; their pages
//! are watched again.

use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_DIRTY_LOG_PAGE_OFFSET, KVMIO, kvm_dirty_gfn, kvm_enable_cap};
use kvm_ioctls::{VcpuFd, VmFd};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

nix::ioctl_none!(reset_dirty_rings, KVMIO, 0xc7);

/// As many as KVM allows.
const ENTRIES: usize = 1 << 16;
const BYTES: usize = ENTRIES * size_of::<kvm_dirty_gfn>();
const DIRTY: u32 = 1;
const RESET: u32 = 2;

/// The ring.
pub struct Ring {
    entries: NonNull<kvm_dirty_gfn>,
    next: usize,
}

impl Ring {
    /// Switches a VM that has no vCPU yet to rings; false if this KVM has none.
    pub fn enable(vm: &VmFd) -> bool {
        let mut cap = kvm_enable_cap { cap: KVM_CAP_DIRTY_LOG_RING_ACQ_REL, ..Default::default() };
        cap.args[0] = BYTES as u64;
        vm.enable_cap(&cap).is_ok()
    }

    /// That of `vcpu`.
    pub fn of(vcpu: &VcpuFd) -> Self {
        let offset = i64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * 4096;
        let length = NonZeroUsize::new(BYTES).expect("a length");
        // SAFETY: the descriptor is open while `vcpu` lives, which is longer than this call.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        // SAFETY: a new mapping at an address of the kernel's choice harms nobody.
        let mapped = unsafe {
            mmap(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, fd, offset)
        };
        Self { entries: mapped.expect("the ring's mapping").cast(), next: 0 }
    }

    /// Takes all entries and has their pages watched again; returns how many there were.
    pub fn harvest(&mut self, vm: &VmFd) -> usize {
        let mut count = 0;
        while self.take().is_some() {
            count += 1;
        }
        // SAFETY: the call has no argument.
        unsafe { reset_dirty_rings(vm.as_raw_fd()) }.expect("KVM_RESET_DIRTY_RINGS");
        count
    }

    /// Slot and page, which whoever copies the page needs: reading them is part of what a ring costs.
    fn take(&mut self) -> Option<(u32, u64)> {
        // SAFETY: `next` is below `ENTRIES`, and the mapping has so many.
        let entry = unsafe { self.entries.add(self.next) };
        // SAFETY: the kernel and we look at the flags atomically; they are aligned and live as long as the
        // mapping.
        let flags = unsafe { AtomicU32::from_ptr(&raw mut (*entry.as_ptr()).flags) };
        if flags.load(Ordering::Acquire) & DIRTY == 0 {
            return None;
        }
        // SAFETY: the kernel has filled the entry before it set the flag and leaves it alone until the reset.
        let entry = unsafe { entry.read_volatile() };
        flags.store(RESET, Ordering::Release);
        self.next = (self.next + 1) % ENTRIES;
        Some((entry.slot, entry.offset))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, as long, and not used any more.
        let _ = unsafe { munmap(self.entries.cast(), BYTES) };
    }
}
