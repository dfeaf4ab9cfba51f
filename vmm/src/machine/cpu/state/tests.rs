//! All registers of one vCPU to another and back, on the real /dev/kvm.

use super::*;
use crate::machine::irq::IrqManager;
use crate::machine::state::{StateReader, StateWriter};
use std::sync::Arc;

struct Bench {
    fd: VcpuFd,
    features: Features,
}

fn fresh() -> Bench {
    let kvm = crate::machine::kvm::open().unwrap();
    let vm = Arc::new(kvm.create_vm().unwrap());
    IrqManager::new(vm.clone()).unwrap();
    let fd = vm.create_vcpu(0).unwrap();
    let options = crate::machine::cpu::cpuid::CpuidOptions {
        vcpus: 1,
        max_phys_bits: 46,
        amx: false,
        nested: true,
        tsc_khz: None,
    };
    let (table, _) = crate::machine::cpu::cpuid::common(&kvm, &options).unwrap();
    fd.set_cpuid2(&crate::machine::cpu::cpuid::for_vcpu(&table, 0).unwrap()).unwrap();
    let features = Features::probe(&kvm, &fd).unwrap();
    Bench { fd, features }
}

/// Sets a bit of everything that is not as after reset.
fn disturb(fd: &VcpuFd) {
    let mut regs = fd.get_regs().unwrap();
    (regs.rax, regs.r15, regs.rip, regs.rflags) = (1, 15, 0x1234, 0x246);
    fd.set_regs(&regs).unwrap();
    let mut sregs = fd.get_sregs().unwrap();
    (sregs.gdt.base, sregs.idt.limit, sregs.cr2) = (0x5000, 77, 0xdead);
    fd.set_sregs(&sregs).unwrap();
    let mut fpu = fd.get_fpu().unwrap();
    (fpu.fcw, fpu.xmm[3]) = (0x37f, [0x5a; 16]);
    fd.set_fpu(&fpu).unwrap();
    let mut debug = fd.get_debug_regs().unwrap();
    debug.db[1] = 0x4000;
    fd.set_debug_regs(&debug).unwrap();
    let mut lapic = fd.get_lapic().unwrap();
    // Software-enabled, spurious vector 0xff; task priority 0x20.
    (lapic.regs[0xf0], lapic.regs[0xf1], lapic.regs[0x80]) = (-1, 1, 0x20);
    fd.set_lapic(&lapic).unwrap();
    let star = kvm_msr_entry { index: 0xc000_0081, data: 0x23_0010_0000_0000, ..Default::default() };
    let fixed_mtrr = kvm_msr_entry { index: 0x250, data: 0x0606_0606_0606_0606, ..Default::default() };
    assert_eq!(fd.set_msrs(&Msrs::from_entries(&[star, fixed_mtrr]).unwrap()), Ok(2));
    let mut events = fd.get_vcpu_events().unwrap();
    events.nmi.pending = 1;
    fd.set_vcpu_events(&events).unwrap();
}

fn capture(bench: &mut Bench) -> VcpuState {
    let mut state = VcpuState::new(&bench.features).unwrap();
    state.capture_own(&bench.fd, &bench.features).unwrap();
    state.capture_rest(&mut bench.fd, &bench.features).unwrap();
    // The only register that runs by itself.
    state.set_tsc(0);
    state
}

fn bytes(state: &VcpuState) -> Vec<u8> {
    let mut bytes = Vec::new();
    StateWriter::new(&mut bytes).section("vcpu0", VERSION, &state.wire()).unwrap();
    bytes
}

fn loaded(bytes: &[u8], features: &Features) -> Result<VcpuState, VcpuStateError> {
    let section: Section<'_> = StateReader::new(bytes).unwrap().take("vcpu0", VERSION).unwrap();
    let mut state = VcpuState::new(features).unwrap();
    state.load(&section).map(|()| state)
}

