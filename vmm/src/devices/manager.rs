//! The device manager: the PCI bus with the virtio devices of one VM, and the processes that serve them.
//!
//! In: the VM's configuration, then orders of whoever owns the VM. Out: devices on the buses, their state for
//! checkpoints, their dirty pages. Never: policy; what an order is for is not known here.
//!
//! There is nothing to seal on this side: entropy and control queues are served on the vCPU that kicks them,
//! and all other queues by device processes, which are sealed through their ft-ctl sockets. With the vCPUs
//! parked nothing here touches guest memory, as long as [`DeviceManager::kick_all`] and the like are called
//! by the thread that owns the VM.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device_api::counters::{DiskCounters, NetCounters};
use ft_wire::state::Position;
use serde_json::{Value, json};

use crate::config::VmConfig;
use crate::devices::broken_queues::BrokenQueues;
use crate::devices::build::{Planned, Shared};
use crate::devices::device::Device;
use crate::devices::error::DeviceError;
use crate::devices::link::FtLink;
use crate::devices::names;
use crate::devices::rack::{DeviceParts, Filled, Rack, take_off};
use crate::machine::bus::Bus;
use crate::machine::memory::layout::ECAM_START;
use crate::machine::state::{DEVICES, Saved, StateError, StateReader, StateWriter};
use crate::pci::bus::{CONFIG_PORTS, PciBus};
use crate::process::ChildExits;
use crate::vhost_user::{DirtyLog, Kind, Watchdog};
use crate::virtio::VirtioError;
use crate::virtio::pci_transport::{BAR_SIZE, Observer, VirtioPci};
use crate::virtio::rng::Rng;

/// Id of the entropy device.
const RNG_ID: &str = "__rng";

/// All devices of a VM.
pub struct DeviceManager {
    pci: Arc<Mutex<PciBus>>,
    devices: Vec<Device>,
    log: Arc<DirtyLog>,
    log_on: bool,
    watchdog: Arc<Watchdog>,
    exits: Arc<ChildExits>,
    pio: Arc<Bus>,
    mmio: Arc<Bus>,
    _broken_queues: BrokenQueues,
}

impl DeviceManager {
    /// Starts the device processes, connects to all backends, and puts the devices on the bus: disks, network
    /// cards, entropy. Ids and addresses that the configuration leaves open are filled in.
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
            rack.keep(Device { kind: Some(kind), queues, process: connected.process, ..device });
        }
        let rng = Rng::new(&config.rng.src, ram.clone()).map_err(|e| DeviceError::Config {
            field: "rng.src".to_owned(),
            problem: format!("cannot open {}: {e}", config.rng.src.display()),
        })?;
        let device = rack.insert(RNG_ID, Box::new(rng), None)?;
        rack.keep(device);
        let (pio, mmio) = (parts.pio, parts.mmio);
        let Filled { pci, devices, broken_queues } = rack.finish()?;
        Ok(Self { pci, devices, log, log_on: false, watchdog, exits, pio, mmio, _broken_queues: broken_queues })
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

    /// Counters of every device: how often it was set up and reset, and what its process, if it is one of
    /// ours, has done.
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
        self.devices.iter().filter_map(FtLink::of).collect()
    }

    /// Devices that somebody else's process serves: they cannot be sealed.
    pub fn foreign(&self) -> impl Iterator<Item = &str> {
        let foreign = |device: &&Device| device.kind.is_some() && device.process.is_none();
        self.devices.iter().filter(foreign).map(|device| device.id.as_str())
    }

    /// Where the queues of a device stand, as its process has said when it was sealed; goes into the next
    /// [`DeviceManager::save`]. The vCPUs are parked. What the process had in flight of queues that were
    /// taken down meanwhile is struck out: whoever takes over must not submit that again.
    ///
    /// After the seal each vCPU ends at most the one access that it was in the middle of. A device that one
    /// of them takes down is not set up again before all are parked: that takes several, one after the other.
    pub fn set_position(&mut self, position: &mut Position) {
        if let Some(device) = self.devices.iter().find(|device| device.id == position.id) {
            let mut transport = device.lock();
            let virtio = transport.device_mut();
            virtio.set_positions(&position.queues);
            position.in_flight.retain(|request| virtio.is_set_up(request.queue));
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

    /// After [`DeviceManager::load`]: sets up the backends of all devices that have a driver, at the queue
    /// positions of the checkpoint, and lets them run.
    ///
    /// # Errors
    /// When a backend does not work.
    pub fn activate_restored(&mut self) -> Result<(), DeviceError> {
        self.for_all(VirtioPci::activate_restored)
    }

    /// After a takeover: kicks every queue, and sends every queue's interrupt and the configuration interrupt
    /// once.
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

    /// Where the backends log their writes to guest memory.
    #[must_use]
    pub fn dirty_log(&self) -> &Arc<DirtyLog> {
        &self.log
    }

    /// Knows whether a backend is waited for.
    #[must_use]
    pub fn watchdog(&self) -> &Arc<Watchdog> {
        &self.watchdog
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
        take_off(&self.devices);
        self.mmio.remove(ECAM_START);
        self.pio.remove(CONFIG_PORTS);
    }
}
