//! Does a fault to real processes and links, makes sure that it has happened, and undoes what can be undone.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::pair::{Pair, wait_gone};
use super::plan::{Device, Fault, Move, Side};
use super::stranger::Said;
use super::{blackout, comeback, stranger};
use crate::topology::{Link, Topology};
use crate::witness::Absence;
use crate::{Error, Result, agent, process, wait};

/// A link on which nothing comes back for so long is cut. In an emulated machine a round trip takes a few
/// milliseconds.
const PROBE_LIMIT: Duration = Duration::from_millis(400);
/// For how long a VM that has moved while it was paused must be silent.
const PAUSE: Duration = Duration::from_secs(1);
/// How long an order to a process may take to show.
const EFFECT_LIMIT: Duration = Duration::from_secs(10);

/// What has to be undone after a fault.
#[derive(Debug, Default)]
pub struct Injury {
    /// How long it lasts; `None`: until somebody repairs it.
    pub span: Option<Duration>,
    links: Vec<Link>,
    slow: Option<Link>,
    frozen: Option<u32>,
    full: Option<u8>,
    suspended: Option<u8>,
    /// The host that a paused VM must have come to.
    paused: Option<u8>,
    /// A dead host that is first started as it should not be, and how.
    wrongly: Option<(u8, Wrongly)>,
    /// The standby's disk is not the one that it had.
    pub other_disk: bool,
    /// After a blackout: how long the VM took to run again.
    pub dark: Option<Duration>,
    /// What strangers said.
    pub said: Option<Said>,
}

/// How a host is started that is dead.
#[derive(Clone, Copy, Debug)]
enum Wrongly {
    /// With an operator's word for the term that is over.
    Force(u64),
    /// Without its witness.
    Unmounted,
}

/// Does `fault` while host `primary` runs the VM in `term`. When it returns, the fault has its effect.
///
/// # Errors
/// When the fault does not show the effect that it should have.
pub fn inflict(fault: &Fault, pair: &mut Pair, topology: &Topology, primary: u8, term: u64) -> Result<Injury> {
    let on = |side: Side| if side == Side::Primary { primary } else { 1 - primary };
    let mut injury = Injury::default();
    match *fault {
        Fault::Blackout { first, pause, with_witness } => {
            injury.dark = Some(blackout::endure(pair, topology, primary, (first, pause, with_witness))?);
        }
        Fault::ChangedImage(seed) => {
            pair.kill_host(1 - primary)?;
            comeback::change_image(pair, 1 - primary, seed)?;
            injury.other_disk = true;
        }
        Fault::DeviceDies(side, device) => kill_device(pair, on(side), device)?,
        Fault::DiskFull => injury.fill_disk(pair, topology, primary)?,
        Fault::Frozen(side, span) => injury.freeze(pair, on(side), span)?,
        Fault::HandOver => pair.host(primary).vmm.signal(Signal::SIGTERM)?,
        Fault::HeartbeatCut(span) => injury.cut(topology, &[Link::Heartbeat], Some(span))?,
        Fault::HostDies(side) => pair.kill_host(on(side))?,
        Fault::HostDiesWithoutWitness(how, span) => {
            injury.lose_witness(pair, how, span)?;
            pair.kill_host(primary)?;
        }
        Fault::Partition => injury.cut(topology, &[Link::Replication, Link::Heartbeat], None)?,
        Fault::PartitionWithoutWitness(how, span) => {
            injury.lose_witness(pair, how, span)?;
            injury.cut(topology, &[Link::Replication, Link::Heartbeat], Some(span))?;
        }
        Fault::PausedMove(how) => injury.move_paused(pair, primary, how)?,
        Fault::ReplicationCut(span) => injury.cut(topology, &[Link::Replication], Some(span))?,
        Fault::RestoredStandby(what, span) => {
            let copy = comeback::Copy::of(pair, 1 - primary, what)?;
            wait::pass(span)?;
            pair.kill_host(1 - primary)?;
            injury.other_disk = copy.put_back()?;
        }
        Fault::SlowLink { delay, loss, span } => injury.slow_down(topology, delay, loss, span)?,
        Fault::StaleForce(side) => injury.kill_and_start(pair, on(side), Wrongly::Force(term))?,
        Fault::Stranger(span) => injury.said = Some(stranger::speak(pair, topology, span, term)?),
        Fault::Suspended(span) => {
            pair.host(primary).api(&["ft", "suspend"])?;
            (injury.suspended, injury.span) = (Some(primary), Some(span));
        }
        Fault::Switchover => drop(pair.host(primary).api(&["ft", "switchover", "--no-wait"])?),
        Fault::TestFailover => drop(pair.host(primary).api(&["ft", "test-failover", "--no-wait"])?),
        Fault::UnmountedWitness(side) => injury.kill_and_start(pair, on(side), Wrongly::Unmounted)?,
        Fault::VmmDies(side) => {
            let vmm = &pair.host(on(side)).vmm;
            let mut all: Vec<u32> = vmm.descendants().into_iter().map(|(pid, _)| pid).collect();
            all.push(vmm.pid());
            vmm.signal(Signal::SIGKILL)?;
            // Its device processes must end by themselves.
            wait_gone(&all)?;
        }
        Fault::WitnessAway(how, span) => injury.lose_witness(pair, how, span)?,
    }
    Ok(injury)
}

