//! The registers of one vCPU: read at a checkpoint, written back on another host.
//!
//! In: a parked vCPU, on its own thread. Out: bytes in a fixed order, or the vCPU as it was. Never: an
//! allocation while capturing; a feature this host lacks is left out, not an error.
//!
//! Order of capture: MP_STATE first, because reading it lets KVM act on a pending INIT or SIPI, which changes
//! registers. Then a `KVM_RUN` that returns at once hands over REGS, SREGS and VCPU_EVENTS together (loading
//! the vCPU costs more than the data), then the rest.
//!
//! Order of restore (CPUID is set when the vCPU is made, so it always comes first): out of nested operation
//! before anything else, see `nested`; MP_STATE and SREGS before LAPIC, as the APIC's base and mode are in
//! SREGS; LAPIC before MSRS, as the TSC deadline arms the LAPIC's timer; the TSC before the deadline among
//! the MSRS; REGS before VCPU_EVENTS, as setting REGS drops a pending exception.

use std::io;

use kvm_bindings::{
    KVM_SYNC_X86_EVENTS, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, KVM_SYNC_X86_VALID_FIELDS, Msrs, Xsave, kvm_debugregs,
    kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Cap, Kvm, KvmNestedStateBuffer, VcpuExit, VcpuFd};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, IntoBytes};

use super::msr::{self, IA32_TSC};
use super::nested::{Core, Outside};
use crate::machine::state::Bytes;

/// Version of the section of a vCPU.
pub const VERSION: u16 = 1;
/// Bytes of the XSAVE area without extensions.
const XSAVE_MIN: usize = 4096;
const EFER_SVME: u64 = 1 << 12;
const CR4_VMXE: u64 = 1 << 13;
/// How far two hosts' TSC frequencies may differ before the guest's must be scaled, in parts per million.
const TSC_TOLERANCE_PPM: u64 = 250;

