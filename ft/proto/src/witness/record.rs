//! The witness's record, and the form in which it is stored.
//!
//! Stored, a record of a protected VM names every replica that may take over:
//!
//! ```json
//! {"state":"protected","primary":"a/0000000000000001","in_sync":["b/0000000000000002"],
//!  "standby":"b/0000000000000002","term":7}
//! ```
//!
//! Earlier versions know `standby` only. Their records are read as naming it in `in_sync`, and it is still
//! written while there is one replica: an earlier release can then read the record, too. One with several
//! replicas has no `standby`, so that a release that knows of one only refuses it and does not take it for
//! that of a pair.

use serde::{Deserialize, Serialize};

use super::replicas::{RecordError, Replicas};
use crate::{NodeId, Term};

/// Who may run the VM.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(try_from = "Form", into = "Form")]
pub enum Record {
    /// `primary` runs the VM, and it or one of the replicas may claim to be the only one.
    Protected {
        /// Who runs.
        primary: NodeId,
        /// Who may take over.
        in_sync: Replicas,
        /// The term.
        term: Term,
    },
    /// `owner` runs the VM and nobody may take over.
    Solo {
        /// Who runs.
        owner: NodeId,
        /// The term.
        term: Term,
        /// The term in which the VM was last given to somebody: since then nobody else can have run it.
        since: Term,
    },
    /// The VM was shut down; a host that has its newest disks may start it.
    Stopped {
        /// The last term.
        term: Term,
        /// The term that the newest disks say the VM was shut down in; 0: any disks will do.
        disks: Term,
    },
}

impl Record {
    /// The term it speaks of.
    #[must_use]
    pub fn term(&self) -> Term {
        match *self {
            Self::Protected { term, .. } | Self::Solo { term, .. } | Self::Stopped { term, .. } => term,
        }
    }

    /// Whether it says that `node` runs the VM.
    #[must_use]
    pub fn is_of(&self, node: NodeId) -> bool {
        match *self {
            Self::Protected { primary: runner, .. } | Self::Solo { owner: runner, .. } => runner == node,
            Self::Stopped { .. } => false,
        }
    }

    /// Whether it says that `primary` runs the VM in `term`, and `standby` may take over.
    #[must_use]
    pub fn protects(&self, primary: NodeId, standby: NodeId, term: Term) -> bool {
        match *self {
            Self::Protected { primary: p, in_sync, term: t } => p == primary && t == term && in_sync.has(standby),
            Self::Solo { .. } | Self::Stopped { .. } => false,
        }
    }

    /// Whether a record that comes from outside can be one: its terms can be counted on.
    #[must_use]
    pub fn is_plausible(&self) -> bool {
        let other = match *self {
            Self::Protected { term, .. } => term,
            Self::Solo { since, .. } => since,
            Self::Stopped { disks, .. } => disks,
        };
        self.term().is_plausible() && other.is_plausible()
    }
}

/// A record as it is stored.
#[derive(Deserialize, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
enum Form {
    Protected {
        primary: NodeId,
        #[serde(default)]
        in_sync: Vec<NodeId>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        standby: Option<NodeId>,
        term: Term,
    },
    Solo {
        owner: NodeId,
        term: Term,
        #[serde(default)]
        since: Term,
    },
    Stopped {
        term: Term,
        #[serde(default)]
        disks: Term,
    },
}

impl From<Record> for Form {
    fn from(record: Record) -> Self {
        match record {
            Record::Protected { primary, in_sync, term } => {
                Self::Protected { primary, in_sync: in_sync.into(), standby: in_sync.only(), term }
            }
            Record::Solo { owner, term, since } => Self::Solo { owner, term, since },
            Record::Stopped { term, disks } => Self::Stopped { term, disks },
        }
    }
}

impl TryFrom<Form> for Record {
    type Error = RecordError;

