//! What the engine knows of a device: what it can do, and how its process is reached.

use std::os::fd::OwnedFd;

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
