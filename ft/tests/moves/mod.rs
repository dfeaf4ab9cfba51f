//! Planned moves of a VM to its standby, and failovers by request.

use super::*;

/// A protected VM whose hosts have each other as peers.
fn symmetric() -> (tempfile::TempDir, [StandbyOptions; 2], [Setup; 2], [ToyGuest; 2], [Ft; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let witness = folder.path().join("witness");
    let sides = [standby_options(&witness), standby_options(&witness)];
    let setups = [setup(&witness, &[&sides[1]]), setup(&witness, &[&sides[0]])];
    let guests = [ToyGuest::new(), ToyGuest::new()];
    let b = Ft::standby(Box::new(guests[1].clone()), sides[1].clone(), setups[1].clone()).unwrap();
    let a = Ft::solo(Box::new(guests[0].clone()), NodeTerm::unasked(), setups[0].clone()).unwrap();
    a.vm_started();
    wait_state(&a, State::Protected);
    (folder, sides, setups, guests, [a, b])
}

#[test]
fn a_switchover_loses_nothing_and_the_roles_are_exchanged() {
    let (_folder, sides, setups, guests, [a, b]) = symmetric();
    while !guests[0].write(FIRST + 7, 0xee) {}
    // The very last thing that it did, committed by nothing but the move.
    a.switchover().unwrap();
    wait_state(&b, State::Solo);
    assert_eq!(guests[1].started(), Some(vec![0xee]));
    assert_eq!(guests[0].memory_copy(), guests[1].memory_copy());
    assert!(guests[0].fenced().is_some() && !guests[0].write(FIRST, 1), "it runs on");
    assert!(event_of(&b, "takeover-completed")["gap_us"].as_u64().is_some(), "{:?}", b.events());
    // What its VMM does then.
    a.end();
    let a = Ft::standby(Box::new(ToyGuest::new()), sides[0].clone(), setups[0].clone()).unwrap();
    wait_state(&b, State::Protected);
    let gap = event_of(&a, "primary-joined")["took_over"]["gap_us"].clone();
    assert!(gap.as_u64().is_some_and(|us| us < 20_000_000), "{gap}");
}

#[test]
fn a_switchover_to_a_dead_standby_leaves_the_guest_where_it_is() {
    let (_folder, _, _, guests, [a, b]) = symmetric();
    drop(b);
    let result = a.switchover();
    wait_state(&a, State::Solo);
    let reason = result.unwrap_err().to_string();
    assert!(reason.contains("stays here") || reason.contains("not protected"), "{reason}");
    wait(|| guests[0].write(FIRST, 1), || "the guest was not resumed".to_owned());
    assert_eq!((guests[0].fenced(), guests[1].started()), (None, None));
}

#[test]
fn a_failover_is_tested_by_the_ordinary_way() {
    let (_folder, sides, setups, guests, [a, b]) = symmetric();
    while !guests[0].write(FIRST + 7, 0xee) {}
    wait_same_memory(&guests[0], &guests[1]);
    a.test_failover().unwrap();
    a.end();
    let a = Ft::standby(Box::new(ToyGuest::new()), sides[0].clone(), setups[0].clone()).unwrap();
    wait_state(&b, State::Protected);
    assert_eq!(guests[1].started(), Some(vec![0xee]));
    assert!(!b.events().iter().any(|event| event.event == "primary-yielded"), "somebody told the standby");
    let silence = event_of(&a, "primary-joined")["took_over"]["silence_ms"].clone();
    assert!(silence.as_u64().is_some_and(|ms| ms >= SILENCE_MS), "{silence}");
    assert!(b.switchover().is_ok());
}

#[test]
fn only_a_protected_vm_is_moved() {
    let pair = Pair::new();
    for result in [pair.a().switchover(), pair.a().test_failover(), pair.b.switchover()] {
        let reason = result.unwrap_err().to_string();
        assert!(reason.starts_with("this VM is not protected"), "{reason}");
    }
}
