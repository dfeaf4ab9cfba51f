//! The names everything else is counted by: node, term, epoch, and the proof that an epoch is committed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One interval of guest execution. Epoch *n* ends with checkpoint *n*; numbering starts at 1 in every term's
/// protection session and never goes back within it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch that follows this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A reign: every change of who runs the VM has a new, higher term.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Term(pub u64);

impl Term {
    /// The term that a takeover from this one creates.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One VMM process that may run the VM. Chosen at random at process start, so a restarted host is a new node.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Proof that the standby holds everything of an epoch.
///
/// The field is private and the constructor is visible to the two state machines only: on the primary it is made where
/// the standby's acknowledgement is handled, on the standby where the last part of an epoch has been verified. Every
/// call that lets output out, or writes an epoch's data to a standby's disk, asks for it.
#[cfg_attr(feature = "model", derive(Clone, Hash))]
#[derive(Debug, Eq, PartialEq)]
pub struct Committed(Epoch);

impl Committed {
    /// Made by `primary` (acknowledgement) and `standby` (completion) only.
    pub(crate) fn new(epoch: Epoch) -> Self {
        Self(epoch)
    }

    /// The committed epoch; everything of earlier epochs is committed too.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.0
    }
}
