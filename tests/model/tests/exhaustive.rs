//! Goes through every state within bounds.

use ft_proto::OnPartition;
use protocol_model::{Bounds, Flaw, LateClaims, Possible, System};
use stateright::{Checker as _, CheckerBuilder, Expectation, Model as _, Property};

const ONE_SESSION: Bounds = Bounds {
    sessions: 1,
    epochs: 2,
    crashes: 0,
    blackouts: 0,
    breaks: 0,
    losses: 0,
    operations: 0,
    starts: 0,
    record_losses: 0,
    looks: 0,
    forged: 0,
};
const TWO_SESSIONS: Bounds = Bounds { sessions: 2, ..ONE_SESSION };

const JUDGED: LateClaims = LateClaims::Judged;

fn checker(system: System) -> CheckerBuilder<System> {
    system.checker().threads(2)
}

/// Nothing that must always hold is broken, and these things happen.
fn check(bounds: Bounds, happens: &[&'static str]) {
    check_with(JUDGED, bounds, happens);
}

fn check_with(late_claims: LateClaims, bounds: Bounds, happens: &[&'static str]) {
    let checker = checker(System { bounds, flaw: None, policy: None, late_claims }).spawn_bfs().join();
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

/// What is broken, and what happens.
fn found(system: System) -> (Vec<&'static str>, Vec<&'static str>) {
    let checker = checker(system).spawn_bfs().join();
    println!("{system:?}: {} states, depth {}", checker.unique_state_count(), checker.max_depth());
    let found = checker.model().properties().into_iter().filter(|one| checker.discovery(one.name).is_some());
    let (always, sometimes): (Vec<_>, Vec<_>) = found.partition(|one| one.expectation == Expectation::Always);
    let names = |properties: Vec<Property<System>>| properties.iter().map(|one| one.name).collect();
    (names(always), names(sometimes))
}

#[test]
fn one_session_with_one_of_everything() {
    let bounds = Bounds { crashes: 1, breaks: 1, losses: 1, operations: 1, ..ONE_SESSION };
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
    check(Bounds { operations: 1, ..TWO_SESSIONS }, &[Possible::TAKEOVER, Possible::ALONE]);
}

#[test]
fn a_witness_that_grants_everything_is_caught() {
    let (broken, _) =
        found(System { bounds: ONE_SESSION, flaw: Some(Flaw::GrantsAll), policy: None, late_claims: JUDGED });
    assert!(broken.len() >= 3, "{broken:?}");
}

#[test]
fn a_claim_to_take_over_is_withdrawn_for_good() {
    let bounds = Bounds { losses: 3, crashes: 1, operations: 1, ..ONE_SESSION };
    check_with(LateClaims::Compared, bounds, &[Possible::WITHDRAWING, Possible::TAKEOVER, Possible::ALONE]);
    let (bounds, flaw) = (Bounds { losses: 2, ..ONE_SESSION }, Some(Flaw::UnwrittenGrants));
    let (broken, _) = found(System { bounds, flaw, policy: None, late_claims: LateClaims::Compared });
    assert!(broken.iter().any(|name| name.contains("asks until it knows")), "{broken:?}");
}

#[test]
fn without_a_witness_one_side_goes_on_if_the_policy_names_one() {
    let bounds = Bounds { crashes: 1, breaks: 1, operations: 1, ..TWO_SESSIONS };
    for (policy, happens) in [(OnPartition::Primary, Possible::ALONE), (OnPartition::Standby, Possible::TAKEOVER)] {
        let (broken, possible) = found(System { bounds, flaw: None, policy: Some(policy), late_claims: JUDGED });
        // What the witness has on record means nothing then.
        assert!(
            broken.iter().all(|name| name.contains("witness") || name.contains("record")),
            "{policy:?}: {broken:?}"
        );
        assert!(possible.contains(&happens), "{policy:?}: {possible:?}");
    }
}

#[test]
fn without_a_witness_both_go_on_if_the_policy_says_so() {
    let (broken, _) =
        found(System { bounds: ONE_SESSION, flaw: None, policy: Some(OnPartition::Both), late_claims: JUDGED });
    assert!(broken.len() >= 2, "{broken:?}");
}

#[test]
fn a_blackout_is_ended_by_who_ran_last_or_was_told_not_to_wait() {
    let bounds = Bounds { crashes: 2, starts: 2, epochs: 1, ..ONE_SESSION };
    check(bounds, &[Possible::STARTED, Possible::WAITED, Possible::TAKEOVER, Possible::ALONE]);
    check_with(LateClaims::Compared, Bounds { losses: 1, ..bounds }, &[Possible::STARTED, Possible::WAITED]);
}

#[test]
fn a_lost_record_gives_the_vm_to_nobody() {
    let bounds = Bounds { record_losses: 1, looks: 1, crashes: 1, starts: 1, epochs: 1, ..ONE_SESSION };
    check(bounds, &[Possible::STARTED, Possible::TAKEOVER, Possible::ALONE]);
}

#[test]
fn a_lost_record_is_written_again_by_two_that_agree() {
    let bounds = Bounds { record_losses: 1, looks: 1, epochs: 3, ..ONE_SESSION };
    check(bounds, &[Possible::RESTORED, Possible::TAKEOVER, Possible::ALONE]);
}

#[test]
fn a_forged_beat_gives_the_vm_to_nobody() {
    let bounds = Bounds { forged: 1, ..ONE_SESSION };
    check(Bounds { crashes: 1, losses: 1, ..bounds }, &[Possible::TAKEOVER, Possible::ALONE]);
    check(Bounds { epochs: 1, sessions: 2, ..bounds }, &[Possible::ALONE]);
}

#[test]
fn a_blackout_with_a_lost_record_and_a_forged_beat() {
    let bounds = Bounds { blackouts: 1, starts: 2, epochs: 1, record_losses: 1, looks: 1, forged: 1, ..ONE_SESSION };
    check(bounds, &[Possible::STARTED, Possible::WAITED, Possible::TAKEOVER]);
}

#[test]
fn who_starts_or_restores_without_proof_is_caught() {
    let bounds = Bounds { crashes: 1, starts: 1, epochs: 1, record_losses: 1, ..ONE_SESSION };
    let with = |bounds, flaw| found(System { bounds, flaw: Some(flaw), policy: None, late_claims: JUDGED }).0;
    let broken = with(bounds, Flaw::StartsOnAbsence);
    assert!(broken.iter().any(|name| name.contains("starts the VM by itself")), "{broken:?}");
    let bounds = Bounds { record_losses: 1, looks: 1, ..ONE_SESSION };
    let broken = with(bounds, Flaw::RestoresAtOnce);
    assert!(broken.iter().any(|name| name.contains("lets output out by itself")), "{broken:?}");
}

/// Takes minutes and gigabytes: for a change of the core.
#[test]
#[ignore = "takes minutes: cargo test --release -p protocol-model -- --ignored"]
fn two_sessions_with_a_crash_and_a_loss() {
    check(Bounds { crashes: 1, losses: 1, epochs: 1, ..TWO_SESSIONS }, &[Possible::AGAIN]);
}
