//! What the engine needs of the way to a device process, and how it fails.

use std::fmt::Debug;
use std::io;
use std::time::Duration;

use device_api::link;
use ft_transport::tls::TlsError;
use ft_wire::device_ctl::{Command, Report};

/// A device process cannot be controlled any more.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Its end of the socket is closed.
    #[error("device process of {0} is gone")]
    Gone(String),
    /// It sent something that is not a report.
    #[error("device process of {id} sent a malformed report")]
    Malformed {
        /// The device.
        id: String,
        /// What it sent.
        #[source]
        source: link::LinkError,
    },
    /// It did not answer in time.
    #[error("device process of {id} did not answer within {limit:?}")]
    Silent {
        /// The device.
        id: String,
        /// How long we waited.
        limit: Duration,
    },
    /// It reported that it cannot go on.
    #[error("device {id} failed: {reason}")]
    Failed {
        /// The device.
        id: String,
        /// In its own words.
        reason: String,
    },
    /// Its stream cannot be given to it.
    #[error("the stream of device {0} cannot be given to its process")]
    Stream(String, #[source] TlsError),
    /// The socket failed.
    #[error("control socket of {id} failed")]
    Socket {
        /// The device.
        id: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Commands out, reports in.
pub trait DeviceControl: Debug + Send {
    /// What it can be given to talk to the other host.
    type Stream;
    /// When a wait is over.
    type Deadline;

    /// Id of the device.
    fn id(&self) -> &str;

    /// Sends a command, with a stream where the command has one.
    ///
    /// # Errors
    /// When the process is gone.
    fn send(&mut self, command: &Command, stream: Option<&Self::Stream>) -> Result<(), LinkError>;

    /// The next report, if there is one.
    ///
    /// # Errors
    /// When the process is gone or sends nonsense.
    fn recv_now(&mut self) -> Result<Option<Report>, LinkError>;

    /// So long from now.
    fn deadline(&self, limit: Duration) -> Self::Deadline;

    /// Waits until there may be a report. Tells false when the time is over.
    ///
    /// # Errors
    /// When the process is gone.
    fn wait(&mut self, deadline: &Self::Deadline) -> Result<bool, LinkError>;
}
