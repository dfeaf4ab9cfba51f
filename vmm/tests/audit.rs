//! What the audit log has of the requests to a real server.

#![allow(clippy::unwrap_used, reason = "a panic is how tests fail")]

#[allow(dead_code, reason = "other tests use the rest")]
mod fake;

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crossbeam_channel::bounded;
use fake::{FakeVmm, Setup, body, read_answer, status};
use pollux_api::audit::{Call, Entry, Event, verify};
use serde_json::json;

const CONFIG: &str = r#"{"payload":{"kernel":"/k","cmdline":"quiet root_password=x"}}"#;

struct Log {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Log {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { path: dir.path().join("log"), _dir: dir }
    }

    fn setup(&self) -> Setup {
        Setup { audit_log: Some(self.path.clone()), ..Setup::default() }
    }

    fn entries(&self) -> Vec<Entry> {
        entries(&self.path)
    }
}

fn entries(path: &Path) -> Vec<Entry> {
    let text = std::fs::read_to_string(path).unwrap();
    verify([text.as_bytes()], |_| {}).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// An entry in few words.
fn brief(entry: &Entry) -> String {
    let path = |call: &Call| call.path.trim_start_matches("/api/v1/").to_owned();
    match &entry.event {
        Event::Opened { .. } => "opened".to_owned(),
        Event::Begun(call) => format!("{} {}", call.number, path(call)),
        Event::Ended { call, outcome } => format!("{} {} {}", call.number, path(call), outcome.status),
        Event::Refused { call, outcome } => {
            format!("{} {} {} refused {}", call.number, call.method, path(call), outcome.code.as_deref().unwrap())
        }
        Event::Lost { entries, .. } => format!("lost {entries}"),
        Event::Closed => "closed".to_owned(),
    }
}

#[test]
fn what_changes_something_and_what_is_refused_is_logged_before_it_is_answered() {
    let log = Log::new();
    let vmm = FakeVmm::start(log.setup());
    vmm.put("vm.create", CONFIG);
    vmm.get("vm.info");
    vmm.put("vm.pause", "");
    vmm.put("vm.snapshot", "{}");
    vmm.raw("DELETE /api/v1/vm.boot?password=x HTTP/1.1\r\n\r\n");
    vmm.put("vm.create", &" ".repeat(60_000));
    vmm.put("ft.protect", "{");
    let brief: Vec<_> = log.entries().iter().map(brief).collect();
    let expected = [
        "opened",
        "1 vm.create",
        "1 vm.create 204",
        "2 vm.pause",
        "2 vm.pause 500",
        "3 PUT vm.snapshot refused not-supported",
        "4 DELETE vm.boot refused bad-request",
        "5 PUT vm.create refused bad-request",
        "6 ft.protect",
        "6 ft.protect 400",
    ];
    assert_eq!(brief, expected);
    let text = std::fs::read_to_string(&log.path).unwrap();
    assert!(!text.contains("password=x"), "{text}");
    let Event::Ended { call, outcome } = &log.entries()[2].event else { panic!("{text}") };
    let own = std::fs::read_to_string("/proc/self/comm").unwrap();
    assert_eq!(call.client.comm.as_deref(), Some(own.trim_end()));
    let client = (call.client.pid.unsigned_abs(), call.client.uid, call.client.gid);
    let (uid, gid) = (nix::unistd::Uid::effective().as_raw(), nix::unistd::Gid::effective().as_raw());
    assert_eq!(client, (std::process::id(), uid, gid));
    assert_eq!(call.parameters["payload"], json!({"kernel": "/k", "cmdline": "quiet root_password=***"}));
    assert!(outcome.duration_us > 0);
    vmm.put("vm.boot", "");
    assert_eq!(body(&vmm.get("vm.counters"))["__audit"], json!({"entries": 12, "lost_entries": 0}));
}

#[test]
fn a_log_goes_on_with_the_next_vmm() {
    let log = Log::new();
    for _ in 0..2 {
        let vmm = FakeVmm::start(log.setup());
        assert_eq!(status(&vmm.put("vmm.shutdown", "")), "HTTP/1.1 200 ");
        vmm.ended();
    }
    let brief: Vec<_> = log.entries().iter().map(brief).collect();
    let run = ["opened", "1 vmm.shutdown", "1 vmm.shutdown 200", "closed"];
    assert_eq!(brief, [run, run].concat());
}

#[test]
fn a_client_that_leaves_does_not_keep_its_call_out_of_the_log() {
    let log = Log::new();
    let (open, gate) = bounded(0);
    let vmm = FakeVmm::start(Setup { gate: Some(gate), ..log.setup() });
    vmm.put("vm.create", CONFIG);
    vmm.put("vm.boot", "");
    let mut client = vmm.connect();
    // An answer that it does not take makes its end known to the server at once.
    client.write_all(b"GET /api/v1/vmm.ping HTTP/1.1\r\n\r\nPUT /api/v1/vm.pause HTTP/1.1\r\n\r\n").unwrap();
    while vmm.diary.lock().unwrap().last().unwrap() != "pause" {
        std::thread::yield_now();
    }
    drop(client);
    // One more that comes after it, so that the server has seen that it left.
    assert_eq!(status(&vmm.get("vmm.ping")), "HTTP/1.1 200 ");
    open.send(()).unwrap();
    while brief(log.entries().last().unwrap()) != "3 vm.pause 204" {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn a_request_that_does_not_come_to_its_end_is_logged() {
    let log = Log::new();
    let vmm = FakeVmm::start(log.setup());
    let mut client = vmm.connect();
    client.write_all(b"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 2\r\n\r\n{").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut slow = vmm.connect();
    slow.write_all(b"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 2\r\n\r\n{").unwrap();
    assert_eq!(status(&read_answer(&mut slow)), "HTTP/1.1 408 ");
    let brief: Vec<_> = log.entries().iter().map(brief).collect();
    assert_eq!(brief.last().unwrap(), "2 PUT vm.create refused request-timeout");
}

#[test]
fn a_full_disk_does_not_stop_the_api() {
    let dir = tempfile::tempdir().unwrap();
    let [disk, socket, events] = ["disk", "api", "events"].map(|name| dir.path().join(name));
    std::fs::create_dir(&disk).unwrap();
    // A disk of its own, which nobody else sees.
    let shell = ["-m", "sh", "-c", "mount -t tmpfs -o size=64k none \"$0\" && exec \"$@\""];
    let mut command = Command::new("unshare");
    command.args(shell).arg(&disk).arg(env!("CARGO_BIN_EXE_pollux-vmm")).stdin(Stdio::null());
    command.arg("--api-socket").arg(&socket).arg("--audit-log").arg(disk.join("log"));
    let Ok(mut vmm) = command.arg("--event-monitor").arg(format!("path={}", events.display())).spawn() else {
        println!("SKIPPED: there is no unshare");
        return;
    };
    while !socket.exists() {
        if vmm.try_wait().unwrap().is_some() {
            println!("SKIPPED: only root can mount a disk");
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let seen = PathBuf::from(format!("/proc/{}/root{}", vmm.id(), disk.display()));
    // As much as there is room for.
    let _ = std::fs::write(seen.join("filler"), vec![0; 1 << 20]);
    let call = || {
        let mut stream = loop {
            // The socket is there a little earlier than it listens.
            if let Ok(stream) = UnixStream::connect(&socket) {
                break stream;
            }
        };
        stream.write_all(b"PUT /api/v1/vm.boot HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(status(&read_answer(&mut stream)), "HTTP/1.1 404 ");
    };
    let has_event = |name: &str| std::fs::read_to_string(&events).unwrap().contains(name);
    while !has_event("audit-failed") {
        call();
    }
    (0..10).for_each(|_| call());
    std::fs::remove_file(seen.join("filler")).unwrap();
    call();
    let entries = entries(&seen.join("log"));
    let lost = entries.iter().position(|entry| matches!(entry.event, Event::Lost { .. })).unwrap();
    assert!(brief(&entries[lost]).trim_start_matches("lost ").parse::<u64>().unwrap() > 20);
    assert_eq!(entries.len() - lost, 3, "what comes after it is logged");
    assert!(has_event("audit-restored"));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(vmm.id() as i32), nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(vmm.wait().unwrap().success());
}
