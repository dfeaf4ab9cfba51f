//! Requests to a guest that also writes much on its own: what it gains that its epochs get shorter.

use std::thread;
use std::time::{Duration, Instant};

use engine_tests::Pair;
use serde_json::json;

use crate::load::{Effort, writer_speed};
use crate::record::{Report, Spread};
use crate::setup::Setup;

/// Pages that it rewrites by itself, and how many of them a second.
const BACKGROUND: &str = "bg_pages=20000 rate=300000";
/// As long as any epoch may take to arrive: epochs then have the length that is set.
const NEVER: u64 = 10_000_000;

/// Measures with the epochs that the engine chooses, and with those of 20 ms.
pub fn measure(setup: &Setup, effort: &Effort, report: &mut Report) {
    for (kind, options) in [("", json!({})), ("_fixed", json!({"latency_us": NEVER}))] {
        let pair = Pair::new();
        let guest = setup.options(false).guest(&format!("{}{BACKGROUND}", setup.words(false)));
        let (vm, _standby) = (pair.boot(0, &guest), pair.standby(1, &guest));
        let mut client = pair.client();
        client.echo();
        pair.protect(&vm, 1, &options);
        // Until epochs have found their length.
        thread::sleep(Duration::from_millis(500));
        let speed = writer_speed(&mut client, effort);
        // Between two requests most of an epoch passes.
        let gap = Duration::from_millis(7);
        let mut times = Vec::new();
        for _ in 0..effort.windows * 5 {
            thread::sleep(gap);
            let start = Instant::now();
            client.work(setup.pages, 0);
            times.push(start.elapsed());
        }
        report.add(setup, &format!("mixed{kind}_latency"), "us", Spread::of(&times), None);
        report.add_one(setup, &format!("mixed{kind}_writer"), "pages/s", speed, None);
    }
}
