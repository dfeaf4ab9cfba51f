//! What the guest sees of a virtio device: a PCI function with one memory BAR, MSI-X, and no INTx.
//!
//! In: configuration space and BAR accesses. Out: calls of the [`VirtioDevice`]; kicks reach their eventfds
//! inside the kernel, without us. Never: a guest that can crash the VMM; what it sets up wrong makes the
//! device ask for a reset.

use std::borrow::Cow;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::machine::bus::{Bus, BusDevice, BusError};
use crate::machine::memory::guest::GuestRam;
use crate::machine::state::{Saved, StateError, StateReader, StateWriter};
use crate::pci::bus::PciFunction;
use crate::pci::config_space::ConfigSpace;
use crate::pci::msix::{Line, Msix};
use crate::virtio::common_config::{Change, CommonConfig};
use crate::virtio::device::{ActiveQueue, DeviceEvent, VirtioDevice};
use crate::virtio::error::VirtioError;
pub use crate::virtio::pci_layout::BAR_SIZE;
use crate::virtio::pci_layout::{
    DEVICE_CONFIG, ISR, MSIX_TABLE, NOTIFY, NOTIFY_STRIDE, PENDING_BITS, WINDOW, configuration,
};
use crate::virtio::state::{TransportState, VERSION};

/// Interrupt status: the configuration has changed.
const ISR_CONFIG: u8 = 2;

/// Binds doorbells to eventfds inside the kernel.
pub trait Doorbells: Send + Sync {
    /// A write at `address` signals `kick`.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn bind(&self, address: u64, kick: &EventFd) -> io::Result<()>;
    /// It no longer does.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn unbind(&self, address: u64, kick: &EventFd) -> io::Result<()>;
}

impl Doorbells for kvm_ioctls::VmFd {
    fn bind(&self, address: u64, kick: &EventFd) -> io::Result<()> {
        let address = kvm_ioctls::IoEventAddress::Mmio(address);
        self.register_ioevent(kick, &address, kvm_ioctls::NoDatamatch).map_err(Into::into)
    }

    fn unbind(&self, address: u64, kick: &EventFd) -> io::Result<()> {
        let address = kvm_ioctls::IoEventAddress::Mmio(address);
        self.unregister_ioevent(kick, &address, kvm_ioctls::NoDatamatch).map_err(Into::into)
    }
}

/// A queue that the driver has broken, as its backend says.
#[derive(Debug, thiserror::Error)]
#[error("the driver has broken a queue")]
struct BrokenQueue;

/// Told when a device is set up or taken down.
pub type Observer = Arc<dyn Fn(&str, DeviceEvent) + Send + Sync>;

/// What a transport needs of the machine.
pub struct Machine {
    /// Where the BAR is moved when the guest moves it.
    pub mmio: Arc<Bus>,
    /// For the kicks.
    pub doorbells: Arc<dyn Doorbells>,
    /// For checks of queue addresses.
    pub ram: GuestRam,
}

/// A virtio device on the PCI bus.
pub struct VirtioPci {
    id: String,
    /// Itself, as the bus of memory-mapped I/O is to hold it.
    this: Weak<Mutex<Self>>,
    device: Box<dyn VirtioDevice>,
    machine: Machine,
    config: ConfigSpace,
    /// Offset of the MSI-X capability.
    msix_at: usize,
    /// Offset of the capability that gives access to the BAR through configuration space.
    window_at: usize,
    common: CommonConfig,
    msix: Msix,
    isr: u8,
    /// One for each queue, for the life of the device.
    kicks: Vec<EventFd>,
    /// Written by whoever serves a queue and finds it broken.
    broken: EventFd,
    /// Where the BAR answers: nowhere while decoding is off, or while its place is another device's.
    mapped: Option<u64>,
    /// Where [`VirtioPci::place_bar`] is to put it.
    destination: Option<u64>,
    /// The queues whose doorbells are bound.
    bound: Vec<bool>,
    active: bool,
    counts: Counts,
    observer: Option<Observer>,
}

/// How often the driver has set the device up and taken it down.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Set up.
    pub activations: u64,
    /// Taken down.
    pub resets: u64,
}

