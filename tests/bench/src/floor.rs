//! The least that this machine needs for a checkpoint: raw ioctls, memcpy and loopback transfer of the same
//! pages.

use std::time::{Duration, Instant};

use crate::load::Effort;
use crate::loopback;
use crate::probe::Probe;
use crate::record::Spread;
use crate::setup::Setup;

/// Medians in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Floor {
    /// State of one vCPU (those of a guest are captured in parallel), dirty log read, copied and cleared.
    pub capture: f64,
    /// The pages to a peer, and an answer.
    pub transfer: f64,
    /// The same in two streams at once, with a thread for each end.
    pub two_streams: f64,
    /// What the guest's first writes to the pages cost after that.
    pub write_faults: f64,
}

/// Measures it for the pages of `setup`.
pub fn measure(setup: &Setup, effort: &Effort) -> Floor {
    let (capture, write_faults) = of_memory(setup, effort);
    let bytes = usize::try_from(setup.pages * 4096).expect("bytes of a working set");
    let transfer = |streams| Spread::of(&loopback::measure(bytes, effort.requests, streams)).p50;
    Floor { capture, transfer: transfer(1), two_streams: transfer(2), write_faults }
}

/// [`Floor::capture`] and [`Floor::write_faults`] alone.
pub fn of_memory(setup: &Setup, effort: &Effort) -> (f64, f64) {
    let rounds = effort.requests;
    let mut probe = Probe::new(setup.mem_mib, setup.pages);
    let time = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    let clean: Vec<Duration> = (0..rounds).map(|_| time(&mut || probe.turn())).collect();
    probe.start_log();
    let (mut logged, mut capture) = (Vec::new(), Vec::new());
    for round in 0..rounds + 1 {
        let turn = time(&mut || probe.turn());
        let mut found = 0;
        let one = time(&mut || {
            probe.read_state();
            found = probe.harvest();
        });
        assert!(found as u64 >= setup.pages, "the dirty log has {found} of {} pages", setup.pages);
        // The first turn after the start of logging splits mappings.
        if round > 0 {
            logged.push(turn);
            capture.push(one);
        }
    }
    let median = |times: &[Duration]| Spread::of(times).p50;
    (median(&capture), (median(&logged) - median(&clean)).max(0.0))
}