/// What failed on a vCPU.
#[derive(Debug, thiserror::Error)]
pub enum VcpuStateError {
    /// The kernel refused a call.
    #[error("{call} failed")]
    Kvm {
        /// The call.
        call: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A register of the checkpoint does not exist here.
    #[error("this host does not take value {value:#x} of msr {index:#x}")]
    Msr {
        /// Register.
        index: u32,
        /// Value in the checkpoint.
        value: u64,
    },
    /// The state's TSC runs at a speed this host cannot give the guest.
    #[error("the guest's TSC runs at {guest} kHz, this host can only give it {here} kHz")]
    TscKhz {
        /// At the guest.
        guest: u32,
        /// Of this host.
        here: u32,
    },
    /// A part of the state has another size than here.
    #[error("saved {0} is not of the size that this host uses")]
    Size(&'static str),
    /// The guest uses something that this host has no means to restore.
    #[error("the guest uses {0}, which this host cannot restore")]
    Lacking(&'static str),
    /// Running for no time at all did not return as it must.
    #[error("vCPU left KVM_RUN for an unexpected reason: {0}")]
    Exit(String),
}

fn kvm(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> VcpuStateError {
    move |e| VcpuStateError::Kvm { call, source: e.into() }
}

/// What this host's KVM can tell of a vCPU; found out once, on a fresh one.
#[derive(Clone, Debug)]
pub struct Features {
    /// REGS, SREGS and events come with `KVM_RUN`.
    sync_regs: bool,
    xcrs: bool,
    debug_regs: bool,
    /// `None` if this host's KVM can neither tell nor set nested state.
    nested: Option<Outside>,
    /// The vCPUs' TSC offsets can be read and set.
    pub tsc_offset: bool,
    tsc_scaling: bool,
    /// Bytes of the XSAVE area.
    xsave_size: usize,
    /// `KVM_GET_XSAVE2` exists.
    xsave2: bool,
    /// kHz of the guest's TSC; zero if the host does not tell.
    pub tsc_khz: u32,
    msrs: Vec<u32>,
}

impl Features {
    /// Tries everything on `vcpu`, which must not have run yet.
    ///
    /// # Errors
    /// When KVM does not even list its MSRs.
    pub fn probe(kvm_fd: &Kvm, vcpu: &VcpuFd) -> Result<Self, VcpuStateError> {
        let sync = kvm_fd.check_extension_int(Cap::SyncRegs) as u32;
        let xsave2 = kvm_fd.check_extension_raw(kvm_bindings::KVM_CAP_XSAVE2.into());
        Ok(Self {
            sync_regs: sync & KVM_SYNC_X86_VALID_FIELDS == KVM_SYNC_X86_VALID_FIELDS,
            xcrs: vcpu.get_xcrs().is_ok(),
            debug_regs: vcpu.get_debug_regs().is_ok(),
            nested: Outside::of_fresh(vcpu),
            tsc_offset: crate::machine::kvm::has_tsc_offset(vcpu),
            tsc_scaling: kvm_fd.check_extension(Cap::TscControl),
            xsave_size: usize::try_from(xsave2).unwrap_or(0).max(XSAVE_MIN),
            xsave2: xsave2 > 0,
            tsc_khz: vcpu.get_tsc_khz().unwrap_or(0),
            msrs: msr::saved_msrs(kvm_fd, vcpu).map_err(kvm("KVM_GET_MSR_INDEX_LIST"))?,
        })
    }

    /// Whether the TSC of a guest that runs at `khz` can run at that speed here.
    ///
    /// # Errors
    /// When it cannot.
    pub fn can_run_tsc_at(&self, khz: u32) -> Result<(), VcpuStateError> {
        if self.must_scale_tsc_to(khz) && !self.tsc_scaling {
            return Err(VcpuStateError::TscKhz { guest: khz, here: self.tsc_khz });
        }
        Ok(())
    }

    fn must_scale_tsc_to(&self, khz: u32) -> bool {
        let here = self.tsc_khz;
        let difference = u64::from(khz.abs_diff(here));
        khz != 0 && here != 0 && difference * 1_000_000 > u64::from(here) * TSC_TOLERANCE_PPM
    }
}

/// The registers of one vCPU; made once, overwritten by every capture.
pub struct VcpuState {
    regs: kvm_regs,
    sregs: kvm_sregs,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
    debug_regs: kvm_debugregs,
    xcrs: kvm_xcrs,
    lapic: kvm_lapic_state,
    xsave: Xsave,
    msrs: Msrs,
    nested: Box<KvmNestedStateBuffer>,
    has_nested: bool,
    tsc_khz: u32,
    /// Not part of the state, which must not depend on the host; see `clock`.
    tsc_offset: Option<u64>,
}

/// A vCPU's section: the kernel's own structures as bytes, in a fixed order.
#[derive(Serialize, Deserialize)]
struct Wire<'a> {
    tsc_khz: u32,
    #[serde(borrow)]
    regs: Bytes<'a>,
    sregs: Bytes<'a>,
    events: Bytes<'a>,
    mp_state: Bytes<'a>,
    debug_regs: Bytes<'a>,
    xcrs: Bytes<'a>,
    lapic: Bytes<'a>,
    xsave: Bytes<'a>,
    xsave_extra: Bytes<'a>,
    msrs: Bytes<'a>,
    nested: Bytes<'a>,
}

/// The section's form, for the writer; see [`VcpuState::wire`].
pub struct Section<'a>(Wire<'a>);

impl Serialize for Section<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Section<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Wire::deserialize(deserializer).map(Section)
    }
}

impl VcpuState {
    /// Room for the registers of a vCPU of this host.
    ///
    /// # Errors
    /// When there are more MSRs than one call can carry.
    pub fn new(features: &Features) -> Result<Self, VcpuStateError> {
        let entries: Vec<_> =
            features.msrs.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
        let extra = (features.xsave_size - XSAVE_MIN).div_ceil(4);
        Ok(Self {
            regs: kvm_regs::default(),
            sregs: kvm_sregs::default(),
            events: kvm_vcpu_events::default(),
            mp_state: kvm_mp_state::default(),
            debug_regs: kvm_debugregs::default(),
            xcrs: kvm_xcrs::default(),
            lapic: kvm_lapic_state::default(),
            xsave: Xsave::new(extra).map_err(|_| VcpuStateError::Size("XSAVE area"))?,
            msrs: Msrs::from_entries(&entries).map_err(|_| VcpuStateError::Size("MSR list"))?,
            nested: Box::new(KvmNestedStateBuffer::empty()),
            has_nested: false,
            tsc_khz: features.tsc_khz,
            tsc_offset: None,
        })
    }

