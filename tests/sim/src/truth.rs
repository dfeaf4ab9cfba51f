//! What really happened, as only the simulator can know it: branches of the guest's history, checkpoints, who
//! holds what.

use std::collections::BTreeMap;

use ft_proto::{Epoch, NodeId, Time};

/// A point in a guest's history. A takeover begins a new branch.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Point {
    pub(crate) branch: usize,
    pub(crate) step: u64,
}

/// A checkpoint at the moment it was cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    pub(crate) at: Point,
    pub(crate) digest: u64,
}

/// The whole record.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    /// Where each stretch of history began.
    pub(crate) branches: Vec<Option<Point>>,
    /// By session and epoch.
    pub(crate) cuts: BTreeMap<(u64, Epoch), Cut>,
    /// The last checkpoint that a node really holds whole as a standby.
    pub(crate) held: BTreeMap<NodeId, Point>,
    /// Until when a node or its way to another host was disturbed; by host and host.
    pub(crate) disturbed: BTreeMap<(usize, usize), Time>,
}

impl Truth {
    /// A guest begins to run: the point it goes on from.
    pub(crate) fn new_branch(&mut self, from: Option<Point>) -> Point {
        self.branches.push(from);
        Point { branch: self.branches.len() - 1, step: from.map_or(0, |from| from.step) }
    }

    /// Whether `later` is a continuation of `earlier`.
    pub(crate) fn includes(&self, later: Point, earlier: Point) -> bool {
        let mut at = later;
        loop {
            if at.branch == earlier.branch {
                return earlier.step <= at.step;
            }
            match self.branches[at.branch] {
                Some(from) => at = from,
                None => return false,
            }
        }
    }

    /// Whether something that `node` holds, or has held, continues `point`.
    pub(crate) fn holds(&self, node: NodeId, point: Point) -> bool {
        self.held.get(&node).is_some_and(|held| self.includes(*held, point))
    }

    pub(crate) fn disturb(&mut self, from: usize, to: usize, until: Time) {
        let entry = self.disturbed.entry((from, to)).or_default();
        *entry = (*entry).max(until);
    }
}
