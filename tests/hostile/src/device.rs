//! A virtio device behind PCI: its registers, and what an honest driver does with them.

use crate::Outcome;
use crate::machine::{Machine, Width};
use crate::pci::Function;

const VENDOR: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;
/// Waits, in milliseconds, for a device that resets: it may be waiting for a disk.
const RESET_LIMIT: u64 = 20_000;

/// Offsets of registers in the common configuration.
pub(crate) mod common {
    pub(crate) const DEVICE_FEATURE_SELECT: u64 = 0;
    pub(crate) const DEVICE_FEATURE: u64 = 4;
    pub(crate) const DRIVER_FEATURE_SELECT: u64 = 8;
    pub(crate) const DRIVER_FEATURE: u64 = 12;
    pub(crate) const CONFIG_VECTOR: u64 = 16;
    pub(crate) const QUEUES: u64 = 18;
    pub(crate) const STATUS: u64 = 20;
    pub(crate) const QUEUE_SELECT: u64 = 22;
    pub(crate) const QUEUE_SIZE: u64 = 24;
    pub(crate) const QUEUE_VECTOR: u64 = 26;
    pub(crate) const QUEUE_ENABLE: u64 = 28;
    pub(crate) const QUEUE_TABLE: u64 = 32;
    pub(crate) const QUEUE_AVAIL: u64 = 40;
    pub(crate) const QUEUE_USED: u64 = 48;
    /// Bytes of the block.
    pub(crate) const SIZE: u64 = 56;
}

pub(crate) const ACKNOWLEDGE: u64 = 1;
pub(crate) const DRIVER: u64 = 2;
pub(crate) const DRIVER_OK: u64 = 4;
pub(crate) const FEATURES_OK: u64 = 8;
pub(crate) const NEEDS_RESET: u64 = 64;

/// What a device is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Net,
    Block,
    Entropy,
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Net, Self::Block, Self::Entropy];

    fn number(self) -> u16 {
        match self {
            Self::Net => 1,
            Self::Block => 2,
            Self::Entropy => 4,
        }
    }
}

/// One device, where its BAR was at the start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device {
    pub(crate) kind: Kind,
    pub(crate) function: Function,
    /// Where BAR 0 was at the start.
    pub(crate) bar: u64,
    pub(crate) common: u64,
    pub(crate) notify: u64,
    pub(crate) stride: u64,
    pub(crate) isr: u64,
    pub(crate) config: u64,
    /// The MSI-X table.
    pub(crate) table: u64,
    /// Offset of the MSI-X capability.
    pub(crate) msix_at: u16,
    /// Offset of the capability that reaches the BAR through configuration space.
    pub(crate) window_at: u16,
}

impl Device {
    /// The first of a kind.
    pub(crate) fn find(machine: &mut dyn Machine, kind: Kind) -> Option<Self> {
        let wanted = (VENDOR, DEVICE_BASE + kind.number());
        let function = (1..32).map(Function).find(|function| function.id(machine) == wanted)?;
        let bar = function.bar(machine);
        let mut device = Self {
            kind,
            function,
            bar,
            common: 0,
            notify: 0,
            stride: 0,
            isr: 0,
            config: 0,
            table: 0,
            msix_at: 0,
            window_at: 0,
        };
        let (found, count) = function.capabilities(machine);
        for at in &found[..count] {
            device.note(machine, *at);
        }
        machine.reach(bar, 512 << 10).then_some(device)
    }

