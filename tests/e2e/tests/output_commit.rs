//! Output commit, with a stock guest: while the standby cannot acknowledge, not one frame leaves the VM;
//! afterwards all do, in order.

use std::time::Duration;

use e2e::scenario::{Options, Run};
use e2e::workload::Workload;
use e2e::{Result, process, wait};
use nix::sys::signal::Signal;

/// What was released before the standby froze is through the wires when nothing has come for this time.
const SETTLE: Duration = Duration::from_secs(1);
const FROZEN: Duration = Duration::from_secs(3);
const SETTLE_LIMIT: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn nothing_leaves_while_the_standby_is_frozen() {
    check().unwrap_or_else(|error| panic!("{}", error.chain()));
}

fn check() -> Result<()> {
    let options = Options { detect_ms: Some(0), ..Options::default() };
    let mut run = Run::start(options, Box::new(|line| eprintln!("{line}")))?;
    let (connection, _) = run.boot()?;
    run.protect()?;
    let workload = Workload::start(connection, Duration::ZERO)?;
    workload.progress(50, LIMIT)?;

    let standby = &run.standby().expect("a protected run has a standby").vmm;
    standby.signal_all(Signal::SIGSTOP)?;
    let pids = || standby.descendants().into_iter().map(|(pid, _)| pid).chain([standby.pid()]);
    wait::until("standstill of the standby", LIMIT, || Ok(pids().all(process::stopped).then_some(())))?;
    let said = || Ok((run.frames_sent()?, workload.rounds()));
    let (frames, rounds) = wait::steady("silence of the VM", SETTLE, SETTLE_LIMIT, said)?;
    wait::pass(FROZEN)?;
    assert_eq!(run.frames_sent()?, frames, "frames left the VM without an acknowledgement");
    assert_eq!(workload.rounds(), rounds, "the client got replies without an acknowledgement");

    standby.signal_all(Signal::SIGCONT)?;
    workload.progress(50, LIMIT)?;
    let mut record = workload.stop();
    assert_eq!(record.broken, None);
    assert_eq!(record.first_jump(), None, "replies out of order");
    let back = record.read_back()?;
    assert_eq!(back.client_id, record.client_id, "another connection");
    assert!(back.missing.is_empty(), "acknowledged and missing: {:?}", back.missing);
    Ok(())
}