impl VirtioPci {
    /// Puts `device` behind a BAR at `base`; `lines` are one interrupt for the configuration and one for each
    /// queue.
    ///
    /// # Errors
    /// When eventfds have run out, the place is taken or the kernel refuses the doorbells.
    pub fn new(
        id: &str,
        device: Box<dyn VirtioDevice>,
        machine: Machine,
        base: u64,
        lines: Vec<Box<dyn Line>>,
    ) -> Result<Arc<Mutex<Self>>, VirtioError> {
        let system = |what| move |source| VirtioError::System { what, source };
        let queues = device.queue_sizes().len();
        let kicks = (0..queues).map(|_| EventFd::new(EFD_NONBLOCK)).collect::<io::Result<Vec<_>>>();
        let kicks = kicks.map_err(system("cannot create a queue's eventfd"))?;
        let broken = EventFd::new(EFD_NONBLOCK).map_err(system("cannot create an eventfd for broken queues"))?;
        let (config, msix_at, window_at) = configuration(device.device_type(), base, lines.len() as u16)
            .map_err(|e| VirtioError::Differs(e.to_string()))?;
        let mut transport = Self {
            id: id.to_owned(),
            this: Weak::new(),
            common: CommonConfig::new(device.queue_sizes(), lines.len() as u16),
            msix: Msix::new(lines),
            device,
            machine,
            config,
            msix_at,
            window_at,
            isr: 0,
            bound: vec![false; kicks.len()],
            kicks,
            broken,
            mapped: None,
            destination: Some(base),
            active: false,
            counts: Counts::default(),
            observer: None,
        };
        let this = Arc::new_cyclic(|this| {
            transport.this = this.clone();
            Mutex::new(transport)
        });
        {
            let mut transport = this.lock().unwrap_or_else(PoisonError::into_inner);
            transport.place_bar()?;
            if let Err(e) = transport.bind_doorbells() {
                // The bus must not keep it.
                transport.unplug();
                return Err(system("cannot bind a queue's doorbell")(e));
            }
        }
        Ok(this)
    }

    /// Name of the device.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where the BAR is, by its register; it answers there if decoding is on.
    #[must_use]
    pub fn bar(&self) -> u64 {
        self.config.bar64(0)
    }

    /// Readable when a queue is broken: [`VirtioPci::check_queues`] is to be called.
    ///
    /// # Errors
    /// When descriptors have run out.
    pub fn broken_event(&self) -> io::Result<EventFd> {
        self.broken.try_clone()
    }

    /// Asks the driver for a reset if whoever serves its queues has found one broken.
    pub fn check_queues(&mut self) {
        // Read with the lock held: what was said of the queues before a reset is gone after it.
        if self.broken.read().is_ok() && self.active {
            self.fail("has stopped", &BrokenQueue);
        }
    }

    /// The bus forgets the device.
    pub fn unplug(&mut self) {
        self.unmap();
    }

    /// The device itself.
    pub fn device_mut(&mut self) -> &mut dyn VirtioDevice {
        &mut *self.device
    }

    /// How often it was set up and taken down.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// From now on `observer` hears of the device.
    pub fn set_observer(&mut self, observer: Observer) {
        self.observer = Some(observer);
    }

    /// Reset of the machine: PCI function and device back to power-on. The BAR answers nowhere until
    /// [`VirtioPci::place_bar`]: its place may be another device's that is yet to be reset.
    ///
    /// # Errors
    /// When the backend does not let go. The registers are reset all the same.
    pub fn reset(&mut self) -> Result<(), VirtioError> {
        let result = self.reset_device();
        self.config.reset();
        self.msix.reset();
        self.unmap();
        self.destination = Some(self.config.bar64(0));
        result
    }

    /// Puts the BAR where it belongs after a reset or a load, when all devices have had theirs.
    ///
    /// # Errors
    /// When the place is another device's.
    pub fn place_bar(&mut self) -> Result<(), VirtioError> {
        match self.destination.take() {
            Some(base) if self.mapped != Some(base) => {
                self.unmap();
                self.map(base).map_err(VirtioError::Bar)
            }
            _ => Ok(()),
        }
    }

