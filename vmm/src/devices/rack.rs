//! The PCI bus while it is being filled with devices.
//!
//! In: devices. Out: each in its slot, with its interrupts and its place in the address space. Never: half a
//! bus; what was put in is taken off again if not all can be.

use std::io;
use std::sync::{Arc, Mutex};

use kvm_ioctls::VmFd;

use crate::devices::broken_queues::{BrokenQueues, Watched};
use crate::devices::device::Device;
use crate::devices::error::DeviceError;
use crate::devices::names::Slots;
use crate::machine::bus::Bus;
use crate::machine::irq::IrqManager;
use crate::machine::memory::guest::{GuestMemory, GuestRam};
use crate::machine::memory::layout::{ECAM_SEGMENT_SIZE, ECAM_START, mmio64};
use crate::pci::bar::BarSpace;
use crate::pci::bus::{CONFIG_PORTS, CONFIG_PORTS_LEN, ConfigPorts, Ecam, PciBus};
use crate::pci::msix::Line;
use crate::virtio::VirtioDevice;
use crate::virtio::pci_transport::{BAR_SIZE, Doorbells, Machine, VirtioPci};

/// What devices need of the machine they are put into.
pub struct DeviceParts<'a> {
    /// The VM.
    pub vm: Arc<VmFd>,
    /// Its memory.
    pub memory: &'a GuestMemory,
    /// Its interrupts.
    pub irq: Arc<IrqManager>,
    /// Port I/O.
    pub pio: Arc<Bus>,
    /// Memory-mapped I/O.
    pub mmio: Arc<Bus>,
    /// Physical address bits of its CPUs.
    pub phys_bits: u8,
}

/// Takes devices off the buses: the buses hold the devices, and those hold the buses.
pub(super) fn take_off(devices: &[Device]) {
    for device in devices {
        device.lock().unplug();
    }
}

/// A bus with devices in it.
pub(super) struct Filled {
    pub(super) pci: Arc<Mutex<PciBus>>,
    pub(super) devices: Vec<Device>,
    pub(super) broken_queues: BrokenQueues,
}

/// Where devices are put while the manager is being built.
pub(super) struct Rack {
    devices: Vec<Device>,
    pci: PciBus,
    slots: Slots,
    space: BarSpace,
    doorbells: Arc<dyn Doorbells>,
    irq: Arc<IrqManager>,
    pio: Arc<Bus>,
    mmio: Arc<Bus>,
    ram: GuestRam,
    finished: bool,
}

impl Rack {
    pub(super) fn new(parts: &DeviceParts<'_>, wished: impl Iterator<Item = u8>) -> Result<Self, DeviceError> {
        let (start, size) = mmio64(parts.memory.size(), parts.phys_bits);
        let slots = Slots::new(wished);
        Ok(Self {
            devices: Vec::new(),
            pci: PciBus::new(),
            slots: slots.map_err(|source| DeviceError::Slot { id: "with pci_device_id".to_owned(), source })?,
            space: BarSpace::new(start, size)?,
            doorbells: parts.vm.clone(),
            irq: parts.irq.clone(),
            pio: parts.pio.clone(),
            mmio: parts.mmio.clone(),
            ram: parts.memory.ram().clone(),
            finished: false,
        })
    }

    /// Puts `device` into a slot. Once it is complete, [`Rack::keep`] is to be called.
    pub(super) fn insert(
        &mut self,
        id: &str,
        device: Box<dyn VirtioDevice>,
        wished: Option<u8>,
    ) -> Result<Device, DeviceError> {
        let no_slot = |source| DeviceError::Slot { id: id.to_owned(), source };
        let slot = self.slots.take(wished).map_err(no_slot)?;
        let base = self.space.allocate(BAR_SIZE)?;
        // One for the configuration, one for each queue.
        let count = 1 + device.queue_sizes().len();
        let lines = (0..count).map(|_| self.irq.allocate_msi().map(|line| Box::new(line) as Box<dyn Line>));
        let lines = lines.collect::<Result<Vec<_>, _>>()?;
        let (mmio, doorbells, ram) = (self.mmio.clone(), self.doorbells.clone(), self.ram.clone());
        let transport = VirtioPci::new(id, device, Machine { mmio, doorbells, ram }, base, lines)
            .map_err(|source| DeviceError::Virtio { id: id.to_owned(), source })?;
        let device = Device { id: id.to_owned(), slot, transport, kind: None, queues: 0, process: None };
        if let Err(e) = self.pci.insert(slot, device.transport.clone()) {
            device.lock().unplug();
            return Err(no_slot(e));
        }
        Ok(device)
    }

    /// Keeps a device for the manager.
    pub(super) fn keep(&mut self, device: Device) {
        self.devices.push(device);
    }

    /// Puts the PCI bus into the machine.
    pub(super) fn finish(mut self) -> Result<Filled, DeviceError> {
        let pci = Arc::new(Mutex::new(std::mem::take(&mut self.pci)));
        self.mmio.insert(Arc::new(Mutex::new(Ecam(pci.clone()))), ECAM_START, ECAM_SEGMENT_SIZE)?;
        self.pio.insert(Arc::new(Mutex::new(ConfigPorts(pci.clone()))), CONFIG_PORTS, CONFIG_PORTS_LEN)?;
        let watched = self.devices.iter().map(|device| {
            Ok(Watched { event: device.lock().broken_event()?, transport: Arc::downgrade(&device.transport) })
        });
        let watched = watched.collect::<io::Result<_>>().and_then(BrokenQueues::watch);
        let broken_queues =
            watched.map_err(|source| DeviceError::System { what: "cannot watch for broken queues", source })?;
        self.finished = true;
        Ok(Filled { pci, devices: std::mem::take(&mut self.devices), broken_queues })
    }
}

impl Drop for Rack {
    fn drop(&mut self) {
        if !self.finished {
            take_off(&self.devices);
        }
    }
}
