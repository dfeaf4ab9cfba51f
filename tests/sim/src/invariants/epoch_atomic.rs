//! What a standby has in memory after a commit, and what it runs after a takeover, is exactly what the
//! primary was at the cut of that epoch.
//!
//! Reason: half of an epoch is a state that the guest was never in; it crashes, or worse, goes on.

use super::moment::{Invariant, Moment, Scene};

pub(super) struct EpochAtomic;

impl Invariant for EpochAtomic {
    fn name(&self) -> &'static str {
        "epoch_atomic"
    }

    fn look(&mut self, moment: &Moment, scene: &Scene<'_>) -> Result<(), String> {
        let (session, epoch, digest) = match moment {
            Moment::Committed { session, epoch, digest } => (*session, *epoch, *digest),
            Moment::TookOver(took) => (took.session, took.epoch, took.digest),
            _ => return Ok(()),
        };
        match scene.truth.cuts.get(&(session, epoch)) {
            Some(cut) if cut.digest == digest => Ok(()),
            Some(_) => Err(format!("epoch {epoch} is not what was cut")),
            None => Err(format!("epoch {epoch} was never cut")),
        }
    }
}
