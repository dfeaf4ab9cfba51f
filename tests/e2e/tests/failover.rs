//! Each fault of the demo: nothing acknowledged is lost, the connection lives, exactly one host runs the VM.

use e2e::scenario::{Fault, Options, Run};
use e2e::witness::Keeper;

fn survives(fault: Fault) {
    survives_with(fault, Keeper::File);
}

fn survives_with(fault: Fault, keeper: Keeper) {
    let options = Options { fault: Some(fault), keeper, rounds: 100, ..Options::default() };
    let tell = Box::new(|line: &str| eprintln!("{line}"));
    let report = Run::start(options, tell)
        .and_then(|run| run.complete(&mut |_| Ok(())))
        .unwrap_or_else(|e| panic!("{}", e.chain()));
    eprintln!("{report}");
    assert!(report.passed(), "{:?}", report.failures());
}

#[test]
fn host_dies() {
    survives(Fault::Host);
}

#[test]
fn vmm_dies() {
    survives(Fault::Vmm);
}

#[test]
fn links_are_cut() {
    survives(Fault::Link);
}

#[test]
fn links_are_cut_and_etcd_decides() {
    survives_with(Fault::Link, Keeper::Etcd);
}

#[test]
fn links_are_cut_while_etcd_hangs() {
    survives_with(Fault::Blackout, Keeper::Etcd);
}

#[test]
fn standby_dies() {
    survives(Fault::Standby);
}

#[test]
fn device_process_dies() {
    survives(Fault::Device);
}
