//! How much crosses the link for a guest that changes little of each page that it writes, as a key-value
//! store does, with and without compression; and what a standby takes beyond the guest's memory.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use engine_tests::{Netns, Pair, Vm, VmOptions};
use serde_json::json;

use crate::load::{Effort, requests};
use crate::record::{Report, Spread};
use crate::setup::Setup;

/// Words of 8 bytes that a request changes in each page; the rest of the page is noise that stays.
const WORDS: u64 = 16;

/// Settings of `compression`, and what the replication link carries, in the words of `tc`, if it is limited.
const RUNS: [(&str, Option<&str>); 5] =
    [("off", None), ("auto", None), ("delta+zstd", None), ("off", Some("1gbit")), ("auto", Some("1gbit"))];

/// Bytes per epoch (with the ratio of what they would be without compression), latency, and memory of the
/// standby (with its ratio to the guest's).
pub fn measure(setup: &Setup, effort: &Effort, report: &mut Report) {
    for (setting, rate) in RUNS {
        let link = rate.map_or_else(String::new, |rate| format!(", {rate}"));
        let metric = |what| format!("{what}, {setting}{link}");
        let pair = Pair::new();
        if let Some(rate) = rate {
            limit(&pair.hosts[0], rate);
        }
        let line = format!("pages={} fill={WORDS} disk_rate=0", setup.pages);
        let options = VmOptions::new().memory(setup.mem_mib).vcpus(setup.vcpus).guest(&line);
        let (vm, standby) = (pair.boot(0, &options), pair.standby(1, &options));
        let mut client = pair.client();
        client.echo();
        pair.protect(&vm, 1, &json!({ "compression": setting }));
        let times = requests(&mut client, setup.pages, effort);
        // The status is brought up to date every 100 ms.
        thread::sleep(Duration::from_millis(150));
        let status = vm.api().get("ft.status").ok();
        let number = |value: &serde_json::Value| value.as_f64().expect("a number in the status");
        let compression = &status["compression"];
        let ratio = number(&compression["raw"]) / number(&compression["sent"]);
        report.add_one(setup, &metric("bytes_per_epoch"), "bytes", number(&status["epoch_bytes"]["p50"]), ratio);
        report.add(setup, &metric("latency_protected"), "us", Spread::of(&times), None);
        let beyond = memory_beyond_guest(&standby);
        report.add_one(setup, &metric("standby_beyond_guest"), "MiB", beyond, beyond / setup.mem_mib as f64);
    }
}

/// Makes the replication link as slow as that in the direction of the standby.
fn limit(host: &Netns, rate: &str) {
    let words = ["qdisc", "add", "dev", "repl", "root", "tbf", "rate", rate, "burst", "64kb", "latency", "50ms"];
    let done = host.run(|| Command::new("tc").args(words).status().expect("tc"));
    assert!(done.success(), "tc cannot limit the link: {done}");
}

/// Memory of a VMM that is not its guest's, in MiB. The guest's is shared memory.
pub fn memory_beyond_guest(vm: &Vm) -> f64 {
    let vmm = vm.processes()[0];
    let status = fs::read_to_string(format!("/proc/{vmm}/status")).unwrap_or_default();
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or_default()
    };
    (kib("RssAnon:") + kib("RssFile:")) / 1024.0
}
