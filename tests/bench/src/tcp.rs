//! Throughput of one TCP stream from the guest, and of one to it, alone and protected.

use std::time::{Duration, Instant};

use engine_tests::{GUEST_IP, Pair, Stream};
use serde_json::json;

use crate::floor;
use crate::load::Effort;
use crate::record::Report;
use crate::setup::Setup;

/// Until windows have opened and buffers are full.
const WARM_UP: Duration = Duration::from_millis(300);
/// What the guest's streams go through in its memory: a window of 1 MiB, and frames of as many bytes.
const PAGES: u64 = 512;

/// Measures with offloads, as guests of today use them, and with plain frames.
pub fn measure(setup: &Setup, effort: &Effort, report: &mut Report) {
    let (_, faults) = floor::of_memory(&Setup { pages: PAGES, ..*setup }, effort);
    both_directions(setup, effort, "", faults, report);
    both_directions(setup, effort, "_plain", faults, report);
}

/// `faults`: what the first writes to [`PAGES`] cost, in µs.
fn both_directions(setup: &Setup, effort: &Effort, kind: &str, faults: f64, report: &mut Report) {
    let pair = Pair::new();
    let options = setup.options(false).guest(if kind.is_empty() { "offloads=1" } else { "offloads=0" });
    let (vm, _standby) = (pair.boot(0, &options), pair.standby(1, &options));
    pair.client().echo();
    let both = || {
        let mut from = Stream::from_guest(&pair.lan, GUEST_IP);
        let from = speed(effort, || from.receive());
        let mut to = Stream::to_guest(&pair.lan, GUEST_IP);
        [from, speed(effort, || to.send())]
    };
    let alone = both();
    pair.protect(&vm, 1, &json!({}));
    let protected = both();
    // A wrong byte is told in the reply.
    pair.client().echo();
    for (i, direction) in ["from", "to"].into_iter().enumerate() {
        report.add_one(setup, &format!("tcp_{direction}_guest{kind}_alone"), "MB/s", alone[i], None);
        report.add_one(setup, &format!("tcp_{direction}_guest{kind}"), "MB/s", protected[i], protected[i] / alone[i]);
    }
    let most = most(alone[0], faults);
    report.add_one(setup, &format!("tcp_from_guest{kind}_most"), "MB/s", most, most / alone[0]);
}

/// Megabytes per second of a guest that sends as fast as `alone`, but for the faults of its first writes:
/// each byte is written twice, to the socket's buffer and to a frame, and no page again before the next
/// checkpoint. All that replication does is for nothing.
fn most(alone: f64, faults: f64) -> f64 {
    let megabytes = (PAGES * 4096 / 2) as f64 / 1e6;
    megabytes / (megabytes / alone + faults / 1e6)
}

/// Megabytes per second that `more` moves.
fn speed(effort: &Effort, mut more: impl FnMut() -> u64) -> f64 {
    let mut run = |limit: Duration| {
        let start = Instant::now();
        let mut bytes = 0;
        while start.elapsed() < limit {
            bytes += more();
        }
        bytes as f64 / start.elapsed().as_secs_f64() / 1e6
    };
    run(WARM_UP);
    run(effort.watch * 2)
}
