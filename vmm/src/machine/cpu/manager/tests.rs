//! What is captured of one vCPU while another one still runs, or waits for a device, on the real /dev/kvm.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use kvm_bindings::{kvm_mp_state, kvm_msi, kvm_segment};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::machine::bus::{Bus, BusDevice};
use crate::machine::irq::IrqManager;
use crate::machine::memory::guest::{GuestMemory, RamOptions};

const CODE: u64 = 0x1000;
const PORT: u8 = 0x10;
const VECTOR: u8 = 0x41;
/// LAPIC registers: whether it is enabled, and the vectors that wait.
const SPURIOUS: usize = 0xf0;
const REQUESTS: usize = 0x200;

/// A device that keeps the vCPU that writes to it until it is told to send an interrupt to vCPU 1.
struct Slow {
    vm: Arc<VmFd>,
    entered: Sender<()>,
    go_on: Receiver<()>,
}

impl BusDevice for Slow {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _offset: u64, _data: &[u8]) {
        self.entered.send(()).unwrap();
        self.go_on.recv().unwrap();
        let msi = kvm_msi { address_lo: 0xfee0_1000, data: VECTOR.into(), ..Default::default() };
        assert_eq!(self.vm.signal_msi(msi), Ok(1), "vCPU 1 takes the interrupt");
    }
}

/// Makes vCPU 0 write to [`PORT`] as its first instruction, in real mode.
fn aim(vcpu: &mut VcpuFd) -> Result<(), VcpuStateError> {
    let mut sregs = vcpu.get_sregs().unwrap();
    let code = kvm_segment { base: 0, selector: 0, ..sregs.cs };
    (sregs.cs, sregs.ds) = (code, kvm_segment { base: 0, selector: 0, ..sregs.ds });
    vcpu.set_sregs(&sregs).unwrap();
    let mut regs = vcpu.get_regs().unwrap();
    (regs.rip, regs.rflags) = (CODE, 2);
    vcpu.set_regs(&regs).unwrap();
    vcpu.set_mp_state(kvm_mp_state { mp_state: kvm_bindings::KVM_MP_STATE_RUNNABLE }).unwrap();
    Ok(())
}

/// vCPUs that were never run, and their machine.
fn fresh() -> (CpuManager, Arc<VmFd>) {
    let kvm = crate::machine::kvm::open().unwrap();
    let vm = Arc::new(kvm.create_vm().unwrap());
    IrqManager::new(vm.clone()).unwrap();
    let bus = || Arc::new(Bus::new());
    let ports = CpuPorts { pio: bus(), mmio: bus(), on_event: Arc::new(|event| panic!("{event:?}")) };
    let options = CpuOptions { count: 2, max_phys_bits: 46, amx: false, nested: false, affinity: Vec::new() };
    (CpuManager::new(&kvm, &vm, &options, &ports).unwrap(), vm)
}

#[test]
fn a_guest_from_elsewhere_keeps_its_cpu_features() {
    let (cpus, _vm) = fresh();
    let own = cpus.cpuid().to_vec();
    assert_eq!(cpus.guest_cpuid(), own);
    // One of an older host: without the processor's name.
    let older: Vec<_> = own.iter().copied().filter(|entry| entry.function != 0x8000_0004).collect();
    assert_ne!(older, own);
    cpus.adopt_cpuid(&older).unwrap();
    assert_eq!(cpus.guest_cpuid(), older, "the next host is told what the guest has");
    assert_eq!(cpus.cpuid(), own, "what it can have is another matter");
}

