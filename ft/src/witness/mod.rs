//! Who keeps the witness's record: the trait, a locked file, etcd, and the thread that asks.
//!
//! ```text
//!  engine, door, ft-open --questions--> asker --> FileWitness | EtcdWitness --> ft_proto::witness::judge
//! ```

mod address;
mod asker;
mod etcd;
mod file;

use std::io;
use std::path::PathBuf;

use ft_proto::VmId;
use ft_proto::witness::{Claim, Record, Verdict, judge};
use serde::{Deserialize, Serialize};

pub use address::{EtcdAddress, WitnessAddress, WitnessAddressError};
pub use asker::Asker;
pub use etcd::EtcdWitness;
pub use file::FileWitness;

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
    #[error("{place} is damaged: it names a term that cannot be")]
    Implausible {
        /// Which file or etcd key.
        place: String,
    },
    /// No endpoint of etcd gave a usable answer.
    #[error("etcd cannot be asked: {}", reasons.join("; "))]
    Etcd {
        /// What is wrong with each of them.
        reasons: Vec<String>,
    },
    /// What asking needs of this host could not be had.
    #[error("cannot ask the witness")]
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

impl Stored {
    /// Refuses what no release of this program has written.
    fn checked(self, place: impl FnOnce() -> String) -> Result<Self, WitnessError> {
        if self.record.is_plausible() { Ok(self) } else { Err(WitnessError::Implausible { place: place() }) }
    }
}

/// Whether the claim of a VM may follow what is stored, and what is to be stored then.
fn judge_for(
    vm: VmId,
    stored: Option<Stored>,
    claim: Claim,
    place: impl FnOnce() -> String,
) -> Result<(Verdict, Option<Stored>), WitnessError> {
    if let Some(found) = stored.and_then(|stored| stored.vm).filter(|found| *found != vm) {
        return Err(WitnessError::OtherVm { place: place(), found, vm });
    }
    let verdict = judge(stored.map(|stored| stored.record), claim);
    let next = match verdict {
        Verdict::Granted(record) => Some(Stored { vm: Some(vm), record }),
        Verdict::Refused(_) => None,
    };
    Ok((verdict, next))
}

/// Keeper of the record of one VM. Implementations compare and swap with `ft_proto::witness::judge`.
pub trait Witness: Send {
    /// The record, if there is one.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&mut self) -> Result<Option<Stored>, WitnessError>;
    /// Judges a claim of `vm` and makes the new record durable before it says that it is granted. A record that a grant leaves as it
    /// is counts as changed all the same.
    ///
    /// # Errors
    /// When the record is another VM's, or the keeper cannot be reached: whether the claim took effect is unknown then. It may do so later, but not after a
    /// later claim of this keeper has been granted.
    fn ask(&mut self, vm: VmId, claim: Claim) -> Result<Verdict, WitnessError>;
}

/// An error with all of its sources, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        // Wrappers without words of their own repeat those of what they wrap.
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}
