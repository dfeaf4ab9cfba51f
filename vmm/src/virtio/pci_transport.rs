//! What the guest sees of a virtio device: a PCI function with one memory BAR, MSI-X, and no INTx.
//!
//! In: configuration space and BAR accesses. Out: calls of the [`VirtioDevice`]; kicks reach their eventfds
//! inside the kernel, without us. Never: a guest that can crash the VMM; what it sets up wrong makes the
//! device ask for a reset.

use std::borrow::Cow;
use std::io;
use std::sync::{Arc, Mutex, Weak};

use host_kit::sync::lock;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::machine::bus::{Bus, BusDevice, BusError};
use crate::machine::memory::guest::GuestRam;
use crate::machine::state::{Saved, StateError, StateReader, StateWriter};
use crate::pci::bus::PciFunction;
use crate::pci::msix::{Line, Msix};
use crate::virtio::activity::Activity;
pub use crate::virtio::activity::{Counts, Observer};
use crate::virtio::bar_place::BarPlace;
use crate::virtio::common_config::{Change, CommonConfig};
use crate::virtio::device::{ActiveQueue, VirtioDevice};
pub use crate::virtio::doorbells::Doorbells;
use crate::virtio::doorbells::Kicks;
use crate::virtio::error::VirtioError;
pub use crate::virtio::pci_layout::BAR_SIZE;
use crate::virtio::pci_layout::{
    Configuration, DEVICE_CONFIG, ISR, MSIX_TABLE, NOTIFY, NOTIFY_STRIDE, PENDING_BITS, WINDOW,
};
use crate::virtio::state::{TransportState, VERSION};

/// Interrupt status: the configuration has changed.
const ISR_CONFIG: u8 = 2;

