//! How much crosses the link for a guest that changes little of each page that it writes, as a key-value store does, with
//! and without compression; and what a standby takes beyond the guest's memory.

use std::fs;
use std::thread;
use std::time::Duration;

use engine_tests::{Pair, Vm, VmOptions};
use serde_json::json;

use crate::load::{Effort, requests};
use crate::protected::Setup;
use crate::record::{Report, Spread};

/// Words of 8 bytes that a request changes in each page; the rest of the page is noise that stays.
const WORDS: u64 = 16;

/// Settings of `compression`.
const SETTINGS: [&str; 4] = ["off", "auto", "delta", "delta+lz4"];

/// Bytes per epoch (with the ratio of what they would be without compression), latency, and memory of the standby (with
/// its ratio to the guest's).
pub fn measure(setup: &Setup, effort: &Effort, report: &mut Report) {
    for setting in SETTINGS {
        let metric = |what| format!("{what}, {setting}");
        let pair = Pair::new();
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
