//! Whether a driver has set the device up, how often that was so, and who hears of it.

use std::sync::Arc;

use crate::virtio::device::DeviceEvent;

/// Told when a device is set up or taken down.
pub type Observer = Arc<dyn Fn(&str, DeviceEvent) + Send + Sync>;

/// How often the driver has set the device up and taken it down.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Set up.
    pub activations: u64,
    /// Taken down.
    pub resets: u64,
}

/// What the driver has done to the device.
#[derive(Default)]
pub(super) struct Activity {
    active: bool,
    counts: Counts,
    observer: Option<Observer>,
}

impl Activity {
    /// Whether the device is set up.
    pub(super) fn is_active(&self) -> bool {
        self.active
    }

    /// It is, or not, without the driver having done anything: by a checkpoint, or on the way to
    /// [`Activity::activated`].
    pub(super) fn set_active(&mut self, active: bool) {
        self.active = active;
    }

    /// How often it was set up and taken down.
    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// From now on `observer` hears of it.
    pub(super) fn set_observer(&mut self, observer: Observer) {
        self.observer = Some(observer);
    }

    /// The driver has set the device up.
    pub(super) fn activated(&mut self, id: &str) {
        self.counts.activations += 1;
        self.observe(id, DeviceEvent::Activated);
    }

    /// The device is reset, which counts if it was set up.
    pub(super) fn reset(&mut self, id: &str) {
        if std::mem::take(&mut self.active) {
            self.counts.resets += 1;
            self.observe(id, DeviceEvent::Reset);
        }
    }

    fn observe(&self, id: &str, event: DeviceEvent) {
        if let Some(observer) = &self.observer {
            observer(id, event);
        }
    }
}
