//! What clients, operators and slow devices do to a VMM must not hold up its guest, its standby or its end.

use std::fs::File;
use std::net::TcpListener;
use std::time::Duration;

use engine_tests::wire::op;
use engine_tests::{Client, Image, Machine, Netns, Pair, Vm, VmOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Names of the threads of a VMM.
fn threads(vm: &Vm) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", vm.pid())).expect("threads of a VMM").flatten();
    let name = |path: std::path::PathBuf| std::fs::read_to_string(path.join("comm")).unwrap_or_default();
    tasks.map(|task| name(task.path()).trim_end().to_owned()).collect()
}

/// Returns when each thread of the process stands still.
fn stop(pid: Pid) {
    kill(pid, Signal::SIGSTOP).expect("stop a process");
    let start = std::time::Instant::now();
    let stands = |task: &std::path::Path| {
        let stat = std::fs::read_to_string(task.join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    };
    let tasks = || std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads of a process").flatten();
    while !tasks().all(|task| stands(&task.path())) {
        assert!(start.elapsed() < Duration::from_secs(60), "process {pid} does not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn state(vm: &Vm) -> String {
    vm.api().get("vm.info").ok()["state"].as_str().unwrap_or_default().to_owned()
}

/// Until the API shows that the VM is in this state, which may take until the control loop has heard of it.
fn wait_state(vm: &Vm, wanted: &str) {
    let start = std::time::Instant::now();
    while state(vm) != wanted {
        assert!(start.elapsed() < Duration::from_secs(60), "not {wanted} but {}:\n{}", state(vm), vm.log());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_serial_line_that_nobody_reads_holds_up_nothing() {
    let machine = Machine::claim();
    let (host, image) = (Netns::new(), Image::new(&machine.dir().join("disk"), 4));
    let mut vm = VmOptions::new().local_tap().disk(image.path()).serial_unread().boot(&machine, &host);
    let mut client = Client::of_local_tap(&host);
    // Much more than a pipe takes.
    for _ in 0..6000 {
        client.ask(op::PRINT, u64::MAX);
    }
    client.work(10, 2);
    for _ in 0..3 {
        vm.api().put("vm.pause", None).ok();
        vm.api().put("vm.resume", None).ok();
    }
    client.work(10, 2);
    assert_eq!(vm.api().get("vm.counters").ok()["__serial"]["lost_bytes"], 0);
    let processes = vm.processes();
    vm.signal(Signal::SIGTERM);
    assert_eq!(vm.wait().code(), Some(0));
    vm.assert_nothing_left(&processes);
}

#[test]
fn a_serial_line_that_nobody_reads_does_not_hold_up_protection() {
    let pair = Pair::new();
    let options = VmOptions::new().serial_unread();
    let (mut vm, standby) = (pair.boot(0, &options), pair.standby(1, &options));
    let mut client = pair.client();
    for _ in 0..6000 {
        client.ask(op::PRINT, u64::MAX);
    }
    pair.protect(&vm, 1, &json!({}));
    for _ in 0..100 {
        client.ask(op::PRINT, u64::MAX);
    }
    vm.kill_host();
    client.work(10, 2);
    assert_eq!(pair.wait_status(&standby, "solo")["role"], "solo");
}

#[test]
fn a_call_that_waits_keeps_no_guest_alive() {
    let machine = Machine::claim();
    let (host, image) = (Netns::new(), Image::new(&machine.dir().join("disk"), 4));
    let mut vm = VmOptions::new().local_tap().disk(image.path()).guest("disk_rate=max").boot(&machine, &host);
    let mut client = Client::of_local_tap(&host);
    client.work(10, 2);
    // A host that accepts and says nothing.
    let silent = host.run(|| TcpListener::bind("127.0.0.1:0").expect("a port"));
    let request = json!({
        "peer": silent.local_addr().expect("address"),
        "heartbeat": "127.0.0.1:9",
        "witness": machine.dir().join("witness"),
    });
    let api = vm.api();
    let waiting = std::thread::spawn(move || api.put("ft.protect", Some(&request)).status);
    let asked = silent.accept().expect("a caller");
    vm.api().put("vm.shutdown", None).ok();
    let left = threads(&vm);
    assert!(!left.iter().any(|name| name.starts_with("vcpu")), "the guest runs on: {left:?}");
    let programs = vm.processes().into_iter().filter_map(|pid| std::fs::read_link(format!("/proc/{pid}/exe")).ok());
    // The VMM and its launcher.
    assert!(programs.into_iter().all(|program| program.ends_with("pollux-vmm")), "its devices run on");
    assert_eq!(waiting.join().expect("a call"), 500);
    drop(asked);
    vm.api().put("vm.boot", None).ok();
    client = Client::of_local_tap(&host);
    client.work(10, 2);
    vm.signal(Signal::SIGTERM);
    assert_eq!(vm.wait().code(), Some(0));
}

#[test]
fn a_witness_that_hangs_does_not_hold_up_the_end() {
    let pair = Pair::new();
    let [mut vm, _standby] = pair.protected(&VmOptions::new(), &json!({}));
    pair.client().work(10, 2);
    // What a file server that hangs looks like.
    let lock = File::create(pair.machine.dir().join("witness.lock")).expect("lock file");
    lock.lock().expect("lock");
    let api = vm.api();
    let waiting = std::thread::spawn(move || {
        // It may well be closed without an answer.
        std::panic::catch_unwind(|| api.put("ft.stop", None).status)
    });
    std::thread::sleep(Duration::from_millis(100));
    let processes = vm.processes();
    vm.signal(Signal::SIGTERM);
    assert_eq!(vm.wait().code(), Some(0));
    vm.assert_nothing_left(&processes);
    let _ = waiting.join();
}

#[test]
fn disks_may_be_called_like_parts_of_the_vm() {
    for id in ["clock", "vcpu0", "_pci"] {
        let pair = Pair::new();
        let [mut vm, mut standby] = pair.protected(&VmOptions::new().disk_id(id), &json!({}));
        let mut client = pair.client();
        client.work(10, 2);
        vm.kill_host();
        client.work(10, 2);
        assert_eq!(standby.power_off(&mut client).code(), Some(0), "{id}");
    }
}

#[test]
fn a_paused_vm_stays_paused_when_its_host_dies() {
    let pair = Pair::new();
    let [mut vm, standby] = pair.protected(&VmOptions::new().guest("disk_rate=300"), &json!({}));
    let mut client = pair.client();
    client.work(10, 2);
    // As soon as that is answered the standby knows of it.
    vm.api().put("vm.pause", None).ok();
    vm.kill_host();
    assert_paused_until_resumed(&pair, &standby, &mut client);
}

#[test]
fn a_resumed_vm_runs_on_when_its_host_dies() {
    let pair = Pair::new();
    let [mut vm, standby] = pair.protected(&VmOptions::new().guest("disk_rate=300"), &json!({}));
    let mut client = pair.client();
    client.work(10, 2);
    for call in ["vm.pause", "vm.resume"] {
        vm.api().put(call, None).ok();
    }
    vm.kill_host();
    client.work(10, 2);
    wait_state(&standby, "Running");
}

#[test]
fn a_paused_vm_stays_paused_when_it_is_moved() {
    let pair = Pair::new();
    let [vm, standby] = pair.protected(&VmOptions::new().guest("disk_rate=300"), &json!({}));
    let mut client = pair.client();
    client.work(10, 2);
    vm.api().put("vm.pause", None).ok();
    vm.api().put("ft.switchover", None).ok();
    assert_paused_until_resumed(&pair, &standby, &mut client);
}

/// Until so many more epochs are committed.
fn wait_epochs(vm: &Vm, count: u64) {
    let epochs = || vm.api().get("ft.status").ok()["epochs"].as_u64().unwrap_or(0);
    let end = epochs() + count;
    while epochs() < end {
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn assert_paused_until_resumed(pair: &Pair, vm: &Vm, client: &mut Client) {
    pair.wait_status(vm, "solo");
    assert_eq!(state(vm), "Paused");
    client.send();
    assert_eq!(client.receive(Duration::from_millis(300)), None, "a paused guest answers");
    let refused = vm.api().put("vm.pause", None);
    assert_eq!(refused.status, 500, "{refused:?}");
    // Refused as long as this host has not heard that it runs the VM now.
    while vm.api().put("vm.resume", None).status != 204 {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(client.receive(Duration::from_secs(30)).is_some(), "the guest does not go on");
    client.work(100, 2);
    for _ in 0..3 {
        vm.api().put("vm.pause", None).ok();
        vm.api().put("vm.resume", None).ok();
    }
    client.work(100, 2);
}

/// Epochs only when something is to leave: what is cut next is the test's to say.
fn still() -> Value {
    json!({"detect_ms": 0, "max_epoch_us": 10_000_000})
}

#[test]
fn a_vm_that_is_about_to_leave_holds_up_nobody() {
    let pair = Pair::new();
    let [mut vm, standby] = pair.protected(&VmOptions::new().guest("disk_rate=0"), &still());
    let mut client = pair.client();
    client.work(10, 2);
    standby.freeze();
    let api = vm.api();
    let moving = std::thread::spawn(move || api.put("ft.switchover", None).status);
    // Its last checkpoint is on its way to a host that does not answer.
    let is_refused = |call: &str| vm.api().put(call, None).body.to_string().contains("being moved");
    let start = std::time::Instant::now();
    std::thread::sleep(Duration::from_millis(300));
    // A pause may have come before it.
    while !is_refused("vm.pause") && !is_refused("vm.resume") {
        assert!(start.elapsed() < Duration::from_secs(60), "the VM does not leave:\n{}", vm.log());
    }
    assert!(is_refused("vm.reboot"));
    standby.signal_all(Signal::SIGCONT);
    assert_eq!(moving.join().expect("a call"), 204);
    wait_state(&vm, "Shutdown");
    assert_eq!(pair.wait_status(&standby, "solo")["role"], "solo");
    // Unless the pause came before.
    standby.api().put("vm.resume", None);
    client.work(10, 2);
    vm.signal(Signal::SIGTERM);
    assert_eq!(vm.wait().code(), Some(0));
}

#[test]
fn a_reboot_that_waits_for_a_disk_is_no_failover() {
    let pair = Pair::new();
    let more = json!({"max_epoch_us": 2_000_000});
    let [vm, standby] = pair.protected(&VmOptions::new().guest("disk_rate=0"), &more);
    pair.client().work(10, 2);
    // The next cut is far enough away for the reboot to begin before it: a disk that does not seal is another
    // matter.
    wait_epochs(&vm, 1);
    let disk = vm.device("vhost-user-blk-repl");
    stop(disk);
    let api = vm.api();
    let reboot = std::thread::spawn(move || api.put("vm.reboot", None).status);
    // Longer than an engine may be silent.
    std::thread::sleep(Duration::from_secs(12));
    assert!(!reboot.is_finished(), "the disk was not waited for");
    kill(disk, Signal::SIGCONT).expect("continue a disk");
    assert_eq!(reboot.join().expect("a call"), 204);
    pair.client().work(10, 2);
    assert_eq!(vm.api().get("ft.status").ok()["state"], "protected", "{}", vm.log());
    assert_eq!(standby.api().get("ft.status").ok()["state"], "standby-ready", "{}", standby.log());
}

#[test]
fn a_vcpu_that_waits_for_a_disk_is_no_failover() {
    let pair = Pair::new();
    let more = json!({"max_epoch_us": 2_000_000});
    let [mut vm, standby] = pair.protected(&VmOptions::new().guest("disk_rate=0"), &more);
    let mut client = pair.client();
    client.work(10, 2);
    // As in the test before: the guest's reset of its disk comes before the next cut.
    wait_epochs(&vm, 1);
    let disk = vm.device("vhost-user-blk-repl");
    stop(disk);
    client.send_only(op::RESET_DISK);
    // Longer than an engine may be silent, and well within the time that a disk has to let go of its queues.
    assert_eq!(client.receive(Duration::from_secs(12)), None, "the disk was not waited for");
    kill(disk, Signal::SIGCONT).expect("continue a disk");
    assert!(client.receive(Duration::from_secs(60)).is_some(), "the guest does not go on");
    client.work(10, 2);
    assert_eq!(vm.api().get("ft.status").ok()["state"], "protected", "{}", vm.log());
    assert_eq!(standby.api().get("ft.status").ok()["state"], "standby-ready", "{}", standby.log());
    vm.kill_host();
    client.work(10, 2);
    pair.wait_solo(&standby);
    pair.images[1].check(&client.last());
}

#[test]
fn what_a_guest_prints_leaves_without_a_frame_or_the_end_of_an_epoch() {
    let pair = Pair::new();
    // No epoch ends by itself while this test runs, and a guest that boots sends nothing.
    let more = json!({"detect_ms": 0, "max_epoch_us": 3_600_000_000_u64});
    let [mut vm, _standby] = pair.protected(&VmOptions::new().guest("disk_rate=0"), &more);
    vm.api().put("vm.reboot", None).ok();
    vm.wait_line("ready");
}
