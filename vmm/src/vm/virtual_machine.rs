//! One virtual machine: owns every part, and knows in which order to do things to them.
//!
//! In: a configuration. Out: a machine that boots, pauses, resets, powers off, is saved and becomes what was
//! saved elsewhere. Never: a half-built machine; what can fail for a reason outside (files, sizes, KVM) is
//! done before the first process is spawned and the first vCPU runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use host_kit::sync::lock;
use kvm_ioctls::VmFd;

use crate::boot::acpi::{self, AcpiOptions};
use crate::boot::kernel::{BootError, Payload};
use crate::boot::params;
use crate::config::VmConfig;
use crate::devices::{DeviceManager, DeviceParts};
use crate::legacy::console::ConsoleOut;
use crate::legacy::pm_timer::PmTimer;
use crate::legacy::serial::{Earlier, InputThread, Line};
use crate::machine::bus::Bus;
use crate::machine::clock::Clock;
use crate::machine::cpu::state::VcpuStateError;
use crate::machine::cpu::{Capture, CpuManager, CpuPorts, OnGuestEvent};
use crate::machine::ioapic::Ioapic;
use crate::machine::irq::IrqManager;
use crate::machine::kvm;
use crate::machine::memory::dirty::DirtyTracker;
use crate::machine::memory::guest::GuestMemory;
use crate::machine::memory::layout;
use crate::machine::memory::view::MemoryView;
use crate::machine::state::{StateReader, StateWriter};
use crate::vm::confirmed::Confirmed;
use crate::vm::error::VmError;
use crate::vm::gate::Gate;
use crate::vm::hardware::{self, Legacy};
use crate::vm::parts::SavedParts;
use crate::vm::pending_event::PendingEvent;

/// How long an operator waits at most until the standby knows that the VM is paused, or resumed. It takes two
/// of the longest epochs.
const CONFIRM_LIMIT: Duration = Duration::from_secs(1);

/// A virtual machine. Fields are dropped in order: the vCPUs must be gone before what they use.
pub struct Vm {
    input: Option<InputThread>,
    parts: Arc<SavedParts>,
    /// The vCPUs as they were when they were made.
    power_on: Vec<u8>,
    payload: Option<Payload>,
    line: Option<Line>,
    dirty: Arc<Mutex<DirtyTracker>>,
    config: VmConfig,
    started: bool,
    vm: Arc<VmFd>,
    memory: GuestMemory,
}

impl Vm {
    /// Builds a VM that waits for [`Vm::boot`], or for [`Vm::load`] and [`Vm::start_restored`]; `earlier` is
    /// about the output of its serial line. Ids, addresses and the path of a pseudo terminal are filled into
    /// the configuration.
    ///
    /// # Errors
    /// When any part cannot be had. Nothing is left behind.
    pub fn new(mut config: VmConfig, earlier: Earlier, on_event: OnGuestEvent) -> Result<Self, VmError> {
        let payload = config.payload.as_ref().map(Payload::open).transpose()?;
        let kvm = kvm::open()?;
        hardware::check_size(&kvm, &config)?;
        let vm = Arc::new(hardware::create_vm(&kvm)?);
        let memory = GuestMemory::new(&hardware::ram_options(&config))?;
        if let Some(payload) = &payload {
            payload.place(&memory)?;
        }
        memory.set_slots(&vm, 0)?;
        let dirty = Arc::new(Mutex::new(hardware::dirty_tracker(&kvm, &vm, &memory)));
        let line = Line::open(&mut config.serial, earlier)?;

        let irq = Arc::new(IrqManager::new(vm.clone())?);
        let (pio, mmio) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let pending_event = Arc::new(PendingEvent::new(on_event));
        let happened = pending_event.clone();
        let on_event: OnGuestEvent = Arc::new(move |event| happened.happened(event));
        let ports = CpuPorts { pio: pio.clone(), mmio: mmio.clone(), on_event: on_event.clone() };
        let cpus = CpuManager::new(&kvm, &vm, &hardware::cpu_options(&config), &ports)?;
        let phys_bits = cpus.phys_bits();
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
            pending_event,
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

    /// Waits until the standby, if there is one, knows whether the VM is paused; but not for one that is
    /// lost.
    fn confirm(&self, paused: bool) {
        if !self.parts.confirmed.wait(paused, CONFIRM_LIMIT) {
            let what = if paused { "paused" } else { "resumed" };
            tracing::warn!(
                "the standby does not know yet that this VM was {what}: should it take over now, the VM is not {what} there"
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
    /// When a device cannot be reset or the payload cannot be loaded again; the VM stays stopped then, and in
    /// no checkpoint.
    pub fn reset(&mut self) -> Result<(), VmError> {
        let _inside = self.parts.gate.enter()?;
        self.parts.gate.in_pieces(true);
        if self.parts.is_paused() {
            lock(&self.parts.devices).unquiesce()?;
        } else if self.started {
            self.parts.cpus.pause(Capture::No)?;
        }
        // As stopped as when it was made, until `start`.
        self.parts.paused.store(false, Ordering::SeqCst);
        self.started = false;
        self.parts.reset_devices()?;
        self.parts.cpus.power_on(&mut StateReader::new(&self.power_on)?)?;
        self.load_payload()?;
        self.parts.pending_event.dealt_with();
        self.parts.gate.in_pieces(false);
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

    /// After [`Vm::activate_restored`]: kicks every queue and injects every interrupt once, as one of either
    /// may have been on its way when the state was saved; then the vCPUs run.
    ///
    /// # Errors
    /// When the serial line's input cannot be started.
    pub fn start_restored(&mut self) -> Result<(), VmError> {
        lock(&self.parts.devices).kick_all();
        self.parts.pending_event.taken_over();
        self.start()
    }

    /// Stops the vCPUs for good. Waits for nobody else: not even for the standby, if the VM is about to
    /// leave.
    ///
    /// # Errors
    /// When a vCPU does not stop.
    pub fn stop(&mut self) -> Result<(), VmError> {
        Ok(self.parts.cpus.pause(Capture::No)?)
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// When the interrupt cannot be delivered, or the VM is not here for certain.
    pub fn power_button(&mut self) -> Result<(), VmError> {
        // A VM that leaves would forget it.
        let _inside = self.parts.gate.enter()?;
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

/// The vCPUs as they are now, parked and never run.
fn power_on_state(cpus: &CpuManager) -> Result<Vec<u8>, VmError> {
    let mut bytes = Vec::new();
    let captured = cpus.pause(Capture::Yes);
    cpus.resume();
    captured?;
    cpus.save(&mut StateWriter::new(&mut bytes))?;
    Ok(bytes)
}
