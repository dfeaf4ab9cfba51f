//! When the faults end, a pair is protected again within a bound and answers its clients, unless all copies
//! are gone.
//!
//! Reason: a protocol that keeps still is always safe.

use super::moment::{Invariant, Moment, Scene};

pub(super) struct Reprotected;

impl Invariant for Reprotected {
    fn name(&self) -> &'static str {
        "reprotected"
    }

    fn look(&mut self, moment: &Moment, _: &Scene<'_>) -> Result<(), String> {
        match moment {
            Moment::Late { states } => Err(format!("not protected and serving in time: {states}")),
            _ => Ok(()),
        }
    }
}
