//! Who keeps the witness's record: the trait, a file, etcd, and the thread that asks.
//!
//! ```text
//!  engine, ft-open --questions--> client --> FileWitness | EtcdWitness --> ft_proto::witness::judge
//! ```

mod address;
mod asking;
mod client;
mod etcd;
mod file;
mod folder;
mod kept;

use std::io;
use std::path::PathBuf;

use ft_proto::VmId;
use ft_proto::witness::{Claim, Record, Replicas, Verdict, judge};
use serde::{Deserialize, Serialize};

pub use address::{EtcdAddress, WitnessAddress, WitnessAddressError};
pub use asking::AskWitness;
pub use client::WitnessClient;
pub use etcd::EtcdWitness;
pub use file::FileWitness;
#[cfg(feature = "sim")]
pub use kept::decode_stored;

/// The witness could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    /// A file failed: the record, its lock, or what the way to etcd needs.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The record's place holds something else.
    #[error("{place} is not a witness record: remove it if no host runs the VM")]
    Corrupt {
        /// Which file or etcd key.
        place: String,
        /// Why it does not parse.
        #[source]
        source: serde_json::Error,
    },
    /// The record names more replicas than this release can have.
    #[error(
        "{place} names {count} replicas: this release supports {max}, start the release that wrote the record",
        max = Replicas::MAX
    )]
    TooManyReplicas {
        /// Which file or etcd key.
        place: String,
        /// How many.
        count: usize,
    },
    /// The record is that of another VM.
    #[error("{place} holds the record of VM {found}, not of VM {vm}: give each VM a witness= of its own")]
    OtherVm {
        /// Which file or etcd key.
        place: String,
        /// Whose it is.
        found: VmId,
        /// Who asks.
        vm: VmId,
    },
    /// A term that no witness has given.
    #[error("{place} is damaged: it names an impossible term")]
    Implausible {
        /// Which file or etcd key.
        place: String,
    },
    /// No endpoint of etcd gave a usable answer.
    #[error("cannot query etcd: {}", reasons.join("; "))]
    Etcd {
        /// What is wrong with each of them.
        reasons: Vec<String>,
    },
    /// A symbolic link to nothing.
    #[error(
        "{} is a symbolic link to nothing: is the file system mounted that it leads to? If the record is to be made there, \
         name the file itself", path.display()
    )]
    Dangling {
        /// The link.
        path: PathBuf,
    },
    /// The record's place holds what no record is kept in.
    #[error("{place} is {why}: that is no witness record")]
    Unfit {
        /// Which file or etcd key.
        place: String,
        /// What it is.
        why: &'static str,
    },
    /// The place leads elsewhere than it did, or to the record of another witness.
    #[error("{place} is not the witness it was: was its file system unmounted or the file replaced?")]
    NotTheSame {
        /// Which file or etcd key.
        place: String,
    },
    /// The place has a record again that was replaced before.
    #[error("{place} is older than it was: was a backup restored?")]
    Older {
        /// Which file or etcd key.
        place: String,
    },
    /// A file without a number, and numbered ones that know nothing of it.
    #[error(
        "{place} was written by an earlier release, or by hand, and {place}.~N~ by this one: while no host runs the VM, \
         remove those that are out of date"
    )]
    Mixed {
        /// Which file.
        place: String,
    },
    /// Others write all the time.
    #[error("the record at {place} changed {rounds} times in a row")]
    Contended {
        /// Which file or etcd key.
        place: String,
        /// How often.
        rounds: u32,
    },
    /// What asking needs of this host could not be had.
    #[error("cannot query the witness")]
    Local(#[source] io::Error),
}

/// What a witness keeps of one VM.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Stored {
    /// Whose record it is; `None`: it was written by a release that gave VMs no identity.
    #[serde(default)]
    pub vm: Option<VmId>,
    /// Who may run it.
    #[serde(flatten)]
    pub record: Record,
}

/// What a keeper is to make of the record.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// What the claim of a VM makes of it.
    Claim(VmId, Claim),
    /// The first one.
    Create(Stored),
}

impl Change {
    /// Whether it may follow what is stored, and what is to be stored then.
    fn judge(
        self,
        stored: Option<Stored>,
        place: impl FnOnce() -> String,
    ) -> Result<(Verdict, Option<Stored>), WitnessError> {
        let (vm, verdict) = match self {
            Self::Create(Stored { vm, record }) => {
                (vm, stored.map_or(Verdict::Granted(record), |stored| Verdict::Refused(Some(stored.record))))
            }
            Self::Claim(vm, claim) => {
                if let Some(found) = stored.and_then(|stored| stored.vm).filter(|found| *found != vm) {
                    return Err(WitnessError::OtherVm { place: place(), found, vm });
                }
                (Some(vm), judge(stored.map(|stored| stored.record), claim))
            }
        };
        let next = match verdict {
            Verdict::Granted(record) => Some(Stored { vm, record }),
            Verdict::Refused(_) => None,
        };
        Ok((verdict, next))
    }
}

/// Keeper of the record of one VM. Implementations compare and swap with `ft_proto::witness::judge`, and
/// refuse a record of another witness than the one that they have seen (see `kept.rs`).
pub trait Witness: Send {
    /// The record, if there is one.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&mut self) -> Result<Option<Stored>, WitnessError>;
    /// Judges a claim of `vm` and makes the new record durable before it says that it is granted. A record
    /// that a grant leaves as it is counts as changed all the same.
    ///
    /// # Errors
    /// When the record is another VM's, or the keeper cannot be reached: whether the claim took effect is
    /// unknown then. It may do so later, but not after a later claim of this keeper has been granted.
    fn ask(&mut self, vm: VmId, claim: Claim) -> Result<Verdict, WitnessError>;
    /// Makes the first record on an operator's word, and only where there is none: otherwise that one is in
    /// the refusal.
    ///
    /// # Errors
    /// As for [`Self::ask`].
    fn create(&mut self, stored: Stored) -> Result<Verdict, WitnessError>;
}
