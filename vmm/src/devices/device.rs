//! One device with its place on the bus, and the process that serves it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ft_wire::device_ctl::DeviceInfo;

use crate::devices::error::DeviceError;
use crate::process::DeviceProcess;
use crate::vhost_user::Kind;
use crate::virtio::VirtioError;
use crate::virtio::pci_transport::VirtioPci;

/// One device with its place on the bus.
pub(super) struct Device {
    pub(super) id: String,
    pub(super) slot: usize,
    pub(super) transport: Arc<Mutex<VirtioPci>>,
    /// None for entropy.
    pub(super) kind: Option<Kind>,
    pub(super) queues: u16,
    pub(super) process: Option<(DeviceProcess, DeviceInfo)>,
}

impl Device {
    pub(super) fn lock(&self) -> MutexGuard<'_, VirtioPci> {
        self.transport.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn error(&self, source: VirtioError) -> DeviceError {
        DeviceError::Virtio { id: self.id.clone(), source }
    }
}