impl Injury {
    /// Undoes all that can be undone but the loss of the witness. What was killed stays dead, but for a start
    /// that must not succeed.
    ///
    /// # Errors
    /// When something does not go back to what it was.
    pub fn heal(&mut self, pair: &mut Pair, topology: &Topology) -> Result<()> {
        for link in self.links.drain(..) {
            topology.set_link(link, true)?;
            wait::until("traffic on a link that is up again", EFFECT_LIMIT, || {
                topology.round_trip(link, PROBE_LIMIT).map(|back| back.map(|_| ()))
            })?;
        }
        if let Some(link) = self.slow.take() {
            topology.impair(link, None)?;
        }
        if let Some(pid) = self.frozen.take() {
            process::signal_one(pid, Signal::SIGCONT)?;
        }
        if let Some(host) = self.full.take() {
            pair.disk(host).empty()?;
            agent::ask(&topology.client, "rm -f /root/filler")?;
        }
        if let Some(host) = self.suspended.take() {
            pair.host(host).api(&["ft", "resume", "--no-wait"])?;
        }
        if let Some(host) = self.paused.take() {
            resume(pair, topology, host)?;
        }
        match self.wrongly.take() {
            Some((host, Wrongly::Force(term))) => comeback::stale_force(pair, topology, host, term)?,
            Some((host, Wrongly::Unmounted)) => comeback::unmounted_witness(pair, topology, host)?,
            None => {}
        }
        Ok(())
    }

    fn kill_and_start(&mut self, pair: &mut Pair, host: u8, how: Wrongly) -> Result<()> {
        self.wrongly = Some((host, how));
        pair.kill_host(host)
    }

    fn move_paused(&mut self, pair: &mut Pair, primary: u8, how: Move) -> Result<()> {
        pair.host(primary).api(&["pause"])?;
        self.paused = Some(1 - primary);
        match how {
            Move::HostDies => pair.kill_host(primary),
            Move::Switchover => pair.host(primary).api(&["ft", "switchover", "--no-wait"]).map(drop),
        }
    }

    /// The guest has to write where its image has a hole: its clients' writes may find old blocks for a
    /// while.
    fn fill_disk(&mut self, pair: &Pair, topology: &Topology, host: u8) -> Result<()> {
        pair.disk(host).fill()?;
        self.full = Some(host);
        agent::ask(&topology.client, "(head -c 4194304 /dev/urandom >/root/filler; sync) >/dev/null 2>&1 &")?;
        Ok(())
    }

    fn freeze(&mut self, pair: &Pair, host: u8, span: Duration) -> Result<()> {
        let pid = pair.host(host).vmm.pid();
        process::signal_one(pid, Signal::SIGSTOP)?;
        (self.frozen, self.span) = (Some(pid), Some(span));
        wait::until("standstill of the VMM", EFFECT_LIMIT, || Ok(process::stopped(pid).then_some(())))
    }

    fn lose_witness(&mut self, pair: &mut Pair, how: Absence, span: Duration) -> Result<()> {
        self.span = Some(span);
        pair.lose_witness(how)
    }

    fn cut(&mut self, topology: &Topology, links: &[Link], span: Option<Duration>) -> Result<()> {
        self.span = span;
        for link in links {
            topology.set_link(*link, false)?;
            self.links.push(*link);
        }
        for link in links {
            if topology.round_trip(*link, PROBE_LIMIT)?.is_some() {
                return Err(Error::Protocol {
                    from: format!("{link:?} link"),
                    answer: "it is cut, but packets flow".into(),
                });
            }
        }
        Ok(())
    }

    fn slow_down(&mut self, topology: &Topology, delay: Duration, loss: u16, span: Duration) -> Result<()> {
        let netem = format!("delay {}ms loss {}.{}%", delay.as_millis(), loss / 10, loss % 10);
        topology.impair(Link::Replication, Some(&netem))?;
        (self.slow, self.span) = (Some(Link::Replication), Some(span));
        // Each way has the delay; a lost packet makes it longer.
        let back = topology.round_trip(Link::Replication, EFFECT_LIMIT)?;
        if back.is_some_and(|back| back >= delay * 2) {
            return Ok(());
        }
        Err(Error::Protocol { from: "slow link".into(), answer: format!("a round trip took {back:?}") })
    }
}

/// The VM that has come to `host` is paused, says nothing beyond the announcements of its new place, and goes
/// on when it is told to.
fn resume(pair: &Pair, topology: &Topology, host: u8) -> Result<()> {
    wait::steady("silence of the paused VM", PAUSE, EFFECT_LIMIT, || topology.frames_from_vm(host))?;
    let state = pair.host(host).state()?;
    if state != "Paused" {
        let answer = format!("it was paused, and is {state}");
        return Err(Error::Protocol { from: "the VM".into(), answer });
    }
    pair.host(host).api(&["resume"]).map(drop)
}

fn kill_device(pair: &Pair, host: u8, device: Device) -> Result<()> {
    let name = match device {
        Device::Disk => "vhost-user-blk",
        Device::Network => "vhost-user-net",
    };
    let all = pair.host(host).vmm.descendants();
    let found = all.iter().find(|(_, program)| program.starts_with(name));
    let (pid, _) = found.ok_or_else(|| Error::Protocol { from: "process list".into(), answer: format!("{all:?}") })?;
    process::signal_one(*pid, Signal::SIGKILL)?;
    wait_gone(&[*pid])
}
