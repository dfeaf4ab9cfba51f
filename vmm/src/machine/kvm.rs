//! KVM calls that kvm-ioctls does not have, or has only in a form that allocates.
//!
//! In: file descriptors of kvm-ioctls. Out: what the kernel says, into buffers of the caller.

use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::{
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_device_attr, kvm_dirty_log, kvm_dirty_log__bindgen_ty_1, kvm_enable_cap,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_iow_nr, ioctl_iowr_nr};

/// Numbers of the calls below, from the kernel's header.
mod number {
    use super::{KVMIO, ioctl_iow_nr, ioctl_iowr_nr, kvm_clear_dirty_log, kvm_device_attr, kvm_dirty_log};

    ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
    ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
    ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
    ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
}
use number::{KVM_CLEAR_DIRTY_LOG, KVM_GET_DEVICE_ATTR, KVM_GET_DIRTY_LOG, KVM_SET_DEVICE_ATTR};

/// Why no VM can be made on this host.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The device cannot be opened.
    #[error("cannot open /dev/kvm (is the kvm module loaded, and may this user use it?)")]
    Open(#[source] io::Error),
    /// A capability that nothing works without.
    #[error("this host's KVM lacks {0}")]
    Missing(&'static str),
    /// The VM itself.
    #[error("cannot create a KVM virtual machine")]
    Create(#[source] io::Error),
    /// A set-up call that every host answers.
    #[error("cannot set up the virtual machine: {what}")]
    Setup {
        /// Which call.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Opens KVM and checks for what no part of Pollux can do without; everything else is probed where it is
/// used.
///
/// # Errors
/// When KVM cannot be used at all.
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|e| KvmError::Open(e.into()))?;
    let needed = [
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
        (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
        (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
        (Cap::Irqfd, "KVM_CAP_IRQFD"),
        (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
        (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
        (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    ];
    match needed.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, name)) => Err(KvmError::Missing(name)),
        None => Ok(kvm),
    }
}

/// Lets [`clear_dirty_log`] decide when pages are protected again, instead of every [`get_dirty_log`] doing
/// it for all. False when this host's KVM cannot: reading the log clears it then.
pub fn enable_manual_dirty_log(vm: &VmFd) -> bool {
    // Without INITIALLY_SET: pages that were never written are not dirty, so the first harvest is not the
    // whole memory.
    let mut cap = kvm_enable_cap { cap: kvm_bindings::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, ..Default::default() };
    cap.args[0] = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE.into();
    vm.enable_cap(&cap).is_ok()
}

/// Reads the dirty log of `slot`, one bit a page, into `bitmap`.
///
/// # Errors
/// When KVM refuses, for example because logging is off.
///
/// # Panics
/// When `bitmap` is smaller than the `pages` of the slot need.
pub fn get_dirty_log(vm: &VmFd, slot: u32, pages: u64, bitmap: &mut [u64]) -> io::Result<()> {
    assert!(bitmap.len() as u64 >= pages.div_ceil(64), "bitmap of slot {slot} is too small");
    let log = kvm_dirty_log {
        slot,
        padding1: 0,
        __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { dirty_bitmap: bitmap.as_mut_ptr().cast() },
    };
    // SAFETY: the kernel writes one bit for each page of the slot, rounded up to 64, which the check above
    // has room for.
    match unsafe { ioctl_with_ref(vm, KVM_GET_DIRTY_LOG(), &log) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes the pages whose bits are set in `bitmap` out of the log of `slot` and write-protects them again. Bit
/// 0 is `first_page`, a multiple of 64; `pages` is one too unless the range ends with the slot.
///
/// # Errors
/// When KVM refuses the range.
///
/// # Panics
/// When `bitmap` is smaller than `pages` need.
pub fn clear_dirty_log(vm: &VmFd, slot: u32, first_page: u64, pages: u32, bitmap: &[u64]) -> io::Result<()> {
    assert!(bitmap.len() as u64 >= u64::from(pages).div_ceil(64), "bitmap of slot {slot} is too small");
    let log = kvm_clear_dirty_log {
        slot,
        num_pages: pages,
        first_page,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 { dirty_bitmap: bitmap.as_ptr().cast_mut().cast() },
    };
    // SAFETY: the kernel reads one bit for each of `pages`, rounded up to 64, which the check above has room
    // for.
    match unsafe { ioctl_with_ref(vm, KVM_CLEAR_DIRTY_LOG(), &log) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn tsc_offset_attr(value: &mut u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: std::ptr::from_mut(value) as u64,
    }
}

/// What this vCPU's TSC is ahead of the host's; `None` when KVM does not tell.
pub fn tsc_offset(vcpu: &VcpuFd) -> Option<u64> {
    let mut value = 0;
    let mut attr = tsc_offset_attr(&mut value);
    // SAFETY: the kernel writes one u64 at `addr`, which is `value`.
    let result = unsafe { ioctl_with_mut_ref(&vcpu.as_raw_fd(), KVM_GET_DEVICE_ATTR(), &mut attr) };
    (result == 0).then_some(value)
}

/// Sets what this vCPU's TSC is ahead of the host's.
///
/// # Errors
/// When KVM has no such attribute.
pub fn set_tsc_offset(vcpu: &VcpuFd, mut value: u64) -> io::Result<()> {
    let attr = tsc_offset_attr(&mut value);
    // SAFETY: the kernel reads one u64 at `addr`, which is `value`.
    match unsafe { ioctl_with_ref(&vcpu.as_raw_fd(), KVM_SET_DEVICE_ATTR(), &attr) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether the TSC offset of `vcpu`, which has not run yet, can be set: a KVM that cannot trap the
/// instruction takes the value and forgets it.
pub fn has_tsc_offset(vcpu: &VcpuFd) -> bool {
    const PROBE: u64 = 1 << 40;
    let Some(before) = tsc_offset(vcpu) else { return false };
    let other = before ^ PROBE;
    let works = set_tsc_offset(vcpu, other).is_ok() && tsc_offset(vcpu) == Some(other);
    works && set_tsc_offset(vcpu, before).is_ok()
}
