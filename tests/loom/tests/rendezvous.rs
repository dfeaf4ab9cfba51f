//! Checkpoints, pauses and the end of a machine in every order, within a bound on preemptions: nothing runs
//! that must not, no wake-up is lost, nobody waits for ever (which loom tells).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vcpu_loom::machine::{Machine, Wait};
use vcpu_loom::turns::Turns;

/// Runs it in all orders in which at most `preemptions` threads are preempted.
fn explore(preemptions: usize, run: impl Fn(Wait) + Copy + Send + Sync + 'static) {
    for wait in [Wait::Sleep, Wait::Spin] {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(preemptions);
        let orders = Arc::new(AtomicUsize::new(0));
        let counted = orders.clone();
        model.check(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            run(wait);
        });
        println!("{wait:?}: {} orders of events", orders.load(Ordering::Relaxed));
    }
}

#[test]
fn each_checkpoint_is_taken_once_and_the_guest_goes_on() {
    explore(2, |wait| {
        let machine = Machine::new(2, wait);
        machine.resume();
        machine.stop_for(true, false);
        assert!(machine.go_ahead());
        assert!(!machine.is_paused());
        machine.wait_until_running();
        machine.end();
    });
}

#[test]
fn a_second_checkpoint_follows_at_once() {
    explore(1, |wait| {
        let machine = Machine::new(2, wait);
        machine.resume();
        for taken in 1..=2 {
            machine.stop_for(true, false);
            assert!(machine.go_ahead());
            assert_eq!(machine.done(), taken);
        }
        machine.end();
    });
}

#[test]
fn a_checkpoint_that_is_called_off_leaves_nothing_behind() {
    explore(2, |wait| {
        let machine = Machine::new(2, wait);
        machine.resume();
        machine.stop_for(true, false);
        machine.call_off();
        assert_eq!((machine.done(), machine.is_paused()), (0, false));
        machine.wait_until_running();
        machine.end();
    });
}

#[test]
fn a_checkpoint_follows_one_that_was_called_off() {
    explore(1, |wait| {
        let machine = Machine::new(2, wait);
        machine.resume();
        machine.stop_for(true, false);
        machine.call_off();
        machine.stop_for(true, false);
        assert!(machine.go_ahead());
        machine.end();
    });
}

#[test]
fn the_last_checkpoint_leaves_the_guest_paused() {
    explore(1, |wait| {
        let machine = Machine::new(2, wait);
        machine.resume();
        machine.stop_for(false, false);
        assert!(machine.go_ahead());
        assert!(machine.is_paused());
        assert_eq!(machine.run_jobs(), 2);
        machine.resume();
        machine.end();
    });
}

#[test]
fn whoever_pauses_meanwhile_does_not_disturb_a_checkpoint() {
    explore(2, |wait| {
        let machine = loom::sync::Arc::new(Machine::new(1, wait));
        machine.resume();
        let other = machine.clone();
        let other = loom::thread::spawn(move || {
            other.pause();
            other.resume();
        });
        machine.stop_for(true, false);
        assert!(machine.go_ahead());
        other.join().unwrap();
        assert!(!machine.is_paused());
        let machine = loom::sync::Arc::try_unwrap(machine).ok().expect("nobody else has it");
        machine.end();
    });
}

#[test]
fn whoever_pauses_before_a_checkpoint_goes_ahead_is_not_kept_waiting() {
    explore(1, |wait| {
        let machine = Machine::new(2, wait);
        machine.resume();
        machine.stop_for(true, false);
        machine.pause();
        machine.resume();
        assert!(machine.go_ahead());
        machine.end();
    });
}

#[test]
fn tasks_are_done_by_whoever_comes_first() {
    explore(1, |wait| {
        let machine = Machine::new(2, wait);
        machine.resume();
        machine.stop_for(true, true);
        assert!(machine.go_ahead());
        // One for each vCPU, and one for whoever waits.
        assert_eq!(machine.end(), 3);
    });
}

#[test]
fn a_checkpoint_without_a_capture_is_none_and_the_guest_goes_on() {
    explore(1, |wait| {
        let machine = Machine::new(2, wait);
        machine.resume();
        machine.fail(1);
        machine.stop_for(true, false);
        assert!(!machine.go_ahead());
        assert!(!machine.is_paused());
        machine.end();
    });
}

#[test]
fn a_machine_can_end_in_the_middle_of_a_checkpoint() {
    explore(2, |wait| {
        let machine = Machine::new(2, wait);
        machine.resume();
        machine.stop_for(true, false);
        machine.end();
    });
}

#[test]
fn a_paused_machine_is_captured_too() {
    explore(2, |wait| {
        let machine = Machine::new(2, wait);
        machine.pause();
        machine.begin_capture();
        assert_eq!(machine.captures(), 1);
        machine.end();
    });
}

#[test]
fn a_capture_that_nobody_waited_for_is_over_before_the_next_begins() {
    explore(1, |wait| {
        let machine = Machine::new(2, wait);
        machine.resume();
        machine.begin_capture();
        machine.begin_capture();
        assert_eq!(machine.captures(), 2);
        machine.resume();
        machine.resume();
        machine.wait_until_running();
        machine.end();
    });
}

#[test]
fn a_guest_that_has_ended_its_run_can_be_paused() {
    explore(2, |wait| {
        let machine = Machine::new(1, wait);
        machine.shut_down();
        machine.resume();
        machine.pause();
        machine.resume();
        machine.end();
    });
}

#[test]
fn the_last_of_three_vcpus_takes_the_checkpoint() {
    explore(0, |wait| {
        let machine = Machine::new(3, wait);
        machine.resume();
        machine.stop_for(true, false);
        assert!(machine.go_ahead());
        machine.end();
    });
}

#[test]
fn whoever_spins_needs_no_deadline() {
    loom::model(|| {
        let turns = loom::sync::Arc::new(Turns::default());
        let other = turns.clone();
        let other = loom::thread::spawn(move || other.take(1, 1));
        turns.take(0, 2);
        other.join().unwrap();
        assert_eq!(turns.taken(), 3);
    });
}
