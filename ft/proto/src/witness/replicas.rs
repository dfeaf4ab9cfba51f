//! The replicas of a VM that are in sync: whoever may take it over.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::RecordError;
use crate::NodeId;

/// One node at least, each of them once.
#[derive(Clone, Copy, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(try_from = "Vec<NodeId>", into = "Vec<NodeId>")]
pub struct Replicas([Option<NodeId>; Replicas::MAX]);

impl Replicas {
    /// How many there may be.
    pub const MAX: usize = 3;

    /// This one alone.
    #[must_use]
    pub const fn one(node: NodeId) -> Self {
        let mut nodes = [None; Self::MAX];
        nodes[0] = Some(node);
        Self(nodes)
    }

    /// These, and `node`. `None`: it would be one too many.
    #[must_use]
    pub fn and(self, node: NodeId) -> Option<Self> {
        if self.has(node) { Some(self) } else { self.iter().chain([node]).collect::<Vec<_>>().try_into().ok() }
    }

    /// Whether `node` is one of them.
    #[must_use]
    pub fn has(&self, node: NodeId) -> bool {
        self.iter().any(|one| one == node)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = NodeId> {
        self.0.into_iter().flatten()
    }

    /// The only one, if there is only one.
    #[must_use]
    pub fn only(&self) -> Option<NodeId> {
        let mut all = self.iter();
        all.next().filter(|_| all.next().is_none())
    }
}

impl TryFrom<Vec<NodeId>> for Replicas {
    type Error = RecordError;

    fn try_from(mut all: Vec<NodeId>) -> Result<Self, RecordError> {
        let named = all.len();
        // Equal sets are equal, in whatever order they were written.
        all.sort_unstable();
        all.dedup();
        match all.len() {
            0 => Err(RecordError::NoReplica),
            distinct if distinct < named => Err(RecordError::Contradiction),
            1..=Self::MAX => Ok(Self(std::array::from_fn(|at| all.get(at).copied()))),
            many => Err(RecordError::TooMany(many)),
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
    fn there_are_no_more_than_a_few() {
        let all = (1..=Replicas::MAX as u64).map(|host| NodeId::numbered(host, 1));
        let full = Replicas::try_from(all.collect::<Vec<_>>()).unwrap();
        assert_eq!(full.and(NodeId::numbered(9, 1)), None);
    }
}
