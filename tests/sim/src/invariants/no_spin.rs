//! An engine that has to wait for another thread does so without looking at the clock all the time.
//!
//! Reason: its thread may have real-time priority, and the guest's processors are few.

use super::moment::{Invariant, Moment, Scene};

pub(super) struct NoSpin;

impl Invariant for NoSpin {
    fn name(&self) -> &'static str {
        "no_spin"
    }

    fn look(&mut self, moment: &Moment, _: &Scene<'_>) -> Result<(), String> {
        match moment {
            Moment::Spins { node } => {
                Err(format!("{node} looks at its clock again and again, and nothing comes of it"))
            }
            _ => Ok(()),
        }
    }
}
