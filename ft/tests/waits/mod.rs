//! Engines, and threads of theirs, that wait for something when something else happens.

use std::sync::atomic::Ordering;

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
