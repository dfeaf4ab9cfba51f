//! At a takeover the disk is exactly what the guest believes it to be: every write that it knows to be done
//! is there, and nothing else is.
//!
//! Reason: a file system that finds blocks from its own future is corrupt, one that misses blocks is too.

use super::moment::{Invariant, Moment, Scene};

pub(super) struct DiskMatchesMemory;

impl Invariant for DiskMatchesMemory {
    fn name(&self) -> &'static str {
        "disk_matches_memory"
    }

    fn look(&mut self, moment: &Moment, _: &Scene<'_>) -> Result<(), String> {
        match moment {
            Moment::TookOver(took) if took.blocks != took.done => {
                Err(format!("the disk has {:?}, the guest believes {:?}", took.blocks, took.done))
            }
            _ => Ok(()),
        }
    }
}
