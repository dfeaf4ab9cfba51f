//! A machine with a PCI bus and one device on it, virtio-rng: the VMM's own, without KVM.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pollux_vmm::machine::bus::{Bus, BusDevice};
use pollux_vmm::machine::irq::IrqError;
use pollux_vmm::machine::memory::guest::{GuestMemory, RamOptions};
use pollux_vmm::pci::bus::{ConfigPorts, Ecam, PciBus};
use pollux_vmm::pci::msix::Line;
use pollux_vmm::virtio::pci_transport::{Doorbells, Machine, VirtioPci};
use pollux_vmm::virtio::rng::Rng;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Where the device's registers are at first.
pub(crate) const BAR: u64 = 4 << 30;
/// Bytes of guest memory.
pub(crate) const RAM: u64 = 2 << 20;
/// The device's slot.
pub(crate) const SLOT: usize = 1;

struct Unbound;

impl Doorbells for Unbound {
    fn bind(&self, _address: u64, _kick: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn unbind(&self, _address: u64, _kick: &EventFd) -> io::Result<()> {
        Ok(())
    }
}

struct Silent(EventFd);

impl Line for Silent {
    fn event(&self) -> &EventFd {
        &self.0
    }

    fn route(&self, _address: u64, _data: u32, _masked: bool) -> Result<(), IrqError> {
        Ok(())
    }
}

/// The machine.
pub(crate) struct PciMachine {
    pub(crate) mmio: Arc<Bus>,
    pub(crate) bus: Arc<Mutex<PciBus>>,
    pub(crate) device: Arc<Mutex<VirtioPci>>,
    memory: GuestMemory,
}

impl PciMachine {
    /// With `contents` in memory from address 0 on.
    pub(crate) fn new(memory: &GuestMemory, contents: &[u8]) -> Self {
        memory.clear().unwrap();
        memory.ram().write_slice(&contents[..contents.len().min(RAM as usize)], GuestAddress(0)).unwrap();
        let mmio = Arc::new(Bus::new());
        let machine = Machine { mmio: mmio.clone(), doorbells: Arc::new(Unbound), ram: memory.ram().clone() };
        let rng = Rng::new(Path::new("/dev/zero"), memory.ram().clone()).unwrap();
        let lines = (0..2).map(|_| Box::new(Silent(EventFd::new(EFD_NONBLOCK).unwrap())) as Box<dyn Line>);
        let device = VirtioPci::new("_rng", Box::new(rng), machine, BAR, lines.collect()).unwrap();
        let mut bus = PciBus::new();
        bus.insert(SLOT, device.clone()).unwrap();
        Self { mmio, bus: Arc::new(Mutex::new(bus)), device, memory: memory.clone() }
    }

    pub(crate) fn ram() -> GuestMemory {
        GuestMemory::new(&RamOptions { size: RAM, ..RamOptions::default() }).unwrap()
    }

    pub(crate) fn ecam(&self) -> impl BusDevice {
        Ecam(self.bus.clone())
    }

    pub(crate) fn ports(&self) -> impl BusDevice {
        ConfigPorts(self.bus.clone())
    }

    pub(crate) fn device(&self) -> MutexGuard<'_, VirtioPci> {
        self.device.lock().unwrap()
    }

    pub(crate) fn write_memory(&self, at: u64, bytes: &[u8]) {
        let _ = self.memory.ram().write_slice(bytes, GuestAddress(at));
    }
}

impl Drop for PciMachine {
    fn drop(&mut self) {
        // The bus of memory-mapped I/O holds it.
        self.device.lock().unwrap_or_else(PoisonError::into_inner).unplug();
    }
}
