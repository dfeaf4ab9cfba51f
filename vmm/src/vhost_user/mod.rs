//! vhost-user: devices whose queues are served by another process.
//!
//! One generic device ([`device::VhostUserDevice`]) for disks, network cards and anything else; its type, queues and the few
//! things that differ are parameters. [`link`] is the connection, [`log`] the dirty bitmap that all backends share.

pub mod device;
pub mod link;
pub mod log;
mod net_control;
mod watchdog;

pub use device::{Kind, NetOptions, VhostUserDevice, told_block_size, told_mtu};
pub use link::Link;
pub use log::DirtyLog;
pub use watchdog::Watchdog;

use std::io;
use std::time::Duration;

/// What went wrong with a backend. Every text names the device and its socket.
#[derive(Debug, thiserror::Error)]
pub enum VhostUserError {
    /// Nobody listens there.
    #[error("device {id}: no vhost-user backend answers at {socket}")]
    Connect {
        /// Device.
        id: String,
        /// Socket.
        socket: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It has died, or what it answers is not vhost-user.
    #[error("device {id}: vhost-user request {request} to {socket} failed")]
    Request {
        /// Device.
        id: String,
        /// Socket.
        socket: String,
        /// The request that was under way.
        request: &'static str,
        /// Reason.
        #[source]
        source: vhost::Error,
    },
    /// It is there but says nothing; the connection has been cut.
    #[error("device {id}: the vhost-user backend at {socket} did not answer {request} within {} s", limit.as_secs())]
    Silent {
        /// Device.
        id: String,
        /// Socket.
        socket: String,
        /// The request that was under way.
        request: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },
    /// It cannot be what the configuration wants.
    #[error("device {id}: the vhost-user backend at {socket} {what}")]
    Unsuitable {
        /// Device.
        id: String,
        /// Socket.
        socket: String,
        /// What it cannot, and the way out.
        what: String,
    },
    /// The VMM could not set up its side.
    #[error("device {id}: {what}")]
    Local {
        /// Device.
        id: String,
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}
