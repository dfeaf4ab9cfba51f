//! What cases work with: the devices that there are, queues of one of them set up, and memory.

use crate::arp::provoke;
use crate::device::{DRIVER_OK, Device, FEATURES_OK, Kind, common};
use crate::machine::{MEMORY, Machine, Width};
use crate::pci::{ADDRESS, COMMAND_ON};
use crate::ring::{Ring, SIZE, STRIDE};

/// Queues of a device that are set up.
pub(crate) const QUEUES: usize = 3;
/// Where buffers start in the memory of the cases; rings are below.
const DATA_AT: u64 = 0x4_0000;
/// What a device may need, in milliseconds, to take what is in a queue.
const SETTLE: u64 = 30;

/// A queue of a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    pub(crate) queue: u16,
    pub(crate) name: &'static str,
}

/// A device with its queues set up, and running.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Live {
    pub(crate) device: Device,
    pub(crate) rings: [Ring; QUEUES],
    pub(crate) count: usize,
}

/// What cases work with.
pub(crate) struct Bench<'a> {
    pub(crate) machine: &'a mut dyn Machine,
    devices: [Option<Device>; 3],
    /// That was set up last.
    current: Option<Device>,
    /// Counts what is written to the disk.
    pub(crate) written: u64,
}

impl<'a> Bench<'a> {
    /// Finds the devices. Whoever had them before may have switched them off.
    pub(crate) fn new(machine: &'a mut dyn Machine) -> Self {
        let devices = Kind::ALL.map(|kind| Device::find(machine, kind));
        let mut bench = Self { machine, devices, current: None, written: 0 };
        bench.restore();
        bench
    }

    /// The devices that there are.
    pub(crate) fn devices(&self) -> impl Iterator<Item = Device> + use<> {
        self.devices.into_iter().flatten()
    }

    /// The device of a kind.
    pub(crate) fn device(&self, kind: Kind) -> Result<Device, &'static str> {
        self.devices().find(|device| device.kind == kind).ok_or("there is no such device")
    }

    /// Memory for buffers: where, and how much.
    pub(crate) fn data(&self) -> (u64, u32) {
        (self.machine.memory() + DATA_AT, (MEMORY - DATA_AT) as u32)
    }

    /// Clear memory for queue `queue` of a device.
    pub(crate) fn ring(&mut self, device: &Device, queue: usize) -> Ring {
        device.select(self.machine, queue as u16);
        let max = device.get(self.machine, common::QUEUE_SIZE, Width::Word) as u16;
        let base = self.machine.memory() + STRIDE * (QUEUES * device.kind as usize + queue) as u64;
        Ring::new(self.machine, base, queue as u16, SIZE.min(max).max(1))
    }

    /// Sets up a device that has been negotiated with, all queues of it.
    pub(crate) fn set_up(&mut self, device: Device) -> Live {
        let count = usize::from(device.queues(self.machine)).min(QUEUES);
        let mut rings = [0, 1, 2].map(|queue| (queue, None));
        for (queue, ring) in &mut rings[..count] {
            *ring = Some(self.ring(&device, *queue));
        }
        let first = self.ring(&device, 0);
        let rings = rings.map(|(_, ring)| ring.unwrap_or(first));
        for ring in &rings[..count] {
            device.select(self.machine, ring.queue);
            device.place(self.machine, ring.size, ring.places());
            device.enable(self.machine);
        }
        Live { device, rings, count }
    }

    /// Resets a device, agrees on those of `features` that it offers, sets its queues up and starts it.
    pub(crate) fn up_with(&mut self, kind: Kind, features: u64) -> Result<Live, &'static str> {
        let device = self.device(kind)?;
        device.negotiate(self.machine, features)?;
        let live = self.set_up(device);
        self.current = Some(device);
        device.start(self.machine);
        let status = device.status(self.machine);
        let wanted = DRIVER_OK | FEATURES_OK;
        if status & (wanted | crate::device::NEEDS_RESET) == wanted { Ok(live) } else { Err("it does not start") }
    }

    /// As [`Bench::up_with`], with all features.
    pub(crate) fn up(&mut self, kind: Kind) -> Result<Live, &'static str> {
        self.up_with(kind, u64::MAX)
    }

    /// Notifies the device that was set up last.
    pub(crate) fn kick(&mut self, ring: &Ring) {
        if let Some(device) = self.current {
            device.kick(self.machine, ring.queue);
        }
    }

    /// Waits until `done`, `limit` milliseconds at most. Whether it is.
    pub(crate) fn wait(&mut self, limit: u64, mut done: impl FnMut(&mut dyn Machine) -> bool) -> bool {
        let end = self.machine.milliseconds() + limit;
        loop {
            if done(self.machine) {
                return true;
            }
            if self.machine.milliseconds() > end {
                return false;
            }
        }
    }

    /// Notifies the device of the queue of `ring` and gives it time to take what is there, or to give up.
    pub(crate) fn settle(&mut self, live: &Live, ring: &Ring) {
        live.device.kick(self.machine, ring.queue);
        if live.device.kind == Kind::Net && ring.queue == 0 {
            // Something has to come in.
            provoke(self.machine, &live.device, live.rings[1]);
        }
        let (device, ring) = (live.device, *ring);
        self.wait(SETTLE, |machine| ring.used_index(machine) == ring.next || device.needs_reset(machine));
    }

    /// Puts everything but the devices' own state back to where it was at the start.
    pub(crate) fn restore(&mut self) {
        for device in self.devices() {
            device.function.set_command(self.machine, 0);
        }
        for device in self.devices() {
            device.function.set_bar(self.machine, device.bar);
        }
        for device in self.devices() {
            device.function.set_command(self.machine, COMMAND_ON);
            device.set_msix(self.machine, 0);
            for offset in [4, 8, 12, 16] {
                device.function.write(self.machine, device.window_at + offset, Width::Double, 0);
            }
        }
        self.machine.output(ADDRESS, Width::Double, 0);
    }
}
