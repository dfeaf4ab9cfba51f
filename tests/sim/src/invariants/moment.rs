//! What invariants look at: moments of a run, and what is known besides.

use ft_proto::witness::Record;
use ft_proto::{Epoch, NodeId, OnPartition, Term};

use crate::guest::{BLOCKS, Frame, Pages};
use crate::truth::Truth;

/// A takeover, as it is about to run.
#[derive(Debug)]
pub(crate) struct TookOver {
    pub(crate) node: NodeId,
    pub(crate) session: u64,
    pub(crate) epoch: Epoch,
    pub(crate) digest: u64,
    pub(crate) pages: Pages,
    /// What the guest knows to be on disk.
    pub(crate) done: [u64; BLOCKS],
    /// What is on disk.
    pub(crate) blocks: [u64; BLOCKS],
    /// Whether the image was never a whole copy of the primary's.
    pub(crate) stale: bool,
}

/// Something that invariants look at.
#[derive(Debug)]
pub(crate) enum Moment {
    /// A frame has left a host.
    Visible { node: NodeId, term: Term, frame: Frame },
    /// A node believes that it may run the VM in a term.
    Runs { node: NodeId, term: Term },
    /// A node runs the VM beside another one that it could have heard.
    Beside { node: NodeId },
    /// A standby has committed and applied an epoch; the digest of what it has now.
    Committed { session: u64, epoch: Epoch, digest: u64 },
    /// A standby runs the VM from here on.
    TookOver(Box<TookOver>),
    /// A host boots the VM that was shut down.
    Booted { node: NodeId, stale: bool, blocks: Option<[u64; BLOCKS]> },
    /// A standby has been told that its image is a whole copy, and it is none.
    Copied { node: NodeId },
    /// An operator's word has overridden the record although that is of a later term.
    Overridden { by: NodeId, term: Term },
    /// A node that the witness says runs the VM, alone, must not any more.
    Fenced { node: NodeId, reason: String },
    /// The engine asked its guest or a device for what that may not be asked.
    Forbidden { node: NodeId, what: String },
    /// A node runs the VM alone, and something of a session is left.
    LeftOver { node: NodeId, what: &'static str },
    /// An engine is woken by its clock again and again, at once.
    Spins { node: NodeId },
    /// A standby took its primary for dead.
    Suspected { wrongly: bool },
    /// The client read a value; `floor` was known when it asked.
    Read { key: usize, value: u64, floor: u64 },
    /// The time to be protected again is over.
    Late { states: String },
}

/// What an invariant may look at.
pub(crate) struct Scene<'a> {
    pub(crate) truth: &'a Truth,
    pub(crate) record: Option<Record>,
    pub(crate) first_owner: NodeId,
    /// Who goes on in a partition, where there is no witness.
    pub(crate) policy: Option<OnPartition>,
}

/// Something that must always hold.
pub(crate) trait Invariant {
    fn name(&self) -> &'static str;
    /// Looks at a moment.
    fn look(&mut self, moment: &Moment, scene: &Scene<'_>) -> Result<(), String>;
}
