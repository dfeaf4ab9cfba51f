//! One virtual machine: owns every part, and knows in which order to do things to them.
//!
//! In: a configuration. Out: a machine that boots, pauses, resets, powers off, is saved and becomes what was saved elsewhere.
//! Never: a half-built machine; what can fail for a reason outside (files, sizes, KVM) is done before the first process is
//! spawned and the first vCPU runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvm_ioctls::{Kvm, VmFd};

use crate::acpi::{self, AcpiOptions};
use crate::boot::kernel::{BootError, Payload};
use crate::boot::params;
use crate::bus::{Bus, BusDevice, BusError};
use crate::clock::{Clock, GuestTime};
use crate::config::VmConfig;
use crate::confirmed::Confirmed;
use crate::cpu::state::VcpuStateError;
use crate::cpu::{Capture, CpuError, CpuManager, CpuOptions, CpuPorts, OnGuestEvent};
use crate::devices::{DeviceError, DeviceManager, DeviceParts};
use crate::gate::{Gate, NotHere};
use crate::ioapic::{Ioapic, Pin};
use crate::irq::{IrqError, IrqManager};
use crate::kvm::{self, KvmError};
use crate::legacy::console::ConsoleOut;
use crate::legacy::i8042::I8042;
use crate::legacy::pm_timer::PmTimer;
use crate::legacy::power::{Ged, PowerPort};
use crate::legacy::rtc::Rtc;
use crate::legacy::serial::{InputThread, Line, SerialError, SerialPort};
use crate::memory::dirty::DirtyTracker;
use crate::memory::guest::{GuestMemory, MemoryError, RamOptions};
use crate::memory::layout;
use crate::memory::view::MemoryView;
use crate::state::{Saved, StateError, StateReader, StateWriter};

