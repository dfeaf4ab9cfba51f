//! A standby that was asleep itself does not take a primary for dead that was alive and could be heard all
//! the time.
//!
//! Reason: the witness keeps a false takeover safe, but it costs the guest its time and the pair its
//! protection.

use super::moment::{Invariant, Moment, Scene};

pub(super) struct NoFalseTakeover;

impl Invariant for NoFalseTakeover {
    fn name(&self) -> &'static str {
        "no_false_takeover"
    }

    fn look(&mut self, moment: &Moment, _: &Scene<'_>) -> Result<(), String> {
        match moment {
            Moment::Suspected { wrongly: true } => Err("the primary was alive, and could be heard".to_owned()),
            _ => Ok(()),
        }
    }
}
