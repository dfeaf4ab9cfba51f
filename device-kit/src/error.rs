//! Why a device process could not start or go on.

use std::io;

use vhost_user_backend::Error as DaemonError;

use crate::args::CountersError;
use crate::sockets::SocketError;

/// Why a device process could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// No place to count.
    #[error(transparent)]
    Counters(#[from] CountersError),
    /// The device could not be started, or its frontend broke the protocol.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The kernel refused signals or threads.
    #[error("{what}")]
    Host {
        /// What was refused.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Why a device is not served (any more).
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The kernel refused threads, descriptors or epoll.
    #[error("cannot start the device")]
    Local(#[source] io::Error),
    /// The frontend, or the library.
    #[error("vhost-user: {0}")]
    Vhost(DaemonError),
}
