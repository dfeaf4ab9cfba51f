//! The API over a real unix socket, answers compared byte for byte where clients depend on the bytes.

#![allow(clippy::unwrap_used, reason = "a panic is how tests fail")]

mod fake;

use std::io::{Read, Write};
use std::sync::Arc;

use fake::{FakeVmm, Setup, body, read_answer, status};
use pollux_vmm::contract::VmEvent;
use pollux_vmm::control::control_loop::Ending;
use serde_json::json;

const CONFIG: &str = r#"{"payload":{"kernel":"/k"},"memory":{"size":268435456}}"#;

fn booted(setup: Setup) -> FakeVmm {
    let vmm = FakeVmm::start(setup);
    assert_eq!(status(&vmm.put("vm.create", CONFIG)), "HTTP/1.1 204 ");
    assert_eq!(status(&vmm.put("vm.boot", "")), "HTTP/1.1 204 ");
    vmm
}

#[test]
fn done_is_204_without_length_and_type() {
    let vmm = FakeVmm::start(Setup::default());
    let expected = "HTTP/1.1 204 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n";
    assert_eq!(vmm.put("vm.create", CONFIG), expected);
    assert_eq!(vmm.raw("PUT /api/v1/vm.boot HTTP/1.1\r\nHost: localhost\r\n\r\n"), expected);
}

#[test]
fn data_is_200_with_title_case_length() {
    let vmm = FakeVmm::start(Setup::default());
    let answer = vmm.get("vmm.ping");
    let text = answer.split_once("\r\n\r\n").unwrap().1;
    let head = format!(
        "HTTP/1.1 200 \r\nServer: Cloud Hypervisor API\r\nContent-Type: application/json\r\nConnection: keep-alive\r\n\
         Content-Length: {}\r\n\r\n",
        text.len()
    );
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.split("\r\n").map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(answer.strip_suffix(text).unwrap()), sorted(&head));
    let ping = body(&answer);
    assert_eq!(ping["version"], "53.0.0");
    assert_eq!(ping["pid"], std::process::id());
    assert!(ping["build_version"].as_str().unwrap().starts_with("v53.0"));
    assert!(ping["features"].is_array());
}

