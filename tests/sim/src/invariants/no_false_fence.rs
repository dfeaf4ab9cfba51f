//! Whom the witness says to run the VM, alone, is not stopped by what somebody else says.
//!
//! Reason: nobody else may run it either, so the VM would stand still for a word.

use super::moment::{Invariant, Moment, Scene};

pub(super) struct NoFalseFence;

impl Invariant for NoFalseFence {
    fn name(&self) -> &'static str {
        "no_false_fence"
    }

    fn look(&mut self, moment: &Moment, _: &Scene<'_>) -> Result<(), String> {
        match moment {
            Moment::Fenced { node, reason } => Err(format!("{node} was stopped although it runs the VM: {reason}")),
            _ => Ok(()),
        }
    }
}
