//! A pair repairs itself: whoever comes back is the next standby, and nobody has to say so.

use std::time::{Duration, Instant};

use engine_tests::{Client, Image, Pair, Vm, VmOptions};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use vhost_user_blk_repl::record::decode;

fn busy() -> VmOptions {
    VmOptions::new().guest("bg_pages=200 rate=20000 disk_rate=300")
}

/// Both hosts are up and the VM, on host 0, is protected.
fn protected(pair: &Pair, options: &VmOptions) -> [Vm; 2] {
    let first = pair.node(0, options);
    pair.client().echo();
    let second = pair.node(1, options);
    pair.wait_status(&first, "protected");
    pair.wait_status(&second, "standby-ready");
    [first, second]
}

/// The details of all events of this name.
fn told(vm: &Vm, name: &str) -> Vec<Value> {
    let events = vm.api().get("ft.events").ok();
    let named = events.as_array().into_iter().flatten().filter(|event| event["event"] == name);
    named.map(|event| event["detail"].clone()).collect()
}

fn work(client: &mut Client, requests: u64) {
    for i in 0..requests {
        client.work(i % 30, i % 2);
    }
}

#[test]
fn a_killed_host_is_the_next_standby() {
    let pair = Pair::new();
    let mut vms = protected(&pair, &busy());
    let mut client = pair.client();
    for round in 0..4 {
        let (runner, other) = (round % 2, (round + 1) % 2);
        work(&mut client, 50);
        vms[runner].kill_host();
        work(&mut client, 20);
        vms[runner] = pair.node(runner, &busy());
        pair.wait_status(&vms[other], "protected");
    }
    work(&mut client, 50);
    assert_eq!(vms[0].power_off(&mut client).code(), Some(0));
    pair.images[0].check(&client.last());
}