    /// Reads the registers that only the vCPU itself changes. It must have no I/O pending: its last `KVM_RUN`
    /// returned EINTR.
    ///
    /// # Errors
    /// When the kernel refuses one of the calls that worked before.
    pub fn capture_own(&mut self, vcpu: &VcpuFd, features: &Features) -> Result<(), VcpuStateError> {
        self.capture_xsave(vcpu, features)?;
        if features.xcrs {
            self.xcrs = vcpu.get_xcrs().map_err(kvm("KVM_GET_XCRS"))?;
        }
        Ok(())
    }

    /// Reads the others, which other vCPUs change too, while they run, by interrupts: all must be parked.
    ///
    /// # Errors
    /// When the kernel refuses one of the calls that worked before.
    pub fn capture_rest(&mut self, vcpu: &mut VcpuFd, features: &Features) -> Result<(), VcpuStateError> {
        self.mp_state = vcpu.get_mp_state().map_err(kvm("KVM_GET_MP_STATE"))?;
        if features.sync_regs {
            self.capture_sync_regs(vcpu)?;
        } else {
            self.regs = vcpu.get_regs().map_err(kvm("KVM_GET_REGS"))?;
            self.sregs = vcpu.get_sregs().map_err(kvm("KVM_GET_SREGS"))?;
            self.events = vcpu.get_vcpu_events().map_err(kvm("KVM_GET_VCPU_EVENTS"))?;
        }
        // INIT from another vCPU resets them.
        if features.debug_regs {
            self.debug_regs = vcpu.get_debug_regs().map_err(kvm("KVM_GET_DEBUGREGS"))?;
        }
        self.lapic = vcpu.get_lapic().map_err(kvm("KVM_GET_LAPIC"))?;
        self.capture_nested(vcpu, features)?;
        let read = vcpu.get_msrs(&mut self.msrs).map_err(kvm("KVM_GET_MSRS"))?;
        match self.msrs.as_slice().get(read) {
            Some(entry) => Err(VcpuStateError::Msr { index: entry.index, value: 0 }),
            None => Ok(()),
        }
    }

    fn capture_sync_regs(&mut self, vcpu: &mut VcpuFd) -> Result<(), VcpuStateError> {
        let run = vcpu.get_kvm_run();
        run.kvm_valid_regs = u64::from(KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS);
        // The pause has set it already; a capture that follows a load of a parked vCPU has not.
        run.immediate_exit = 1;
        match vcpu.run() {
            Err(e) if e.errno() == libc::EINTR => {}
            Err(e) => return Err(kvm("KVM_RUN")(e)),
            Ok(exit) => return Err(VcpuStateError::Exit(describe(&exit))),
        }
        let sync = vcpu.sync_regs();
        (self.regs, self.sregs, self.events) = (sync.regs, sync.sregs, sync.events);
        vcpu.get_kvm_run().kvm_valid_regs = 0;
        Ok(())
    }

    fn capture_xsave(&mut self, vcpu: &VcpuFd, features: &Features) -> Result<(), VcpuStateError> {
        if features.xsave2 {
            // SAFETY: the buffer was made as large as KVM_CAP_XSAVE2 says.
            unsafe { vcpu.get_xsave2(&mut self.xsave) }.map_err(kvm("KVM_GET_XSAVE2"))
        } else {
            let xsave = vcpu.get_xsave().map_err(kvm("KVM_GET_XSAVE"))?;
            // SAFETY: only the fixed part is written; the length of the flexible part, zero here, stays.
            unsafe { self.xsave.as_mut_fam_struct() }.xsave.region = xsave.region;
            Ok(())
        }
    }

    /// Only a guest that has switched virtualisation on has nested state.
    fn capture_nested(&mut self, vcpu: &VcpuFd, features: &Features) -> Result<(), VcpuStateError> {
        self.has_nested = self.sregs.efer & EFER_SVME != 0 || self.sregs.cr4 & CR4_VMXE != 0;
        if !self.has_nested {
            return Ok(());
        }
        if features.nested.is_none() {
            return Err(VcpuStateError::Lacking("virtualisation"));
        }
        *self.nested = KvmNestedStateBuffer::empty();
        vcpu.nested_state(&mut self.nested).map(|_| ()).map_err(kvm("KVM_GET_NESTED_STATE"))
    }

