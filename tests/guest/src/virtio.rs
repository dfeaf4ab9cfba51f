//! A modern virtio-pci device with split queues, polled: no interrupts, no optional ring features.

use core::sync::atomic::{Ordering, fence};

use crate::machine::{self, Memory, relax};
use crate::pci::Function;
use crate::println;

const VENDOR: u16 = 0x1af4;
const FEATURE_VERSION_1: u64 = 1 << 32;

const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;

const MAX_QUEUE: u16 = 256;

/// Offsets in the common configuration.
mod common {
    pub const DEVICE_FEATURE_SELECT: u64 = 0;
    pub const DEVICE_FEATURE: u64 = 4;
    pub const DRIVER_FEATURE_SELECT: u64 = 8;
    pub const DRIVER_FEATURE: u64 = 12;
    pub const STATUS: u64 = 20;
    pub const QUEUE_SELECT: u64 = 22;
    pub const QUEUE_SIZE: u64 = 24;
    pub const QUEUE_ENABLE: u64 = 28;
    pub const QUEUE_NOTIFY_OFF: u64 = 30;
    pub const QUEUE_DESC: u64 = 32;
    pub const QUEUE_DRIVER: u64 = 40;
    pub const QUEUE_DEVICE: u64 = 48;
}

/// A device.
pub struct Device {
    common: u64,
    notify: u64,
    notify_multiplier: u64,
    /// Address of the device's own configuration.
    config: u64,
}

impl Device {
    /// The first device of virtio type `kind`.
    pub fn find(memory: &mut Memory, kind: u16) -> Option<Self> {
        let function = Function::all()
            .find(|function| [(VENDOR, 0x1040 + kind), (VENDOR, 0x0fff + kind)].contains(&function.id()))?;
        function.enable();
        let (mut common, mut notify, mut config, mut multiplier) = (0, 0, 0, 0);
        for at in function.vendor_capabilities() {
            let Some(bar) = function.bar(function.read8(at + 4)) else { continue };
            let (offset, len) = (u64::from(function.read32(at + 8)), u64::from(function.read32(at + 12)));
            let address = bar + offset;
            match function.read8(at + 3) {
                1 => common = address,
                2 => (notify, multiplier) = (address, u64::from(function.read32(at + 16))),
                4 => config = address,
                _ => continue,
            }
            memory.map_device(address, len);
        }
        (common != 0 && notify != 0 && config != 0).then_some(Self {
            common,
            notify,
            notify_multiplier: multiplier,
            config,
        })
    }

    fn get<T: Copy>(&self, offset: u64) -> T {
        // SAFETY: mapped by `find`, aligned as the specification lays it out.
        unsafe { machine::read(self.common + offset) }
    }

    fn set<T: Copy>(&self, offset: u64, value: T) {
        // SAFETY: as above; device memory.
        unsafe { machine::write(self.common + offset, value) }
    }

    /// Read the device's own configuration at `offset`, which must be aligned.
    pub fn config<T: Copy>(&self, offset: u64) -> T {
        // SAFETY: as above.
        unsafe { machine::read(self.config + offset) }
    }