#[test]
fn a_standby_that_is_built_differently_is_refused_before_anything_is_copied() {
    let pair = Pair::new();
    let first = pair.node(0, &busy());
    pair.client().echo();
    let second = pair.node(1, &busy().flag("--serial", "off").net("queue_size=512"));
    let parts = [
        "serial port: none here, one at the primary",
        "queue sizes (queue_size=) of network card _net1: 512, 64 here, 256, 64 at the primary",
    ];
    let begun = Instant::now();
    loop {
        let status = first.api().get("ft.status").body;
        let reasons = status["search"]["waiting_for"].to_string();
        if parts.iter().all(|part| reasons.contains(part)) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{status}\n{}", second.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    // Long enough for many sessions, if one were opened.
    std::thread::sleep(Duration::from_secs(3));
    for vm in [&first, &second] {
        assert!(told(vm, "memory-copy-started").is_empty(), "{}", vm.log());
    }
    assert_eq!(told(&first, "standby-unavailable").len(), 2, "away, then unlike: {}", first.log());
}

#[test]
fn both_hosts_tell_of_the_first_copy() {
    let pair = Pair::new();
    for vm in protected(&pair, &busy()) {
        let events = vm.api().get("ft.events").ok();
        let find = |name: &str| {
            let mut all = events.as_array().into_iter().flatten();
            all.find(|event| event["event"] == name).unwrap_or_else(|| panic!("no {name}: {events}"))["detail"].clone()
        };
        assert!(find("memory-copy-started")["bytes"].as_u64() > Some(0));
        assert!(find("memory-copy-done")["bytes"].as_u64() > Some(0));
        assert_eq!(find("resync-started")["bytes"].as_u64(), Some(4 << 20));
        assert_eq!(find("resync-done")["kind"], find("resync-started")["kind"]);
    }
}

#[test]
fn a_host_whose_device_process_dies_becomes_the_standby() {
    for name in ["vhost-user-blk-repl", "vhost-user-net-buffer"] {
        let pair = Pair::new();
        let [mut first, second] = protected(&pair, &busy());
        let mut client = pair.client();
        let pids = [first.pid(), second.pid()];
        work(&mut client, 10);
        kill(first.device(name), Signal::SIGKILL).expect("kill a device process");
        work(&mut client, 50);
        pair.wait_status(&second, "protected");
        work(&mut client, 10);
        // And back, in the same two processes.
        kill(second.device(name), Signal::SIGKILL).expect("kill a device process");
        work(&mut client, 50);
        pair.wait_status(&first, "protected");
        work(&mut client, 50);
        assert_eq!([first.pid(), second.pid()], pids);
        assert_eq!(first.power_off(&mut client).code(), Some(0));
        pair.images[0].check(&client.last());
    }
}

#[test]
fn a_standby_whose_device_process_dies_is_built_anew() {
    for name in ["vhost-user-blk-repl", "vhost-user-net-buffer"] {
        let pair = Pair::new();
        let [first, mut second] = protected(&pair, &busy());
        let mut client = pair.client();
        work(&mut client, 10);
        let device = second.device(name);
        kill(device, Signal::SIGKILL).expect("kill a device process");
        work(&mut client, 20);
        let lost = || told(&first, "protection-lost").first().map(|detail| detail["reason"].to_string());
        while lost().is_none() {
            work(&mut client, 1);
        }
        // The end of its stream may be noticed before the standby has said why.
        let named = |reason: String| ["device process of", "mirror of"].iter().any(|what| reason.contains(what));
        assert!(lost().is_some_and(named), "{:?}", lost());
        // Its status may still be that of before.
        while told(&first, "protected").len() < 2 {
            work(&mut client, 1);
        }
        pair.wait_status(&second, "standby-ready");
        assert_ne!(second.device(name), device);
        drop(first);
        work(&mut client, 50);
        assert_eq!(second.power_off(&mut client).code(), Some(0));
        pair.images[1].check(&client.last());
    }
}

#[test]
fn a_vm_that_was_shut_down_starts_from_its_newest_disks_whoever_comes_first() {
    let pair = Pair::new();
    let [mut first, mut second] = protected(&pair, &busy());
    let mut client = pair.client();
    work(&mut client, 10);
    assert_eq!(first.power_off(&mut client).code(), Some(0));
    pair.wait_status(&second, "standby-empty");
    second.signal(Signal::SIGTERM);
    assert_eq!(second.wait().code(), Some(0));
    // The other way round: who was the standby lacks the last writes, and waits.
    let mut second = pair.node(1, &busy());
    pair.wait_status(&second, "standby-empty");
    let events = second.api().get("ft.events").ok().to_string();
    assert!(events.contains("started-as-standby") && events.contains("on a host with newer disks"), "{events}");
    let mut first = pair.node(0, &busy());
    first.wait_line("ready");
    pair.wait_status(&first, "protected");
    // Told to end, each hands the VM over or ends it: then the other one has the newest disks.
    first.signal(Signal::SIGTERM);
    assert_eq!(first.wait().code(), Some(0));
    pair.wait_status(&second, "solo");
    second.signal(Signal::SIGTERM);
    assert_eq!(second.wait().code(), Some(0));
    let first = pair.node(0, &busy());
    pair.wait_status(&first, "standby-empty");
    let second = pair.node(1, &busy());
    pair.wait_status(&second, "protected");
}

#[test]
fn switchovers_back_and_forth_lose_no_reply() {
    let pair = Pair::new();
    let mut vms = protected(&pair, &busy());
    let mut client = pair.client();
    let pids = [vms[0].pid(), vms[1].pid()];
    for round in 0..4 {
        let (runner, other) = (round % 2, (round + 1) % 2);
        work(&mut client, 50);
        vms[runner].api().put("ft.switchover", None).ok();
        work(&mut client, 20);
        let status = pair.wait_status(&vms[other], "protected");
        println!("switchover {round}: {}", status["takeover"]);
        assert!(status["takeover"]["gap_us"].as_u64().is_some(), "{status}");
        pair.wait_status(&vms[runner], "standby-ready");
    }
    assert_eq!([vms[0].pid(), vms[1].pid()], pids);
    assert_eq!(vms[0].power_off(&mut client).code(), Some(0));
    pair.images[0].check(&client.last());
}

/// Waits until the records of both disks name the same state: from then on a resynchronisation is
/// incremental.
fn settle(pair: &Pair) {
    let base = |image: &Image| {
        let file = std::fs::read(image.path().with_added_extension("pollux")).ok()?;
        decode(&file).ok().and_then(|(_, record)| record.base)
    };
    let start = Instant::now();
    while pair.images.each_ref().map(base).windows(2).any(|bases| bases[0].is_none() || bases[0] != bases[1]) {
        assert!(start.elapsed() < Duration::from_secs(60), "the records name no common state");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_suspended_pair_goes_on_from_where_it_was() {
    let pair = Pair::new();
    let [mut first, mut second] = protected(&pair, &busy());
    let mut client = pair.client();
    let kind = |vm: &Vm| told(vm, "memory-copy-started").last().map(|detail| detail["kind"].clone());
    assert_eq!(kind(&first), Some("full".into()));
    settle(&pair);
    for round in 0..3 {
        work(&mut client, 50);
        first.api().put("ft.suspend", None).ok();
        work(&mut client, 50);
        pair.wait_status(&first, "suspended");
        pair.wait_status(&second, "standby-empty");
        work(&mut client, 20);
        first.api().put("ft.resume", None).ok();
        let status = pair.wait_status(&first, "protected");
        assert_eq!((kind(&first), &status["disks"][0]["resync"]), (Some("incremental".into()), &"incremental".into()));
        println!("resumed {round}: {} bytes of the disk sent", status["disks"][0]["sent"]);
        work(&mut client, 20);
    }
    // What the standby goes on from is whole: the guest checks its memory and its disk.
    first.kill_host();
    work(&mut client, 50);
    assert_eq!(second.power_off(&mut client).code(), Some(0));
    pair.images[1].check(&client.last());
}

#[test]
fn a_tested_failover_is_a_real_one() {
    let pair = Pair::new();
    let [first, mut second] = protected(&pair, &busy());
    let mut client = pair.client();
    work(&mut client, 20);
    first.api().put("ft.test-failover", None).ok();
    work(&mut client, 50);
    let status = pair.wait_status(&second, "protected");
    println!("failover: {}", status["takeover"]);
    assert!(status["takeover"]["silence_ms"].as_u64().is_some_and(|ms| ms >= 1000), "{status}");
    pair.wait_status(&first, "standby-ready");
    work(&mut client, 20);
    assert_eq!(second.power_off(&mut client).code(), Some(0));
    pair.images[1].check(&client.last());
}
