//! Each fault of the demo: nothing acknowledged is lost, the connection lives, exactly one host runs the VM.

use e2e::scenario::{Fault, Options, Run};

fn survives(fault: Fault) {
    let options = Options { fault: Some(fault), rounds: 100, ..Options::default() };
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
fn standby_dies() {
    survives(Fault::Standby);
}

#[test]
fn device_process_dies() {
    survives(Fault::Device);
}
