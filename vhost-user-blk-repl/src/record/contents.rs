//! The contents of an image's record: which VM the image belongs to, what it was last used for, which file
//! the record describes, and where that may differ from its peer. Pure.

use ft_proto::{Term, VmId};
use serde::{Deserialize, Serialize};

use crate::image::regions::Regions;
use crate::record::proof::Proof;

/// Version of the format.
pub const VERSION: u16 = 2;

/// What an image was last used for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Role {
    /// The VM ran from it, and no other copy can be newer.
    Alone,
    /// The VM ran from it with a standby in sync, which may have taken over.
    Protected,
    /// A standby's copy that was not complete: no VM can run from it.
    Syncing,
    /// A standby's copy: the VM ran on another host, and may have run on.
    Standby,
}

/// Names a state of the data that two images had in common.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Base(pub u128);

/// The record.
///
/// An image differs from the state that its base names at most in the regions that are marked here. That is
/// true of the two together whatever happens elsewhere, so it is true of a backup of both, too.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Record {
    /// Names the disk, whichever copy of it.
    pub disk: u128,
    /// The VM whose disk it is, once it is known.
    pub vm: Option<VmId>,
    /// What `marks` refer to; `None`: nothing is known about any peer.
    pub base: Option<Base>,
    /// Another state that `marks` refer to as well, until the peer is known to have `base`.
    pub former: Option<Base>,
    /// Counts how often a host began to run the VM from a copy.
    pub generation: u64,
    /// Last use.
    pub role: Role,
    /// The term of the last use: that the VM ran in from it, or that of the session that it is a copy of.
    pub term: Term,
    /// The term in which the VM was shut down cleanly on this image; 0: it has run since, or never ran.
    /// Decides which host may start the VM.
    pub ended: Term,
    /// Another program has changed the image since that last use.
    pub altered: bool,
    /// Shows that an image is the one that this record describes.
    pub proof: Option<Proof>,
    /// Regions that may differ from the base.
    pub marks: Regions,
}

impl Record {
    /// The first record of an image of `size` bytes.
    #[must_use]
    pub fn new(disk: u128, size: u64) -> Self {
        Self {
            disk,
            vm: None,
            base: None,
            former: None,
            generation: 0,
            role: Role::Alone,
            term: Term(0),
            ended: Term(0),
            altered: false,
            proof: None,
            marks: Regions::new(size),
        }
    }

    /// Forgets what the image had in common with any peer.
    pub fn forget_base(&mut self) {
        (self.base, self.former) = (None, None);
        self.marks = Regions::new(self.marks.image_size());
    }
}

/// A file that holds no usable record.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RecordFault {
    /// Neither slot is whole.
    #[error("it is damaged")]
    Damaged,
    /// Another version wrote it.
    #[error("it is of version {0}, this program knows 1 to {VERSION}")]
    Version(u16),
}
