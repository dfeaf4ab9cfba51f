//! Frames of one run of a guest leave in the order in which it sent them, each once. So does what it prints.
//!
//! Reason: an epoch is an invention of ours; outside it must look like a machine that is a little far away.

use std::collections::BTreeMap;

use super::moment::{Invariant, Moment, Scene};
use crate::guest::Saying;

/// By branch, and by whether it was printed, the step of the frame that left last.
#[derive(Default)]
pub(super) struct ReleaseOrder(BTreeMap<(usize, bool), u64>);

impl Invariant for ReleaseOrder {
    fn name(&self) -> &'static str {
        "release_order"
    }

    fn look(&mut self, moment: &Moment, _: &Scene<'_>) -> Result<(), String> {
        let Moment::Visible { frame, .. } = moment else { return Ok(()) };
        match self.0.insert((frame.at.branch, frame.saying == Saying::Printed), frame.at.step) {
            Some(before) if before >= frame.at.step => Err(format!("{frame:?} left after a frame of step {before}")),
            _ => Ok(()),
        }
    }
}