#[test]
fn errors_are_arrays_from_outermost_to_root() {
    let vmm = FakeVmm::start(Setup::default());
    let cases = [
        (vmm.get("vm.info"), 404, json!(["Error from API", "The VM info is not available", "VM is not created"])),
        (vmm.put("vm.boot", ""), 404, json!(["Error from API", "The VM could not boot", "VM is not created"])),
        (vmm.put("vm.pause", ""), 500, json!(["Error from API", "The VM could not be paused", "VM is not running"])),
        (vmm.get("vm.nothing"), 404, json!(["Not Found"])),
        (
            vmm.put("vm.snapshot", r#"{"destination_url":"file:///tmp"}"#),
            500,
            json!([
                "Error from API",
                "Pollux does not support vm.snapshot",
                "there are no snapshots; ft.protect keeps a copy on another host"
            ]),
        ),
        (vmm.get("vmm.ping?x=1"), 404, json!(["Not Found"])),
        (vmm.get("vmm.ping/"), 404, json!(["Not Found"])),
        (vmm.put("vmm.ping", ""), 400, json!(["Bad Request"])),
        (vmm.get("vm.boot"), 400, json!(["Bad Request"])),
        (vmm.put("vm.boot", "{}"), 400, json!(["Bad Request"])),
        (vmm.raw("DELETE /api/v1/vm.boot HTTP/1.1\r\n\r\n"), 400, json!(["Bad Request"])),
        (
            vmm.put("vm.create", r#"{"memory":{"shared":true}}"#),
            400,
            json!(["Failed to deserialize JSON", "missing field `size` at line 1 column 25"]),
        ),
    ];
    for (answer, code, texts) in cases {
        assert_eq!(status(&answer), format!("HTTP/1.1 {code} "), "{texts}");
        assert_eq!(body(&answer), texts);
    }
    let empty = vmm.put("vm.create", "");
    assert_eq!(status(&empty), "HTTP/1.1 400 ");
    assert!(empty.contains("Content-Length: 0\r\n") && empty.ends_with("\r\n\r\n"), "{empty}");
    let long = vmm.put("vm.create", &" ".repeat(51201));
    assert_eq!(status(&long), "HTTP/1.1 400 ");
}

#[test]
fn create_stores_and_boot_validates() {
    let vmm = FakeVmm::start(Setup::default());
    assert_eq!(status(&vmm.put("vm.create", "{}")), "HTTP/1.1 204 ");
    assert_eq!(status(&vmm.put("vm.create", "{}")), "HTTP/1.1 500 ");
    let answer = vmm.put("vm.boot", "");
    assert_eq!(status(&answer), "HTTP/1.1 500 ");
    let texts = json!([
        "Error from API",
        "The VM could not boot",
        "the configuration is wrong",
        "payload: nothing to boot: give a kernel or a firmware"
    ]);
    assert_eq!(body(&answer), texts);
    assert_eq!(status(&vmm.put("vm.delete", "")), "HTTP/1.1 204 ");
    assert_eq!(status(&vmm.put("vm.delete", "")), "HTTP/1.1 204 ");
    assert_eq!(vmm.diary.lock().unwrap().len(), 0);
}

#[test]
fn life_of_a_vm() {
    let vmm = booted(Setup::default());
    let state = || body(&vmm.get("vm.info"))["state"].as_str().unwrap().to_owned();
    let info = body(&vmm.get("vm.info"));
    assert_eq!((&info["state"], &info["memory_actual_size"]), (&json!("Running"), &json!(268435456)));
    assert_eq!(info["device_tree"]["__rng"]["id"], "__rng");
    assert_eq!(body(&vmm.get("vm.counters")), json!({"_disk0": {"read_ops": 3}}));
    vmm.put("vm.pause", "");
    assert_eq!(state(), "Paused");
    let again = body(&vmm.put("vm.pause", ""));
    assert_eq!(again[2], "Invalid transition: InvalidStateTransition(Paused, Paused)");
    vmm.put("vm.resume", "");
    for route in ["vm.power-button", "vm.nmi", "vmm.nmi", "vm.reboot"] {
        assert_eq!(status(&vmm.put(route, "")), "HTTP/1.1 204 ", "{route}");
    }
    assert_eq!(state(), "Running");
    vmm.put("vm.shutdown", "");
    assert_eq!(state(), "Created");
    assert!(body(&vmm.get("vm.info")).get("device_tree").is_none());
    let last = vmm.put("vmm.shutdown", "");
    assert_eq!(status(&last), "HTTP/1.1 200 ");
    assert!(last.contains("Content-Length: 0\r\n"));
    let diary = vmm.diary.lock().unwrap().join(" ");
    assert_eq!(diary, "assemble boot pause resume power-button nmi nmi reset stop vm-ended ft-end shutdown");
    let (ending, events, left) = vmm.ended();
    assert_eq!((ending, left), (Ending::Clean, vec!["events".to_owned()]));
    let expected = "vmm.starting vm.booting vm.booted vm.pausing vm.paused vm.resuming vm.resumed vm.rebooting vm.rebooted \
                    vm.shutdown vm.deleted vmm.shutdown";
    assert_eq!(events.join(" "), expected);
}

#[test]
fn failed_boot_can_be_tried_again() {
    let vmm = FakeVmm::start(Setup::default());
    vmm.put("vm.create", r#"{"payload":{"kernel":"/k","cmdline":"fail"}}"#);
    let texts = json!(["Error from API", "The VM could not boot", "the kernel is no kernel"]);
    assert_eq!(body(&vmm.put("vm.boot", "")), texts);
    assert_eq!(body(&vmm.get("vm.info"))["state"], "Created");
    vmm.put("vm.delete", "");
    vmm.put("vm.create", CONFIG);
    assert_eq!(status(&vmm.put("vm.boot", "")), "HTTP/1.1 204 ");
}

#[test]
fn queries_do_not_wait_for_a_long_call() {
    let (open, gate) = crossbeam_channel::bounded(0);
    let vmm = booted(Setup { gate: Some(gate), ..Setup::default() });
    let mut long = vmm.connect();
    long.write_all(b"PUT /api/v1/vm.pause HTTP/1.1\r\n\r\n").unwrap();
    // The diary says when the loop is inside the long call.
    while vmm.diary.lock().unwrap().last().unwrap() != "pause" {
        std::thread::yield_now();
    }
    assert_eq!(status(&vmm.get("vmm.ping")), "HTTP/1.1 200 ");
    assert_eq!(body(&vmm.get("vm.info"))["state"], "Running");
    assert_eq!(body(&vmm.get("ft.status"))["state"], "unprotected");
    open.send(()).unwrap();
    assert_eq!(status(&read_answer(&mut long)), "HTTP/1.1 204 ");
    assert_eq!(body(&vmm.get("vm.info"))["state"], "Paused");
}

#[test]
fn connections_are_kept_and_requests_may_be_pipelined() {
    let vmm = FakeVmm::start(Setup::default());
    let mut stream = vmm.connect();
    stream.write_all("GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n".repeat(3).as_bytes()).unwrap();
    for _ in 0..3 {
        assert_eq!(status(&read_answer(&mut stream)), "HTTP/1.1 200 ");
    }
    stream.write_all(b"PUT http://localhost/api/v1/vm.delete HTTP/1.1\r\ncontent-length: 0\r\n\r\n").unwrap();
    assert_eq!(status(&read_answer(&mut stream)), "HTTP/1.1 204 ");
}

#[test]
fn half_sent_requests_keep_nobody_out() {
    let vmm = FakeVmm::start(Setup::default());
    let half: Vec<_> = (0..100)
        .map(|number| {
            let mut stream = vmm.connect();
            let text: &[u8] = match number % 3 {
                0 => b"",
                1 => b"PUT /api/v1/vm.create HTT",
                _ => b"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 2\r\n\r\n{",
            };
            stream.write_all(text).unwrap();
            stream
        })
        .collect();
    for _ in 0..3 {
        assert_eq!(status(&vmm.get("vmm.ping")), "HTTP/1.1 200 ");
    }
    drop(half);
}

#[test]
fn a_request_must_come_to_its_end() {
    let vmm = FakeVmm::start(Setup::default());
    let mut idle = vmm.connect();
    idle.write_all(b"GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(status(&read_answer(&mut idle)), "HTTP/1.1 200 ");
    let [mut head, mut body_only] = [vmm.connect(), vmm.connect()];
    head.write_all(b"GET /api/v1/vmm.ping HTTP/1.1\r\nHost: ").unwrap();
    body_only.write_all(b"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 2\r\n\r\n{").unwrap();
    let late = read_answer(&mut body_only);
    assert_eq!(status(&late), "HTTP/1.1 408 ");
    assert_eq!(body(&late), json!(["Request Timeout", "the body has not come within 10 s"]));
    assert_eq!(head.read(&mut [0]).unwrap(), 0, "it is closed");
    // A connection that is kept for a next request may wait for it.
    idle.write_all(b"GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(status(&read_answer(&mut idle)), "HTTP/1.1 200 ");
}

#[test]
fn a_refusal_waits_until_its_request_was_sent() {
    let vmm = FakeVmm::start(Setup::default());
    for (call, length, code) in [("vm.add-disk", 1000, 500), ("vm.nothing", 1000, 404), ("vm.create", 2_000_000, 400)] {
        let mut stream = vmm.connect();
        write!(stream, "PUT /api/v1/{call} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n").unwrap();
        // Time for an answer that does not wait.
        std::thread::sleep(std::time::Duration::from_millis(50));
        for piece in vec![b' '; length].chunks(100_000) {
            stream.write_all(piece).unwrap_or_else(|error| panic!("{call}: {error}"));
        }
        assert_eq!(status(&read_answer(&mut stream)), format!("HTTP/1.1 {code} "), "{call}");
    }
}

#[test]
fn a_call_that_waits_does_not_hold_up_the_end() {
    let vmm = booted(Setup::default());
    let mut waiting = vmm.connect();
    let text = r#"{"peer":"127.0.0.1:3","heartbeat":"127.0.0.1:9"}"#;
    write!(waiting, "PUT /api/v1/ft.protect HTTP/1.1\r\nContent-Length: {}\r\n\r\n{text}", text.len()).unwrap();
    while vmm.diary.lock().unwrap().last().unwrap() != "protect 127.0.0.1:3" {
        std::thread::yield_now();
    }
    vmm.signals.send(15).unwrap();
    assert_eq!(vmm.ended().0, Ending::Clean);
}

#[test]
fn an_id_that_cannot_be_is_refused_when_the_vm_is_created() {
    let vmm = FakeVmm::start(Setup::default());
    let answer = vmm.put("vm.create", r#"{"payload":{"kernel":"/k"},"disks":[{"path":"/d","id":"\u0000"}]}"#);
    assert_eq!(status(&answer), "HTTP/1.1 500 ");
    assert!(body(&answer)[3].as_str().unwrap().starts_with("disks[0].id: "), "{answer}");
    assert_eq!(status(&vmm.put("vm.create", CONFIG)), "HTTP/1.1 204 ");
}

#[test]
fn a_vm_that_comes_here_paused_stays_so_until_it_is_resumed() {
    let vmm = FakeVmm::start(Setup { standby: true, ..Setup::default() });
    while vmm.diary.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    vmm.tell(VmEvent::TakenOver { paused: true });
    // Refused as long as this host is a standby.
    while status(&vmm.put("vm.resume", "")) != "HTTP/1.1 204 " {
        std::thread::yield_now();
    }
    assert_eq!(body(&vmm.get("vm.info"))["state"], "Running");
    assert_eq!(vmm.diary.lock().unwrap().join(" "), "assemble standby taken-over resume");
    let names = vmm.event_names().join(" ");
    assert!(names.ends_with("vm.paused vm.resuming vm.resumed"), "{names}");
}

#[test]
fn a_reset_of_a_vm_that_is_about_to_leave_is_done_if_it_stays() {
    let vmm = booted(Setup { leaving: true, ..Setup::default() });
    let texts = body(&vmm.put("vm.reboot", ""));
    assert_eq!(texts[2], "the VM is being moved to its standby: try again in a moment");
    assert_eq!(body(&vmm.get("vm.info"))["state"], "Running");
    vmm.tell(VmEvent::Reset);
    vmm.tell(VmEvent::Stays);
    while vmm.diary.lock().unwrap().last().unwrap() != "reset" {
        std::thread::yield_now();
    }
    assert_eq!(vmm.diary.lock().unwrap().join(" "), "assemble boot reset-refused reset-refused reset");
    vmm.tell(VmEvent::Shutdown);
    assert_eq!(vmm.ended().0, Ending::Clean);
}

#[test]
fn fault_tolerance_routes() {
    let vmm = FakeVmm::start(Setup::default());
    assert_eq!(body(&vmm.get("ft.status"))[2], "VM is not created");
    vmm.put("vm.create", CONFIG);
    let wish = |port| format!(r#"{{"peer":"127.0.0.1:{port}","heartbeat":"127.0.0.1:9"}}"#);
    assert_eq!(body(&vmm.put("ft.protect", &wish(2)))[2], "VM is not running");
    vmm.put("vm.boot", "");
    assert_eq!(status(&vmm.put("ft.protect", &wish(2))), "HTTP/1.1 204 ");
    let refused = vmm.put("ft.protect", &wish(1));
    assert_eq!(body(&refused), json!(["Error from API", "The VM cannot be protected", "no route", "no disk"]));
    assert_eq!(body(&vmm.put("ft.protect", ""))[2], ft::Refused::NoPeers.to_string());
    for wrong in ["{", r#"{"peer":"127.0.0.1:1"}"#, r#"{"peer":"here","heartbeat":"127.0.0.1:9"}"#] {
        assert_eq!(status(&vmm.put("ft.protect", wrong)), "HTTP/1.1 400 ", "{wrong}");
    }
    assert_eq!(body(&vmm.get("ft.events")), json!([]));
    assert_eq!(status(&vmm.put("ft.stop", "")), "HTTP/1.1 204 ");
    assert_eq!(status(&vmm.put("ft.suspend", "")), "HTTP/1.1 204 ");
    assert_eq!(status(&vmm.put("ft.resume", "")), "HTTP/1.1 204 ");
}

#[test]
fn guest_ends_reset_and_power_off() {
    let vmm = booted(Setup::default());
    vmm.tell(VmEvent::DeviceActivated { id: "_disk0".to_owned() });
    vmm.tell(VmEvent::Reset);
    vmm.tell(VmEvent::Shutdown);
    let (ending, events, _) = vmm.ended();
    assert_eq!(ending, Ending::Clean);
    let expected = "vmm.starting vm.booting vm.booted virtio-device.activated vm.rebooting vm.rebooted vm.shutdown \
                    vm.deleted vmm.shutdown";
    assert_eq!(events.join(" "), expected);
}

#[test]
fn no_shutdown_keeps_the_vmm() {
    let vmm = booted(Setup { no_shutdown: true, ..Setup::default() });
    vmm.tell(VmEvent::Shutdown);
    while body(&vmm.get("vm.info"))["state"] != "Created" {
        std::thread::yield_now();
    }
    assert_eq!(status(&vmm.put("vm.boot", "")), "HTTP/1.1 204 ");
    vmm.signals.send(15).unwrap();
    assert_eq!(vmm.ended().0, Ending::Clean);
}

#[test]
fn crash_is_a_failure() {
    let vmm = booted(Setup::default());
    vmm.tell(VmEvent::Crashed { reason: "vCPU 0 has failed".to_owned() });
    assert_eq!(vmm.ended().0, Ending::Failed);
}

#[test]
fn a_host_that_fails_hands_its_vm_over_and_ends_nothing() {
    let setup = || Setup { standby: true, has_standby: true, reset_fails: true, ..Setup::default() };
    for (event, reason) in [
        (VmEvent::HostFailed { reason: "no memory".to_owned() }, "no memory"),
        (VmEvent::Reset, "the VM cannot be reset: "),
    ] {
        let vmm = FakeVmm::start(setup());
        assert_eq!(status(&vmm.put("vm.delete", "")), "HTTP/1.1 204 ");
        assert_eq!(status(&vmm.put("vm.create", CONFIG)), "HTTP/1.1 204 ");
        assert_eq!(status(&vmm.put("vm.boot", "")), "HTTP/1.1 204 ");
        vmm.diary.lock().unwrap().clear();
        vmm.tell(event);
        vmm.tell(VmEvent::Fenced { reason: reason.to_owned() });
        while vmm.diary.lock().unwrap().last().is_none_or(|entry| entry != "assemble standby") {
            std::thread::yield_now();
        }
        let diary = vmm.diary.lock().unwrap().join(" ");
        assert!(diary.contains(&format!("hand-over ({reason}")) && !diary.contains("vm-ended"), "{diary}");
    }
}

#[test]
fn a_host_that_fails_without_a_standby_ends_its_vm() {
    for event in [VmEvent::HostFailed { reason: "no memory".to_owned() }, VmEvent::Reset] {
        let vmm = booted(Setup { reset_fails: true, ..Setup::default() });
        let diary = Arc::clone(&vmm.diary);
        vmm.tell(event);
        assert_eq!(vmm.ended().0, Ending::Failed);
        assert!(diary.lock().unwrap().ends_with(&["stop", "vm-ended", "ft-end", "shutdown"].map(str::to_owned)));
    }
}

#[test]
fn what_a_reboot_has_left_in_pieces_does_not_stay() {
    let vmm = booted(Setup { reset_fails: true, ..Setup::default() });
    assert_eq!(body(&vmm.put("vm.reboot", ""))[2], "its disk does not stop");
    assert_eq!(vmm.diary.lock().unwrap().join(" "), "assemble boot reset-failed stop vm-ended ft-end shutdown");
    assert_eq!(body(&vmm.get("vm.info"))["state"], "Created");
    assert_eq!(status(&vmm.put("vm.boot", "")), "HTTP/1.1 204 ");

    let vmm = booted(Setup { reset_fails: true, has_standby: true, ..Setup::default() });
    assert_eq!(body(&vmm.put("vm.reboot", ""))[2], "its disk does not stop");
    let diary = vmm.diary.lock().unwrap().join(" ");
    assert!(diary.contains("reset-failed hand-over (") && !diary.contains("vm-ended"), "{diary}");
    assert_eq!(body(&vmm.get("vm.info"))["state"], "Shutdown");
}

#[test]
fn standby_is_not_to_be_touched_until_it_takes_over() {
    let vmm = FakeVmm::start(Setup { standby: true, ..Setup::default() });
    while vmm.diary.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    for route in ["vm.boot", "vm.resume", "vm.pause", "vm.reboot", "vm.power-button"] {
        let texts = body(&vmm.put(route, ""));
        assert_eq!(texts[2], "this VM is a standby: it runs on the host that it protects", "{route}");
    }
    assert_eq!(body(&vmm.get("vm.info"))["state"], "Paused");
    vmm.tell(VmEvent::TakenOver { paused: false });
    while body(&vmm.get("vm.info"))["state"] != "Running" {
        std::thread::yield_now();
    }
    let texts = json!([
        "Error from API",
        "The VM could not reboot",
        "there is nothing to boot: this VM was a standby without a kernel"
    ]);
    assert_eq!(body(&vmm.put("vm.reboot", "")), texts);
    assert_eq!(body(&vmm.get("vm.info"))["state"], "Running");
    assert_eq!(status(&vmm.put("vm.pause", "")), "HTTP/1.1 204 ");
    assert!(!vmm.diary.lock().unwrap().contains(&"boot".to_owned()));
}

#[test]
fn a_host_that_lost_the_vm_becomes_a_standby_by_itself() {
    let vmm = FakeVmm::start(Setup { standby: true, ..Setup::default() });
    let diary = || vmm.diary.lock().unwrap().join(" ");
    let wait = |entry: &str| {
        while !diary().ends_with(entry) {
            std::thread::yield_now();
        }
    };
    wait("assemble standby");
    vmm.tell(VmEvent::Unusable { reason: "its disk is gone".to_owned() });
    wait("assemble standby stop ft-end shutdown assemble standby");
    vmm.tell(VmEvent::TakenOver { paused: false });
    wait("taken-over");
    vmm.tell(VmEvent::Fenced { reason: "handed over".to_owned() });
    wait("taken-over stop ft-end shutdown assemble standby");
    while body(&vmm.get("vm.info"))["state"] != "Paused" {
        std::thread::yield_now();
    }
    // A takeover that failed leaves what there is for people to look at.
    vmm.tell(VmEvent::Fenced { reason: "the checkpoint could not be loaded".to_owned() });
    while body(&vmm.get("vm.info"))["state"] != "Shutdown" {
        std::thread::yield_now();
    }
    assert!(diary().ends_with("taken-over stop ft-end shutdown assemble standby"), "{}", diary());
}

#[test]
fn a_standby_that_cannot_be_built_anew_is_told_once_and_tried_again() {
    let vmm = FakeVmm::start(Setup { standby: true, failing_rebuilds: 2, ..Setup::default() });
    let diary = || vmm.diary.lock().unwrap().join(" ");
    while diary() != "assemble standby" {
        std::thread::yield_now();
    }
    vmm.tell(VmEvent::Unusable { reason: "its disk is gone".to_owned() });
    let expected = "assemble standby stop ft-end shutdown standby-failed (the address is in use) standby-failed (the \
                    address is in use) assemble standby";
    while diary() != expected {
        assert!(expected.starts_with(&diary()), "{}", diary());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    while !vmm.event_names().contains(&"vm.standby".to_owned()) {
        std::thread::yield_now();
    }
    assert_eq!(vmm.event_names().join(" "), "vmm.starting ft.standby-failed vm.standby");
    // What was built anew lately dies again.
    vmm.tell(VmEvent::Unusable { reason: "its disk is gone".to_owned() });
    let expected = format!("{expected} stop ft-end shutdown standby-failed (its disk is gone)");
    while diary() != expected {
        assert!(expected.starts_with(&diary()), "{}", diary());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn fenced_vm_stays_for_its_status_only() {
    let vmm = booted(Setup::default());
    vmm.tell(VmEvent::Fenced { reason: "the other host has it".to_owned() });
    while body(&vmm.get("vm.info"))["state"] != "Shutdown" {
        std::thread::yield_now();
    }
    for route in ["vm.boot", "vm.resume", "vm.reboot"] {
        assert_eq!(body(&vmm.put(route, ""))[2], "this VM was stopped here: another host runs it", "{route}");
    }
    assert_eq!(status(&vmm.get("ft.status")), "HTTP/1.1 200 ");
    assert_eq!(status(&vmm.put("vm.delete", "")), "HTTP/1.1 204 ");
    assert_eq!(vmm.diary.lock().unwrap().join(" "), "assemble boot stop ft-end shutdown");
}
