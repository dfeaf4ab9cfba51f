//! Why a device process is not there.

use std::io;
use std::time::Duration;

use ft_wire::device_ctl::CTL_VERSION;

use crate::process::program::DIRECTORY_VARIABLE;

/// How long a process may take to open its image or tap.
pub(super) const READY_LIMIT: Duration = Duration::from_secs(30);

/// Why a device process is not there.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The program is not installed.
    #[error("device {id}: no program {program} beside the VMM or in PATH; set {DIRECTORY_VARIABLE} to its directory")]
    NotFound {
        /// Device.
        id: String,
        /// Its program.
        program: String,
    },
    /// It could not be started.
    #[error("device {id}: cannot start {program}: {what}")]
    Start {
        /// Device.
        id: String,
        /// Its program.
        program: String,
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It ended before it was ready; its last log lines say why.
    #[error("device {id}: {program} ended ({status}): {output}")]
    Ended {
        /// Device.
        id: String,
        /// Its program.
        program: String,
        /// Exit status.
        status: String,
        /// The last it wrote to its standard error.
        output: String,
    },
    /// It runs but is not ready.
    #[error("device {id}: {program} is not ready after {} s", READY_LIMIT.as_secs())]
    Silent {
        /// Device.
        id: String,
        /// Its program.
        program: String,
    },
    /// It is of another version of Pollux.
    #[error("device {id}: {program} speaks version {found} of the control protocol, this VMM {CTL_VERSION}")]
    Version {
        /// Device.
        id: String,
        /// Its program.
        program: String,
        /// Its version.
        found: u16,
    },
    /// It answered something else than it should.
    #[error("device {id}: {program} does not answer like a device process")]
    Greeting {
        /// Device.
        id: String,
        /// Its program.
        program: String,
    },
}
