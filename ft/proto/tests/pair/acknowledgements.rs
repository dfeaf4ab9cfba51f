//! Acknowledgements that do not come, and those that wait while the primary is stopped.

use super::*;

/// Beats and the witness work, but acknowledgements do not come.
fn mute_standby(pair: &mut Pair, span: Duration) {
    let end = pair.now + span;
    while pair.now < end {
        pair.now = pair.now + STEP;
        let (now, beat) = (pair.now, pair.b.beat());
        for link in LinkId::ALL {
            pair.a.handle(Input::Beat { link, at: now, beat }, now);
        }
        pair.a.handle(Input::Timeout, now);
        pair.settle();
    }
}

#[test]
fn a_standby_that_lives_but_acknowledges_nothing_is_left() {
    let mut pair = Pair::protected(Settings::default());
    pair.connected = false;
    mute_standby(&mut pair, Duration::from_secs(9));
    assert_eq!(pair.a.state(), State::Protected);
    mute_standby(&mut pair, Duration::from_secs(2));
    assert_eq!((pair.a.state(), pair.a.term()), (State::Solo, Term(2)));
}

#[test]
fn acknowledgements_that_waited_for_a_stopped_primary_are_not_late() {
    let mut pair = Pair::protected(Settings::default());
    pair.connected = false;
    mute_standby(&mut pair, Duration::from_millis(100));
    pair.now = pair.now + Duration::from_secs(60);
    mute_standby(&mut pair, Duration::from_millis(100));
    assert_eq!(pair.a.state(), State::Protected);
}

/// A was stopped for longer than the limit, with an acknowledgement on its way; gives its epoch.
fn woken_with_an_acknowledgement(pair: &mut Pair) -> Epoch {
    pair.connected = false;
    pair.released.clear();
    let epoch = pair.a.epoch();
    pair.now = pair.now + Duration::from_millis(100);
    pair.a.handle(Input::CutWanted, pair.now);
    pair.settle();
    pair.now = pair.now + Duration::from_millis(2500);
    pair.a.handle(Input::Acked { term: Term(1), epoch }, pair.now);
    hear(pair, Beat { from: B, term: Term(1), runs: false });
    assert_eq!(pair.released, [], "said before the standby was heard again");
    epoch
}

#[test]
fn a_primary_that_was_stopped_speaks_when_it_has_heard_that_nobody_took_over() {
    let mut pair = Pair::protected(Settings::default());
    let epoch = woken_with_an_acknowledgement(&mut pair);
    pair.now = pair.now + Duration::from_millis(50);
    hear(&mut pair, Beat { from: B, term: Term(1), runs: false });
    assert_eq!((pair.released.as_slice(), pair.a.state()), ([epoch].as_slice(), State::Protected));
}

#[test]
fn a_primary_that_was_stopped_until_the_standby_took_over_does_not_say_what_was_acknowledged_before() {
    let mut pair = Pair::protected(Settings::default());
    woken_with_an_acknowledgement(&mut pair);
    pair.record = Some(Record::Solo { owner: B, term: Term(2), since: Term(2) });
    hear(&mut pair, Beat { from: B, term: Term(2), runs: true });
    assert_eq!((pair.released.as_slice(), pair.a.state()), ([].as_slice(), State::Fenced));
}