    #[cfg(test)]
    pub(super) fn lapic(&self) -> &kvm_lapic_state {
        &self.lapic
    }

    /// Writes all registers into a parked vCPU, which may have been anything else before.
    ///
    /// # Errors
    /// When this host cannot give the guest what it had.
    pub fn restore(&self, vcpu: &VcpuFd, features: &Features) -> Result<(), VcpuStateError> {
        self.restore_tsc_khz(vcpu, features)?;
        let core = Core { mp_state: self.mp_state, regs: &self.regs, sregs: &self.sregs };
        core.restore(vcpu, features.nested.as_ref()).map_err(|(call, error)| kvm(call)(error))?;
        // SAFETY: the buffer is as large as this host's KVM reads, `load` checked that.
        unsafe { vcpu.set_xsave2(&self.xsave) }.map_err(kvm("KVM_SET_XSAVE"))?;
        if features.xcrs {
            vcpu.set_xcrs(&self.xcrs).map_err(kvm("KVM_SET_XCRS"))?;
        }
        if features.debug_regs {
            vcpu.set_debug_regs(&self.debug_regs).map_err(kvm("KVM_SET_DEBUGREGS"))?;
        }
        vcpu.set_lapic(&self.lapic).map_err(kvm("KVM_SET_LAPIC"))?;
        if self.has_nested {
            if features.nested.is_none() {
                return Err(VcpuStateError::Lacking("virtualisation"));
            }
            vcpu.set_nested_state(&self.nested).map_err(kvm("KVM_SET_NESTED_STATE"))?;
        }
        self.restore_msrs(vcpu)?;
        vcpu.set_vcpu_events(&self.events).map_err(kvm("KVM_SET_VCPU_EVENTS"))
    }

    fn restore_tsc_khz(&self, vcpu: &VcpuFd, features: &Features) -> Result<(), VcpuStateError> {
        features.can_run_tsc_at(self.tsc_khz)?;
        if !features.must_scale_tsc_to(self.tsc_khz) {
            return Ok(());
        }
        vcpu.set_tsc_khz(self.tsc_khz).map_err(kvm("KVM_SET_TSC_KHZ"))
    }

    /// All at once; what one call leaves off at is looked at and skipped if it makes no difference.
    fn restore_msrs(&self, vcpu: &VcpuFd) -> Result<(), VcpuStateError> {
        let mut rest = self.msrs.as_slice();
        let mut done = vcpu.set_msrs(&self.msrs).map_err(kvm("KVM_SET_MSRS"))?;
        while let Some(entry) = rest.get(done) {
            let refused = VcpuStateError::Msr { index: entry.index, value: entry.data };
            let mut here = Msrs::from_entries(&[*entry]).map_err(|_| VcpuStateError::Size("MSR list"))?;
            let same = vcpu.get_msrs(&mut here) == Ok(1) && here.as_slice()[0].data == entry.data;
            if !same && entry.data != 0 {
                return Err(refused);
            }
            rest = &rest[done + 1..];
            if rest.is_empty() {
                break;
            }
            let msrs = Msrs::from_entries(rest).map_err(|_| VcpuStateError::Size("MSR list"))?;
            done = vcpu.set_msrs(&msrs).map_err(kvm("KVM_SET_MSRS"))?;
        }
        Ok(())
    }

    /// The guest's time stamp counter at capture, in ticks.
    #[must_use]
    pub fn tsc(&self) -> u64 {
        self.msrs.as_slice().iter().find(|entry| entry.index == IA32_TSC).map_or(0, |entry| entry.data)
    }

    /// Sets the time stamp counter that a restore will give the guest, in ticks.
    pub fn set_tsc(&mut self, value: u64) {
        for entry in self.msrs.as_mut_slice().iter_mut().filter(|entry| entry.index == IA32_TSC) {
            entry.data = value;
        }
    }

    /// Reads what the vCPU's time stamp counter is ahead of the host's. One vCPU is enough, as they are kept
    /// in step.
    pub fn capture_tsc_offset(&mut self, vcpu: &VcpuFd, features: &Features) {
        self.tsc_offset = if features.tsc_offset { crate::machine::kvm::tsc_offset(vcpu) } else { None };
    }

    /// What [`VcpuState::capture_tsc_offset`] has read.
    #[must_use]
    pub fn tsc_offset(&self) -> Option<u64> {
        self.tsc_offset
    }

