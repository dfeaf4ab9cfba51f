//! A guest never runs on an image that was not made a whole copy of its predecessor's in the session that it
//! comes from, and never boots from one that is older than where it was shut down.
//!
//! Reason: the disk of a host that was away is out of date, however much it looks like a disk.

use super::moment::{Invariant, Moment, Scene};

pub(super) struct NoStaleImage;

impl Invariant for NoStaleImage {
    fn name(&self) -> &'static str {
        "no_stale_image"
    }

    fn look(&mut self, moment: &Moment, _: &Scene<'_>) -> Result<(), String> {
        match moment {
            Moment::TookOver(took) if took.stale => Err(format!("{} runs on a stale image", took.node)),
            Moment::Copied { node } => Err(format!("{node} takes a stale image for a whole copy")),
            Moment::Booted { node, stale: true, .. } => Err(format!("{node} boots from a stale image")),
            _ => Ok(()),
        }
    }
}
