//! A thousand seeds hold, the same seed is the same run, and each invariant catches the defect that it is
//! there for.

use std::collections::BTreeMap;

use sim::{Mutation, Options, run};

const SEEDS: u64 = 1000;

#[test]
fn a_thousand_seeds_hold() {
    let mut takeovers = 0;
    let mut lost = 0;
    let mut withdrawals = 0;
    let mut resyncs = 0;
    let mut starts = 0;
    let mut restores = 0;
    let mut forked = 0;
    let mut policies = BTreeMap::<_, u64>::new();
    for seed in 0..SEEDS {
        let outcome = run(seed, Options::default());
        assert_eq!(outcome.violation, None, "cargo run -p sim -- --seeds 1 --seed {seed} --trace");
        takeovers += outcome.takeovers;
        withdrawals += outcome.withdrawals;
        resyncs += outcome.resyncs;
        starts += outcome.starts;
        restores += outcome.restores;
        lost += u64::from(outcome.lost.is_some());
        forked += u64::from(outcome.forked);
        *policies.entry(format!("{:?}", outcome.policy)).or_default() += outcome.takeovers;
    }
    // A run in which nothing happens proves nothing.
    assert!(takeovers > SEEDS / 4, "only {takeovers} takeovers");
    assert!(resyncs > SEEDS / 4, "only {resyncs} incremental resynchronisations");
    assert!(starts > SEEDS / 10, "only {starts} starts by hosts that came back");
    assert!(restores > SEEDS / 20, "only {restores} records written again");
    assert!(withdrawals > SEEDS / 100, "only {withdrawals} withdrawn claims");
    assert!(policies.len() == 4 && policies.values().all(|takeovers| *takeovers > 0), "{policies:?}");
    assert!(forked > 0 && forked < SEEDS / 20, "two ran the VM in {forked} runs");
    assert!(lost < SEEDS / 5, "{lost} runs ended early because all copies were gone");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 7, 42] {
        let options = Options { trace: true, ..Options::default() };
        let first = run(seed, options);
        assert!(first.trace.len() > 100);
        assert_eq!(first, run(seed, options));
    }
}

#[test]
fn each_mutation_is_caught_by_its_invariant() {
    for mutation in Mutation::ALL {
        let only = mutation.caught_by();
        let options = Options { mutation: Some(mutation), only: Some(only), trace: false };
        let caught = (0..SEEDS).find(|seed| run(*seed, options).violation.is_some());
        assert!(caught.is_some(), "{mutation:?} is not caught by {only} within {SEEDS} seeds");
    }
}
