//! Throughput of one TCP stream from the guest, and of one to it, alone and protected.

use std::time::{Duration, Instant};

use engine_tests::{GUEST_IP, Pair, Stream};
use serde_json::json;

use crate::load::Effort;
use crate::protected::Setup;
use crate::record::Report;

/// Until windows have opened and buffers are full.
const WARM_UP: Duration = Duration::from_millis(300);

/// Measures with offloads, as guests of today use them, and with plain frames.
pub fn measure(setup: &Setup, effort: &Effort, report: &mut Report) {
    both_directions(setup, effort, "", report);
    both_directions(setup, effort, "_plain", report);
}

fn both_directions(setup: &Setup, effort: &Effort, kind: &str, report: &mut Report) {
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
