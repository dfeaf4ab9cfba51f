//! Clients of a real server that send too much, too slowly or too often: the others are served.

#![allow(clippy::unwrap_used, reason = "a panic is how tests fail")]

#[allow(dead_code, reason = "other tests use the rest")]
mod fake;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crossbeam_channel::bounded;
use fake::{FakeVmm, Setup, body, read_answer, status};
use nix::unistd::Uid;
use serde_json::json;

const CONFIG: &str = r#"{"payload":{"kernel":"/k"}}"#;
/// Any user but ours.
const OTHER: u32 = 65534;

/// Connections of another user.
fn connect_as_other(socket: &Path, count: usize) -> Vec<UnixStream> {
    let socket = socket.to_owned();
    let connect = move || {
        // SAFETY: the call takes numbers, and changes the user of this thread only, which ends soon.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, OTHER, OTHER, OTHER) };
        assert_eq!(changed, 0, "{}", std::io::Error::last_os_error());
        (0..count).map(|_| UnixStream::connect(&socket).unwrap()).collect()
    };
    std::thread::spawn(connect).join().unwrap()
}

#[test]
fn a_user_who_takes_all_he_can_get_keeps_nobody_else_out() {
    if !Uid::effective().is_root() {
        println!("SKIPPED: only root can connect as somebody else");
        return;
    }
    let (open, gate) = bounded(0);
    let vmm = FakeVmm::start(Setup { gate: Some(gate), ..Setup::default() });
    let socket = vmm.path("api");
    std::fs::set_permissions(socket.parent().unwrap(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o666)).unwrap();
    vmm.put("vm.create", CONFIG);
    vmm.put("vm.boot", "");
    let mut greedy = connect_as_other(&socket, 200);
    // Each has something done that takes its time, and asks for the next thing at once.
    for stream in &mut greedy {
        match stream.write_all("PUT /api/v1/vm.pause HTTP/1.1\r\n\r\n".repeat(10).as_bytes()) {
            Ok(()) => {}
            Err(error) => assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)),
        }
    }
    while vmm.diary.lock().unwrap().last().unwrap() != "pause" {
        std::thread::yield_now();
    }
    // All others have what they need, for as many calls as they like.
    for _ in 0..50 {
        assert_eq!(status(&vmm.get("vmm.ping")), "HTTP/1.1 200 ");
    }
    let kept: Vec<_> = (0..8).map(|_| vmm.connect()).collect();
    for mut stream in kept {
        stream.write_all(b"GET /api/v1/vm.info HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(status(&read_answer(&mut stream)), "HTTP/1.1 200 ");
    }
    drop(greedy);
    open.send(()).unwrap();
    drop(open);
}

#[test]
fn calls_of_one_user_beyond_his_share_are_told_to_come_later() {
    let (open, gate) = bounded(0);
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let vmm = FakeVmm::start(Setup { gate: Some(gate), audit_log: Some(log.clone()), ..Setup::default() });
    vmm.put("vm.create", CONFIG);
    vmm.put("vm.boot", "");
    let busy: Vec<_> = (0..16)
        .map(|_| {
            let mut stream = vmm.connect();
            stream.write_all(b"PUT /api/v1/vm.pause HTTP/1.1\r\n\r\n").unwrap();
            stream
        })
        .collect();
    // The log says when all of them are being served.
    while std::fs::read_to_string(&log).unwrap().matches("\"begun\"").count() < 2 + busy.len() {
        std::thread::yield_now();
    }
    let refused = vmm.get("vmm.ping");
    assert_eq!(status(&refused), "HTTP/1.1 503 ");
    assert_eq!(body(&refused), json!(["more than 16 connections of one user, or 64 of all, at once"]));
    open.send(()).unwrap();
    for mut stream in busy {
        assert!(["HTTP/1.1 204 ", "HTTP/1.1 500 "].contains(&status(&read_answer(&mut stream))));
    }
    assert_eq!(status(&vmm.get("vmm.ping")), "HTTP/1.1 200 ");
}

#[test]
fn a_head_that_does_not_end_is_refused_and_no_memory_for_it() {
    let vmm = FakeVmm::start(Setup::default());
    let mut stream = vmm.connect();
    stream.write_all(b"GET /api/v1/vmm.ping HTTP/1.1\r\n").unwrap();
    let line = format!("X: {}\r\n", "y".repeat(1000));
    // It hangs up in the middle of a megabyte.
    let sent = (0..1000).take_while(|_| stream.write_all(line.as_bytes()).is_ok()).count();
    assert!(sent < 1000);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => assert!(answer.starts_with(b"HTTP/1.1 431 "), "{}", answer.escape_ascii()),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    assert_eq!(status(&vmm.get("vmm.ping")), "HTTP/1.1 200 ");
}
