//! How long a takeover takes: from the last beat and from the decision to the running guest, and what a
//! client sees.

use std::time::{Duration, Instant};

use engine_tests::Pair;
use serde_json::json;

use crate::load::Effort;
use crate::protected::micros;
use crate::record::{Report, Spread};
use crate::setup::Setup;

/// Silence that counts as death in these runs.
const DETECT_MS: u64 = 300;

/// How often the client asks when it gets no answer.
const REPEAT: Duration = Duration::from_millis(2);

/// Kills the host of a busy guest again and again.
pub fn measure(setup: &Setup, effort: &Effort, report: &mut Report) {
    let [mut decided, mut running, mut silent, mut replied] = [const { Vec::new() }; 4];
    for _ in 0..effort.takeovers {
        let pair = Pair::new();
        let options = setup.options(false);
        let (mut vm, standby) = (pair.boot(0, &options), pair.standby(1, &options));
        let mut client = pair.client();
        client.echo();
        pair.protect(&vm, 1, &json!({"detect_ms": DETECT_MS}));
        (0..50).for_each(|_| _ = client.work(setup.pages, 1));
        // What is measured is when the guest answers, not how patient its client is.
        client.repeat_after = REPEAT;
        let killed = Instant::now();
        vm.kill_host();
        client.work(setup.pages, 0);
        let reply = killed.elapsed();
        // The status may lag behind the guest that it is about.
        let (disks, total, last_beat) = loop {
            let status = pair.wait_status(&standby, "solo");
            if let (Some(disks), Some(total)) = (micros(&status, "disks_us"), micros(&status, "total_us")) {
                break (disks, total, micros(&status, "last_beat_us"));
            }
        };
        decided.push(disks);
        running.push(total);
        silent.extend(last_beat);
        replied.push(reply.saturating_sub(Duration::from_millis(DETECT_MS)));
    }
    report.add(setup, "takeover_state_and_disks", "us", Spread::of(&decided), None);
    report.add(setup, "takeover_decision_to_guest", "us", Spread::of(&running), None);
    let limit = Duration::from_millis(DETECT_MS).as_micros() as f64;
    report.add(setup, "takeover_last_beat_to_guest", "us", Spread::of(&silent), limit);
    report.add(setup, "takeover_first_reply_beyond_detection", "us", Spread::of(&replied), None);
}
