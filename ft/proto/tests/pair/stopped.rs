//! A primary that says it has stopped: when its standby takes over.

use super::*;

/// Beats that say that the primary has stopped, and are faster than the stream.
fn stopped(pair: &mut Pair, links: &[LinkId]) {
    let beat = Beat { runs: false, ..pair.a.beat() };
    for link in links {
        pair.b.handle(Input::Beat { link: *link, at: pair.now, beat }, pair.now);
    }
    pair.settle();
}

#[test]
fn a_beat_does_not_overtake_what_the_primary_sent_before_it_stopped() {
    let mut pair = Pair::protected(Settings::default());
    stopped(&mut pair, &LinkId::ALL);
    assert_eq!(pair.takeover, None, "its last epoch and its word may be on the stream");
    pair.b.handle(Input::Yielded { term: Term(1) }, pair.now);
    pair.settle();
    assert_eq!(pair.takeover, Some((*pair.committed.last().unwrap(), Term(2))));
}

#[test]
fn a_fenced_primary_does_not_keep_the_standby_waiting_with_its_beats() {
    let lost = || Input::StreamLost { reason: "closed".to_owned() };
    for beat_first in [true, false] {
        let mut pair = Pair::protected(Settings::default());
        if beat_first {
            stopped(&mut pair, &LinkId::ALL);
        }
        pair.b.handle(lost(), pair.now);
        pair.settle();
        if !beat_first {
            assert_eq!(pair.takeover, None);
            stopped(&mut pair, &LinkId::ALL);
        }
        assert_eq!(pair.takeover, Some((*pair.committed.last().unwrap(), Term(2))), "{beat_first}");
    }
}

#[test]
fn the_last_beat_of_a_stopped_primary_is_enough_even_if_nobody_is_suspected() {
    let mut pair = Pair::protected(Settings { silence: None, ..no_witness(OnPartition::Primary) });
    stopped(&mut pair, &LinkId::ALL);
    pair.pass(Duration::from_millis(900), &[B]);
    assert_eq!(pair.takeover, None);
    assert!(pair.b.poll_timeout().is_some_and(|at| at <= pair.now + Duration::from_millis(200)));
    pair.pass(Duration::from_millis(200), &[B]);
    assert!(pair.takeover.is_some());
}

#[test]
fn a_standby_that_slept_does_not_hold_it_against_a_stopped_primary() {
    let mut pair = Pair::protected(Settings::default());
    stopped(&mut pair, &LinkId::ALL);
    pair.now = pair.now + Duration::from_secs(5);
    stopped(&mut pair, &LinkId::ALL);
    assert_eq!(pair.takeover, None, "what it said in time has not been read");
    pair.b.handle(Input::Yielded { term: Term(1) }, pair.now);
    pair.settle();
    assert!(pair.takeover.is_some());
}

#[test]
fn a_primary_that_stops_before_its_first_checkpoint_is_left() {
    let mut pair = Pair::new(Settings::default());
    pair.b.handle(Input::PrimaryJoined { peer: A, term: Term(1), disks: 1 }, pair.now);
    for _ in 0..25 {
        stopped(&mut pair, &LinkId::ALL);
        pair.pass(Duration::from_millis(50), &[B]);
    }
    assert_eq!((pair.b.state(), pair.takeover), (State::StandbyEmpty, None));
}

#[test]
fn a_stream_that_says_nothing_more_does_not_keep_the_standby_either() {
    let both: &[LinkId] = &LinkId::ALL;
    // Silence: as ever. With the stream's own link dead: no longer than that. Otherwise it gets a second.
    for (links, waited) in [(&both[..0], 300..400), (&both[1..], 300..400), (both, 1000..1100)] {
        let mut pair = Pair::protected(no_witness(OnPartition::Primary));
        let since = pair.now;
        stopped(&mut pair, both);
        while pair.takeover.is_none() {
            pair.pass(Duration::from_millis(50), &[B]);
            stopped(&mut pair, links);
        }
        let took = pair.now.since(since).as_millis();
        assert!(waited.contains(&took), "{took} ms with {links:?}");
    }
}
