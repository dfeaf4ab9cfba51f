//! Nested virtualisation of a vCPU, and the registers that KVM takes or refuses by it.
//!
//! What KVM does with a register depends on what the vCPU is at that moment. While VMX is on, it refuses CR4
//! without VMXE, and blocks INIT; while an inner guest runs, the registers are the inner guest's. So a vCPU
//! that is to become something else leaves nested operation first.

use std::fmt;
use std::sync::Arc;

use kvm_bindings::{kvm_mp_state, kvm_regs, kvm_sregs};
use kvm_ioctls::{KvmNestedStateBuffer, VcpuFd};

/// A call, and why the kernel has refused it.
pub(super) type Refused = (&'static str, kvm_ioctls::Error);

/// Nested state of a vCPU that has never switched virtualisation on.
#[derive(Clone)]
pub(super) struct Outside(Arc<KvmNestedStateBuffer>);

impl fmt::Debug for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Outside")
    }
}

impl Outside {
    /// What `vcpu`, which must not have run yet, has; `None` if this host's KVM does not tell.
    pub(super) fn of_fresh(vcpu: &VcpuFd) -> Option<Self> {
        let mut state = KvmNestedStateBuffer::empty();
        vcpu.nested_state(&mut state).ok()?;
        Some(Self(Arc::new(state)))
    }

    #[cfg(test)]
    pub(super) fn state(&self) -> &KvmNestedStateBuffer {
        &self.0
    }
}

/// The calls whose outcome depends on nested operation.
pub(super) trait CoreRegisters {
    /// `KVM_SET_NESTED_STATE`
    fn set_nested_state(&self, state: &KvmNestedStateBuffer) -> Result<(), kvm_ioctls::Error>;
    /// `KVM_SET_MP_STATE`
    fn set_mp_state(&self, state: kvm_mp_state) -> Result<(), kvm_ioctls::Error>;
    /// `KVM_SET_REGS`
    fn set_regs(&self, regs: &kvm_regs) -> Result<(), kvm_ioctls::Error>;
    /// `KVM_SET_SREGS`
    fn set_sregs(&self, sregs: &kvm_sregs) -> Result<(), kvm_ioctls::Error>;
}

impl CoreRegisters for VcpuFd {
    fn set_nested_state(&self, state: &KvmNestedStateBuffer) -> Result<(), kvm_ioctls::Error> {
        Self::set_nested_state(self, state)
    }

    fn set_mp_state(&self, state: kvm_mp_state) -> Result<(), kvm_ioctls::Error> {
        Self::set_mp_state(self, state)
    }

    fn set_regs(&self, regs: &kvm_regs) -> Result<(), kvm_ioctls::Error> {
        Self::set_regs(self, regs)
    }

    fn set_sregs(&self, sregs: &kvm_sregs) -> Result<(), kvm_ioctls::Error> {
        Self::set_sregs(self, sregs)
    }
}

/// The registers of a vCPU that decide in which mode it runs.
pub(super) struct Core<'a> {
    pub(super) mp_state: kvm_mp_state,
    pub(super) regs: &'a kvm_regs,
    pub(super) sregs: &'a kvm_sregs,
}

impl Core<'_> {
    /// Writes them, whatever the vCPU did before. It is outside of nested operation afterwards.
    pub(super) fn restore(&self, vcpu: &impl CoreRegisters, outside: Option<&Outside>) -> Result<(), Refused> {
        let refused = |call| move |error| (call, error);
        if let Some(Outside(state)) = outside {
            vcpu.set_nested_state(state).map_err(refused("KVM_SET_NESTED_STATE"))?;
        }
        vcpu.set_mp_state(self.mp_state).map_err(refused("KVM_SET_MP_STATE"))?;
        vcpu.set_regs(self.regs).map_err(refused("KVM_SET_REGS"))?;
        vcpu.set_sregs(self.sregs).map_err(refused("KVM_SET_SREGS"))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use kvm_bindings::{KVM_MP_STATE_INIT_RECEIVED, KVM_STATE_NESTED_GUEST_MODE};

    const CR4_VMXE: u64 = 1 << 13;

    /// A vCPU with VMX, as far as it refuses things.
    #[derive(Default)]
    struct Vmx {
        on: Cell<bool>,
        inner: Cell<bool>,
        rip: Cell<u64>,
        cr4: Cell<u64>,
    }

    fn ok_if(ok: bool) -> Result<(), kvm_ioctls::Error> {
        if ok { Ok(()) } else { Err(kvm_ioctls::Error::new(libc::EINVAL)) }
    }

    impl CoreRegisters for Vmx {
        fn set_nested_state(&self, state: &KvmNestedStateBuffer) -> Result<(), kvm_ioctls::Error> {
            self.inner.set(u32::from(state.flags) & KVM_STATE_NESTED_GUEST_MODE != 0);
            // SAFETY: the tests write no other member of the union.
            self.on.set(unsafe { state.hdr.vmx.vmxon_pa } != u64::MAX);
            Ok(())
        }

        fn set_mp_state(&self, state: kvm_mp_state) -> Result<(), kvm_ioctls::Error> {
            ok_if(!self.on.get() || state.mp_state != KVM_MP_STATE_INIT_RECEIVED)
        }

        fn set_regs(&self, regs: &kvm_regs) -> Result<(), kvm_ioctls::Error> {
            if !self.inner.get() {
                self.rip.set(regs.rip);
            }
            Ok(())
        }

        fn set_sregs(&self, sregs: &kvm_sregs) -> Result<(), kvm_ioctls::Error> {
            ok_if(!self.on.get() || sregs.cr4 & CR4_VMXE != 0)?;
            if !self.inner.get() {
                self.cr4.set(sregs.cr4);
            }
            Ok(())
        }
    }

    fn nested(vmxon_pa: u64, flags: u32) -> KvmNestedStateBuffer {
        let mut state = KvmNestedStateBuffer::empty();
        state.flags = flags as u16;
        state.hdr.vmx.vmxon_pa = vmxon_pa;
        state
    }

    #[test]
    fn a_vcpu_in_nested_operation_becomes_one_that_is_not() {
        let outside = Outside(Arc::new(nested(u64::MAX, 0)));
        let (vcpu, regs) = (Vmx::default(), kvm_regs { rip: 1, ..Default::default() });
        let inner = KVM_STATE_NESTED_GUEST_MODE;
        let cases = [(0, 0, 0), (inner, 0, 0), (inner, CR4_VMXE, 0), (0, 0, KVM_MP_STATE_INIT_RECEIVED)];
        for (before, cr4, mp_state) in cases {
            vcpu.set_nested_state(&nested(0x1000, before)).unwrap();
            let sregs = kvm_sregs { cr4, ..Default::default() };
            let core = Core { mp_state: kvm_mp_state { mp_state }, regs: &regs, sregs: &sregs };
            vcpu.rip.set(0);
            core.restore(&vcpu, Some(&outside)).unwrap();
            assert_eq!((vcpu.on.get(), vcpu.rip.get(), vcpu.cr4.get()), (false, 1, cr4));
        }
    }
}