    fn try_from(form: Form) -> Result<Self, RecordError> {
        Ok(match form {
            Form::Protected { primary, in_sync, standby, term } => {
                let in_sync = match standby {
                    Some(only) if in_sync.is_empty() => Replicas::one(only),
                    _ => Replicas::try_from(in_sync)?,
                };
                if standby.is_some() && standby != in_sync.only() {
                    return Err(RecordError::Contradiction);
                }
                Self::Protected { primary, in_sync, term }
            }
            Form::Solo { owner, term, since } => Self::Solo { owner, term, since },
            Form::Stopped { term, disks } => Self::Stopped { term, disks },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "a/0000000000000001";
    const B: &str = "b/0000000000000002";
    const C: &str = "c/0000000000000003";

    fn protected() -> Record {
        let in_sync = Replicas::one(B.parse().unwrap());
        Record::Protected { primary: A.parse().unwrap(), in_sync, term: Term(7) }
    }

    fn read(form: &str) -> Result<Record, String> {
        serde_json::from_str(form).map_err(|error| error.to_string())
    }

    fn with(replicas: &str) -> Result<Record, String> {
        read(&format!(r#"{{"state":"protected","primary":"{A}",{replicas}"term":7}}"#))
    }

    #[test]
    fn the_form_of_earlier_releases_is_read() {
        assert_eq!(with(&format!(r#""standby":"{B}","#)), Ok(protected()));
        let solo = Record::Solo { owner: A.parse().unwrap(), term: Term(7), since: Term(0) };
        assert_eq!(read(&format!(r#"{{"state":"solo","owner":"{A}","term":7}}"#)), Ok(solo));
        let stopped = Record::Stopped { term: Term(7), disks: Term(0) };
        assert_eq!(read(r#"{"state":"stopped","term":7}"#), Ok(stopped));
    }

    #[test]
    fn one_replica_is_written_for_this_release_and_for_earlier_ones() {
        let written = serde_json::to_string(&protected()).unwrap();
        let form = format!(r#"{{"state":"protected","primary":"{A}","in_sync":["{B}"],"standby":"{B}","term":7}}"#);
        assert_eq!(written, form);
        for record in [
            protected(),
            Record::Solo { owner: A.parse().unwrap(), term: Term(7), since: Term(6) },
            Record::Stopped { term: Term(7), disks: Term(6) },
        ] {
            assert_eq!(read(&serde_json::to_string(&record).unwrap()), Ok(record));
        }
        assert_eq!(with(&format!(r#""in_sync":["{B}"],"#)), Ok(protected()), "as a later release may write it");
    }

    #[test]
    fn several_replicas_are_written_for_releases_that_know_of_them() {
        let in_sync = Replicas::one(C.parse().unwrap()).and(B.parse().unwrap()).unwrap();
        let record = Record::Protected { primary: A.parse().unwrap(), in_sync, term: Term(7) };
        let written = serde_json::to_string(&record).unwrap();
        assert_eq!(written, format!(r#"{{"state":"protected","primary":"{A}","in_sync":["{B}","{C}"],"term":7}}"#));
        assert_eq!(read(&written), Ok(record));
        assert_eq!(with(&format!(r#""in_sync":["{C}","{B}"],"#)), Ok(record), "in whatever order");
    }

    #[test]
    fn what_names_no_replica_or_contradicts_itself_is_refused() {
        let many: Vec<_> =
            (0..=Replicas::MAX as u64).map(|host| format!("\"{}\"", NodeId::numbered(host, 1))).collect();
        for (replicas, why) in [
            (String::new(), RecordError::NoReplica),
            (r#""in_sync":[],"#.to_owned(), RecordError::NoReplica),
            (format!(r#""in_sync":[{}],"#, many.join(",")), RecordError::TooMany(Replicas::MAX + 1)),
            (format!(r#""in_sync":["{B}","{C}"],"standby":"{B}","#), RecordError::Contradiction),
            (format!(r#""in_sync":["{C}"],"standby":"{B}","#), RecordError::Contradiction),
            (format!(r#""in_sync":["{B}","{B}"],"#), RecordError::Contradiction),
        ] {
            let refused = with(&replicas).unwrap_err();
            assert!(refused.contains(&why.to_string()), "{replicas}: {refused}");
        }
    }
}
