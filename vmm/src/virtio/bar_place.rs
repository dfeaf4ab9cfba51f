//! Where the BAR of a device answers on the bus: where the guest has put it, as soon as the place is free.

use std::sync::{Arc, Mutex, Weak};

use crate::machine::bus::{Bus, BusDevice, BusError};
use crate::virtio::pci_layout::BAR_SIZE;

/// The BAR's place.
pub(super) struct BarPlace {
    bus: Arc<Bus>,
    /// What answers there.
    device: Weak<Mutex<dyn BusDevice>>,
    /// Nowhere while decoding is off, or while the place is another device's.
    mapped: Option<u64>,
    /// Where [`BarPlace::due`] says it is to be put.
    destination: Option<u64>,
}

impl BarPlace {
    /// Nowhere yet, but due at `base`.
    pub(super) fn new(bus: Arc<Bus>, device: Weak<Mutex<dyn BusDevice>>, base: u64) -> Self {
        Self { bus, device, mapped: None, destination: Some(base) }
    }

    /// Where it answers, if anywhere.
    pub(super) fn mapped(&self) -> Option<u64> {
        self.mapped
    }

    /// Answers at `base` from now on.
    pub(super) fn map(&mut self, base: u64) -> Result<(), BusError> {
        // Without its device it is about to be dropped.
        let Some(device) = self.device.upgrade() else { return Ok(()) };
        self.bus.insert(device, base, BAR_SIZE)?;
        self.mapped = Some(base);
        Ok(())
    }

    /// Answers nowhere. True: it did before.
    pub(super) fn unmap(&mut self) -> bool {
        let base = self.mapped.take();
        if let Some(base) = base {
            self.bus.remove(base);
        }
        base.is_some()
    }

    /// Where it is to be put when all devices have been reset or loaded.
    pub(super) fn set_destination(&mut self, destination: Option<u64>) {
        self.destination = destination;
    }

    /// That place, once, if the BAR is not there.
    pub(super) fn due(&mut self) -> Option<u64> {
        self.destination.take().filter(|base| self.mapped != Some(*base))
    }
}
