//! Both hosts are gone at once, and come back one after the other without a human: does the VM run again,
//! soon, and only once?

use std::time::{Duration, Instant};

use super::pair::{Pair, Seen};
use super::plan::Side;
use crate::host::letter;
use crate::topology::Topology;
use crate::witness::Absence;
use crate::{Error, Result, wait};

/// How long after the last host that is needed is back the VM may take to run, which the guest's own boot is
/// no part of.
const RUN_LIMIT: Duration = Duration::from_secs(60);
/// How long a service manager waits before it starts a VMM again that has ended.
const RESTART: Duration = Duration::from_secs(1);
/// For how long the witness is away beyond the hosts: a start asks it for 5 s at most.
const WITNESS_AWAY: Duration = Duration::from_secs(8);

/// Kills both hosts, perhaps with the witness, and has them come back. Gives the time from when the last part
/// that is needed was there until the VM ran.
///
/// # Errors
/// When the VM does not run in time, or runs where its newest disks are not.
pub fn endure(pair: &mut Pair, topology: &Topology, primary: u8, plan: (Side, Duration, bool)) -> Result<Duration> {
    let (first, pause, with_witness) = plan;
    if with_witness {
        pair.lose_witness(Absence::Gone)?;
    }
    let killed = [pair.kill_host(primary), pair.kill_host(1 - primary)];
    killed.into_iter().collect::<Result<()>>()?;
    let first = if first == Side::Primary { primary } else { 1 - primary };
    if with_witness {
        without_witness(pair, topology, first)?;
        pair.return_witness(topology)?;
    }
    let mut ran = None;
    for host in [first, 1 - first] {
        let back = Instant::now();
        start(pair, topology, host)?;
        if host == primary {
            wait::until("the VM on the host with its newest disks", RUN_LIMIT, || runs(pair, primary))?;
            ran = Some(back.elapsed());
        }
        if host == first {
            let until = Instant::now() + pause;
            while Instant::now() < until {
                runs(pair, primary)?;
                wait::pass(RESTART.min(until - Instant::now()))?;
            }
        }
    }
    ran.ok_or_else(|| Error::Protocol { from: "blackout".into(), answer: "the primary did not come back".into() })
}

/// Whether the VM runs on host `primary`.
///
/// # Errors
/// When the other one runs it.
fn runs(pair: &mut Pair, primary: u8) -> Result<Option<()>> {
    let seen = [pair.look(0), pair.look(1)];
    if seen[usize::from(1 - primary)].runs() {
        let answer = format!("runs the VM from a copy, unasked: {seen:?}");
        return Err(Error::Protocol { from: format!("host {}", letter(1 - primary)), answer });
    }
    Ok(seen[usize::from(primary)].runs().then_some(()))
}

/// A host that finds no witness ends with that as its reason, and its service manager starts it again and
/// again.
fn without_witness(pair: &mut Pair, topology: &Topology, host: u8) -> Result<()> {
    let until = Instant::now() + WITNESS_AWAY;
    while Instant::now() < until {
        if pair.look(host) == Seen::Dead {
            // Whether it ends before it is asked how it is, or later, it has not been given the VM.
            let _ = pair.revive(host, topology);
        }
        if pair.look(host).runs() {
            let answer = "runs the VM though the witness was not there to be asked".to_owned();
            return Err(Error::Protocol { from: format!("host {}", letter(host)), answer });
        }
        wait::pass(RESTART)?;
    }
    Ok(())
}

/// Starts a host's VMM, if it does not run already.
fn start(pair: &mut Pair, topology: &Topology, host: u8) -> Result<()> {
    wait::until("the start of a host", RUN_LIMIT, || {
        if pair.look(host) == Seen::Dead {
            pair.revive(host, topology)?;
        }
        Ok(Some(()))
    })
}
