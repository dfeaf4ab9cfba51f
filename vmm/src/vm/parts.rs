//! The parts of a VM whose state is in a checkpoint, and the order in which they are saved, restored and
//! reset.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use host_kit::sync::lock;

use crate::devices::DeviceManager;
use crate::legacy::power::Ged;
use crate::legacy::rtc::Rtc;
use crate::legacy::serial::SerialPort;
use crate::machine::clock::{Clock, GuestTime};
use crate::machine::cpu::CpuManager;
use crate::machine::ioapic::Ioapic;
use crate::machine::state::{Saved, StateError, StateReader, StateWriter};
use crate::vm::confirmed::Confirmed;
use crate::vm::error::VmError;
use crate::vm::gate::Gate;
use crate::vm::pending_event::PendingEvent;

/// Section that says whether the VM is paused.
const PAUSED: &str = "paused";
const PAUSED_VERSION: u16 = 1;

/// The parts whose state is in a checkpoint. Shared, so that a checkpoint needs no lock that others hold for
/// long.
pub struct SavedParts {
    /// vCPUs.
    pub cpus: Arc<CpuManager>,
    /// Virtio devices.
    pub devices: Arc<Mutex<DeviceManager>>,
    /// Keeps a checkpoint and what changes the VM as a whole (pause, reset) out of each other's way.
    pub gate: Gate,
    /// Somebody has called `Vm::pause`. Part of a checkpoint: what an operator has paused stays so wherever
    /// it goes.
    pub(super) paused: AtomicBool,
    /// Where that is known.
    pub confirmed: Confirmed,
    /// What the guest has done to its own machine, until that is dealt with.
    pub(crate) pending_event: Arc<PendingEvent>,
    pub(super) clock: Mutex<Clock>,
    pub(super) ioapic: Arc<Mutex<Ioapic>>,
    pub(super) serial: Option<Arc<Mutex<SerialPort>>>,
    pub(super) rtc: Arc<Mutex<Rtc>>,
    pub(super) ged: Arc<Mutex<Ged>>,
}

impl SavedParts {
    /// Appends the state of all parts: the vCPUs' as captured by the pause in force, everything else as it is
    /// now. Device processes are sealed. The interrupt controller and the clock come after what may still
    /// change them.
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
        self.pending_event.save(out)?;
        lock(&self.ioapic).save(out)?;
        lock(&self.clock).save(out)
    }

    /// Becomes what `state` says; memory is in place. The vCPUs first, so that interrupts of the parts that
    /// follow find their LAPIC; the clock right after them, as KVM ties it to the TSC; the IOAPIC before the
    /// devices that use its pins.
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
        self.pending_event.load(from)?;
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
    pub(super) fn reset_devices(&self) -> Result<(), VmError> {
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