    /// Sets up the backend for a driver that a checkpoint says is there.
    ///
    /// # Errors
    /// When the backend does not work, or the checkpoint's queues cannot.
    pub fn activate_restored(&mut self) -> Result<(), VirtioError> {
        if self.active && self.common.driver_ok() { self.start(true) } else { Ok(()) }
    }

    /// After a takeover: as if every queue had been kicked and every interrupt sent once. What was under way
    /// at the checkpoint may have been lost; what was not is a spurious notification, which drivers and
    /// devices must bear.
    pub fn kick_all(&mut self) {
        if !self.active || !self.common.driver_ok() {
            return;
        }
        self.device.moved();
        for index in 0..self.kicks.len() as u16 {
            if !self.common.queues()[usize::from(index)].enabled {
                continue;
            }
            self.kick(index);
            self.msix.trigger(self.common.queues()[usize::from(index)].vector);
        }
        self.config_changed();
    }

    /// Tells the driver that the device specific configuration has changed.
    fn config_changed(&mut self) {
        self.common.bump_generation();
        self.isr |= ISR_CONFIG;
        self.msix.trigger(self.common.config_vector());
    }

    fn kick(&mut self, queue: u16) {
        if !self.device.has_doorbell(queue) {
            if let Err(e) = self.device.notify(queue) {
                self.fail("has stopped", &e);
            }
        } else if let Some(kick) = self.kicks.get(usize::from(queue)) {
            // A full counter is a signal as well.
            let _ = kick.write(1);
        }
    }

    fn driver_ok(&mut self) {
        match self.start(false) {
            Ok(()) => {
                self.counts.activations += 1;
                self.observe(DeviceEvent::Activated);
                tracing::debug!(device = self.id, features = self.common.driver_features(), "device activated");
            }
            Err(e) => self.fail("cannot be activated", &e),
        }
    }

    fn start(&mut self, resume: bool) -> Result<(), VirtioError> {
        let mut queues = Vec::with_capacity(self.kicks.len());
        for (ring, max_size) in self.common.enabled_rings() {
            let ring = ring.check(max_size, &self.machine.ram)?;
            let index = usize::from(ring.index);
            let kick = self.kicks[index].try_clone();
            let kick = kick.map_err(|source| VirtioError::System { what: "cannot share a queue's eventfd", source })?;
            let broken = self.broken.try_clone();
            let broken = broken.map_err(|source| VirtioError::System { what: "cannot share an eventfd", source })?;
            queues.push(ActiveQueue { ring, kick, call: self.call_of(index)?, broken });
        }
        self.device.activate(self.common.driver_features(), queues, resume)?;
        self.active = true;
        self.follow_doorbells();
        Ok(())
    }

    /// The eventfd that interrupts for queue `index`; one that nobody listens to if the driver wants no
    /// interrupts.
    fn call_of(&self, index: usize) -> Result<EventFd, VirtioError> {
        let event = match self.msix.event(self.common.queues()[index].vector) {
            Some(event) => event.try_clone(),
            None => EventFd::new(EFD_NONBLOCK),
        };
        event.map_err(|source| VirtioError::System { what: "cannot share an interrupt's eventfd", source })
    }

    /// The device cannot go on until the driver resets it.
    fn fail(&mut self, what: &str, error: &dyn std::error::Error) {
        let reasons = std::iter::successors(error.source(), |e| e.source()).map(|e| format!(": {e}"));
        host_kit::log_limited!(error, "device {} {what}: {error}{}", self.id, reasons.collect::<String>());
        self.common.set_needs_reset();
        self.config_changed();
    }

    /// The driver's reset, or the machine's: device and registers, but not the PCI function.
    fn reset_device(&mut self) -> Result<(), VirtioError> {
        let result = self.device.reset();
        if std::mem::take(&mut self.active) {
            self.counts.resets += 1;
            self.observe(DeviceEvent::Reset);
        }
        self.common.reset();
        self.isr = 0;
        for event in self.kicks.iter().chain([&self.broken]) {
            // Empty is what we want.
            let _ = event.read();
        }
        self.follow_doorbells();
        result
    }

    fn observe(&self, event: DeviceEvent) {
        if let Some(observer) = &self.observer {
            observer(&self.id, event);
        }
    }