    /// kHz of the guest's TSC after a restore on this host.
    #[must_use]
    pub fn restored_tsc_khz(&self, features: &Features) -> u32 {
        if features.must_scale_tsc_to(self.tsc_khz) { self.tsc_khz } else { features.tsc_khz }
    }

    /// Captures say from now on that the guest's TSC runs at `khz`.
    pub fn set_tsc_khz(&mut self, khz: u32) {
        self.tsc_khz = khz;
    }

    /// Instruction pointer at capture, for messages and tests.
    #[must_use]
    pub fn rip(&self) -> u64 {
        self.regs.rip
    }

    /// As a section of saved state.
    #[must_use]
    pub fn wire(&self) -> Section<'_> {
        Section(Wire {
            tsc_khz: self.tsc_khz,
            regs: Bytes(self.regs.as_bytes()),
            sregs: Bytes(self.sregs.as_bytes()),
            events: Bytes(self.events.as_bytes()),
            mp_state: Bytes(self.mp_state.as_bytes()),
            debug_regs: Bytes(self.debug_regs.as_bytes()),
            xcrs: Bytes(self.xcrs.as_bytes()),
            lapic: Bytes(self.lapic.as_bytes()),
            xsave: Bytes(self.xsave.as_fam_struct_ref().xsave.region.as_bytes()),
            xsave_extra: Bytes(self.xsave.as_slice().as_bytes()),
            msrs: Bytes(self.msrs.as_slice().as_bytes()),
            nested: Bytes(if self.has_nested { self.nested.as_bytes() } else { &[] }),
        })
    }

    /// Becomes what a section says; nothing reaches the vCPU yet.
    ///
    /// # Errors
    /// When a part is not of the size this host uses.
    pub fn load(&mut self, section: &Section<'_>) -> Result<(), VcpuStateError> {
        let wire = &section.0;
        self.tsc_khz = wire.tsc_khz;
        self.regs = structure(&wire.regs, "REGS")?;
        self.sregs = structure(&wire.sregs, "SREGS")?;
        self.events = structure(&wire.events, "VCPU_EVENTS")?;
        self.mp_state = structure(&wire.mp_state, "MP_STATE")?;
        self.debug_regs = structure(&wire.debug_regs, "DEBUGREGS")?;
        self.xcrs = structure(&wire.xcrs, "XCRS")?;
        self.lapic = structure(&wire.lapic, "LAPIC")?;
        // SAFETY: only the fixed part is written; the length of the flexible part stays.
        unsafe { self.xsave.as_mut_fam_struct() }.xsave.region = structure(&wire.xsave, "XSAVE")?;
        load_xsave_extra(self.xsave.as_mut_slice().as_mut_bytes(), wire.xsave_extra.0)?;
        let (entries, tail) = wire.msrs.0.as_chunks::<{ size_of::<kvm_msr_entry>() }>();
        if !tail.is_empty() {
            return Err(VcpuStateError::Size("MSR list"));
        }
        let entries: Result<Vec<_>, _> = entries.iter().map(|bytes| structure(&Bytes(bytes), "MSR list")).collect();
        self.msrs = Msrs::from_entries(&entries?).map_err(|_| VcpuStateError::Size("MSR list"))?;
        self.has_nested = !wire.nested.0.is_empty();
        if self.has_nested {
            *self.nested = structure(&wire.nested, "NESTED_STATE")?;
        }
        Ok(())
    }
}

/// The host that saved may have had a larger XSAVE area; what does not fit here must be unused.
fn load_xsave_extra(here: &mut [u8], saved: &[u8]) -> Result<(), VcpuStateError> {
    let common = saved.len().min(here.len());
    if saved[common..].iter().any(|byte| *byte != 0) {
        return Err(VcpuStateError::Size("XSAVE"));
    }
    here[..common].copy_from_slice(&saved[..common]);
    here[common..].fill(0);
    Ok(())
}

fn structure<T: FromBytes>(bytes: &Bytes<'_>, what: &'static str) -> Result<T, VcpuStateError> {
    T::read_from_bytes(bytes.0).map_err(|_| VcpuStateError::Size(what))
}

/// Name of an exit, without its data.
pub fn describe(exit: &VcpuExit<'_>) -> String {
    let text = format!("{exit:?}");
    text.split(['(', '{']).next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests;
