//! Why a command failed, in the words that people read.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use ft_pair::PairError;
use host_kit::error::chain;
use pollux_api::audit::Broken;
use pollux_api::options::OptionError;

use crate::client::ClientError;

/// How long a witness may take: a file server that is dead does so for ever.
pub const WITNESS_LIMIT: Duration = Duration::from_secs(10);
/// The program that knows the records of images.
pub const BLK_REPL: &str = "vhost-user-blk-repl";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The request was not done.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The configuration file cannot be read.
    #[error("cannot read the configuration from {name}: {source}")]
    ReadConfig {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The configuration is not JSON.
    #[error("the configuration in {name} is not JSON: {source}")]
    ParseConfig {
        /// Name of the file.
        name: String,
        /// Why.
        source: serde_json::Error,
    },
    /// An option of `ft protect`.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// A witness's record.
    #[error(transparent)]
    Witness(#[from] RecordError),
    /// An audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A pair of hosts.
    #[error("{}", chain(.0))]
    Pair(#[from] PairError),
    /// Nobody to send the command to.
    #[error("--api-socket PATH is missing: which VMM?")]
    NoSocket,
    /// Protection was not reached.
    #[error("the VM is not protected: {0}")]
    NotProtected(String),
    /// What we print cannot be written.
    #[error("cannot write: {0}")]
    Print(#[from] io::Error),
}

impl CommandError {
    /// Whether the reader of our output has gone.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Print(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Why a log is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// It cannot be read.
    #[error("cannot read the audit log {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its chain breaks.
    #[error("the chain of the audit log breaks: {place}, {broken}")]
    Broken {
        /// In which file.
        place: String,
        /// Where, and how.
        broken: Broken,
    },
    /// An entry that was in it once is not.
    #[error("the chain of the audit log is whole, but has no entry with the hash {0}: it was written anew, or cut")]
    Missing(String),
}

/// Why a record was not shown or made.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The witness cannot be asked.
    #[error("{0}")]
    Witness(String),
    /// It does not answer.
    #[error("the witness at {0} has not answered within {limit} s: whether anything was done is unknown", limit = WITNESS_LIMIT.as_secs())]
    Silent(String),
    /// There is no record.
    #[error("the witness at {0} has no record: see `pollux witness create --help`")]
    None(String),
    /// There is one.
    #[error("the witness at {place} has a record already, which is not overwritten: {record}")]
    Exists {
        /// Where.
        place: String,
        /// In words.
        record: String,
    },
    /// The program that is asked about an image.
    #[error("cannot ask {BLK_REPL} about {}: {reason}", image.display())]
    Image {
        /// The image.
        image: PathBuf,
        /// Why.
        reason: String,
    },
    /// The image is not one to make a record by.
    #[error("{} has no usable record: {reason}", image.display())]
    NoRecord {
        /// The image.
        image: PathBuf,
        /// What it says.
        reason: String,
    },
    /// What the VMM says makes no record.
    #[error("the VMM at {} {reason}", socket.display())]
    Vmm {
        /// Its API socket.
        socket: PathBuf,
        /// Why.
        reason: String,
    },
}
