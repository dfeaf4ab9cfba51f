//! The engine asks of its guest and its devices only what their contracts allow.
//!
//! Reason: a real disk refuses to release or to return to an epoch that it does not have, and then the VM
//! cannot be taken over.

use super::moment::{Invariant, Moment, Scene};

pub(super) struct Contract;

impl Invariant for Contract {
    fn name(&self) -> &'static str {
        "contract"
    }

    fn look(&mut self, moment: &Moment, _: &Scene<'_>) -> Result<(), String> {
        match moment {
            Moment::Forbidden { node, what } => Err(format!("{node}: {what}")),
            _ => Ok(()),
        }
    }
}
