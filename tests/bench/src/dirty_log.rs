//! What it costs to learn which pages were written, by KVM's two means: a bitmap that is as long as the
//! memory, and a ring that is as long as what was written. Raw calls on guests of many sizes; memory that
//! they do not touch does not exist.

use std::time::{Duration, Instant};

use crate::load::Effort;
use crate::probe::{Log, Probe};
use crate::record::{Report, Spread};
use crate::setup::Setup;

const SIZES_GIB: [u64; 5] = [1, 16, 64, 256, 512];

/// Measures both with the working set of `setup`, for guests from 1 GiB on.
pub fn measure(setup: &Setup, effort: &Effort, report: &mut Report) {
    for gib in SIZES_GIB {
        let setup = Setup { mem_mib: gib << 10, vcpus: 1, ..*setup };
        let bitmap = one(&setup, Log::Bitmap, effort, report);
        let ring = one(&setup, Log::Ring, effort, report);
        for (name, at) in [("dirty_ring", 0), ("dirty_ring_guest", 1)] {
            match (&ring, &bitmap) {
                (Some(ring), Some(bitmap)) => report.add(&setup, name, "us", ring[at], bitmap[at].p50),
                _ => eprintln!("bench: this KVM has no dirty ring"),
            }
        }
    }
}

/// Harvest and turn of the guest.
fn one(setup: &Setup, log: Log, effort: &Effort, report: &mut Report) -> Option<[Spread; 2]> {
    let mut probe = Probe::with(log, setup.mem_mib, setup.pages)?;
    probe.start_log();
    // The first turn after the start of logging splits mappings.
    probe.turn();
    probe.harvest_log();
    let mut times: [Vec<Duration>; 2] = Default::default();
    for _ in 0..effort.requests {
        let start = Instant::now();
        probe.turn();
        let ran = Instant::now();
        let found = probe.harvest_log();
        assert!(found as u64 >= setup.pages, "the log has {found} of {} pages", setup.pages);
        times[0].push(ran.elapsed());
        times[1].push(ran - start);
    }
    let spreads = times.map(|times| Spread::of(&times));
    if log == Log::Bitmap {
        report.add(setup, "dirty_bitmap", "us", spreads[0], None);
        report.add(setup, "dirty_bitmap_guest", "us", spreads[1], None);
    }
    Some(spreads)
}
