//! A short chaos run: three faults in a row, all of them takeovers, and the whole reckoning.

use std::time::Duration;

use e2e::chaos::plan::Kind;
use e2e::chaos::run::{Options, Run};
use e2e::chaos::summary::Verdict;
use e2e::scenario::{LAB_TEST_DETECT_MS, patience};
use e2e::witness::Keeper;

#[test]
fn three_faults_in_a_row() {
    let detect = Duration::from_millis(patience(LAB_TEST_DETECT_MS).unwrap_or(300));
    let kinds = vec![Kind::HostPrimary, Kind::FreezePrimary, Kind::PartitionWithoutWitness];
    let options = Options {
        rounds: 3,
        seed: 1,
        kinds,
        keeper: Keeper::Etcd,
        think: Duration::from_millis(10),
        detect,
        logs: None,
    };
    eprintln!("seed {}", options.seed);
    let tell = Box::new(|line: &str| eprintln!("{line}"));
    let summary = Run::start(options, tell).and_then(Run::complete).unwrap_or_else(|e| panic!("{}", e.chain()));
    eprintln!("{summary}");
    assert_eq!(summary.verdict, Verdict::Passed);
}
