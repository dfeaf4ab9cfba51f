//! What the engine knows of a device: what it can do, and how its process is reached.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What a device can do, as far as a checkpoint depends on it: any of these, or none.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DeviceCaps {
    /// Its data is mirrored to the device of the same id on the other host.
    pub mirrors: bool,
    /// It holds output back until the epoch of that output is committed.
    pub holds_output: bool,
    /// It has requests in flight: a checkpoint names them, and they are submitted again after a takeover.
    pub in_flight: bool,
}

impl DeviceCaps {
    /// Whether it has to be taken back to a checkpoint: when a session ends, or before it starts on the
    /// standby.
    #[must_use]
    pub fn rolls_back(self) -> bool {
        self.mirrors || self.in_flight
    }
}

/// Whether the VMM waits for a device process that still has time to answer: then a thread that does not come
/// back is not stuck. Each such wait has a limit. To be asked from any thread; answers at once.
#[derive(Clone)]
pub struct DeviceWait(Arc<dyn Fn() -> bool + Send + Sync>);

impl DeviceWait {
    /// As `waits` says.
    pub fn new(waits: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(waits))
    }

    /// Whether it waits now.
    #[must_use]
    pub fn is_on(&self) -> bool {
        (self.0)()
    }
}

impl Default for DeviceWait {
    /// It never does.
    fn default() -> Self {
        Self::new(|| false)
    }
}

impl fmt::Debug for DeviceWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeviceWait")
    }
}

/// A device process's control socket.
#[derive(Debug)]
pub struct LinkEnd {
    /// Id of the device.
    pub id: String,
    /// What the device can do.
    pub caps: DeviceCaps,
    /// `SOCK_SEQPACKET`, after `Hello` and `Ready`.
    pub socket: OwnedFd,
}
