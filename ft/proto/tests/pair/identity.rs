//! Who is believed: words of a peer against the witness's, and a witness that has lost its record.

use super::*;

#[test]
fn a_beat_alone_fences_nobody() {
    for (from, state) in [(B, State::Solo), (NodeId::numbered(9, 9), State::Protected)] {
        let mut pair = Pair::protected(Settings::default());
        hear(&mut pair, Beat { from, term: Term::MAX, runs: true });
        assert_eq!((pair.a.state(), pair.fenced.as_slice()), (state, [].as_slice()), "{from}");
        assert!(pair.a.term() <= Term(2), "no term of a beat is adopted");
    }
    // Without a witness a standby that may take over by itself is believed, and one that may not is not.
    for (policy, state) in [(OnPartition::Standby, State::Fenced), (OnPartition::Primary, State::Protected)] {
        let mut pair = Pair::protected(Settings { on_partition: Some(policy), ..Settings::default() });
        hear(&mut pair, Beat { from: B, term: Term(2), runs: true });
        assert_eq!(pair.a.state(), state, "{policy:?}");
    }
}

#[test]
fn a_forged_beat_does_not_hold_up_a_takeover() {
    let mut pair = Pair::protected(Settings::default());
    for from in [A, NodeId::numbered(9, 9)] {
        let beat = Beat { from, term: Term(40), runs: true };
        pair.b.handle(Input::Beat { link: LinkId::Heartbeat, at: pair.now, beat }, pair.now);
        pair.settle();
        assert_eq!(pair.b.state(), State::StandbyReady, "{from}");
    }
    pair.pass(Duration::from_secs(1), &[B]);
    assert_eq!(pair.b.state(), State::Solo);
}

#[test]
fn a_lost_record_is_written_anew_when_both_agree() {
    let mut pair = Pair::protected(Settings::default());
    pair.record = None;
    pair.a.handle(Input::RecordRead { record: None }, pair.now);
    pair.settle();
    assert!(pair.events.contains(&(A, Event::WitnessRecordLost)));
    assert_eq!(pair.record, None, "not before the standby is known to be one");
    pair.now = pair.now + Duration::from_millis(100);
    pair.a.handle(Input::CutWanted, pair.now);
    pair.settle();
    assert_eq!(pair.record, Some(Record::Protected { primary: A, in_sync: Replicas::one(B), term: Term(1) }));
    assert!(pair.events.contains(&(A, Event::WitnessRecordRestored)));
    pair.pass(Duration::from_secs(1), &[B]);
    assert_eq!(pair.b.state(), State::Solo, "and it counts");
}

#[test]
fn nobody_goes_on_by_a_record_that_is_lost_and_both_may_when_it_is_back() {
    for (alive, back) in [(A, State::Solo), (B, State::Solo)] {
        let mut pair = Pair::protected(Settings::default());
        let record = pair.record.take();
        pair.connected = false;
        pair.pass(Duration::from_secs(2), &[alive]);
        let waits = if alive == A { State::Protected } else { State::StandbyReady };
        assert_eq!((pair.node(alive).state(), pair.fenced.as_slice()), (waits, [].as_slice()));
        pair.record = record;
        pair.pass(Duration::from_secs(1), &[alive]);
        assert_eq!(pair.node(alive).state(), back);
    }
}

#[test]
fn who_runs_the_vm_stops_when_the_record_names_somebody_else() {
    let mut pair = Pair::new(Settings::default());
    let other = |term| Some(Record::Solo { owner: NodeId::numbered(9, 9), term, since: term });
    for (record, state) in [(None, State::Solo), (other(Term(1)), State::Solo), (other(Term(2)), State::Fenced)] {
        pair.a.handle(Input::RecordRead { record }, pair.now);
        pair.settle();
        assert_eq!(pair.a.state(), state, "{record:?}");
    }
    let mut pair = Pair::protected(Settings::default());
    pair.record = other(Term(2));
    pair.a.handle(Input::RecordRead { record: pair.record }, pair.now);
    pair.settle();
    assert_eq!(pair.a.state(), State::Fenced);
}

#[test]
fn a_record_that_was_made_anew_of_the_very_node_stops_nothing() {
    for term in [Term(0), Term(7)] {
        let mut pair = Pair::protected(Settings::default());
        pair.record = Some(Record::Solo { owner: A, term, since: term });
        pair.connected = false;
        pair.pass(Duration::from_secs(1), &[A]);
        assert_eq!((pair.a.state(), pair.fenced.as_slice()), (State::Solo, [].as_slice()), "{term}");
        assert!(pair.a.term() >= term.max(Term(1)));
        // And the standby finds out that it has no right.
        pair.pass(Duration::from_secs(1), &[B]);
        assert_eq!((pair.runners(), pair.takeover), (1, None));
    }
}
