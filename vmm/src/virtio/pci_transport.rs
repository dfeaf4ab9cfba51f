//! What the guest sees of a virtio device: a PCI function with one memory BAR, MSI-X, and no INTx.
//!
//! In: configuration space and BAR accesses. Out: calls of the [`VirtioDevice`]; kicks reach their eventfds inside the kernel,
//! without us. Never: a guest that can crash the VMM; what it sets up wrong makes the device ask for a reset.
//!
//! Layout of BAR 0 (512 KiB), as in Cloud Hypervisor: common registers 0, interrupt status 0x2000, device configuration
//! 0x4000, doorbells 0x6000 (4 bytes each), MSI-X table 0x8000, pending bits 0x48000.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_ids::{VIRTIO_ID_BLOCK, VIRTIO_ID_NET};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::{Bus, BusDevice};
use crate::memory::guest::GuestRam;
use crate::pci::bus::PciFunction;
use crate::pci::config_space::{ConfigSpace, ConfigSpaceError, Identity};
use crate::pci::msix::{Line, Msix};
use crate::state::{Saved, StateError, StateReader, StateWriter};
use crate::virtio::common_config::{self, Change, CommonConfig};
use crate::virtio::state::{TransportState, VERSION};
use crate::virtio::{ActiveQueue, DeviceEvent, VirtioDevice, VirtioError};

/// Bytes of BAR 0.
pub const BAR_SIZE: u64 = 512 << 10;
const ISR: u64 = 0x2000;
const DEVICE_CONFIG: u64 = 0x4000;
const NOTIFY: u64 = 0x6000;
const MSIX_TABLE: u64 = 0x8000;
const PENDING_BITS: u64 = 0x4_8000;
/// Bytes of each window but the table.
const WINDOW: u64 = 0x1000;
/// Bytes from one queue's doorbell to the next.
const NOTIFY_STRIDE: u64 = 4;

const VENDOR: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;

const CAP_VENDOR: u8 = 0x09;
const CAP_MSIX: u8 = 0x11;
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;
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
    /// Where the BAR answers: what the guest has set last with decoding on.
    mapped: u64,
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
    /// Puts `device` behind a BAR at `base`; `lines` are one interrupt for the configuration and one for each queue.
    ///
    /// # Errors
    /// When eventfds have run out or the kernel refuses the doorbells.
    pub fn new(
        id: &str,
        device: Box<dyn VirtioDevice>,
        machine: Machine,
        base: u64,
        lines: Vec<Box<dyn Line>>,
    ) -> Result<Self, VirtioError> {
        let system = |what| move |source| VirtioError::System { what, source };
        let queues = device.queue_sizes().len();
        let kicks = (0..queues).map(|_| EventFd::new(EFD_NONBLOCK)).collect::<io::Result<Vec<_>>>();
        let kicks = kicks.map_err(system("cannot create a queue's eventfd"))?;
        let (config, msix_at, window_at) = configuration(device.device_type(), base, lines.len() as u16)
            .map_err(|e| VirtioError::Differs(e.to_string()))?;
        let transport = Self {
            id: id.to_owned(),
            common: CommonConfig::new(device.queue_sizes(), lines.len() as u16),
            msix: Msix::new(lines),
            device,
            machine,
            config,
            msix_at,
            window_at,
            isr: 0,
            kicks,
            mapped: base,
            active: false,
            counts: Counts::default(),
            observer: None,
        };
        transport.bind_doorbells(base).map_err(system("cannot bind a queue's doorbell"))?;
        Ok(transport)
    }

    /// Name of the device.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where the BAR is.
    #[must_use]
    pub fn bar(&self) -> u64 {
        self.mapped
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

    /// Reset of the machine: PCI function and device back to power-on.
    ///
    /// # Errors
    /// When the backend does not let go. The registers are reset all the same.
    pub fn reset(&mut self) -> Result<(), VirtioError> {
        let result = self.reset_device();
        self.config.reset();
        self.msix.reset();
        self.follow_bar();
        result
    }

    /// Sets up the backend for a driver that a checkpoint says is there.
    ///
    /// # Errors
    /// When the backend does not work, or the checkpoint's queues cannot.
    pub fn activate_restored(&mut self) -> Result<(), VirtioError> {
        if self.active && self.common.driver_ok() { self.start(true) } else { Ok(()) }
    }

    /// After a takeover: as if every queue had been kicked and every interrupt sent once. What was under way at the
    /// checkpoint may have been lost; what was not is a spurious notification, which drivers and devices must bear.
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
            self.device.notify(queue);
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
            queues.push(ActiveQueue { ring, kick, call: self.call_of(index)? });
        }
        self.device.activate(self.common.driver_features(), queues, resume)?;
        self.active = true;
        Ok(())
    }

    /// The eventfd that interrupts for queue `index`; one that nobody listens to if the driver wants no interrupts.
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
        tracing::error!("device {} {what}: {error}{}", self.id, reasons.collect::<String>());
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
        for kick in &self.kicks {
            // Empty is what we want.
            let _ = kick.read();
        }
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

    /// Moves the BAR where the guest has put it. While decoding is off (a guest finding out its size) it stays.
    fn follow_bar(&mut self) {
        let base = self.config.bar64(0);
        if base == self.mapped || !self.config.memory_enabled() {
            return;
        }
        if let Err(e) = self.machine.mmio.relocate(self.mapped, base) {
            tracing::warn!(device = self.id, "PCI BAR stays where it is: {e}");
            return;
        }
        self.each_doorbell(self.mapped, "unbind", |address, kick| self.machine.doorbells.unbind(address, kick));
        self.each_doorbell(base, "bind", |address, kick| self.machine.doorbells.bind(address, kick));
        self.mapped = base;
    }

    /// A doorbell that cannot be moved costs speed only: the write comes to [`Self::write_bar`] instead.
    fn each_doorbell(&self, base: u64, verb: &str, change: impl Fn(u64, &EventFd) -> io::Result<()>) {
        for (address, kick) in self.doorbells(base) {
            if let Err(e) = change(address, kick) {
                tracing::warn!(device = self.id, "cannot {verb} the doorbell at {address:#x}: {e}");
            }
        }
    }

    fn bind_doorbells(&self, base: u64) -> io::Result<()> {
        self.doorbells(base).try_for_each(|(address, kick)| self.machine.doorbells.bind(address, kick))
    }

    fn doorbells(&self, base: u64) -> impl Iterator<Item = (u64, &EventFd)> {
        let queues = (0_u16..).zip(&self.kicks).filter(|(queue, _)| self.device.has_doorbell(*queue));
        queues.map(move |(queue, kick)| (base + NOTIFY + u64::from(queue) * NOTIFY_STRIDE, kick))
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
        self.follow_bar();
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

    fn config_write(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        let data_at = self.window_at + 16;
        if offset == data_at
            && let Some((bar_offset, len)) = self.window()
        {
            let value = self.config.u32_at(data_at).to_le_bytes();
            self.write_bar(bar_offset, &value[..len]);
        }
        self.msix.set_control(self.config.u16_at(self.msix_at + 2));
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
        self.each_doorbell(self.mapped, "unbind", |address, kick| self.machine.doorbells.unbind(address, kick));
    }
}

