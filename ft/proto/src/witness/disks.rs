//! What the disks of a host say about the last run of their VM, each by itself and all together.

use serde::{Deserialize, Serialize};

use crate::{Term, VmId};

/// What the records of a host's disks say about the last run of the VM from them.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Disks {
    /// The VM that they belong to; `None`: no disk has one on record.
    pub vm: Option<VmId>,
    /// What they were last used for.
    pub state: DiskState,
}

/// What disks were last used for, and in which term. Of several disks of one VM the one that proves least
/// counts.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskState {
    /// There is no disk whose writes Pollux sees.
    #[default]
    None,
    /// There is content and no record: a new image, or one that was never protected.
    Fresh,
    /// There is neither record nor content: a new image, or the place for a copy.
    Hole,
    /// The VM ran from them, and no other copy could be newer, since this term or one before.
    Alone(Term),
    /// The VM was shut down cleanly in this term.
    Ended(Term),
    /// The VM ran from them with a standby in sync, in this term.
    Protected(Term),
    /// They are a copy of the VM that ran elsewhere in this term, complete as of some epoch.
    Copy(Term),
    /// No VM can be started from them: the copy is incomplete, a record is damaged, or the disks contradict
    /// each other.
    Unusable,
}

impl DiskState {
    /// The term of the run that ended or broke off on these disks; 0: there was none. `None`: by themselves
    /// they do not allow a start.
    #[must_use]
    pub fn ran(self) -> Option<Term> {
        match self {
            Self::None | Self::Fresh => Some(Term(0)),
            Self::Alone(term) | Self::Ended(term) | Self::Protected(term) => Some(term),
            Self::Hole | Self::Copy(_) | Self::Unusable => None,
        }
    }

    /// The term on record, whatever the state.
    #[must_use]
    pub fn term(self) -> Term {
        match self {
            Self::Copy(term) => term,
            other => other.ran().unwrap_or_default(),
        }
    }
    /// What it proves together with another one of the VM; `None`: they do not belong together.
    #[must_use]
    pub fn with(self, other: Self) -> Option<Self> {
        use DiskState::{Alone, Copy, Ended, Fresh, Hole, Protected};
        Some(match (self, other) {
            (one, two) if one == two => one,
            // Content without a record, and nothing: a new VM with a new disk.
            (Fresh, Hole) | (Hole, Fresh) => Fresh,
            (Ended(a), Ended(b)) => Ended(a.min(b)),
            // Some have noted it and some have not yet, when the host died.
            (Alone(a), Alone(b) | Ended(b)) | (Ended(a), Alone(b)) => Alone(a.min(b)),
            (Protected(a), Protected(b) | Alone(b) | Ended(b)) | (Alone(a) | Ended(a), Protected(b)) => {
                Protected(a.min(b))
            }
            // It was taking over.
            (Copy(copy), Alone(term)) | (Alone(term), Copy(copy)) if term > copy => Copy(copy),
            // Copies of two sessions, a disk without a record beside one with, and what was overwritten only
            // in part.
            _ => return None,
        })
    }

    /// What all disks of a host prove together.
    #[must_use]
    pub fn all(disks: impl IntoIterator<Item = Self>) -> Self {
        let mut disks = disks.into_iter();
        let Some(first) = disks.next() else { return Self::None };
        disks.try_fold(first, Self::with).unwrap_or(Self::Unusable)
    }
}

#[cfg(test)]
mod tests {
    use super::DiskState::{Alone, Copy, Ended, Fresh, Hole, Protected, Unusable};
    use super::*;

    #[test]
    fn the_disk_that_proves_least_counts() {
        let t = Term;
        for (states, state) in [
            (&[][..], DiskState::None),
            (&[Hole, Hole], Hole),
            (&[Hole, Fresh, Hole], Fresh),
            (&[Ended(t(4)), Ended(t(3))], Ended(t(3))),
            (&[Ended(t(3)), Alone(t(4)), Ended(t(3))], Alone(t(3))),
            (&[Alone(t(4)), Protected(t(3))], Protected(t(3))),
            (&[Protected(t(5)), Ended(t(3))], Protected(t(3))),
            (&[Copy(t(5)), Copy(t(5))], Copy(t(5))),
            (&[Alone(t(6)), Copy(t(5)), Copy(t(5))], Copy(t(5))),
        ] {
            assert_eq!(DiskState::all(states.iter().copied()), state, "{states:?}");
            assert_eq!(DiskState::all(states.iter().rev().copied()), state, "{states:?}, backwards");
        }
    }

    #[test]
    fn disks_that_do_not_belong_together_prove_nothing() {
        let t = Term;
        for states in [
            [Copy(t(5)), Copy(t(6))],
            // It became a standby again, and only one of its disks was overwritten.
            [Copy(t(6)), Alone(t(5))],
            [Copy(t(6)), Protected(t(5))],
            [Copy(t(6)), Ended(t(5))],
            [Copy(t(6)), Hole],
            [Alone(t(6)), Hole],
            [Ended(t(6)), Fresh],
            [Alone(t(6)), Unusable],
        ] {
            assert_eq!(DiskState::all(states), Unusable, "{states:?}");
            assert_eq!(DiskState::all([states[1], states[0]]), Unusable, "{states:?}, backwards");
        }
    }
}