#[test]
fn every_register_survives_the_way_to_another_vcpu() {
    let mut old = fresh();
    let untouched = bytes(&capture(&mut old));
    disturb(&old.fd);
    let saved = bytes(&capture(&mut old));
    assert_ne!(saved, untouched);
    let mut new = fresh();
    loaded(&saved, &new.features).unwrap().restore(&new.fd, &new.features).unwrap();
    assert!(bytes(&capture(&mut new)) == saved);
    assert_eq!(new.fd.get_regs().unwrap().r15, 15);
    assert_eq!(new.fd.get_vcpu_events().unwrap().nmi.pending, 1);
}

/// Switches virtualisation on: VMX, or SVM with interrupts of all kinds held back.
fn enter_nested_operation(bench: &Bench) -> bool {
    let Some(outside) = &bench.features.nested else { return false };
    let (mut nested, mut sregs) = (*outside.state(), bench.fd.get_sregs().unwrap());
    if u32::from(nested.format) == kvm_bindings::KVM_STATE_NESTED_FORMAT_VMX {
        sregs.cr4 |= CR4_VMXE;
        nested.hdr.vmx.vmxon_pa = 0x1000;
    } else {
        sregs.efer |= EFER_SVME;
        nested.flags = 0;
    }
    // Refused by a host that has no nested virtualisation to give.
    bench.fd.set_sregs(&sregs).is_ok() && bench.fd.set_nested_state(&nested).is_ok()
}

#[test]
fn one_vcpu_goes_into_nested_operation_and_out_of_it_by_every_restore() {
    let mut bench = fresh();
    let outside = bytes(&capture(&mut bench));
    if !enter_nested_operation(&bench) {
        println!("SKIPPED: needs a KVM with nested virtualisation, and KVM_CAP_NESTED_STATE");
        return;
    }
    let inside = bytes(&capture(&mut bench));
    assert_ne!(inside, outside);
    for saved in [&outside, &inside, &inside, &outside, &outside] {
        loaded(saved, &bench.features).unwrap().restore(&bench.fd, &bench.features).unwrap();
        assert!(bytes(&capture(&mut bench)) == *saved);
    }
}

#[test]
fn what_comes_with_the_run_is_what_single_calls_tell() {
    let mut bench = fresh();
    disturb(&bench.fd);
    let together = bytes(&capture(&mut bench));
    bench.features.sync_regs = false;
    assert!(bytes(&capture(&mut bench)) == together);
}

#[test]
fn registers_of_another_size_or_speed_are_refused() {
    let mut bench = fresh();
    let mut state = capture(&mut bench);
    state.tsc_khz = bench.features.tsc_khz * 2;
    bench.features.tsc_scaling = false;
    assert!(matches!(state.restore(&bench.fd, &bench.features), Err(VcpuStateError::TscKhz { .. })));
    let (features, khz) = (&bench.features, bench.features.tsc_khz);
    assert!(features.can_run_tsc_at(khz * 2).is_err() && features.can_run_tsc_at(khz + khz / 1000).is_err());
    assert!(features.can_run_tsc_at(khz + khz / 10_000).is_ok() && features.can_run_tsc_at(0).is_ok());
    let mut section = state.wire();
    section.0.lapic = Bytes(&[0; 1023]);
    assert!(matches!(state_of(&section, &bench.features), Err(VcpuStateError::Size("LAPIC"))));
    let mut section = state.wire();
    section.0.msrs = Bytes(&[0; 15]);
    assert!(matches!(state_of(&section, &bench.features), Err(VcpuStateError::Size("MSR list"))));
    // A larger XSAVE area is fine as long as the guest does not use what is new in it.
    let mut here = [1; 4];
    load_xsave_extra(&mut here, &[9, 9, 0, 0, 0, 0]).unwrap();
    assert_eq!(here, [9, 9, 0, 0]);
    assert!(load_xsave_extra(&mut here, &[0, 0, 0, 0, 1]).is_err());
}

fn state_of(section: &Section<'_>, features: &Features) -> Result<(), VcpuStateError> {
    VcpuState::new(features).unwrap().load(section)
}
