//! The replicas of a VM that are in sync: whoever may take it over.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::NodeId;

/// A record that says what cannot be, or what this release cannot do.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RecordError {
    /// A protected VM without a replica.
    #[error("it says that the VM is protected, and names no replica")]
    NoReplica,
    /// More than there may be.
    #[error("it names {0} replicas in sync: this release knows of {max} at most", max = Replicas::MAX)]
    TooMany(usize),
    /// `standby` is not the replica in sync, or not the only one; or a node is named twice.
    #[error("it contradicts itself about the replicas in sync")]
    Contradiction,
}

/// One node or two, by name.
#[derive(Clone, Copy, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(try_from = "Vec<NodeId>", into = "Vec<NodeId>")]
pub struct Replicas {
    first: NodeId,
    /// The same, if it is the only one.
    last: NodeId,
}

impl Replicas {
    /// How many there may be.
    pub const MAX: usize = 2;

    /// This one alone.
    #[must_use]
    pub const fn one(node: NodeId) -> Self {
        Self { first: node, last: node }
    }

    /// These, and `node`. `None`: it would be one too many.
    #[must_use]
    pub fn and(self, node: NodeId) -> Option<Self> {
        match self.only() {
            _ if self.has(node) => Some(self),
            Some(only) => Some(Self { first: only.min(node), last: only.max(node) }),
            None => None,
        }
    }

    /// Whether `node` is one of them.
    #[must_use]
    pub fn has(&self, node: NodeId) -> bool {
        self.first == node || self.last == node
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = NodeId> {
        let last = (self.first != self.last).then_some(self.last);
        std::iter::once(self.first).chain(last)
    }

    /// The only one, if there is only one.
    #[must_use]
    pub fn only(&self) -> Option<NodeId> {
        (self.first == self.last).then_some(self.first)
    }
}

impl TryFrom<Vec<NodeId>> for Replicas {
    type Error = RecordError;

    fn try_from(all: Vec<NodeId>) -> Result<Self, RecordError> {
        match all[..] {
            [] => Err(RecordError::NoReplica),
            [only] => Ok(Self::one(only)),
            [one, other] if one == other => Err(RecordError::Contradiction),
            [one, other] => Ok(Self { first: one.min(other), last: one.max(other) }),
            _ => Err(RecordError::TooMany(all.len())),
        }
    }
}

impl From<Replicas> for Vec<NodeId> {
    fn from(replicas: Replicas) -> Self {
        replicas.iter().collect()
    }
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// As in a sentence.
impl fmt::Display for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(|node| node.to_string()).collect();
        f.write_str(&names.join(" or "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId::numbered(1, 1);
    const B: NodeId = NodeId::numbered(2, 1);
    const C: NodeId = NodeId::numbered(3, 1);

    #[test]
    fn the_order_in_which_they_joined_does_not_count() {
        let (one, other) = (Replicas::one(C).and(A).unwrap(), Replicas::one(A).and(C).unwrap());
        assert_eq!(one, other);
        assert_eq!(one.and(A), Some(one), "it is one of them already");
        assert!(one.has(A) && one.has(C) && !one.has(B) && one.only().is_none());
        assert_eq!(Replicas::one(B).only(), Some(B));
    }

    #[test]
    fn there_are_no_more_than_two() {
        let two = Replicas::try_from(vec![B, A]).unwrap();
        assert_eq!((two.iter().collect::<Vec<_>>(), two.and(C)), (vec![A, B], None));
        assert_eq!(Replicas::one(A).iter().count(), 1);
    }
}
