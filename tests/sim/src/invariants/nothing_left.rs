//! When a node runs the VM alone, nothing of a session is left: the guest runs, its devices serve, its output
//! leaves, its disks are not mirrored, and its writes are tracked exactly if a checkpoint is kept.
//!
//! Reason: a VM that stays where it is must be the VM that it was. Whatever is slowed down, or waits, for a
//! standby that is gone does so until somebody notices.

use super::moment::{Invariant, Moment, Scene};

pub(super) struct NothingLeft;

impl Invariant for NothingLeft {
    fn name(&self) -> &'static str {
        "nothing_left"
    }

    fn look(&mut self, moment: &Moment, _: &Scene<'_>) -> Result<(), String> {
        match moment {
            Moment::LeftOver { node, what } => Err(format!("{node} runs the VM alone, and {what}")),
            _ => Ok(()),
        }
    }
}
