//! What a VM is made of before it has devices on PCI: KVM's own parts, and those of the old PC.

use std::sync::{Arc, Mutex};

use kvm_ioctls::{Kvm, VmFd};

use crate::config::VmConfig;
use crate::legacy::i8042::I8042;
use crate::legacy::power::{Ged, PowerPort};
use crate::legacy::rtc::Rtc;
use crate::legacy::serial::{Line, SerialError, SerialPort};
use crate::machine::bus::{Bus, BusDevice};
use crate::machine::cpu::{CpuOptions, OnGuestEvent, cpuid};
use crate::machine::ioapic::{Ioapic, Pin};
use crate::machine::kvm::KvmError;
use crate::machine::memory::dirty::DirtyTracker;
use crate::machine::memory::guest::{GuestMemory, RamOptions};
use crate::machine::memory::layout;
use crate::machine::watch_cost::WatchCost;
use crate::vm::error::VmError;

pub(super) fn create_vm(kvm: &Kvm) -> Result<VmFd, KvmError> {
    let vm = kvm.create_vm().map_err(|e| KvmError::Create(e.into()))?;
    let setup = |what| move |e: kvm_ioctls::Error| KvmError::Setup { what, source: e.into() };
    // In this order: KVM wants the identity map before the TSS.
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(setup("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(layout::KVM_TSS as usize).map_err(setup("KVM_SET_TSS_ADDR"))?;
    Ok(vm)
}

/// Whether the CPUs' address space has room for this memory, and for devices behind it. Asked before
/// anything of the memory is there: what keeps account of it grows with it.
pub(super) fn check_size(kvm: &Kvm, config: &VmConfig) -> Result<(), VmError> {
    let (size, phys_bits) = (config.memory.size, cpuid::phys_bits(kvm, config.cpus.max_phys_bits)?);
    if layout::mmio64(size, phys_bits).1 == 0 {
        return Err(VmError::TooLarge { size, phys_bits });
    }
    Ok(())
}

pub(super) fn ram_options(config: &VmConfig) -> RamOptions {
    let memory = &config.memory;
    RamOptions {
        size: memory.size,
        hugepages: memory.hugepages,
        hugepage_size: memory.hugepage_size,
        prefault: memory.prefault,
        thp: memory.thp,
    }
}

pub(super) fn dirty_tracker(kvm: &Kvm, vm: &Arc<VmFd>, memory: &GuestMemory) -> DirtyTracker {
    let mut tracker = DirtyTracker::new(vm.clone(), memory);
    tracker.weigh(WatchCost::of_this_host(kvm).prices());
    tracker
}

pub(super) fn cpu_options(config: &VmConfig) -> CpuOptions {
    let cpus = &config.cpus;
    let mut affinity = vec![Vec::new(); cpus.boot_vcpus.min(crate::machine::cpu::VCPUS_MAX) as usize];
    for entry in cpus.affinity.iter().flatten() {
        if let Some(vcpu) = affinity.get_mut(entry.vcpu as usize) {
            vcpu.clone_from(&entry.host_cpus);
        }
    }
    CpuOptions {
        count: cpus.boot_vcpus,
        max_phys_bits: cpus.max_phys_bits,
        amx: cpus.features.amx,
        nested: cpus.nested,
        affinity,
    }
}

/// The devices of the old PC that have state.
pub(super) struct Legacy {
    pub(super) serial: Option<Arc<Mutex<SerialPort>>>,
    pub(super) rtc: Arc<Mutex<Rtc>>,
    pub(super) ged: Arc<Mutex<Ged>>,
}

impl Legacy {
    /// Puts them on the buses.
    pub(super) fn new(
        pio: &Bus,
        mmio: &Bus,
        ioapic: &Arc<Mutex<Ioapic>>,
        line: Option<&Line>,
        memory: &GuestMemory,
        phys_bits: u8,
        on_event: &OnGuestEvent,
    ) -> Result<Self, VmError> {
        let port = |device: Arc<Mutex<dyn BusDevice>>, port: u16, len| pio.insert(device, port.into(), len);
        mmio.insert(ioapic.clone(), layout::IOAPIC, layout::IOAPIC_SIZE)?;
        port(Arc::new(Mutex::new(I8042::new(on_event.clone()))), layout::PORT_I8042, layout::PORT_I8042_LEN)?;
        port(Arc::new(Mutex::new(PowerPort::new(on_event.clone()))), layout::PORT_RESET, 1)?;
        let rtc = Arc::new(Mutex::new(Rtc::new(memory.size(), on_event.clone())));
        port(rtc.clone(), layout::PORT_RTC, 2)?;
        let ged = Arc::new(Mutex::new(Ged::new(Pin::new(ioapic.clone(), layout::IRQ_GED))));
        mmio.insert(ged.clone(), layout::platform_start(phys_bits), 1)?;
        let serial = match line {
            None => None,
            Some(line) => {
                let pin = Pin::new(ioapic.clone(), layout::IRQ_SERIAL);
                let serial = SerialPort::new(pin, line.out.clone()).map_err(SerialError::Start)?;
                let serial = Arc::new(Mutex::new(serial));
                port(serial.clone(), layout::PORT_SERIAL, layout::PORT_SERIAL_LEN)?;
                Some(serial)
            }
        };
        Ok(Self { serial, rtc, ged })
    }
}