/// Why a VM cannot be built or does not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// vCPUs.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// Interrupts.
    #[error(transparent)]
    Irq(#[from] IrqError),
    /// The address map.
    #[error("two devices claim the same address")]
    Bus(#[from] BusError),
    /// What to boot.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The serial line.
    #[error(transparent)]
    Serial(#[from] SerialError),
    /// Virtio devices and their processes.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Saved state.
    #[error(transparent)]
    State(#[from] StateError),
    /// It may not be changed here.
    #[error(transparent)]
    NotHere(#[from] NotHere),
    /// The CPUs' address space has no room for this much memory.
    #[error("memory.size {size} bytes does not fit the {phys_bits} physical address bits of this host's CPUs")]
    TooLarge {
        /// Bytes asked for.
        size: u64,
        /// What the CPUs have, with `cpus.max_phys_bits` as the limit.
        phys_bits: u8,
    },
}

/// The parts whose state is in a checkpoint. Shared, so that a checkpoint needs no lock that others hold for long.
pub struct SavedParts {
    /// vCPUs.
    pub cpus: Arc<CpuManager>,
    /// Virtio devices.
    pub devices: Arc<Mutex<DeviceManager>>,
    /// Keeps a checkpoint and what changes the VM as a whole (pause, reset) out of each other's way.
    pub gate: Gate,
    /// Somebody has called [`Vm::pause`]. Part of a checkpoint: what an operator has paused stays so wherever it goes.
    paused: AtomicBool,
    /// Where that is known.
    pub confirmed: Confirmed,
    clock: Mutex<Clock>,
    ioapic: Arc<Mutex<Ioapic>>,
    serial: Option<Arc<Mutex<SerialPort>>>,
    rtc: Arc<Mutex<Rtc>>,
    ged: Arc<Mutex<Ged>>,
}

/// How long an operator waits at most until the standby knows that the VM is paused, or resumed. It takes two of the longest epochs.
const CONFIRM_LIMIT: Duration = Duration::from_secs(1);
/// Section that says whether the VM is paused.
const PAUSED: &str = "paused";
const PAUSED_VERSION: u16 = 1;

/// A panic elsewhere does not make a part unusable: what follows is an orderly end.
fn lock<T: ?Sized>(part: &Mutex<T>) -> MutexGuard<'_, T> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SavedParts {
    /// Appends the state of all parts: the vCPUs' as captured by the pause in force, everything else as it is now. Device
    /// processes are sealed. The interrupt controller and the clock come after what may still change them.
    ///
    /// # Errors
    /// When a part cannot be saved; what was appended is of no use then.
    pub fn save(&self, out: &mut Vec<u8>) -> Result<(), StateError> {
        self.save_devices(out)?;
        self.save_vcpus(out)
    }

    /// Appends what the vCPUs' last capture has read. The guest may run again.
    ///
    /// # Errors
    /// When it does not fit into a section.
    pub fn save_vcpus(&self, out: &mut Vec<u8>) -> Result<(), StateError> {
        self.cpus.save(&mut StateWriter::new(out))
    }

    /// Appends everything else. The vCPUs are parked, their captures may be under way.
    ///
    /// # Errors
    /// When a part cannot be saved.
    pub fn save_devices(&self, out: &mut Vec<u8>) -> Result<(), StateError> {
        let out = &mut StateWriter::new(out);
        lock(&self.devices).save(out)?;
        if let Some(serial) = &self.serial {
            lock(serial).save(out)?;
        }
        lock(&self.rtc).save(out)?;
        lock(&self.ged).save(out)?;
        out.section(PAUSED, PAUSED_VERSION, &self.is_paused())?;
        lock(&self.ioapic).save(out)?;
        lock(&self.clock).save(out)
    }

    /// Becomes what `state` says; memory is in place. The vCPUs first, so that interrupts of the parts that follow find their
    /// LAPIC; the clock right after them, as KVM ties it to the TSC; the IOAPIC before the devices that use its pins.
    ///
    /// # Errors
    /// When a part's state is missing, left over, or cannot be had on this host.
    pub fn load(&self, state: &[u8]) -> Result<(), StateError> {
        let from = &mut StateReader::new(state)?;
        self.cpus.load(from)?;
        lock(&self.clock).load(from)?;
        lock(&self.ioapic).load(from)?;
        if let Some(serial) = &self.serial {
            lock(serial).load(from)?;
        }
        lock(&self.rtc).load(from)?;
        lock(&self.ged).load(from)?;
        lock(&self.devices).load(from)?;
        self.paused.store(from.take(PAUSED, PAUSED_VERSION)?, Ordering::SeqCst);
        std::mem::replace(from, StateReader::new(&[])?).finish()
    }

    /// Whether there is a serial port, whose state is part of the VM's.
    #[must_use]
    pub fn has_serial(&self) -> bool {
        self.serial.is_some()
    }

    /// Whether somebody has paused the VM, here or on the host where the state is from.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// The guest's clocks now; the vCPUs are parked, and the last pause was with capture.
    ///
    /// # Errors
    /// When KVM does not tell.
    pub fn time(&self) -> Result<GuestTime, StateError> {
        let error = |e: kvm_ioctls::Error| StateError::Part {
            id: "clock".to_owned(),
            what: "KVM_GET_CLOCK".to_owned(),
            source: Some(e.into()),
        };
        lock(&self.clock).now().map_err(error)
    }

    /// All parts but the vCPUs back to power-on.
    fn reset_devices(&self) -> Result<(), VmError> {
        lock(&self.devices).reset()?;
        if let Some(serial) = &self.serial {
            lock(serial).reset();
        }
        lock(&self.rtc).reset();
        lock(&self.ged).reset();
        lock(&self.ioapic).reset();
        Ok(())
    }
}

/// A virtual machine. Fields are dropped in order: the vCPUs must be gone before what they use.
pub struct Vm {
    input: Option<InputThread>,
    parts: Arc<SavedParts>,
    /// The vCPUs as they were when they were made.
    power_on: Vec<u8>,
    payload: Option<Payload>,
    line: Option<Line>,
    /// A guest event was reported and not yet dealt with; more of the same are not news.
    ended: Arc<AtomicBool>,
    dirty: Arc<Mutex<DirtyTracker>>,
    config: VmConfig,
    started: bool,
    vm: Arc<VmFd>,
    memory: GuestMemory,
}

impl Vm {
    /// Builds a VM that waits for [`Vm::boot`], or for [`Vm::load`] and [`Vm::start_restored`]. Ids, addresses and the path of a
    /// pseudo terminal are filled into the configuration.
    ///
    /// # Errors
    /// When any part cannot be had. Nothing is left behind.
    pub fn new(mut config: VmConfig, on_event: OnGuestEvent) -> Result<Self, VmError> {
        let payload = config.payload.as_ref().map(Payload::open).transpose()?;
        let kvm = kvm::open()?;
        let vm = Arc::new(create_vm(&kvm)?);
        let memory = GuestMemory::new(&ram_options(&config))?;
        if let Some(payload) = &payload {
            payload.place(&memory)?;
        }
        memory.set_slots(&vm, 0)?;
        let dirty = Arc::new(Mutex::new(DirtyTracker::new(vm.clone(), &memory)));
        let line = Line::open(&mut config.serial)?;

        let irq = Arc::new(IrqManager::new(vm.clone())?);
        let (pio, mmio) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let ended = Arc::new(AtomicBool::new(false));
        let on_event = only_first(on_event, &ended);
        let ports = CpuPorts { pio: pio.clone(), mmio: mmio.clone(), on_event: on_event.clone() };
        let cpus = CpuManager::new(&kvm, &vm, &cpu_options(&config), &ports)?;
        let phys_bits = cpus.phys_bits();
        if layout::mmio64(memory.size(), phys_bits).1 == 0 {
            return Err(VmError::TooLarge { size: memory.size(), phys_bits });
        }
        let ioapic = Arc::new(Mutex::new(Ioapic::new(irq.clone())));
        pio.insert(
            Arc::new(Mutex::new(PmTimer::new(vm.clone()))),
            layout::PORT_PM_TIMER.into(),
            layout::PORT_PM_TIMER_LEN,
        )?;
        let legacy = Legacy::new(&pio, &mmio, &ioapic, line.as_ref(), &memory, phys_bits, &on_event)?;

        let parts = DeviceParts { vm: vm.clone(), memory: &memory, irq, pio, mmio, phys_bits };
        let devices = DeviceManager::new(&mut config, parts)?;
        let Legacy { serial, rtc, ged } = legacy;
        let cpus = Arc::new(cpus);
        let parts = SavedParts {
            cpus: cpus.clone(),
            devices: Arc::new(Mutex::new(devices)),
            gate: Gate::default(),
            paused: AtomicBool::new(false),
            confirmed: Confirmed::default(),
            clock: Mutex::new(Clock::new(vm.clone(), cpus)),
            ioapic,
            serial,
            rtc,
            ged,
        };
        let power_on = power_on_state(&parts.cpus)?;
        Ok(Self {
            input: None,
            parts: Arc::new(parts),
            power_on,
            payload,
            line,
            ended,
            dirty,
            config,
            started: false,
            vm,
            memory,
        })
    }

    /// Loads the payload and starts the vCPUs.
    ///
    /// # Errors
    /// When there is no payload or it cannot be loaded; nothing runs then.
    pub fn boot(&mut self) -> Result<(), VmError> {
        self.load_payload()?;
        self.start()
    }

    fn load_payload(&mut self) -> Result<(), VmError> {
        let loaded = self.payload.as_mut().ok_or(BootError::NoPayload)?.load(&self.memory)?;
        let acpi = AcpiOptions {
            vcpus: self.parts.cpus.count(),
            ram_size: self.memory.size(),
            phys_bits: self.parts.cpus.phys_bits(),
            serial: self.parts.serial.is_some(),
        };
        let ram = self.memory.ram();
        let rsdp = acpi::write(ram, &acpi).map_err(BootError::Write)?;
        params::write(&self.memory, &loaded, rsdp)?;
        params::write_gdt(ram)?;
        params::write_reset_vector(ram)?;
        let set = self.parts.cpus.run_on(0, "set its boot registers", move |vcpu| {
            params::set_registers(vcpu, &loaded.entry)
                .map_err(|e| VcpuStateError::Kvm { call: "KVM_SET_REGS", source: e.into() })
        });
        Ok(set.map_err(BootError::Registers)?)
    }

    /// Ends the pause that the vCPUs were made with.
    fn start(&mut self) -> Result<(), VmError> {
        self.start_input()?;
        self.ended.store(false, Ordering::SeqCst);
        self.started = true;
        self.parts.cpus.resume();
        Ok(())
    }

    fn start_input(&mut self) -> Result<(), VmError> {
        if self.input.is_none()
            && let (Some(line), Some(port)) = (&self.line, &self.parts.serial)
        {
            self.input = line.start_input(port)?;
        }
        Ok(())
    }

    /// Stops the vCPUs, then the devices. Nothing happens when they are stopped already.
    ///
    /// # Errors
    /// When a vCPU or a device does not stop; the VM runs on then.
    pub fn pause(&mut self) -> Result<(), VmError> {
        let inside = self.parts.gate.enter()?;
        if self.parts.is_paused() {
            return Ok(());
        }
        self.parts.cpus.pause(Capture::No)?;
        self.parts.paused.store(true, Ordering::SeqCst);
        self.parts.cpus.announce_stop();
        let mut devices = lock(&self.parts.devices);
        let quiesced = devices.quiesce();
        if quiesced.is_err() {
            // It was not paused, so nobody would resume it. The device that has failed is lost either way.
            if let Err(error) = devices.unquiesce() {
                tracing::warn!("after a pause that failed: {error}");
            }
            self.parts.paused.store(false, Ordering::SeqCst);
            self.parts.cpus.resume();
        }
        drop((devices, inside));
        quiesced?;
        self.confirm(true);
        Ok(())
    }

    /// Waits until the standby, if there is one, knows whether the VM is paused; but not for one that is lost.
    fn confirm(&self, paused: bool) {
        if !self.parts.confirmed.wait(paused, CONFIRM_LIMIT) {
            let what = if paused { "paused" } else { "resumed" };
            tracing::warn!(
                "the standby does not know yet that this VM was {what}: should it take over now, it is not there"
            );
        }
    }

    /// Starts the devices, then the vCPUs.
    ///
    /// # Errors
    /// When a device does not start; the VM stays paused then.
    pub fn resume(&mut self) -> Result<(), VmError> {
        let inside = self.parts.gate.enter()?;
        if self.parts.is_paused() {
            lock(&self.parts.devices).unquiesce()?;
            self.parts.paused.store(false, Ordering::SeqCst);
            self.parts.cpus.resume();
        }
        drop(inside);
        self.confirm(false);
        Ok(())
    }

    /// Back to power-on with the same memory, then boots again; runs afterwards, paused or not before.
    ///
    /// # Errors
    /// When a device cannot be reset or the payload cannot be loaded again; the VM stays stopped then.
    pub fn reset(&mut self) -> Result<(), VmError> {
        let _inside = self.parts.gate.enter()?;
        if self.parts.is_paused() {
            lock(&self.parts.devices).unquiesce()?;
        } else if self.started {
            self.parts.cpus.pause(Capture::No)?;
        }
        // As stopped as when it was made, until `start`.
        self.parts.paused.store(false, Ordering::SeqCst);
        self.started = false;
        self.parts.reset_devices()?;
        self.parts.cpus.load(&mut StateReader::new(&self.power_on)?)?;
        self.load_payload()?;
        self.start()
    }

    /// Appends the state of all parts; see [`SavedParts::save`].
    ///
    /// # Errors
    /// When a part cannot be saved.
    pub fn save(&mut self, out: &mut Vec<u8>) -> Result<(), VmError> {
        Ok(self.parts.save(out)?)
    }

    /// Becomes what `state` says; see [`SavedParts::load`]. The vCPUs are parked and stay so.
    ///
    /// # Errors
    /// When the state does not fit this VM or this host.
    pub fn load(&mut self, state: &[u8]) -> Result<(), VmError> {
        Ok(self.parts.load(state)?)
    }

    /// The engine starts the restored vCPUs, unless the VM is paused: the rest of the VM follows.
    ///
    /// # Errors
    /// When the serial line's input cannot be started.
    pub fn taken_over(&mut self) -> Result<(), VmError> {
        self.start_input()?;
        self.started = true;
        Ok(())
    }

    /// After [`Vm::load`]: sets the device processes up for the loaded state.
    ///
    /// # Errors
    /// When one of them does not work.
    pub fn activate_restored(&mut self) -> Result<(), VmError> {
        Ok(lock(&self.parts.devices).activate_restored()?)
    }

    /// After [`Vm::activate_restored`]: kicks every queue and injects every interrupt once, as one of either may have been on
    /// its way when the state was saved; then the vCPUs run.
    ///
    /// # Errors
    /// When the serial line's input cannot be started.
    pub fn start_restored(&mut self) -> Result<(), VmError> {
        lock(&self.parts.devices).kick_all();
        self.start()
    }

    /// Stops the vCPUs for good. Waits for nobody else: not even for the standby, if the VM is about to leave.
    ///
    /// # Errors
    /// When a vCPU does not stop.
    pub fn stop(&mut self) -> Result<(), VmError> {
        Ok(self.parts.cpus.pause(Capture::No)?)
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// When the interrupt cannot be delivered.
    pub fn power_button(&mut self) -> Result<(), VmError> {
        Ok(lock(&self.parts.ged).press_power_button()?)
    }

    /// Raises a non-maskable interrupt on every vCPU.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn nmi(&mut self) -> Result<(), VmError> {
        // Not in the middle of a checkpoint: both stop the vCPUs.
        let _inside = self.parts.gate.enter()?;
        Ok(self.parts.cpus.nmi()?)
    }

    /// What is in a checkpoint, with save and load.
    #[must_use]
    pub fn parts(&self) -> &Arc<SavedParts> {
        &self.parts
    }

    /// The vCPUs.
    #[must_use]
    pub fn cpus(&self) -> &Arc<CpuManager> {
        &self.parts.cpus
    }

    /// The virtio devices.
    #[must_use]
    pub fn devices(&self) -> &Arc<Mutex<DeviceManager>> {
        &self.parts.devices
    }

    /// What watches memory for changes.
    #[must_use]
    pub fn dirty(&self) -> &Arc<Mutex<DirtyTracker>> {
        &self.dirty
    }

    /// RAM.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// RAM by page.
    #[must_use]
    pub fn memory_view(&self) -> MemoryView {
        MemoryView::new(&self.memory)
    }

    /// Output of the serial line, if there is one.
    #[must_use]
    pub fn console(&self) -> Option<Arc<ConsoleOut>> {
        self.line.as_ref().map(|line| line.out.clone())
    }

    /// The configuration with everything filled in.
    #[must_use]
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// The VM's descriptor.
    #[must_use]
    pub fn fd(&self) -> &Arc<VmFd> {
        &self.vm
    }
}

fn create_vm(kvm: &Kvm) -> Result<VmFd, KvmError> {
    let vm = kvm.create_vm().map_err(|e| KvmError::Create(e.into()))?;
    let setup = |what| move |e: kvm_ioctls::Error| KvmError::Setup { what, source: e.into() };
    // In this order: KVM wants the identity map before the TSS.
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(setup("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(layout::KVM_TSS as usize).map_err(setup("KVM_SET_TSS_ADDR"))?;
    Ok(vm)
}

fn ram_options(config: &VmConfig) -> RamOptions {
    let memory = &config.memory;
    RamOptions {
        size: memory.size,
        hugepages: memory.hugepages,
        hugepage_size: memory.hugepage_size,
        prefault: memory.prefault,
        thp: memory.thp,
    }
}

fn cpu_options(config: &VmConfig) -> CpuOptions {
    let cpus = &config.cpus;
    let mut affinity = vec![Vec::new(); cpus.boot_vcpus.min(crate::cpu::VCPUS_MAX) as usize];
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

/// Passes on one event until the flag is cleared: a guest that resets tries several ways one after the other.
fn only_first(on_event: OnGuestEvent, ended: &Arc<AtomicBool>) -> OnGuestEvent {
    let ended = ended.clone();
    Arc::new(move |event| {
        if !ended.swap(true, Ordering::SeqCst) {
            on_event(event);
        }
    })
}

/// The vCPUs as they are now, parked and never run.
fn power_on_state(cpus: &CpuManager) -> Result<Vec<u8>, VmError> {
    let mut bytes = Vec::new();
    let captured = cpus.pause(Capture::Yes);
    cpus.resume();
    captured?;
    cpus.save(&mut StateWriter::new(&mut bytes))?;
    Ok(bytes)
}

/// The devices of the old PC that have state.
struct Legacy {
    serial: Option<Arc<Mutex<SerialPort>>>,
    rtc: Arc<Mutex<Rtc>>,
    ged: Arc<Mutex<Ged>>,
}

impl Legacy {
    fn new(
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
