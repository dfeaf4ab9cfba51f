//! The record of a model image, by the rules of `vhost-user-blk-repl`: what the image was last used for, the state that it has in
//! common with a peer, and the blocks that may differ from it. It outlives processes. The one invariant:
//!
//! > Two images with the same base differ at most in blocks that are marked in one of their records.

use ft_proto::{Epoch, Term};

use crate::guest::BLOCKS;

/// Blocks.
pub(crate) type Marks = [bool; BLOCKS];

/// What an image was last used for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Role {
    /// The VM ran from it.
    #[default]
    Alone,
    /// The VM ran from it with a standby in sync.
    Protected,
    /// A standby's of which not all had arrived.
    Syncing,
    /// A standby's.
    Standby,
}

/// The record.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Record {
    pub(crate) role: Role,
    /// What `marks` refer to; `None`: nothing is known about any peer.
    pub(crate) base: Option<u64>,
    pub(crate) marks: Marks,
    /// The term in which the VM was shut down from this image.
    pub(crate) ended: Term,
}

impl Record {
    /// What has to be looked at to make the standby's image, with its record, equal to this one's; and whether that is little.
    pub(crate) fn plan(&self, standby: &Self) -> (Marks, bool) {
        let incremental = self.base.is_some() && self.base == standby.base;
        let mut marks = [true; BLOCKS];
        if incremental {
            marks = std::array::from_fn(|block| self.marks[block] || standby.marks[block]);
        }
        (marks, incremental)
    }

    /// The image is going to be a standby's.
    pub(crate) fn receive(&mut self, incremental: bool) {
        (self.role, self.ended) = (Role::Syncing, Term(0));
        if !incremental {
            (self.base, self.marks) = (None, Marks::default());
        }
    }

    /// The whole copy is on stable storage.
    pub(crate) fn received(&mut self, base: u64) {
        *self = Self { role: Role::Standby, base: Some(base), marks: Marks::default(), ..*self };
    }

    /// The standby has everything up to `epoch` on stable storage; blocks that were not written since are equal.
    pub(crate) fn settle(&mut self, base: u64, epoch: Epoch, written: &[Epoch; BLOCKS]) {
        self.base = Some(base);
        for (mark, at) in self.marks.iter_mut().zip(written) {
            *mark &= *at > epoch;
        }
    }
}
