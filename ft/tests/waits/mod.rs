//! Engines, and threads of theirs, that wait for something when something else happens.

use std::net::TcpStream;
use std::sync::atomic::Ordering;

use nix::sys::socket::{Backlog, listen};

use super::*;

#[test]
fn an_engine_that_waits_for_a_device_is_not_dead() {
    let pair = Pair::protected();
    let at_device = pair.guest_a.0.lock().unwrap().at_device.clone();
    at_device.store(true, Ordering::Relaxed);
    // Much longer than an engine that hangs beats on, and then some.
    thread::sleep(Duration::from_millis(4 * SILENCE_MS));
    let taken = pair.guest_b.started();
    at_device.store(false, Ordering::Relaxed);
    assert_eq!(taken, None, "{:?}", pair.b.events());
    let epochs = committed(&pair.a().status());
    assert!(pair.guest_a.write(FIRST, 77) || epochs > 0);
    wait(|| committed(&pair.a().status()) > epochs + 1, || format!("{:?}", pair.a().status()));
    assert_eq!((pair.a().status().state, pair.b.status().state), (State::Protected, State::StandbyReady));
}

#[test]
fn whoever_still_looks_for_a_standby_when_the_vm_ends_claims_nothing_more() {
    let mut pair = Pair::new();
    // A host that is reached too late: its queue of callers is full.
    let full = TcpListener::bind(address()).unwrap();
    listen(&full, Backlog::new(0).unwrap()).unwrap();
    let peer = full.local_addr().unwrap();
    let _callers = [(); 2].map(|()| TcpStream::connect_timeout(&peer, Duration::from_millis(200)));
    let full = ProtectOptions { peer, ..pair.options.clone() };
    thread::scope(|scope| {
        let protect = scope.spawn(|| pair.a().protect(Some(full)).unwrap_err().to_string());
        wait(|| pair.a().status().witness.is_some(), || format!("{:?}", pair.a().status()));
        pair.a().vm_ended();
        let reasons = protect.join().unwrap();
        assert!(reasons.contains("the VM has ended"), "{reasons}");
    });
    drop(pair.a.take());
    assert!(!pair.folder.path().join("witness").exists(), "a VM that has ended is on record");
}
