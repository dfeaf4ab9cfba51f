//! Goes through every state within bounds.

use protocol_model::{Bounds, Flaw, Possible, System};
use stateright::{Checker as _, CheckerBuilder, Expectation, Model as _};

const ONE_SESSION: Bounds = Bounds { sessions: 1, epochs: 2, crashes: 0, breaks: 0, losses: 0, wishes: 0 };
const TWO_SESSIONS: Bounds = Bounds { sessions: 2, ..ONE_SESSION };

fn checker(bounds: Bounds, flaw: Option<Flaw>) -> CheckerBuilder<System> {
    System { bounds, flaw }.checker().threads(2)
}

/// Nothing that must always hold is broken, and these things happen.
fn check(bounds: Bounds, happens: &[&'static str]) {
    let checker = checker(bounds, None).spawn_bfs().join();
    println!("{bounds:?}: {} states, depth {}", checker.unique_state_count(), checker.max_depth());
    for property in checker.model().properties() {
        match property.expectation {
            Expectation::Always => checker.assert_no_discovery(property.name),
            _ => assert!(
                checker.discovery(property.name).is_some() || !happens.contains(&property.name),
                "{} cannot happen",
                property.name
            ),
        }
    }
}

fn broken(bounds: Bounds, flaw: Flaw) -> Vec<&'static str> {
    let checker = checker(bounds, Some(flaw)).spawn_bfs().join();
    let always = |property: &stateright::Property<System>| property.expectation == Expectation::Always;
    let properties = checker.model().properties().into_iter().filter(always);
    properties.map(|property| property.name).filter(|name| checker.discovery(name).is_some()).collect()
}

#[test]
fn one_session_with_one_of_everything() {
    let bounds = Bounds { crashes: 1, breaks: 1, losses: 1, wishes: 1, ..ONE_SESSION };
    check(bounds, &[Possible::TAKEOVER, Possible::ALONE, Possible::FENCED]);
}

#[test]
fn two_sessions_with_a_crash() {
    check(Bounds { crashes: 1, epochs: 1, ..TWO_SESSIONS }, &[Possible::AGAIN]);
}

#[test]
fn two_sessions_with_a_lost_claim_or_answer() {
    check(Bounds { losses: 1, ..TWO_SESSIONS }, &[Possible::TAKEOVER, Possible::ALONE]);
}

#[test]
fn two_sessions_with_a_broken_stream_or_an_operator() {
    check(Bounds { breaks: 1, ..TWO_SESSIONS }, &[Possible::TAKEOVER, Possible::ALONE]);
    check(Bounds { wishes: 1, ..TWO_SESSIONS }, &[Possible::TAKEOVER, Possible::ALONE]);
}

#[test]
fn a_witness_that_grants_everything_is_caught() {
    let broken = broken(ONE_SESSION, Flaw::GrantsAll);
    assert!(broken.len() >= 3, "{broken:?}");
}

#[test]
fn hosts_that_ask_nobody_are_caught() {
    let broken = broken(ONE_SESSION, Flaw::NobodyAsks);
    assert!(broken.len() >= 2, "{broken:?}");
}

/// Takes minutes and gigabytes: for a change of the core.
#[test]
#[ignore = "takes minutes: cargo test --release -p protocol-model -- --ignored"]
fn two_sessions_with_a_crash_and_a_loss() {
    check(Bounds { crashes: 1, losses: 1, epochs: 1, ..TWO_SESSIONS }, &[Possible::AGAIN]);
}
