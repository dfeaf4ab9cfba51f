//! Hosts that were configured with a policy in place of a witness: who starts the VM when a host is back, by
//! the engine's own rules; the operator who has it started when no host can know; and the two that run it
//! where the policy permits that.

use std::net::SocketAddr;
use std::time::Duration;

use ft::sim::{Answer, part_by};
use ft::{Candidate, NodeOptions, Part, StartRole};
use ft_proto::witness::{DiskState, Disks, Record, Replicas};
use ft_proto::{HostId, LinkId, NodeId, OnPartition, State, Term, Time};

use crate::ids::VM;
use crate::invariants::Moment;
use crate::mutation::Mutation;
use crate::network::host_at;
use crate::process::{Address, Delivery, Host};
use crate::world::{End, Event, World};

/// How long nobody may run the VM before an operator looks after it.
const AWAY: Duration = Duration::from_millis(400);

impl World {
    /// The policy that all hosts were given.
    pub(crate) fn policy(&self) -> Option<OnPartition> {
        self.plan.settings.on_partition
    }

    /// The process of a host is started.
    pub(crate) fn start_by_itself(&mut self, host: usize, force: Option<Term>) {
        let others = (0..self.plan.hosts).filter(|other| *other != host);
        let name = HostId::numbered(host as u64);
        let options = NodeOptions {
            role: StartRole::Auto,
            standby: Some(self.plan.stand_by(host)),
            peers: others.map(|other| self.plan.protect_by(other)).collect(),
            node: Some(name),
            force,
            ..NodeOptions::default()
        };
        let disks = Disks { vm: Some(VM), state: self.hosts[host].disk_state(self.mutation) };
        let me = Candidate { host: name, disks, boots: false, waited: false };
        let ask =
            |peers: Vec<SocketAddr>, _, _| peers.into_iter().map(|peer| self.told_by(host, peer)).collect::<Vec<_>>();
        let decided = part_by(&options, me, &ask);
        let refused = force.is_none() && self.refuse(disks.state);
        match decided {
            Ok(Part::Run(granted)) if !refused => {
                let node = NodeId::numbered(host as u64, self.rng.word());
                self.start(host, node, granted.term);
            }
            Ok(Part::StandBy(_)) => self.start_standby(host),
            // The process ends with an error, and is started again.
            Ok(Part::Run(_)) | Err(_) => {
                let again = self.rng.micros(20_000, 60_000);
                self.after(again, Event::Restart(host));
            }
        }
    }

    /// Whether the disk processes refuse to serve a VM that nobody has given to this host.
    fn refuse(&self, disks: DiskState) -> bool {
        !matches!(disks, DiskState::Fresh | DiskState::Alone(_) | DiskState::Ended(_))
            && self.mutation != Some(Mutation::ServeAnyImage)
    }

    /// What another host says when it is asked what it does.
    fn told_by(&self, host: usize, peer: SocketAddr) -> Answer {
        let other = host_at(peer);
        let blocked = |from, to| self.network.is_blocked(from, to, LinkId::Replication, self.now);
        let deaf = blocked(host, other) || blocked(other, host) || self.hosts[other].full_until > self.now;
        let process = self.hosts[other].process.as_ref().filter(|process| !deaf && process.is_awake(self.now));
        Answer { peer, standing: process.map(|process| process.executor.standing()), unproven: None }
    }

    /// An operator looks whether anybody runs the VM, and has the newest disks run it if that goes on for
    /// long.
    pub(crate) fn look_after_vm(&mut self) {
        if self.policy().is_none() || self.is_served() {
            self.away_since = None;
            return;
        }
        if self.now.since(*self.away_since.get_or_insert(self.now)) < AWAY {
            return;
        }
        self.away_since = None;
        // Whoever misses a disk finds it first.
        let Some((host, term)) = self.newest_disks().filter(|(host, _)| !self.is_mislaid(*host)) else { return };
        self.note(host, || format!("operator has it run the VM that nobody runs: force={term}"));
        self.kill(host, true);
        self.hosts[host].down = true;
        self.start_by_itself(host, Some(term));
    }

