//! The device manager: the PCI bus with the virtio devices of one VM, and the processes that serve them.
//!
//! In: the VM's configuration, then orders of whoever owns the VM. Out: devices on the buses, their state for checkpoints,
//! their dirty pages. Never: policy; what an order is for is not known here.
//!
//! There is nothing to seal on this side: entropy and control queues are served on the vCPU that kicks them, and all other
//! queues by device processes, which are sealed through their ft-ctl sockets. With the vCPUs parked nothing here touches
//! guest memory, as long as [`DeviceManager::kick_all`] and the like are called by the thread that owns the VM.

mod broken_queues;
mod build;

pub(crate) use build::DISK_PROGRAM;
mod names;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device_counters::{DiskCounters, NetCounters};
use ft_proto::device_ctl::{DeviceInfo, QueueState};
use kvm_ioctls::VmFd;
use serde_json::{Value, json};

use crate::bus::{Bus, BusError};
use crate::config::VmConfig;
use crate::device_process::{ChildExits, DeviceProcess, ProcessError};
use crate::devices::broken_queues::{BrokenQueues, Watched};
use crate::devices::build::{Planned, Shared};
use crate::devices::names::Slots;
use crate::irq::{IrqError, IrqManager};
use crate::memory::guest::{GuestMemory, GuestRam};
use crate::memory::layout::{ECAM_SEGMENT_SIZE, ECAM_START, mmio64};
use crate::pci::bar::{BarSpace, BarSpaceError};
use crate::pci::bus::{CONFIG_PORTS, CONFIG_PORTS_LEN, ConfigPorts, Ecam, PciBus, SlotError};
use crate::pci::msix::Line;
use crate::state::{DEVICES, Saved, StateError, StateReader, StateWriter};
use crate::vhost_user::{DirtyLog, Kind, VhostUserError, Watchdog, told_block_size, told_mtu};
use crate::virtio::pci_transport::{BAR_SIZE, Doorbells, Machine, Observer, VirtioPci};
use crate::virtio::rng::Rng;
use crate::virtio::{VirtioDevice, VirtioError};

/// Id of the entropy device.
const RNG_ID: &str = "__rng";

