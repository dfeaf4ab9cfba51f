//! The commit rule: which acknowledgements commit an epoch.
//!
//! An epoch is committed as soon as every synchronous replica has acknowledged it: whichever of them takes
//! over then goes on from that epoch or a later one, so output of the epoch may leave. Asynchronous replicas
//! (far away, slow, a file) follow at their own pace; they are not asked, and therefore must never take over
//! by themselves.
//!
//! Without any synchronous replica no acknowledgement commits anything. Output leaves then only by the other
//! proof, [`Alone`]: a replica that falls out of sync must lose its right to take over, at the witness,
//! before it is dropped here.
//!
//! [`Alone`]: crate::Alone

use crate::{Epoch, NodeId};

/// Whether a replica's acknowledgements are waited for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Mode {
    /// Output waits for it; it may take over.
    Synchronous,
    /// Output does not wait for it; it may not take over by itself.
    Asynchronous,
}

/// One receiver of the epoch stream, and how much of it it holds.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Replica {
    node: NodeId,
    mode: Mode,
    acknowledged: Option<Epoch>,
}

impl Replica {
    /// One that holds nothing yet.
    #[must_use]
    pub fn new(node: NodeId, mode: Mode) -> Self {
        Self { node, mode, acknowledged: None }
    }

    /// Who holds it.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The newest epoch that it holds.
    #[must_use]
    pub fn acknowledged(&self) -> Option<Epoch> {
        self.acknowledged
    }

    /// It holds everything up to `epoch`. One that it has acknowledged before changes nothing.
    pub fn acknowledge(&mut self, epoch: Epoch) {
        self.acknowledged = self.acknowledged.max(Some(epoch));
    }
}

/// The newest epoch that `replicas` commit; `None`: there is none yet, or no replica that could.
#[must_use]
pub fn committed(replicas: &[Replica]) -> Option<Epoch> {
    // `None` is less than any epoch: a synchronous replica that holds nothing commits nothing.
    replicas.iter().filter(|replica| replica.mode == Mode::Synchronous).map(|replica| replica.acknowledged).min()?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(number: u64, mode: Mode, acknowledged: &[u64]) -> Replica {
        let mut replica = Replica::new(NodeId::numbered(number, 1), mode);
        acknowledged.iter().for_each(|epoch| replica.acknowledge(Epoch(*epoch)));
        replica
    }

    use Mode::{Asynchronous, Synchronous};

    #[test]
    fn one_synchronous_replica_commits_what_it_acknowledges() {
        let mut one = replica(1, Synchronous, &[]);
        assert_eq!(committed(&[one]), None);
        for epoch in [1, 2, 5] {
            one.acknowledge(Epoch(epoch));
            assert_eq!(committed(&[one]), Some(Epoch(epoch)));
        }
        one.acknowledge(Epoch(3));
        assert_eq!(committed(&[one]), Some(Epoch(5)), "an old acknowledgement takes nothing back");
    }

    #[test]
    fn every_synchronous_replica_must_acknowledge() {
        let (fast, slow) = (replica(1, Synchronous, &[7]), replica(2, Synchronous, &[4]));
        assert_eq!(committed(&[fast, slow]), Some(Epoch(4)));
        assert_eq!(committed(&[slow, fast]), Some(Epoch(4)));
        assert_eq!(committed(&[fast, replica(2, Synchronous, &[])]), None, "one of them could take over with nothing");
    }

    #[test]
    fn asynchronous_replicas_are_not_asked() {
        let sync = replica(1, Synchronous, &[7]);
        for behind in [replica(2, Asynchronous, &[]), replica(2, Asynchronous, &[3]), replica(2, Asynchronous, &[9])] {
            assert_eq!(committed(&[sync, behind]), Some(Epoch(7)), "{behind:?}");
        }
    }

    #[test]
    fn a_replica_that_is_dropped_no_longer_counts() {
        let mut replicas = vec![replica(1, Synchronous, &[7]), replica(2, Synchronous, &[4])];
        replicas.retain(|replica| replica.node() != NodeId::numbered(2, 1));
        assert_eq!(committed(&replicas), Some(Epoch(7)));
    }

    #[test]
    fn without_a_synchronous_replica_nothing_is_committed() {
        assert_eq!(committed(&[]), None);
        assert_eq!(committed(&[replica(1, Asynchronous, &[7]), replica(2, Asynchronous, &[7])]), None);
    }
}