    fn note(&mut self, machine: &mut dyn Machine, at: u16) {
        let mut word = |offset| self.function.read(machine, at + offset, Width::Double);
        match word(0) & 0xff {
            0x11 => (self.msix_at, self.table) = (at, self.bar + (word(4) & !7)),
            0x09 => {
                let (kind, place) = (word(0) >> 24, self.bar + word(8));
                match kind {
                    1 => self.common = place,
                    2 => (self.notify, self.stride) = (place, word(16)),
                    3 => self.isr = place,
                    4 => self.config = place,
                    5 => self.window_at = at,
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// Reads a common register.
    pub(crate) fn get(&self, machine: &mut dyn Machine, offset: u64, width: Width) -> u64 {
        machine.read(self.common + offset, width)
    }

    /// Writes one.
    pub(crate) fn set(&self, machine: &mut dyn Machine, offset: u64, width: Width, value: u64) {
        machine.write(self.common + offset, width, value);
    }

    /// The device status.
    pub(crate) fn status(&self, machine: &mut dyn Machine) -> u64 {
        self.get(machine, common::STATUS, Width::Byte)
    }

    /// Writes the device status.
    pub(crate) fn set_status(&self, machine: &mut dyn Machine, status: u64) {
        self.set(machine, common::STATUS, Width::Byte, status);
    }

    /// Whether it asks for a reset.
    pub(crate) fn needs_reset(&self, machine: &mut dyn Machine) -> bool {
        self.status(machine) & NEEDS_RESET != 0
    }

    /// Resets it, and waits until that is done.
    pub(crate) fn reset(&self, machine: &mut dyn Machine) -> Outcome {
        self.set_status(machine, 0);
        let end = machine.milliseconds() + RESET_LIMIT;
        while self.status(machine) != 0 {
            if machine.milliseconds() > end {
                return Err("it does not reset");
            }
        }
        Ok(())
    }

    /// Features that it offers.
    pub(crate) fn offered(&self, machine: &mut dyn Machine) -> u64 {
        let mut half = |select| {
            self.set(machine, common::DEVICE_FEATURE_SELECT, Width::Double, select);
            self.get(machine, common::DEVICE_FEATURE, Width::Double)
        };
        half(0) | half(1) << 32
    }

    /// Says which features the driver takes, without any status.
    pub(crate) fn take(&self, machine: &mut dyn Machine, features: u64) {
        for half in 0..2 {
            self.set(machine, common::DRIVER_FEATURE_SELECT, Width::Double, half);
            self.set(machine, common::DRIVER_FEATURE, Width::Double, features >> (32 * half) & 0xffff_ffff);
        }
    }

    /// Resets it and agrees on those of `wanted` that it offers.
    pub(crate) fn negotiate(&self, machine: &mut dyn Machine, wanted: u64) -> Outcome {
        self.reset(machine)?;
        self.set_status(machine, ACKNOWLEDGE | DRIVER);
        let features = self.offered(machine) & wanted;
        self.take(machine, features);
        self.set_status(machine, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        if self.status(machine) & FEATURES_OK == 0 { Err("it refuses features that it offers") } else { Ok(()) }
    }

    /// Number of its queues.
    pub(crate) fn queues(&self, machine: &mut dyn Machine) -> u16 {
        self.get(machine, common::QUEUES, Width::Word) as u16
    }

    /// The registers of queue `index` from now on.
    pub(crate) fn select(&self, machine: &mut dyn Machine, index: u16) {
        self.set(machine, common::QUEUE_SELECT, Width::Word, index.into());
    }

    /// Puts the selected queue's table and rings somewhere.
    pub(crate) fn place(&self, machine: &mut dyn Machine, size: u16, places: [u64; 3]) {
        self.set(machine, common::QUEUE_SIZE, Width::Word, size.into());
        for (offset, place) in [common::QUEUE_TABLE, common::QUEUE_AVAIL, common::QUEUE_USED].into_iter().zip(places) {
            self.set(machine, offset, Width::Double, place & 0xffff_ffff);
            self.set(machine, offset + 4, Width::Double, place >> 32);
        }
    }

    /// Enables the selected queue.
    pub(crate) fn enable(&self, machine: &mut dyn Machine) {
        self.set(machine, common::QUEUE_ENABLE, Width::Word, 1);
    }

    /// The driver is ready.
    pub(crate) fn start(&self, machine: &mut dyn Machine) {
        self.set_status(machine, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Notifies it of a queue.
    pub(crate) fn kick(&self, machine: &mut dyn Machine, queue: u16) {
        machine.write(self.notify + self.stride * u64::from(queue), Width::Word, queue.into());
    }

    /// Switches MSI-X on, off, or masks all vectors.
    pub(crate) fn set_msix(&self, machine: &mut dyn Machine, control: u64) {
        self.function.write(machine, self.msix_at + 2, Width::Word, control);
    }
}