/// Why the devices cannot be built or do not work. The text names the device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A setting that cannot be.
    #[error("{field}: {problem}")]
    Config {
        /// Path of the field, such as `disks[0].num_queues`.
        field: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A device process does not work.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A vhost-user backend does not work.
    #[error(transparent)]
    VhostUser(#[from] VhostUserError),
    /// A device does not work.
    #[error("device {id} does not work")]
    Virtio {
        /// Which.
        id: String,
        /// Reason.
        #[source]
        source: VirtioError,
    },
    /// A slot is not there or taken.
    #[error("no PCI slot for device {id}")]
    Slot {
        /// Which.
        id: String,
        /// Reason.
        #[source]
        source: SlotError,
    },
    /// The address space for devices is full.
    #[error(transparent)]
    BarSpace(#[from] BarSpaceError),
    /// An address range is taken.
    #[error("PCI does not fit the address map")]
    Bus(#[from] BusError),
    /// Interrupts have run out.
    #[error(transparent)]
    Irq(#[from] IrqError),
    /// A system call failed.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

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

/// What a device with an ft-ctl link is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LinkKind {
    /// A disk.
    Disk,
    /// A network card.
    Net,
}

/// The ft-ctl link to a device process; `Hello` has been answered.
#[derive(Debug)]
pub struct FtLink {
    /// Device.
    pub id: String,
    /// Another descriptor of the socket.
    pub fd: OwnedFd,
    /// What the device is.
    pub kind: LinkKind,
    /// Queues that the process serves.
    pub queues: u16,
    /// What the process says it is.
    pub info: DeviceInfo,
    /// A network card's address.
    pub mac: Option<[u8; 6]>,
    /// PCI slot.
    pub slot: u16,
    /// Largest size of each queue.
    pub queue_sizes: Vec<u16>,
    /// Features offered to the driver.
    pub features: u64,
    /// A network card's MTU, as the guest was told.
    pub mtu: u16,
    /// A disk's block size, as the guest was told.
    pub block_size: u32,
}

/// One device with its place on the bus.
struct Device {
    id: String,
    slot: usize,
    transport: Arc<Mutex<VirtioPci>>,
    /// None for entropy.
    kind: Option<Kind>,
    queues: u16,
    process: Option<(DeviceProcess, DeviceInfo)>,
}

impl Device {
    fn lock(&self) -> MutexGuard<'_, VirtioPci> {
        self.transport.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, source: VirtioError) -> DeviceError {
        DeviceError::Virtio { id: self.id.clone(), source }
    }
}

/// All devices of a VM.
pub struct DeviceManager {
    pci: Arc<Mutex<PciBus>>,
    devices: Vec<Device>,
    log: Arc<DirtyLog>,
    log_on: bool,
    exits: Arc<ChildExits>,
    pio: Arc<Bus>,
    mmio: Arc<Bus>,
    _broken_queues: BrokenQueues,
}

impl DeviceManager {
    /// Starts the device processes, connects to all backends, and puts the devices on the bus: disks, network cards,
    /// entropy. Ids and addresses that the configuration leaves open are filled in.
    ///
    /// # Errors
    /// When a device cannot be had. What was started for the others is ended again.
    pub fn new(config: &mut VmConfig, parts: DeviceParts<'_>) -> Result<Self, DeviceError> {
        names::fill_in_ids(config);
        let system = |what| move |source| DeviceError::System { what, source };
        config.fill_in_macs(host_kit::random::bytes).map_err(system("cannot choose a MAC address"))?;
        let exits = Arc::new(ChildExits::new().map_err(system("cannot watch device processes"))?);
        let watchdog = Arc::new(Watchdog::new().map_err(system("cannot start the vhost-user watchdog"))?);
        let log = DirtyLog::new(parts.memory.ranges()).map_err(system("cannot create the dirty log"))?;
        let (ram, log) = (parts.memory.ram(), Arc::new(log));
        let shared = Shared { ram, log: &log, watchdog: &watchdog, exits: &exits };
        // All processes first, so that they start side by side.
        let mut planned = Vec::new();
        for (index, disk) in config.disks.iter().flatten().enumerate() {
            planned.push(Planned::disk(index, disk, &shared)?);
        }
        for (index, net) in config.net.iter().flatten().enumerate() {
            planned.push(Planned::net(index, net, &shared)?);
        }
        let mut rack = Rack::new(&parts, planned.iter().filter_map(|plan| plan.wished_slot))?;
        for plan in planned {
            let (id, kind, queues, slot) = (plan.id.clone(), plan.kind, plan.queues.0 as u16, plan.wished_slot);
            let connected = plan.connect(&shared)?;
            let device = rack.insert(&id, Box::new(connected.device), slot)?;
            rack.devices.push(Device { kind: Some(kind), queues, process: connected.process, ..device });
        }
        let rng = Rng::new(&config.rng.src, ram.clone()).map_err(|e| DeviceError::Config {
            field: "rng.src".to_owned(),
            problem: format!("cannot open {}: {e}", config.rng.src.display()),
        })?;
        let device = rack.insert(RNG_ID, Box::new(rng), None)?;
        rack.devices.push(device);
        rack.finish(log, exits)
    }

    /// Ids of all devices in slot order.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.devices.iter().map(|device| device.id.as_str())
    }

    /// The nodes of `vm.info`'s device tree.
    #[must_use]
    pub fn device_tree(&self) -> Value {
        let mut tree = serde_json::Map::new();
        for device in &self.devices {
            let parent = format!("_virtio-pci-{}", device.id);
            let bar = json!({ "PciBar": {
                "index": 0, "base": device.lock().bar(), "size": BAR_SIZE, "type_": "Mmio64", "prefetchable": false,
            }});
            let bdf = format!("0000:00:{:02x}.0", device.slot);
            let node = json!({ "id": parent, "resources": [bar], "children": [device.id], "pci_bdf": bdf });
            tree.insert(parent.clone(), node);
            let node = json!({ "id": device.id, "resources": [], "parent": parent, "children": [] });
            tree.insert(device.id.clone(), node);
        }
        Value::Object(tree)
    }

    /// Counters of every device: how often it was set up and reset, and what its process, if it is one of ours, has done.
    #[must_use]
    pub fn counters(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        let counters = |device: &Device| {
            let counts = device.lock().counts();
            let mut list = vec![("activations", counts.activations), ("resets", counts.resets)];
            match (&device.process, device.kind) {
                (Some((process, _)), Some(Kind::Net(_))) => list.extend(NetCounters::list(process.counters())),
                (Some((process, _)), _) => list.extend(DiskCounters::list(process.counters())),
                (None, _) => {}
            }
            (device.id.clone(), list.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
        };
        self.devices.iter().map(counters).collect()
    }

    /// Calls `observer` when a driver has set a device up or taken it down. It must not call back.
    pub fn set_observer(&self, observer: &Observer) {
        for device in &self.devices {
            device.lock().set_observer(observer.clone());
        }
    }

    /// Device processes that have ended while they were needed; its eventfd tells when.
    #[must_use]
    pub fn child_exits(&self) -> &Arc<ChildExits> {
        &self.exits
    }

    /// Devices stop serving their queues; for a pause of any length, with the vCPUs stopped.
    ///
    /// # Errors
    /// When a backend does not work; the others are paused all the same.
    pub fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.for_all(|transport| transport.device_mut().pause(true))
    }

    /// Devices go on after [`DeviceManager::quiesce`].
    ///
    /// # Errors
    /// When a backend does not work.
    pub fn unquiesce(&mut self) -> Result<(), DeviceError> {
        self.for_all(|transport| transport.device_mut().pause(false))
    }

    /// Reset of the machine: all devices back to power-on, with the vCPUs stopped.
    ///
    /// # Errors
    /// When a backend does not let go of its queues; the others are reset all the same.
    pub fn reset(&mut self) -> Result<(), DeviceError> {
        self.lock_pci().reset();
        let reset = self.for_all(VirtioPci::reset);
        reset.and(self.for_all(VirtioPci::place_bar))
    }

    /// Links to the device processes of ours, in slot order.
    #[must_use]
    pub fn ft_links(&self) -> Vec<FtLink> {
        let link = |device: &Device| {
            let (process, info) = device.process.as_ref()?;
            // From the device and not from its options: after a takeover the guest goes by what it was told on the other host.
            let told = device.lock().device_mut().config().to_vec();
            let (kind, mac) = match device.kind? {
                Kind::Net(_) => (LinkKind::Net, told.first_chunk().copied()),
                _ => (LinkKind::Disk, None),
            };
            let (mtu, block_size) = (told_mtu(&told), told_block_size(&told));
            let fd = process.control().inspect_err(|e| tracing::error!("cannot share an ft-ctl socket: {e}")).ok()?;
            let mut transport = device.lock();
            let virtio = transport.device_mut();
            Some(FtLink {
                id: device.id.clone(),
                fd,
                kind,
                queues: device.queues,
                info: info.clone(),
                mac,
                slot: device.slot as u16,
                queue_sizes: virtio.queue_sizes().to_vec(),
                features: virtio.features(),
                mtu,
                block_size,
            })
        };
        self.devices.iter().filter_map(link).collect()
    }

    /// Devices that somebody else's process serves: they cannot be sealed.
    pub fn foreign(&self) -> impl Iterator<Item = &str> {
        let foreign = |device: &&Device| device.kind.is_some() && device.process.is_none();
        self.devices.iter().filter(foreign).map(|device| device.id.as_str())
    }

    /// Where the queues of device `id` stand, as its process has said; goes into the next [`DeviceManager::save`].
    pub fn set_positions(&mut self, id: &str, queues: &[QueueState]) {
        if let Some(device) = self.devices.iter().find(|device| device.id == id) {
            device.lock().device_mut().set_positions(queues);
        }
    }

    /// Appends the state of all devices. The vCPUs are parked and the device processes sealed.
    ///
    /// # Errors
    /// When a section becomes too large.
    pub fn save(&self, out: &mut StateWriter<'_>) -> Result<(), StateError> {
        self.lock_pci().save(out)?;
        self.devices.iter().try_for_each(|device| device.lock().save(&mut out.within(DEVICES)))
    }

    /// All devices become what the checkpoint says; backends are not told yet.
    ///
    /// # Errors
    /// When the checkpoint is of a VM that is built differently.
    pub fn load(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        self.lock_pci().load(from)?;
        from.within(DEVICES, |from| self.devices.iter().try_for_each(|device| device.lock().load(from)))?;
        // Only now: the guest may have given one device's place to another.
        self.devices.iter().try_for_each(|device| {
            let part = |e: VirtioError| StateError::Part {
                id: device.id.clone(),
                what: host_kit::error::chain(&e),
                source: None,
            };
            device.lock().place_bar().map_err(part)
        })
    }

    /// After [`DeviceManager::load`]: sets up the backends of all devices that have a driver, at the queue positions of the
    /// checkpoint, and lets them run.
    ///
    /// # Errors
    /// When a backend does not work.
    pub fn activate_restored(&mut self) -> Result<(), DeviceError> {
        self.for_all(VirtioPci::activate_restored)
    }

    /// After a takeover: kicks every queue, and sends every queue's interrupt and the configuration interrupt once.
    pub fn kick_all(&self) {
        for device in &self.devices {
            device.lock().kick_all();
        }
    }

    /// Backends log their writes to guest memory from now on, or stop that.
    ///
    /// # Errors
    /// When one cannot, or does not work; logging is off everywhere then.
    pub fn set_dirty_log(&mut self, on: bool) -> Result<(), DeviceError> {
        if on && !self.log_on {
            // Marks of an earlier time are no use to anybody.
            self.log.harvest(&mut |_, _| {});
        }
        let result = self.for_all(|transport| transport.device_mut().set_dirty_log(on));
        if on && result.is_err() {
            // The first error is the one to report.
            let _ = self.for_all(|transport| transport.device_mut().set_dirty_log(false));
        }
        self.log_on = on && result.is_ok();
        result
    }

    /// Hands every word of the backends' dirty log with bits to `set` as (first guest frame number, bits), and cleans it.
    /// Allocates nothing.
    pub fn harvest_dirty(&self, set: &mut dyn FnMut(u64, u64)) {
        self.log.harvest(set);
    }

    fn lock_pci(&self) -> MutexGuard<'_, PciBus> {
        self.pci.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does it to all devices, whatever one of them says; the first error is returned, the others are logged.
    fn for_all(&self, order: impl Fn(&mut VirtioPci) -> Result<(), VirtioError>) -> Result<(), DeviceError> {
        let mut result = Ok(());
        for device in &self.devices {
            if let Err(source) = order(&mut device.lock()) {
                if result.is_ok() {
                    result = Err(device.error(source));
                } else {
                    tracing::error!(device = device.id, "device does not work: {source}");
                }
            }
        }
        result
    }
}

impl Drop for DeviceManager {
    fn drop(&mut self) {
        // The buses hold the devices, and those hold the buses.
        take_off(&self.devices);
        self.mmio.remove(ECAM_START);
        self.pio.remove(CONFIG_PORTS);
    }
}

fn take_off(devices: &[Device]) {
    for device in devices {
        device.lock().unplug();
    }
}

/// Where devices are put while the manager is being built.
struct Rack {
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
    fn new(parts: &DeviceParts<'_>, wished: impl Iterator<Item = u8>) -> Result<Self, DeviceError> {
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

    /// Puts `device` into a slot.
    fn insert(&mut self, id: &str, device: Box<dyn VirtioDevice>, wished: Option<u8>) -> Result<Device, DeviceError> {
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

    fn finish(mut self, log: Arc<DirtyLog>, exits: Arc<ChildExits>) -> Result<DeviceManager, DeviceError> {
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
        Ok(DeviceManager {
            pci,
            devices: std::mem::take(&mut self.devices),
            log,
            log_on: false,
            exits,
            pio: self.pio.clone(),
            mmio: self.mmio.clone(),
            _broken_queues: broken_queues,
        })
    }
}

impl Drop for Rack {
    fn drop(&mut self) {
        if !self.finished {
            take_off(&self.devices);
        }
    }
}
