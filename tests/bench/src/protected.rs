//! One guest, first alone, then protected: latency of requests, cost of epochs, speed of a page writer.

use std::thread;
use std::time::{Duration, Instant};

use engine_tests::{Pair, Vm};
use serde_json::{Value, json};

use crate::floor::Floor;
use crate::load::{Effort, requests, stalls, writer_speed};
use crate::record::{Report, Spread};
use crate::setup::Setup;
use crate::volume::memory_beyond_guest;

/// Latency of requests alone and protected, and what the engine says of its epochs.
pub fn latency(setup: &Setup, effort: &Effort, floor: &Floor, report: &mut Report) {
    let pair = Pair::new();
    let options = setup.options(false);
    let (vm, standby) = (pair.boot(0, &options), pair.standby(1, &options));
    let mut client = pair.client();
    let alone = Spread::of(&requests(&mut client, setup.pages, effort));
    pair.protect(&vm, 1, &json!({}));
    // The hosts look at their processors first.
    thread::sleep(Duration::from_millis(200));
    let before = [&vm, &standby].map(cpu_time);
    let start = Instant::now();
    let protected = Spread::of(&requests(&mut client, setup.pages, effort));
    let elapsed = start.elapsed();
    let used = [&vm, &standby].map(cpu_time);
    // The status is brought up to date every 100 ms.
    thread::sleep(Duration::from_millis(150));
    let status = vm.api().get("ft.status").ok();
    let spread = |name| spread(&status, name);
    let commit = floor.capture + floor.transfer;
    report.add(setup, "floor_capture", "us", single(floor.capture), None);
    report.add(setup, "floor_transfer", "us", single(floor.transfer), None);
    report.add(setup, "floor_transfer_two", "us", single(floor.two_streams), floor.transfer);
    report.add(setup, "floor_write_faults", "us", single(floor.write_faults), None);
    report.add(setup, "latency_alone", "us", alone, None);
    report.add(setup, "latency_protected", "us", protected, None);
    let added = Spread { p50: protected.p50 - alone.p50, p99: protected.p99 - alone.p50 };
    report.add(setup, "latency_added", "us", added, commit);
    report.add(setup, "pause", "us", spread("pause_us"), floor.capture);
    report.add(setup, "commit", "us", spread("commit_us"), commit);
    report.add(setup, "dirty_pages", "pages", spread("dirty_pages"), None);
    report.add(setup, "epoch_bytes", "bytes", spread("epoch_bytes"), None);
    for (name, side) in [("cpu_primary", 0), ("cpu_standby", 1)] {
        let share = (used[side] - before[side]).as_secs_f64() / elapsed.as_secs_f64() * 100.0;
        report.add_one(setup, name, "% of a core", share, None);
    }
}

/// A spread that the status tells.
pub fn spread(status: &Value, name: &str) -> Spread {
    let at = |percentile: &str| status[name][percentile].as_f64().expect("a percentile in the status");
    Spread { p50: at("p50"), p99: at("p99") }
}

fn single(value: f64) -> Spread {
    Spread { p50: value, p99: value }
}

/// Speed of a page writer alone and protected with epochs of 20 ms, and the stalls that its guest sees.
pub fn throughput(setup: &Setup, effort: &Effort, report: &mut Report) {
    let pair = Pair::new();
    let options = setup.options(true);
    let (vm, standby) = (pair.boot(0, &options), pair.standby(1, &options));
    let mut client = pair.client();
    let alone = writer_speed(&mut client, effort);
    report.add(setup, "stall_alone", "us", Spread::of(&stalls(&mut client, effort)), None);
    pair.protect(&vm, 1, &json!({"min_epoch_us": 20_000, "max_epoch_us": 20_000}));
    let protected = writer_speed(&mut client, effort);
    report.add_one(setup, "writer_alone", "pages/s", alone, None);
    report.add_one(setup, "writer_protected", "pages/s", protected, protected / alone);
    let beyond = memory_beyond_guest(&standby);
    report.add_one(setup, "standby_beyond_guest", "MiB", beyond, beyond / setup.mem_mib as f64);
    report.add(setup, "stall", "us", Spread::of(&stalls(&mut client, effort)), None);
}

/// CPU time that a VMM and its device processes have used, the vCPUs' own left out: the guests of these runs
/// never sleep.
fn cpu_time(vm: &Vm) -> Duration {
    let ticks_per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
    let ticks_per_second = ticks_per_second.ok().flatten().and_then(|ticks| u32::try_from(ticks).ok()).unwrap_or(100);
    let mut ticks = 0;
    for pid in vm.processes() {
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            let (Some(name), Some((_, fields))) = (stat.split(['(', ')']).nth(1), stat.rsplit_once(')')) else {
                continue;
            };
            if !name.starts_with("vcpu") {
                // User and system time: fields 14 and 15 of the line, 12 and 13 after the name.
                ticks += fields.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u32>().ok()).sum::<u32>();
            }
        }
    }
    Duration::from_secs(1) * ticks / ticks_per_second
}

/// A field of the status, in microseconds.
pub fn micros(status: &Value, name: &str) -> Option<Duration> {
    status["takeover"][name].as_u64().map(Duration::from_micros)
}