    fn write_common(&mut self, offset: usize, data: &[u8]) {
        match self.common.write(offset, data, self.device.features()) {
            Change::None => {}
            Change::DriverOk => self.driver_ok(),
            Change::Reset => {
                if let Err(e) = self.reset_device() {
                    self.fail("cannot be reset", &e);
                }
            }
            Change::QueueVector(queue) if self.active => {
                let call = self.call_of(usize::from(queue));
                if let Err(e) = call.and_then(|call| self.device.set_call(queue, call)) {
                    self.fail("cannot change an interrupt", &e);
                }
            }
            Change::QueueVector(_) => {}
        }
    }

    fn read_bar(&mut self, offset: u64, data: &mut [u8]) {
        match offset {
            0..WINDOW => self.common.read(offset as usize, data, self.device.features()),
            ISR => {
                data.fill(0);
                if let Some(first) = data.first_mut() {
                    // Reading acknowledges.
                    *first = std::mem::take(&mut self.isr);
                }
            }
            DEVICE_CONFIG..NOTIFY => read_bytes(self.device.config(), offset - DEVICE_CONFIG, data),
            MSIX_TABLE..PENDING_BITS => self.msix.read_table(offset - MSIX_TABLE, data),
            PENDING_BITS.. => self.msix.read_pending(offset - PENDING_BITS, data),
            _ => data.fill(0),
        }
    }

    fn write_bar(&mut self, offset: u64, data: &[u8]) {
        match offset {
            0..WINDOW => self.write_common(offset as usize, data),
            DEVICE_CONFIG..NOTIFY => self.device.write_config((offset - DEVICE_CONFIG) as usize, data),
            NOTIFY..MSIX_TABLE => {
                let queue = (offset - NOTIFY) / NOTIFY_STRIDE;
                if self.active && queue < self.kicks.len() as u64 {
                    self.kick(queue as u16);
                }
            }
            MSIX_TABLE..PENDING_BITS => self.msix.write_table(offset - MSIX_TABLE, data),
            _ => {}
        }
    }

    /// Offset and length of the BAR access that the PCI configuration access capability asks for.
    fn window(&self) -> Option<(u64, usize)> {
        let offset = u64::from(self.config.u32_at(self.window_at + 8));
        let len = self.config.u32_at(self.window_at + 12) as usize;
        let bar = self.config.u16_at(self.window_at + 4) & 0xff;
        let fits = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len as u64) && offset + len as u64 <= BAR_SIZE;
        (bar == 0 && fits).then_some((offset, len))
    }

    /// Moves the BAR where the guest has put it; without decoding it answers nowhere. True: a place has
    /// become free.
    fn follow_bar(&mut self) -> bool {
        let wanted = self.config.memory_enabled().then(|| self.config.bar64(0));
        if wanted == self.mapped {
            return false;
        }
        let freed = self.unmap();
        if let Some(base) = wanted
            && let Err(e) = self.map(base)
        {
            host_kit::warn_limited!(device = self.id, "PCI BAR answers nowhere: {e}");
        }
        freed
    }

    fn map(&mut self, base: u64) -> Result<(), BusError> {
        // Without itself it is about to be dropped.
        let Some(this) = self.this.upgrade() else { return Ok(()) };
        self.machine.mmio.insert(this, base, BAR_SIZE)?;
        self.mapped = Some(base);
        self.follow_doorbells();
        Ok(())
    }

    /// True: the BAR was mapped.
    fn unmap(&mut self) -> bool {
        for queue in 0..self.bound.len() {
            self.set_doorbell(queue, false);
        }
        let base = self.mapped.take();
        if let Some(base) = base {
            self.machine.mmio.remove(base);
        }
        base.is_some()
    }

    fn bind_doorbells(&mut self) -> io::Result<()> {
        let refused = (0..self.kicks.len()).find(|queue| self.wants_doorbell(*queue) && !self.bound[*queue]);
        match (refused, self.mapped) {
            (Some(queue), Some(base)) => self.machine.doorbells.bind(doorbell(base, queue), &self.kicks[queue]),
            _ => Ok(()),
        }
    }

    fn wants_doorbell(&self, queue: usize) -> bool {
        self.mapped.is_some() && self.device.has_doorbell(queue as u16)
    }

    /// Binds and unbinds doorbells: which queues have one follows from what the driver has negotiated.
    fn follow_doorbells(&mut self) {
        for queue in 0..self.bound.len() {
            self.set_doorbell(queue, self.wants_doorbell(queue));
        }
    }

    /// A doorbell that cannot be bound costs speed only: the write comes to [`Self::write_bar`] instead.
    fn set_doorbell(&mut self, queue: usize, on: bool) {
        let Some(base) = self.mapped.filter(|_| on != self.bound[queue]) else { return };
        let (doorbells, address) = (&self.machine.doorbells, doorbell(base, queue));
        let kick = &self.kicks[queue];
        let done = if on { doorbells.bind(address, kick) } else { doorbells.unbind(address, kick) };
        if let Err(e) = &done {
            let verb = if on { "bind" } else { "unbind" };
            host_kit::warn_limited!(device = self.id, "cannot {verb} the doorbell at {address:#x}: {e}");
        }
        self.bound[queue] = on && done.is_ok();
    }

    fn apply_state(&mut self, state: &TransportState<'_>) -> Result<(), VirtioError> {
        let differs = |e: &dyn std::error::Error| VirtioError::Differs(e.to_string());
        if !self.common.is_alike(&state.common) {
            return Err(VirtioError::Differs("its queues are others".to_owned()));
        }
        if self.active && !state.active {
            self.device.reset()?;
        }
        self.device.set_state(&state.device, state.common.driver_features())?;
        self.config.load(&state.pci).map_err(|e| differs(&e))?;
        self.msix.load(&state.msix).map_err(|e| differs(&e))?;
        self.common = state.common.clone().into_owned();
        self.isr = state.isr;
        self.active = state.active;
        if self.mapped != state.bar {
            self.unmap();
        }
        self.destination = state.bar;
        Ok(())
    }
}