#[test]
fn a_reset_keeps_the_speed_of_the_tsc() {
    let (cpus, _vm) = fresh();
    let captured = cpus.pause(Capture::Yes);
    cpus.resume();
    captured.unwrap();
    let mut bytes = Vec::new();
    cpus.save(&mut StateWriter::new(&mut bytes)).unwrap();
    let native = cpus.features().tsc_khz;
    cpus.power_on(&mut StateReader::new(&bytes).unwrap()).unwrap();
    assert_eq!(cpus.tsc_khz(), native);
    // As after a takeover from a host that is twice as fast.
    let elsewhere = native * 2;
    cpus.tsc_khz.store(elsewhere, Ordering::Relaxed);
    match cpus.power_on(&mut StateReader::new(&bytes).unwrap()) {
        Ok(()) => assert_eq!((cpus.tsc_khz(), cpus.is_tsc_scaled()), (elsewhere, true)),
        // This host could not have run the guest either.
        Err(error) => assert!(host_kit::error::chain(&error).contains(&format!("{elsewhere} kHz")), "{error}"),
    }
}

/// Two vCPUs, the first of which is at the device.
struct AtDevice {
    cpus: CpuManager,
    go_on: Sender<()>,
    _memory: GuestMemory,
}

fn at_device() -> AtDevice {
    let kvm = crate::machine::kvm::open().unwrap();
    let vm = Arc::new(kvm.create_vm().unwrap());
    let memory = GuestMemory::new(&RamOptions { size: 2 << 20, ..Default::default() }).unwrap();
    // out PORT, al; jmp to itself
    memory.ram().write_slice(&[0xe6, PORT, 0xeb, 0xfe], GuestAddress(CODE)).unwrap();
    memory.set_slots(&vm, 0).unwrap();
    IrqManager::new(vm.clone()).unwrap();
    let (pio, mmio) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
    let ((entered, in_device), (go_on, told)) = (channel(), channel());
    let slow = Slow { vm: vm.clone(), entered, go_on: told };
    pio.insert(Arc::new(Mutex::new(slow)), PORT.into(), 1).unwrap();
    let options = CpuOptions { count: 2, max_phys_bits: 46, amx: false, nested: false, affinity: Vec::new() };
    let ports = CpuPorts { pio, mmio, on_event: Arc::new(|event| panic!("{event:?}")) };
    let cpus = CpuManager::new(&kvm, &vm, &options, &ports).unwrap();
    cpus.run_on(0, "aim", aim).unwrap();
    cpus.run_on(1, "enable its LAPIC", |vcpu| {
        let mut lapic = vcpu.get_lapic().unwrap();
        lapic.regs[SPURIOUS + 1] = 1;
        vcpu.set_lapic(&lapic).unwrap();
        Ok(())
    })
    .unwrap();
    cpus.resume();
    in_device.recv().unwrap();
    AtDevice { cpus, go_on, _memory: memory }
}

#[test]
fn an_interrupt_between_vcpus_is_in_the_checkpoint_of_its_receiver() {
    let AtDevice { cpus, go_on, _memory } = at_device();
    assert!(!cpus.can_stop_soon(), "a vCPU waits for a device");
    std::thread::scope(|scope| {
        let pause = scope.spawn(|| cpus.pause(Capture::Yes));
        // Long enough for vCPU 1 to be through, if it does not wait for vCPU 0.
        std::thread::sleep(Duration::from_millis(100));
        go_on.send(()).unwrap();
        pause.join().unwrap().unwrap();
    });
    assert!(cpus.can_stop_soon());
    let state = cpus.vcpus[1].state.lock().unwrap();
    let register = REQUESTS + usize::from(VECTOR) / 32 * 16 + usize::from(VECTOR) % 32 / 8;
    assert_ne!(state.lapic().regs[register] & 1 << (VECTOR % 8), 0, "the interrupt is lost");
}

#[test]
fn whoever_parks_the_vcpus_for_good_waits_for_no_device() {
    let AtDevice { cpus, go_on, _memory } = at_device();
    // Does not return if it waits: the device is told to go on only afterwards.
    cpus.park();
    assert_eq!((cpus.sync.parked(), cpus.at_devices()), (1, 1));
    go_on.send(()).unwrap();
    report(cpus.sync.settle(), "park").unwrap();
}