fn read_bytes(source: &[u8], offset: u64, data: &mut [u8]) {
    for (i, byte) in data.iter_mut().enumerate() {
        let at = usize::try_from(offset).unwrap_or(usize::MAX).saturating_add(i);
        *byte = source.get(at).copied().unwrap_or(0);
    }
}

/// Class code: what firmware and `lspci` sort by.
fn class_of(device_type: u32) -> u32 {
    match device_type {
        VIRTIO_ID_NET => 0x02_0000,
        VIRTIO_ID_BLOCK => 0x01_8000,
        _ => 0xff_0000,
    }
}

/// Configuration space with all capabilities, and where the MSI-X and the PCI access capability are.
fn configuration(device_type: u32, base: u64, vectors: u16) -> Result<(ConfigSpace, usize, usize), ConfigSpaceError> {
    let mut config = ConfigSpace::new(&Identity {
        vendor: VENDOR,
        device: DEVICE_BASE + device_type as u16,
        revision: 1,
        class: class_of(device_type),
        subsystem_vendor: VENDOR,
        subsystem: DEVICE_BASE + device_type as u16,
    });
    config.add_bar64(0, base, BAR_SIZE);
    let window = WINDOW as u32;
    config.add_capability(CAP_VENDOR, &virtio_cap(16, CFG_COMMON, 0, common_config::SIZE as u32)[..14], &[])?;
    config.add_capability(CAP_VENDOR, &virtio_cap(16, CFG_ISR, ISR as u32, 1)[..14], &[])?;
    config.add_capability(CAP_VENDOR, &virtio_cap(16, CFG_DEVICE, DEVICE_CONFIG as u32, window)[..14], &[])?;
    let mut notify = virtio_cap(20, CFG_NOTIFY, NOTIFY as u32, window);
    notify[14..].copy_from_slice(&(NOTIFY_STRIDE as u32).to_le_bytes());
    config.add_capability(CAP_VENDOR, &notify, &[])?;
    // The guest chooses BAR, offset and length, and reads and writes the data.
    let mut writable = [0; 18];
    writable[2] = 0xff;
    writable[6..].fill(0xff);
    let window_at = config.add_capability(CAP_VENDOR, &virtio_cap(20, CFG_PCI, 0, 0), &writable)?;
    let mut msix = [0; 10];
    msix[..2].copy_from_slice(&(vectors - 1).to_le_bytes());
    msix[2..6].copy_from_slice(&(MSIX_TABLE as u32).to_le_bytes());
    msix[6..].copy_from_slice(&(PENDING_BITS as u32).to_le_bytes());
    let msix_at = config.add_capability(CAP_MSIX, &msix, &[0, 0xc0])?;
    Ok((config, msix_at, window_at))
}

/// Body of a virtio capability on BAR 0, after id and next pointer.
fn virtio_cap(len: u8, kind: u8, offset: u32, length: u32) -> [u8; 18] {
    let mut body = [0; 18];
    body[..2].copy_from_slice(&[len, kind]);
    body[6..10].copy_from_slice(&offset.to_le_bytes());
    body[10..14].copy_from_slice(&length.to_le_bytes());
    body
}

#[cfg(test)]
mod tests;
