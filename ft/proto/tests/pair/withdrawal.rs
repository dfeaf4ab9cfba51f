//! A standby whose claim to take over is not answered, and whose primary is heard again.

use super::*;

/// A pair whose standby has claimed the VM without an answer while its primary was stopped.
fn unanswered(mute: bool) -> Pair {
    let mut pair = Pair::protected(Settings::default());
    (pair.witness_up, pair.witness_mute) = (mute, mute);
    pair.pass(Duration::from_millis(400), &[B]);
    assert!(pair.b.awaits_witness());
    assert!(pair.events.iter().any(|(on, event)| *on == B && matches!(event, Event::WitnessUnreachable { .. })));
    pair
}

#[test]
fn a_standby_without_an_answer_goes_on_with_a_primary_that_is_back() {
    let mut pair = unanswered(false);
    let before = pair.committed.len();
    pair.pass(Duration::from_secs(1), &[A, B]);
    assert!(pair.committed.len() > before + 10 && pair.released.last() == pair.committed.last(), "{:?}", pair.released);
    assert_eq!((pair.a.state(), pair.b.state()), (State::Protected, State::StandbyReady));
    assert!(pair.events.contains(&(B, Event::TakeoverWithdrawn)) && pair.b.awaits_witness());

    pair.witness_up = true;
    pair.pass(Duration::from_millis(500), &[A, B]);
    assert!(!pair.b.awaits_witness());
    assert_eq!(pair.record, Some(Record::Protected { primary: A, in_sync: Replicas::one(B), term: Term(1) }));
    pair.pass(Duration::from_secs(1), &[B]);
    assert_eq!(pair.takeover, Some((*pair.committed.last().unwrap(), Term(2))), "the right to take over is not gone");
}

#[test]
fn a_claim_that_was_granted_without_an_answer_is_used_when_that_is_known() {
    let mut pair = unanswered(true);
    assert_eq!(pair.record, Some(Record::Solo { owner: B, term: Term(2), since: Term(2) }));
    pair.pass(Duration::from_secs(1), &[A, B]);
    assert_eq!((pair.runners(), pair.takeover), (1, None), "the standby does not know, and commits");
    let released = *pair.released.last().unwrap();
    assert!(released > Epoch(10));

    pair.witness_mute = false;
    pair.pass(Duration::from_millis(500), &[A, B]);
    let (epoch, term) = pair.takeover.unwrap();
    assert!(epoch >= released && term == Term(2));
    assert!(pair.b.runs() && pair.fenced == [A]);
}

#[test]
fn a_standby_whose_primary_has_yielded_does_not_withdraw() {
    let mut pair = Pair::protected(Settings::default());
    pair.witness_up = false;
    pair.a.handle(Input::YieldRequested { reason: "device".to_owned() }, pair.now);
    pair.settle();
    pair.pass(Duration::from_secs(2), &[A, B]);
    assert!(!pair.events.contains(&(B, Event::TakeoverWithdrawn)), "{:?}", pair.events);
    pair.witness_up = true;
    pair.pass(Duration::from_millis(500), &[A, B]);
    assert!(pair.b.runs());
}

#[test]
fn silence_after_a_withdrawal_is_silence() {
    let mut pair = unanswered(false);
    pair.pass(Duration::from_millis(600), &[A, B]);
    assert!(pair.events.contains(&(B, Event::TakeoverWithdrawn)));
    pair.pass(Duration::from_millis(600), &[B]);
    pair.witness_up = true;
    pair.pass(Duration::from_millis(400), &[B]);
    assert!(pair.b.runs());
}
