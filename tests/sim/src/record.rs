//! The record of a model image, by the rules of `vhost-user-blk-repl`: what the image was last used for, the
//! states that it has in common with a peer, and the blocks that may differ from them. It outlives processes.
//! The one invariant:
//!
//! > An image differs from the state that its base names at most in blocks that are marked in its own record.
//!
//! So that it holds of a backup, too, a state that marks are taken back for gets a new name first.

use ft_proto::witness::DiskState;
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
    /// The term of that use; 0: there was none.
    pub(crate) term: Term,
    /// What `marks` refer to; `None`: nothing is known about any peer.
    pub(crate) base: Option<u64>,
    /// What they refer to as well, until the primary is known to have `base`.
    pub(crate) former: Option<u64>,
    pub(crate) marks: Marks,
    /// The term in which the VM was shut down from this image.
    pub(crate) ended: Term,
    /// The image, or this record, is not what it was when the disk process ended.
    pub(crate) altered: bool,
}

impl Record {
    /// What a host says of its disks when it asks whether it may start the VM.
    pub(crate) fn state(&self) -> DiskState {
        match self.role {
            Role::Alone | Role::Protected if self.ended > Term(0) => DiskState::Ended(self.ended),
            Role::Alone if self.term == Term(0) => DiskState::Hole,
            Role::Alone => DiskState::Alone(self.term),
            Role::Syncing => DiskState::Unusable,
            Role::Protected | Role::Standby if self.altered => DiskState::Unusable,
            Role::Protected => DiskState::Protected(self.term),
            Role::Standby => DiskState::Copy(self.term),
        }
    }

    /// What has to be looked at to make the standby's image, with its record, equal to this one's; and the
    /// state that they have in common, if that makes it little.
    pub(crate) fn plan(&self, standby: &Self) -> (Marks, Option<u64>) {
        let names = [self.base, self.former].into_iter().flatten();
        let common = names.into_iter().find(|name| [standby.base, standby.former].contains(&Some(*name)));
        let mut marks = [true; BLOCKS];
        if common.is_some() {
            marks = std::array::from_fn(|block| self.marks[block] || standby.marks[block]);
        }
        (marks, common)
    }

    /// The VM runs from the image in `term`.
    pub(crate) fn run_alone(&mut self, term: Term) {
        (self.role, self.term, self.ended, self.altered) = (Role::Alone, term, Term(0), false);
    }

    /// The image is going to be a standby's, in a session of `term`.
    pub(crate) fn receive(&mut self, term: Term, common: Option<u64>, theirs: &Marks) {
        (self.role, self.term, self.ended, self.altered) = (Role::Syncing, term, Term(0), false);
        (self.base, self.former) = (common, None);
        for (mark, their) in self.marks.iter_mut().zip(theirs) {
            *mark = common.is_some() && (*mark || *their);
        }
    }

    /// A block is going to be written.
    pub(crate) fn mark(&mut self, block: usize) {
        self.marks[block] |= self.base.is_some();
    }

    /// Standby: all that was in the image when `fresh` was empty is on stable storage, and is called `base`.
    pub(crate) fn rename(&mut self, base: u64, fresh: &Marks) {
        self.former = self.base.replace(base);
        self.role = Role::Standby;
        for (mark, fresh) in self.marks.iter_mut().zip(fresh) {
            *mark |= *fresh;
        }
    }

    /// Standby: the primary knows the name.
    pub(crate) fn renamed(&mut self, fresh: &Marks) {
        self.former = None;
        for (mark, fresh) in self.marks.iter_mut().zip(fresh) {
            *mark &= *fresh;
        }
    }

    /// Primary: the standby has everything up to `epoch` on stable storage and calls it `base`; blocks that
    /// were not written since are equal.
    pub(crate) fn settle(&mut self, base: u64, epoch: Epoch, written: &[Epoch; BLOCKS]) {
        (self.base, self.former) = (Some(base), None);
        for (mark, at) in self.marks.iter_mut().zip(written) {
            *mark &= *at > epoch;
        }
    }

    /// The disk process finds that the image, or the record, is not the one that it left.
    pub(crate) fn doubt(&mut self) {
        (self.base, self.former, self.marks, self.altered) = (None, None, Marks::default(), true);
    }
}
