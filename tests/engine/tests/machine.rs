//! One VMM with the bare-metal guest: it boots, serves, pauses, resets and ends as it should.

use engine_tests::wire::op;
use engine_tests::{Client, Image, Machine, Netns, VmOptions};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

#[test]
fn boots_and_prints_on_the_serial_line() {
    let machine = Machine::claim();
    let mut vm = VmOptions::new().boot(&machine, &Netns::new());
    vm.wait_line("ready");
    // The state that the API shows may lag behind what a guest of a few milliseconds does; an answered
    // request does not.
    vm.api().put("vm.pause", None).ok();
    vm.api().put("vm.resume", None).ok();
    assert_eq!(vm.api().get("vm.info").ok()["state"], "Running");
}

#[test]
fn answers_udp_and_powers_off() {
    let machine = Machine::claim();
    let host = Netns::new();
    let mut vm = VmOptions::new().local_tap().boot(&machine, &host);
    let mut client = Client::of_local_tap(&host);
    client.echo();
    for pages in 0..500 {
        client.work(pages % 20, 0);
    }
    assert_eq!(vm.power_off(&mut client).code(), Some(0));
    assert!(host.interfaces().is_empty(), "left behind: {:?}", host.interfaces());
}

#[test]
fn disk_holds_what_was_acknowledged() {
    let machine = Machine::claim();
    let (host, image) = (Netns::new(), Image::new(&machine.dir().join("disk"), 4));
    let mut vm = VmOptions::new().local_tap().disk(image.path()).guest("disk_rate=max").boot(&machine, &host);
    let mut client = Client::of_local_tap(&host);
    for _ in 0..100 {
        let reply = client.work(1, 3);
        image.check(&reply);
    }
    assert!(client.last().disk_checked > 0);
    assert_eq!(vm.power_off(&mut client).code(), Some(0));
    image.check(&client.last());
}

#[test]
fn devices_whose_queues_the_guest_breaks_ask_for_a_reset_and_work_after_it() {
    let machine = Machine::claim();
    let (host, image) = (Netns::new(), Image::new(&machine.dir().join("disk"), 4));
    let mut vm = VmOptions::new().local_tap().disk(image.path()).guest("spoil=1").boot(&machine, &host);
    // Served by two device processes and by the VMM itself.
    for queue in [
        "1 needs a reset after queue 0",
        "1 needs a reset after queue 1",
        "1 needs a reset after queue 2",
        "2 needs",
        "4 needs",
    ] {
        vm.wait_line(&format!("device of type {queue}"));
    }
    let mut client = Client::of_local_tap(&host);
    for _ in 0..50 {
        image.check(&client.work(1, 3));
    }
    assert!(client.last().disk_checked > 0);
}

#[test]
fn counts_what_its_devices_do() {
    let machine = Machine::claim();
    let (host, image) = (Netns::new(), Image::new(&machine.dir().join("disk"), 4));
    let vm = VmOptions::new().local_tap().disk(image.path()).guest("disk_rate=max").boot(&machine, &host);
    let mut client = Client::of_local_tap(&host);
    client.echo();
    let before = vm.api().get("vm.counters").ok();
    for _ in 0..100 {
        client.work(1, 3);
    }
    // A frame is counted after it was sent: with the next one, those before are.
    client.echo();
    let after = vm.api().get("vm.counters").ok();
    let count = |counters: &serde_json::Value, device: &str, name: &str| {
        let value = counters[device][name].as_i64();
        value.unwrap_or_else(|| panic!("{device} {name}: {counters}"))
    };
    let more = |device, name| count(&after, device, name) - count(&before, device, name);
    let (net, disk) = ("_net1", "_disk0");
    assert!(more(net, "rx_frames") >= 100 && more(net, "tx_frames") >= 100, "{before} {after}");
    // No Ethernet frame with a UDP datagram is shorter than its headers.
    assert!(more(net, "rx_bytes") >= 100 * 42 && more(net, "tx_bytes") >= 100 * 42, "{before} {after}");
    let writes = more(disk, "write_ops");
    assert!(writes > 0 && more(disk, "write_bytes") >= 512 * writes, "{before} {after}");
    let latency = ["min", "avg", "max"].map(|kind| count(&after, disk, &format!("write_latency_{kind}")));
    assert!(latency.is_sorted(), "{latency:?}");
    for name in ["read_bytes", "read_ops", "read_latency_min", "read_latency_max", "read_latency_avg"] {
        count(&after, disk, name);
    }
    assert_eq!(count(&after, net, "malformed"), 0);
}