/// A queue that the driver has broken, as its backend says.
#[derive(Debug, thiserror::Error)]
#[error("the driver has broken a queue")]
struct BrokenQueue;

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
    device: Box<dyn VirtioDevice>,
    ram: GuestRam,
    config: Configuration,
    common: CommonConfig,
    msix: Msix,
    isr: u8,
    bar: BarPlace,
    kicks: Kicks,
    /// Written by whoever serves a queue and finds it broken.
    broken: EventFd,
    activity: Activity,
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
        let kicks = Kicks::new(machine.doorbells, device.queue_sizes().len());
        let kicks = kicks.map_err(system("cannot create a queue's eventfd"))?;
        let broken = EventFd::new(EFD_NONBLOCK).map_err(system("cannot create an eventfd for broken queues"))?;
        let vectors = lines.len() as u16;
        let config = Configuration::new(device.device_type(), base, vectors);
        let config = config.map_err(|e| VirtioError::Differs(e.to_string()))?;
        let this = Arc::new_cyclic(|this: &Weak<Mutex<Self>>| {
            Mutex::new(Self {
                id: id.to_owned(),
                common: CommonConfig::new(device.queue_sizes(), vectors),
                msix: Msix::new(lines),
                device,
                ram: machine.ram,
                config,
                isr: 0,
                bar: BarPlace::new(machine.mmio, this.clone(), base),
                kicks,
                broken,
                activity: Activity::default(),
            })
        });
        {
            let mut transport = lock(&this);
            transport.place_bar()?;
            if let Err(e) = transport.retry_doorbells() {
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
        self.config.bar()
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
        if self.broken.read().is_ok() && self.activity.is_active() {
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
        self.activity.counts()
    }

    /// From now on `observer` hears of the device.
    pub fn set_observer(&mut self, observer: Observer) {
        self.activity.set_observer(observer);
    }

    /// Reset of the machine: PCI function and device back to power-on. The BAR answers nowhere until
    /// [`VirtioPci::place_bar`]: its place may be another device's that is yet to be reset.
    ///
    /// # Errors
    /// When the backend does not let go. The registers are reset all the same.
    pub fn reset(&mut self) -> Result<(), VirtioError> {
        let result = self.reset_device();
        self.config.space_mut().reset();
        self.msix.reset();
        self.unmap();
        self.bar.set_destination(Some(self.config.bar()));
        result
    }

    /// Puts the BAR where it belongs after a reset or a load, when all devices have had theirs.
    ///
    /// # Errors
    /// When the place is another device's.
    pub fn place_bar(&mut self) -> Result<(), VirtioError> {
        let Some(base) = self.bar.due() else { return Ok(()) };
        self.unmap();
        self.map(base).map_err(VirtioError::Bar)
    }

    /// Sets up the backend for a driver that a checkpoint says is there.
    ///
    /// # Errors
    /// When the backend does not work, or the checkpoint's queues cannot.
    pub fn activate_restored(&mut self) -> Result<(), VirtioError> {
        if self.activity.is_active() && self.common.driver_ok() { self.start(true) } else { Ok(()) }
    }

    /// After a takeover: as if every queue had been kicked and every interrupt sent once. What was under way
    /// at the checkpoint may have been lost; what was not is a spurious notification, which drivers and
    /// devices must bear.
    pub fn kick_all(&mut self) {
        if !self.activity.is_active() || !self.common.driver_ok() {
            return;
        }
        self.device.moved();
        for index in 0..self.kicks.count() as u16 {
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
        } else {
            self.kicks.kick(queue);
        }
    }

    fn driver_ok(&mut self) {
        match self.start(false) {
            Ok(()) => {
                self.activity.activated(&self.id);
                tracing::debug!(device = self.id, features = self.common.driver_features(), "device activated");
            }
            Err(e) => self.fail("cannot be activated", &e),
        }
    }

    fn start(&mut self, resume: bool) -> Result<(), VirtioError> {
        let mut queues = Vec::with_capacity(self.kicks.count());
        for (ring, max_size) in self.common.enabled_rings() {
            let ring = ring.check(max_size, &self.ram)?;
            let index = usize::from(ring.index);
            let kick = self.kicks.share(index);
            let kick = kick.map_err(|source| VirtioError::System { what: "cannot share a queue's eventfd", source })?;
            let broken = self.broken.try_clone();
            let broken = broken.map_err(|source| VirtioError::System { what: "cannot share an eventfd", source })?;
            queues.push(ActiveQueue { ring, kick, call: self.call_of(index)?, broken });
        }
        self.device.activate(self.common.driver_features(), queues, resume)?;
        self.activity.set_active(true);
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
        host_kit::log_limited!(error, "device {} {what}: {}", self.id, host_kit::error::chain(error));
        self.common.set_needs_reset();
        self.config_changed();
    }

    /// The driver's reset, or the machine's: device and registers, but not the PCI function.
    fn reset_device(&mut self) -> Result<(), VirtioError> {
        let result = self.device.reset();
        self.activity.reset(&self.id);
        self.common.reset();
        self.isr = 0;
        self.kicks.clear();
        // Empty is what we want.
        let _ = self.broken.read();
        self.follow_doorbells();
        result
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
            Change::QueueVector(queue) if self.activity.is_active() => {
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
                if self.activity.is_active() && queue < self.kicks.count() as u64 {
                    self.kick(queue as u16);
                }
            }
            MSIX_TABLE..PENDING_BITS => self.msix.write_table(offset - MSIX_TABLE, data),
            _ => {}
        }
    }

    /// Moves the BAR where the guest has put it; without decoding it answers nowhere. True: a place has
    /// become free.
    fn follow_bar(&mut self) -> bool {
        let wanted = self.config.space().memory_enabled().then(|| self.config.bar());
        if wanted == self.bar.mapped() {
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
        self.bar.map(base)?;
        self.follow_doorbells();
        Ok(())
    }

    /// True: the BAR was mapped.
    fn unmap(&mut self) -> bool {
        self.kicks.follow(&self.id, None, |_| false);
        self.bar.unmap()
    }

    /// Binds and unbinds doorbells: which queues have one follows from what the driver has negotiated.
    fn follow_doorbells(&mut self) {
        self.kicks.follow(&self.id, self.bar.mapped(), |queue| self.device.has_doorbell(queue));
    }

    fn retry_doorbells(&mut self) -> io::Result<()> {
        let Some(base) = self.bar.mapped() else { return Ok(()) };
        self.kicks.retry(base, |queue| self.device.has_doorbell(queue))
    }

    fn apply_state(&mut self, state: &TransportState<'_>) -> Result<(), VirtioError> {
        let differs = |e: &dyn std::error::Error| VirtioError::Differs(e.to_string());
        if !self.common.is_alike(&state.common) {
            return Err(VirtioError::Differs("its queues are others".to_owned()));
        }
        if self.activity.is_active() && !state.active {
            self.device.reset()?;
        }
        self.device.set_state(&state.device, state.common.driver_features())?;
        self.config.space_mut().load(&state.pci).map_err(|e| differs(&e))?;
        self.msix.load(&state.msix).map_err(|e| differs(&e))?;
        self.common = state.common.clone().into_owned();
        self.isr = state.isr;
        self.activity.set_active(state.active);
        if self.bar.mapped() != state.bar {
            self.unmap();
        }
        self.bar.set_destination(state.bar);
        Ok(())
    }
}

impl PciFunction for VirtioPci {
    fn config_read(&mut self, offset: usize, data: &mut [u8]) {
        let data_at = self.config.window_data_at();
        if (data_at..data_at + 4).contains(&offset)
            && let Some((bar_offset, len)) = self.config.window()
        {
            let mut value = [0; 4];
            self.read_bar(bar_offset, &mut value[..len]);
            self.config.space_mut().overwrite(data_at, &value);
        }
        self.config.space().read(offset, data);
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) -> bool {
        self.config.space_mut().write(offset, data);
        let data_at = self.config.window_data_at();
        if offset == data_at
            && let Some((bar_offset, len)) = self.config.window()
        {
            let value = self.config.space().u32_at(data_at).to_le_bytes();
            self.write_bar(bar_offset, &value[..len]);
        }
        self.msix.set_control(self.config.msix_control());
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
            pci: self.config.space().save(),
            msix: self.msix.save(),
            common: Cow::Borrowed(&self.common),
            isr: self.isr,
            active: self.activity.is_active(),
            bar: self.bar.mapped(),
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

fn read_bytes(source: &[u8], offset: u64, data: &mut [u8]) {
    for (i, byte) in data.iter_mut().enumerate() {
        let at = usize::try_from(offset).unwrap_or(usize::MAX).saturating_add(i);
        *byte = source.get(at).copied().unwrap_or(0);
    }
}

#[cfg(test)]
mod tests;
