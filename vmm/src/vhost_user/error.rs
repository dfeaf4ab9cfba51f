//! What goes wrong with a vhost-user backend.

use std::io;
use std::time::Duration;

use crate::virtio::VirtioError;

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

impl From<VhostUserError> for VirtioError {
    fn from(error: VhostUserError) -> Self {
        Self::Backend(Box::new(error))
    }
}
