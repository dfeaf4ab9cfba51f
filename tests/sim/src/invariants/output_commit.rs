//! Nothing is seen outside that a failure could undo: a frame leaves a host only if the witness says that
//! this host is alone, or if a host that may go on holds a whole checkpoint with everything that led to the
//! frame.
//!
//! Reason: a client acts on what it was told. If the host dies and the copy does not know, the two disagree
//! for ever.

use ft_proto::NodeId;
use ft_proto::witness::Record;

use super::moment::{Invariant, Moment, Scene};

pub(super) struct OutputCommit;

impl Invariant for OutputCommit {
    fn name(&self) -> &'static str {
        "output_commit"
    }

    fn look(&mut self, moment: &Moment, scene: &Scene<'_>) -> Result<(), String> {
        let Moment::Visible { node, frame, .. } = *moment else { return Ok(()) };
        let others: Vec<NodeId> = match scene.record {
            Some(Record::Solo { owner, .. }) => vec![owner],
            Some(Record::Protected { primary, in_sync, .. }) => {
                std::iter::once(primary).chain(in_sync.iter()).collect()
            }
            Some(Record::Stopped { .. }) => vec![],
            // Nobody has looked for a standby yet.
            None => vec![scene.first_owner],
        };
        if others == [node] || others.iter().any(|other| *other != node && scene.truth.holds(*other, frame.at)) {
            return Ok(());
        }
        Err(format!("{frame:?} left {node}, which is not alone, and nobody else holds a checkpoint with it"))
    }
}