impl PciFunction for VirtioPci {
    fn config_read(&mut self, offset: usize, data: &mut [u8]) {
        let data_at = self.window_at + 16;
        if (data_at..data_at + 4).contains(&offset)
            && let Some((bar_offset, len)) = self.window()
        {
            let mut value = [0; 4];
            self.read_bar(bar_offset, &mut value[..len]);
            self.config.overwrite(data_at, &value);
        }
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) -> bool {
        self.config.write(offset, data);
        let data_at = self.window_at + 16;
        if offset == data_at
            && let Some((bar_offset, len)) = self.window()
        {
            let value = self.config.u32_at(data_at).to_le_bytes();
            self.write_bar(bar_offset, &value[..len]);
        }
        self.msix.set_control(self.config.u16_at(self.msix_at + 2));
        self.follow_bar()
    }

    fn place_freed(&mut self) {
        self.follow_bar();
    }
}

impl BusDevice for VirtioPci {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.read_bar(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.write_bar(offset, data);
    }
}

impl Saved for VirtioPci {
    fn state_id(&self) -> &str {
        &self.id
    }

    fn save(&self, out: &mut StateWriter<'_>) -> Result<(), StateError> {
        let state = TransportState {
            pci: self.config.save(),
            msix: self.msix.save(),
            common: Cow::Borrowed(&self.common),
            isr: self.isr,
            active: self.active,
            bar: self.mapped,
            device: self.device.state(),
        };
        out.section(&self.id, VERSION, &state)
    }

    fn load(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        let state: TransportState<'_> = from.take(&self.id, VERSION)?;
        self.apply_state(&state).map_err(|e| StateError::Part {
            id: self.id.clone(),
            what: e.to_string(),
            source: None,
        })
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        self.unmap();
    }
}

/// Address of a queue's doorbell in a BAR at `base`.
fn doorbell(base: u64, queue: usize) -> u64 {
    base + NOTIFY + queue as u64 * NOTIFY_STRIDE
}

fn read_bytes(source: &[u8], offset: u64, data: &mut [u8]) {
    for (i, byte) in data.iter_mut().enumerate() {
        let at = usize::try_from(offset).unwrap_or(usize::MAX).saturating_add(i);
        *byte = source.get(at).copied().unwrap_or(0);
    }
}

#[cfg(test)]
mod tests;