    /// Whether somebody runs the VM, or will soon.
    fn is_served(&self) -> bool {
        // By this policy a standby takes over only if its primary has yielded, and the word may be under way.
        let by_itself = self.policy() != Some(OnPartition::Primary);
        let is_fenced = |peer: NodeId| {
            let mut processes = self.hosts.iter().filter_map(|host| host.process.as_ref());
            processes.any(|process| process.id() == peer && process.state() == State::Fenced)
        };
        self.hosts.iter().enumerate().filter_map(|(at, host)| Some((at, host.process.as_ref()?))).any(
            |(at, process)| {
                let yielded = process.executor.node().peer().is_some_and(is_fenced);
                // Of a primary that has ended since, or was started again.
                let hears = self.has_unread((at, process.incarnation));
                let will = process.state() == State::StandbyReady && (by_itself || yielded || hears);
                (process.runs() || will) && !process.is_broken() && !process.ending
            },
        )
    }

    /// Whether something that was said to this process is still under way, or waits for an engine that does
    /// not get to run.
    fn has_unread(&self, process: Address) -> bool {
        let waiting = self.hosts[process.0].process.iter().flat_map(|process| &process.waiting);
        if waiting.into_iter().any(|delivery| matches!(delivery, Delivery::Message(_))) {
            return true;
        }
        self.network.streams.values().any(|stream| {
            let own = stream.ends.iter().position(|end| end.open && (end.host, end.incarnation) == process);
            own.is_some_and(|own| !stream.lanes[1 - own].segments.is_empty())
        })
    }

    /// Where an operator finds the newest disks, by their records.
    pub(crate) fn newest_disks(&self) -> Option<(usize, Term)> {
        let states = self.hosts.iter().map(Host::true_disk_state).enumerate();
        let newest = states.filter_map(|(host, state)| match state {
            DiskState::Alone(term) | DiskState::Ended(term) | DiskState::Protected(term) => Some((term, true, host)),
            DiskState::Copy(term) => Some((term, false, host)),
            DiskState::None | DiskState::Fresh | DiskState::Hole | DiskState::Unusable => None,
        });
        newest.max().map(|(term, _, host)| (host, term))
    }

    /// Who may go on with the VM, as whoever says something outside believes. What it believes wrongly shows
    /// when another one runs.
    pub(crate) fn believed(&self, node: NodeId) -> Option<Record> {
        let mut processes = self.hosts.iter().filter_map(|host| host.process.as_ref());
        let process = processes.find(|process| process.id() == node)?;
        let term = process.term();
        let peer = process.executor.node().peer().filter(|_| process.state() == State::Protected);
        Some(match peer {
            Some(peer) => Record::Protected { primary: node, in_sync: Replicas::one(peer), term },
            None => Record::Solo { owner: node, term, since: term },
        })
    }

    /// A node runs the VM from now on. Where the policy permits that another one does, or went on alone
    /// before it ended, and they could not hear each other, there is nothing more to see.
    pub(crate) fn runs_beside(&mut self, address: Address) {
        let Some(process) = self.process(address).filter(|process| process.runs()) else { return };
        let (node, term) = (process.id(), process.term());
        let before = self.ran_in.insert(address.0, term);
        if self.policy() != Some(OnPartition::Both) || before == Some(term) {
            return;
        }
        let runs = |host: usize| {
            let process = self.hosts[host].process.as_ref();
            process.is_some_and(|process| process.runs() && !process.is_broken())
        };
        let ran = |host: usize| self.ran_in.get(&host).is_some_and(|ran| *ran >= term);
        let others = (0..self.plan.hosts).filter(|host| *host != address.0);
        let Some(other) = others.into_iter().find(|host| runs(*host) || ran(*host)) else { return };
        let since = self.now - 3 * self.plan.settings.silence.unwrap_or_default();
        let disturbed = |from, to| self.truth.disturbed.get(&(from, to)).is_some_and(|until: &Time| *until >= since);
        // Random loss and long delays silence a healthy peer once in a while.
        let noisy = self.plan.loss > 10_000 || self.plan.aimed > 0;
        if noisy || disturbed(other, address.0) || disturbed(address.0, other) {
            self.trace.line(self.now, || "FORKED, as the policy permits".to_owned());
            self.end.get_or_insert(End::Forked);
        } else {
            self.moment(Moment::Beside { node });
        }
    }
}
