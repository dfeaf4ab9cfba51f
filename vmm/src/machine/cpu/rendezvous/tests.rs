//! The transitions, one by one.

use super::*;

type Two = Rendezvous<&'static str, &'static str, &'static str>;

/// Two vCPUs, parked.
fn parked() -> (Two, [Stay; 2]) {
    let mut state = Two::new(2);
    let now = Instant::now();
    let mut stays = [state.park(0, now), state.park(1, now)];
    assert!(matches!(state.next(&mut stays[0]), Step::Wait));
    assert!(matches!(state.next(&mut stays[1]), Step::WakeWaiters), "the last one tells that all are parked");
    assert!(matches!(state.next(&mut stays[1]), Step::Wait));
    (state, stays)
}

/// Obeys whatever this vCPU is ordered to do now; tells how many orders.
fn obey(state: &mut Two, stay: &mut Stay) -> u32 {
    for done in 0.. {
        let Some(order) = state.take_order(stay.vcpu) else { return done };
        let rest = order.rest();
        state.obeyed(stay, rest, Ok(()));
    }
    0
}

/// A checkpoint that both vCPUs have captured themselves for, vCPU 1 last.
fn captured() -> (Two, [Stay; 2]) {
    let (mut state, mut stays) = parked();
    state.resume();
    for stay in &stays {
        assert!(matches!(state.next(&mut Stay { wake_vcpus: false, wake_waiters: false, ..*stay }), Step::Leave));
        state.leave(stay, Instant::now());
    }
    assert!(state.stop(Purpose::Checkpoint("work")), "they are in the guest");
    stays[0] = state.park(0, Instant::now());
    assert_eq!(obey(&mut state, &mut stays[0]), 1, "the rest has to wait for the other one");
    stays[1] = state.park(1, Instant::now());
    assert!(matches!(state.next(&mut stays[1]), Step::WakeVcpus));
    assert_eq!(obey(&mut state, &mut stays[0]), 1);
    assert!(!state.orders_done());
    assert_eq!(obey(&mut state, &mut stays[1]), 2);
    assert!(state.orders_done() && !state.is_idle());
    (state, stays)
}

#[test]
fn the_last_to_be_captured_does_the_work_when_told_to() {
    let (mut state, mut stays) = captured();
    assert!(matches!(state.next(&mut stays[1]), Step::WakeWaiters));
    assert!(matches!(state.next(&mut stays[1]), Step::Wait));
    state.go_ahead(false);
    assert!(matches!(state.next(&mut stays[0]), Step::Wait), "it is not up to the other one");
    assert!(matches!(state.next(&mut stays[1]), Step::Work("work")));
    assert!(state.captures_are_complete() && !state.is_idle());
    state.work_done(&mut stays[1], true, Instant::now());
    assert!(matches!(state.next(&mut stays[1]), Step::WakeVcpus), "the guest first");
    assert!(matches!(state.next(&mut stays[1]), Step::WakeWaiters));
    for stay in &mut stays {
        assert!(matches!(state.next(stay), Step::Leave));
        state.leave(stay, Instant::now());
    }
    assert!(state.is_idle() && !state.is_paused() && state.last_pause().is_some());
}

#[test]
fn whoever_waits_aside_helps_with_the_work() {
    for helps in [true, false] {
        let (mut state, mut stays) = captured();
        state.go_ahead(helps);
        assert!(matches!(state.next(&mut stays[1]), Step::Work(_)));
        assert_eq!(state.workers(), stays.len() + usize::from(helps));
        state.add_tasks([Box::new(|| ()) as Task].into_iter());
        assert_eq!((state.wants_help(), state.take_help().is_some()), (helps, helps));
        while state.take_task().is_some() {}
        state.work_done(&mut stays[1], true, Instant::now());
        assert_eq!(state.workers(), stays.len());
    }
}

#[test]
fn a_guest_that_stays_is_paused_until_somebody_resumes_it() {
    let (mut state, mut stays) = captured();
    state.go_ahead(false);
    assert!(matches!(state.next(&mut stays[1]), Step::Work(_)));
    state.work_done(&mut stays[1], false, Instant::now());
    assert!(state.is_idle() && state.is_paused() && state.is_stopped());
    assert!(state.resume());
}

#[test]
fn what_is_called_off_is_not_done() {
    let (mut state, mut stays) = captured();
    state.call_off();
    assert!(state.is_idle() && state.is_paused());
    assert!(state.resume());
    assert!(matches!(state.next(&mut stays[1]), Step::WakeWaiters));
    assert!(matches!(state.next(&mut stays[1]), Step::Leave));
}

#[test]
fn a_capture_that_fails_is_told_and_the_others_are_made() {
    let (mut state, mut stays) = parked();
    state.stop(Purpose::Checkpoint("work"));
    let Some(order) = state.take_order(0) else { panic!("no order") };
    state.obeyed(&mut stays[0], order.rest(), Err("no such register"));
    assert_eq!(obey(&mut state, &mut stays[1]), 2);
    state.go_ahead(false);
    assert!(matches!(state.next(&mut stays[1]), Step::WakeWaiters | Step::Work(_)));
    assert!(!state.captures_are_complete());
    assert_eq!(state.take_failure(), Some((0, "no such register")));
    assert!(state.last_pause().is_none(), "another pause was in force");
}

#[test]
fn jobs_are_for_those_who_have_one() {
    let (mut state, mut stays) = parked();
    state.run_jobs([None, Some("job")].into_iter());
    assert!(matches!(state.next(&mut stays[0]), Step::Wait));
    let Step::Obey(order) = state.next(&mut stays[1]) else { panic!("no order") };
    assert!(!state.is_settled());
    state.obeyed(&mut stays[1], order.rest(), Ok(()));
    assert!(state.is_settled());
    state.run_jobs([None, None].into_iter());
    assert!(state.is_settled());
}

#[test]
fn a_machine_ends_whatever_it_was_at() {
    let (mut state, mut stays) = captured();
    state.exit();
    assert!(matches!(state.next(&mut stays[0]), Step::Exit));
    assert!(matches!(state.next(&mut stays[1]), Step::WakeWaiters));
    assert!(matches!(state.next(&mut stays[1]), Step::Exit));
}

#[test]
#[should_panic(expected = "a capture in the middle of a checkpoint")]
fn one_checkpoint_at_a_time() {
    let (mut state, _) = captured();
    state.stop(Purpose::Capture);
}

#[test]
#[should_panic(expected = "the vCPU rendezvous is idle and is told to go ahead")]
fn nothing_goes_ahead_that_has_not_begun() {
    let (mut state, _) = parked();
    state.go_ahead(false);
}