#[test]
fn pauses_and_resumes() {
    let machine = Machine::claim();
    let (host, image) = (Netns::new(), Image::new(&machine.dir().join("disk"), 4));
    let vm = VmOptions::new().local_tap().disk(image.path()).boot(&machine, &host);
    let mut client = Client::of_local_tap(&host);
    client.echo();
    for _ in 0..10 {
        client.work(100, 2);
        vm.api().put("vm.pause", None).ok();
        assert_eq!(vm.api().get("vm.info").ok()["state"], "Paused");
        client.send();
        assert!(client.receive(Duration::from_millis(50)).is_none(), "a paused guest answers");
        vm.api().put("vm.resume", None).ok();
        assert!(client.receive(Duration::from_secs(5)).is_some(), "the guest does not go on");
        client.work(100, 2);
    }
}

#[test]
fn other_vcpus_run() {
    let machine = Machine::claim();
    let host = Netns::new();
    let vm = VmOptions::new().local_tap().vcpus(2).guest("bg_pages=100 rate=10000").boot(&machine, &host);
    let mut client = Client::of_local_tap(&host);
    let before = client.echo().background;
    while client.work(10, 0).background < before + 1000 {}
    assert_eq!(client.last().vcpus, 2);
    drop(vm);
}

#[test]
fn resets() {
    let machine = Machine::claim();
    let (host, image) = (Netns::new(), Image::new(&machine.dir().join("disk"), 4));
    let mut vm = VmOptions::new().local_tap().disk(image.path()).boot(&machine, &host);
    let mut client = Client::of_local_tap(&host);
    for how in 0..3 {
        vm.wait_line("ready");
        client.work(20, 5);
        client.reset(how);
    }
    vm.wait_line("ready");
    client.work(20, 5);
    assert_eq!(vm.power_off(&mut client).code(), Some(0));
}

#[test]
fn reports_exceptions_and_panics() {
    for (operation, text) in [(op::FAULT, "exception 14"), (op::PANIC, "on request")] {
        let machine = Machine::claim();
        let host = Netns::new();
        let mut vm = VmOptions::new().local_tap().boot(&machine, &host);
        let mut client = Client::of_local_tap(&host);
        client.echo();
        client.send_only(operation);
        vm.wait_line(text);
        assert_eq!(vm.wait().code(), Some(0), "a panic powers the guest off");
    }
}

#[test]
fn ends_on_sigterm() {
    let machine = Machine::claim();
    let (host, image) = (Netns::new(), Image::new(&machine.dir().join("disk"), 4));
    let mut vm = VmOptions::new().local_tap().disk(image.path()).boot(&machine, &host);
    let mut client = Client::of_local_tap(&host);
    let reply = client.work(10, 10);
    let processes = vm.processes();
    assert_eq!(processes.len(), 4, "the VMM, its launcher and two device processes: {processes:?}");
    vm.signal(Signal::SIGTERM);
    assert_eq!(vm.wait().code(), Some(0));
    vm.assert_nothing_left(&processes);
    assert!(host.interfaces().is_empty(), "left behind: {:?}", host.interfaces());
    image.check(&reply);
}

#[test]
fn memory_above_the_hole_works() {
    let machine = Machine::claim();
    let host = Netns::new();
    let options = VmOptions::new().memory(4096).local_tap().guest("high=1 pages=1000");
    let mut vm = options.boot(&machine, &host);
    let mut client = Client::of_local_tap(&host);
    for _ in 0..20 {
        client.work(500, 0);
    }
    assert_eq!(vm.power_off(&mut client).code(), Some(0));
}

#[test]
fn time_passes_in_the_guest_as_outside() {
    let machine = Machine::claim();
    let host = Netns::new();
    let _vm = VmOptions::new().local_tap().boot(&machine, &host);
    let mut client = Client::of_local_tap(&host);
    client.echo();
    let mut look = || {
        let before = Instant::now();
        (before, client.echo(), Instant::now())
    };
    let (first_sent, first, first_seen) = look();
    let (last_sent, last, last_seen) = loop {
        let look = look();
        if first_seen.elapsed() > Duration::from_millis(500) {
            break look;
        }
    };
    let (least, most) = ((last_sent - first_seen).as_nanos(), (last_seen - first_sent).as_nanos());
    let by_tsc = u128::from(last.tsc - first.tsc) * 1_000_000 / u128::from(last.tsc_khz);
    let by_clock = u128::from(last.nanoseconds - first.nanoseconds);
    for inside in [by_tsc, by_clock] {
        let as_outside = (least - least / 100..=most + most / 100).contains(&inside);
        assert!(as_outside, "{inside} ns inside, {least} to {most} ns outside");
    }
}