    /// Reset the device and agree on `wanted` features and version 1, as far as it has them; returns those.
    /// `bare` takes none at all.
    pub fn negotiate(&self, wanted: u64, bare: bool) -> u64 {
        self.set(common::STATUS, 0u8);
        while self.get::<u8>(common::STATUS) != 0 {
            relax();
        }
        self.set(common::STATUS, ACKNOWLEDGE | DRIVER);
        let mut offered = 0;
        for half in 0..2 {
            self.set(common::DEVICE_FEATURE_SELECT, half);
            offered |= u64::from(self.get::<u32>(common::DEVICE_FEATURE)) << (32 * half);
        }
        assert!(offered & FEATURE_VERSION_1 != 0, "virtio: legacy device");
        let features = if bare { 0 } else { offered & (wanted | FEATURE_VERSION_1) };
        for half in 0..2 {
            self.set(common::DRIVER_FEATURE_SELECT, half);
            self.set(common::DRIVER_FEATURE, (features >> (32 * half)) as u32);
        }
        self.set(common::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert!(self.get::<u8>(common::STATUS) & FEATURES_OK != 0, "virtio: features {features:#x} refused");
        features
    }

    /// Set up queue `index`.
    pub fn queue(&self, memory: &mut Memory, index: u16) -> Queue {
        self.set(common::QUEUE_SELECT, index);
        let size = self.get::<u16>(common::QUEUE_SIZE).min(MAX_QUEUE);
        assert!(size.is_power_of_two(), "virtio: queue {index} has {size} entries");
        let queue = Queue {
            index,
            size,
            descriptors: memory.allocate(u64::from(size) * 16),
            avail: memory.allocate(u64::from(size) * 2 + 6),
            used: memory.allocate(u64::from(size) * 8 + 6),
            notify: self.notify + self.notify_multiplier * u64::from(self.get::<u16>(common::QUEUE_NOTIFY_OFF)),
            next_avail: 0,
            next_used: 0,
        };
        self.enable(&queue);
        queue
    }

    fn enable(&self, queue: &Queue) {
        self.set(common::QUEUE_SELECT, queue.index);
        self.set(common::QUEUE_SIZE, queue.size);
        for (offset, address) in [
            (common::QUEUE_DESC, queue.descriptors),
            (common::QUEUE_DRIVER, queue.avail),
            (common::QUEUE_DEVICE, queue.used),
        ] {
            self.set(offset, address as u32);
            self.set(offset + 4, (address >> 32) as u32);
        }
        self.set(common::QUEUE_ENABLE, 1u16);
        // SAFETY: the avail ring's flags; we poll.
        unsafe { machine::write(queue.avail, 1u16) };
    }

    /// Reset a device with one queue, in which there are no requests, and start it again with the same
    /// features.
    pub fn restart(&self, features: u64, queue: &mut Queue) {
        self.negotiate(features, features == 0);
        (queue.next_avail, queue.next_used) = (0, 0);
        // SAFETY: our rings, which the device has let go of.
        unsafe {
            machine::write(queue.avail + 2, 0u16);
            machine::write(queue.used + 2, 0u16);
        }
        self.enable(queue);
        self.start();
    }

    /// Whether the device says that it cannot go on without a reset.
    pub fn needs_reset(&self) -> bool {
        self.get::<u8>(common::STATUS) & NEEDS_RESET != 0
    }

    /// The driver is ready.
    pub fn start(&self) {
        self.set(common::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }
}

/// Break a queue of every device that there is, and wait until it asks for a reset. The drivers that come
/// after give it one.
pub fn break_all(memory: &mut Memory) {
    const NET: u16 = 1;
    const DISK: u16 = 2;
    const ENTROPY: u16 = 4;
    for (kind, index) in [(NET, 0), (NET, 1), (NET, 2), (DISK, 0), (ENTROPY, 0)] {
        let Some(device) = Device::find(memory, kind) else { continue };
        device.negotiate(u64::MAX >> 40, false);
        let mut queue = device.queue(memory, index);
        device.start();
        queue.spoil();
        while !device.needs_reset() {
            relax();
        }
        println!("device of type {kind} needs a reset after queue {index}");
    }
}

/// A piece of memory for the device.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// Physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

/// A split virtqueue. The user chooses the descriptors and knows which are free.
pub struct Queue {
    index: u16,
    /// Number of entries.
    pub size: u16,
    descriptors: u64,
    avail: u64,
    used: u64,
    notify: u64,
    next_avail: u16,
    next_used: u16,
}

impl Queue {
    /// Offer the chain of `buffers`, in descriptors from `head` on.
    pub fn add(&mut self, head: u16, buffers: &[Buffer]) {
        for (i, buffer) in buffers.iter().enumerate() {
            let index = head + i as u16;
            let more = i + 1 < buffers.len();
            let at = self.descriptors + 16 * u64::from(index);
            // SAFETY: descriptor `index` of our table, which the device is not using.
            unsafe {
                machine::write(at, buffer.address);
                machine::write(at + 8, buffer.len);
                machine::write(at + 12, u16::from(more) | u16::from(buffer.writable) << 1);
                machine::write(at + 14, if more { index + 1 } else { 0 });
            }
        }
        // SAFETY: our avail ring.
        unsafe { machine::write(self.avail + 4 + 2 * u64::from(self.next_avail % self.size), head) };
        self.next_avail = self.next_avail.wrapping_add(1);
        fence(Ordering::SeqCst);
        // SAFETY: as above.
        unsafe { machine::write(self.avail + 2, self.next_avail) };
    }

    /// Break the queue: an avail index that cannot be, and a notification.
    pub fn spoil(&mut self) {
        // SAFETY: our avail ring, and the device's notification register.
        unsafe {
            machine::write(self.avail + 2, self.next_avail.wrapping_add(self.size).wrapping_add(1));
            fence(Ordering::SeqCst);
            machine::write(self.notify, self.index);
        }
    }

    /// Tell the device, unless it said that it looks by itself.
    pub fn kick(&self) {
        fence(Ordering::SeqCst);
        // SAFETY: the used ring's flags, and the device's notification register.
        unsafe {
            if machine::read::<u16>(self.used) & 1 == 0 {
                machine::write(self.notify, self.index);
            }
        }
    }

    /// Whether the device is done with a chain.
    pub fn has_used(&self) -> bool {
        // SAFETY: our used ring.
        unsafe { machine::read::<u16>(self.used + 2) != self.next_used }
    }

    /// The next chain that the device is done with: its head and the bytes written.
    pub fn take(&mut self) -> Option<(u16, u32)> {
        if !self.has_used() {
            return None;
        }
        fence(Ordering::SeqCst);
        let at = self.used + 4 + 8 * u64::from(self.next_used % self.size);
        self.next_used = self.next_used.wrapping_add(1);
        // SAFETY: as above.
        let (head, len) = unsafe { (machine::read::<u32>(at), machine::read::<u32>(at + 4)) };
        assert!(head < u32::from(self.size), "virtio: queue {} used entry {head}", self.index);
        Some((head as u16, len))
    }
}
