//! What must hold at every moment of a run: one file each, with its reason at the top.

mod contract;
mod disk_matches_memory;
mod epoch_atomic;
mod moment;
mod no_false_fence;
mod no_false_takeover;
mod no_lost_ack;
mod no_spin;
mod no_stale_image;
mod nothing_left;
mod output_commit;
mod release_order;
mod reprotected;
mod single_runner;

use moment::Invariant;
pub(crate) use moment::{Moment, Scene, TookOver};

/// An invariant that does not hold.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Violation {
    /// Its name.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}

/// The invariants of a run.
pub(crate) struct Checks(Vec<Box<dyn Invariant>>);

impl Checks {
    /// All of them, or the one of that name.
    pub(crate) fn new(only: Option<&str>) -> Self {
        let all: [Box<dyn Invariant>; 13] = [
            Box::new(contract::Contract),
            Box::new(disk_matches_memory::DiskMatchesMemory),
            Box::new(epoch_atomic::EpochAtomic),
            Box::new(no_false_fence::NoFalseFence),
            Box::new(no_false_takeover::NoFalseTakeover),
            Box::new(no_lost_ack::NoLostAck::default()),
            Box::new(no_spin::NoSpin),
            Box::new(no_stale_image::NoStaleImage),
            Box::new(nothing_left::NothingLeft),
            Box::new(output_commit::OutputCommit),
            Box::new(release_order::ReleaseOrder::default()),
            Box::new(reprotected::Reprotected),
            Box::new(single_runner::SingleRunner::default()),
        ];
        Self(all.into_iter().filter(|one| only.is_none_or(|only| one.name() == only)).collect())
    }

    /// Shows all of them a moment; the first that does not hold.
    pub(crate) fn look(&mut self, moment: &Moment, scene: &Scene<'_>) -> Option<Violation> {
        self.0.iter_mut().find_map(|invariant| {
            let what = invariant.look(moment, scene).err()?;
            Some(Violation { invariant: invariant.name(), what })
        })
    }
}
