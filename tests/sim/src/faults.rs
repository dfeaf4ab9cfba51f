//! What goes wrong, when, and how it ends.

use std::time::Duration;

use ft_proto::witness::Record;
use ft_proto::{LinkId, NodeId, State, Time};

use ft::sim::Message;

use crate::guest::disk_of;
use crate::ids::IDS;
use crate::invariants::Moment;
use crate::operators::nobody;
use crate::plan::Fault;
use crate::process::{Delivery, Host};
use crate::world::{End, Event, World, name};

/// After the faults, a pair must be protected within this time.
pub(crate) const BOUND: Duration = Duration::from_secs(6);
/// How long the witness stays away after a process goes on: long enough for claims to find no answer.
const BLIND: Duration = Duration::from_secs(1);
/// How long a protected pair is watched before a run ends.
const AFTERGLOW: Duration = Duration::from_millis(60);

impl World {
    /// One fault, and the time of the next.
    pub(crate) fn fault(&mut self) {
        if self.healed_at.is_some() {
            return;
        }
        let gap = self.rng.micros(1000, self.plan.fault_gap_us);
        self.after(gap, Event::Fault);
        let host = self.rng.index(self.plan.hosts);
        self.strike(host);
    }

    /// A fault at the very moment at which a node acts; so many times as likely as at others.
    pub(crate) fn aimed_fault(&mut self, host: usize, weight: u64) {
        if self.healed_at.is_none() && self.plan.aimed > 0 && self.rng.chance(weight * self.plan.aimed) {
            self.strike(host);
        }
    }

    /// A host may die at the very moment at which its standby has a copy that is not on record, if hosts die
    /// in this run.
    pub(crate) fn aimed_death(&mut self, host: usize, weight: u64) {
        if self.healed_at.is_none() && self.plan.aimed > 0 && self.rng.chance(weight * self.plan.aimed) {
            let dies = |fault: &Fault| matches!(fault, Fault::Kill | Fault::PowerLoss);
            match self.plan.faults.iter().copied().find(dies) {
                Some(fault) => self.strike_with(fault, host),
                None => self.strike(host),
            }
        }
    }

    fn strike(&mut self, host: usize) {
        let fault = self.plan.faults[self.rng.index(self.plan.faults.len())];
        self.strike_with(fault, host);
    }

    fn strike_with(&mut self, fault: Fault, host: usize) {
        let other = (host + 1 + self.rng.index(self.plan.hosts - 1)) % self.plan.hosts;
        let until = self.now + self.rng.spread_millis(2, self.plan.fault_max_ms);
        let both_ways = self.rng.chance(600_000);
        match fault {
            Fault::CutLink => {
                let link = LinkId::ALL[self.rng.index(2)];
                self.cut_links(host, other, &[link], both_ways, until);
            }
            Fault::Partition => self.cut_links(host, other, &LinkId::ALL, both_ways, until),
            Fault::Kill | Fault::PowerLoss => {
                if self.survivable(host) {
                    self.note(host, || format!("FAULT {fault:?}"));
                    self.kill(host, fault == Fault::Kill);
                    self.at(until, Event::Restart(host));
                }
            }
            Fault::Pause => self.pause(host, until),
            Fault::BlindPause => {
                self.cut_witness(host, true, until + BLIND);
                self.pause(host, until);
            }
            Fault::EngineStall => self.stall(host, until),
            Fault::ClockJump => {
                let jump = self.rng.spread_millis(1, 4000);
                self.note(host, || format!("FAULT clock jumps by {jump:?}"));
                self.disturb_all(host, self.now);
                self.hosts[host].ahead += jump;
                let address = self.address(host);
                if let Some(process) = self.process(address) {
                    process.timer.1 = None;
                }
                self.arm_timer(address);
            }
            Fault::WitnessDown => self.cut_witness(host, both_ways, until),
            Fault::SlowDisk => {
                let disk = self.rng.index(self.plan.disks);
                self.note(host, || format!("FAULT slow disk {disk}"));
                self.hosts[host].drives[disk].slow_until = until;
            }
            Fault::HangDisk => {
                let disk = self.rng.index(self.plan.disks);
                self.note(host, || format!("FAULT process of disk {disk} hangs"));
                self.hosts[host].drives[disk].hung_until = until;
            }
            Fault::BreakStream | Fault::CorruptStream | Fault::StallStream => self.hurt_stream(fault, until),
            Fault::DeviceFailure => self.break_device(host),
            Fault::StopProtection => self.order(host, "stops the protection", Message::Stop(nobody())),
            Fault::SuspendProtection => self.order(host, "suspends the protection", Message::Suspend(nobody())),
            Fault::HandOver => {
                let reason = "a disk is slow".to_owned();
                self.order(host, "hands the VM over", Message::HandOver(reason, nobody()));
            }
            Fault::Switchover => self.order(host, "moves the VM", Message::Switchover(nobody())),
            Fault::ShutDown => self.shut_vm_down(host, until),
            Fault::TestFailover => self.test_failover(host),
            other => self.strike_from_outside(other, host, until),
        }
    }

    fn cut_links(&mut self, from: usize, to: usize, links: &[LinkId], both_ways: bool, until: Time) {
        let arrow = if both_ways { "<->" } else { "->" };
        let text = format!("FAULT {}{arrow}{} {links:?} until {:?}", name(from), name(to), self.until(until));
        self.trace.line(self.now, || text);
        for link in links {
            self.network.block(from, to, *link, until);
            if both_ways {
                self.network.block(to, from, *link, until);
            }
        }
        if links.len() > 1 {
            self.truth.disturb(from, to, until);
        }
        if both_ways || links.contains(&LinkId::Replication) {
            // A primary that lost the replication link may leave; its beats then say something else.
            self.truth.disturb(to, from, until);
            self.truth.disturb(from, to, until);
        }
    }

    fn until(&self, until: Time) -> Duration {
        until.since(crate::trace::BEGIN)
    }

    fn disturb_all(&mut self, host: usize, until: Time) {
        (0..self.plan.hosts).for_each(|to| self.truth.disturb(host, to, until));
    }

    /// The process on a host ends; `tell`: its kernel says so.
    pub(crate) fn kill(&mut self, host: usize, tell: bool) {
        let now = self.now;
        self.disturb_all(host, now);
        let host_state = &mut self.hosts[host];
        let Some(process) = host_state.process.take() else { return };
        // What the disks were given but had not done is lost.
        let disks = &mut process.body().disks;
        disks.iter_mut().zip(&mut host_state.drives).for_each(|(disk, drive)| disk.settle(now, &mut drive.image));
        host_state.down = true;
        self.close_all((host, process.incarnation), tell);
    }

    pub(crate) fn restart(&mut self, host: usize) {
        if !self.hosts[host].down {
            return;
        }
        self.disturb_all(host, self.now);
        if self.policy().is_some() {
            self.start_by_itself(host, None);
        } else {
            self.start_standby(host);
        }
    }

    fn pause(&mut self, host: usize, until: Time) {
        self.note(host, || "FAULT paused".to_owned());
        self.disturb_all(host, until);
        let address = self.address(host);
        if let Some(process) = self.process(address) {
            process.paused_until = process.paused_until.max(until);
            let until = process.paused_until;
            self.at(until, Event::Wake(address));
        }
    }

    fn stall(&mut self, host: usize, until: Time) {
        self.note(host, || "FAULT engine stalls".to_owned());
        let address = self.address(host);
        if let Some(process) = self.process(address) {
            process.stalled_until = process.stalled_until.max(until);
            let until = process.stalled_until;
            self.disturb_all(host, until);
            self.at(until, Event::Wake(address));
        }
    }

    fn cut_witness(&mut self, host: usize, everybody: bool, until: Time) {
        let who = if everybody { "everybody".to_owned() } else { name(host).to_string() };
        let text = format!("FAULT witness unreachable for {who} until {:?}", self.until(until));
        self.trace.line(self.now, || text);
        if everybody {
            self.witness.down_until = until;
        } else {
            self.hosts[host].witness_cut_until = until;
        }
    }

    fn hurt_stream(&mut self, fault: Fault, until: Time) {
        let count = self.network.streams.len();
        if count == 0 {
            return;
        }
        let at = self.rng.index(count);
        let lane = self.rng.index(2);
        let Some((&id, stream)) = self.network.streams.iter_mut().nth(at) else { return };
        let hosts = stream.ends.map(|end| end.host);
        self.trace.line(self.now, || format!("FAULT {fault:?} {id} between {hosts:?}"));
        match fault {
            Fault::BreakStream => self.break_stream(id),
            Fault::CorruptStream => self.corrupt_stream(id, lane),
            _ => stream.lanes[lane].stalled_until = until,
        }
    }

    /// Refused by the engine when there is no standby to fail over to.
    fn test_failover(&mut self, host: usize) {
        let address = self.address(host);
        if self.survivable(host) && self.process(address).is_some_and(|p| p.state() == State::Protected) {
            self.note(host, || "operator tests a failover".to_owned());
            self.disturb_all(host, self.now);
            self.after(Duration::ZERO, Event::Tell(address, Box::new(Message::TestFailover(nobody()))));
        }
    }

    fn break_device(&mut self, host: usize) {
        let address = self.address(host);
        if !self.survivable(host) {
            return;
        }
        let Some(process) = self.process(address) else { return };
        // Of an unprotected VM nothing is left to test when its disk dies, unless that is about to be copied.
        let idle = process.state() == State::Solo && process.opening.is_none();
        if process.is_broken() || idle || process.state() == State::Fenced {
            return;
        }
        let device = self.rng.index(self.plan.disks + 1);
        self.with_body(address, |body| body.links[device].broken = true);
        self.note(host, || format!("FAULT device process of {} dies", IDS[device]));
        self.tell(address, Delivery::Report(device));
    }

    /// Whether the VM has another copy if this host dies now.
    pub(crate) fn survivable(&self, host: usize) -> bool {
        if self.plan.double_failures {
            return true;
        }
        let Some(process) = &self.hosts[host].process else { return false };
        let id = process.id();
        let fit = |node: NodeId, ready: bool| {
            self.hosts.iter().filter_map(|host| host.process.as_ref()).any(|process| {
                let state = process.state();
                let ready = if ready { state == State::StandbyReady } else { process.runs() };
                process.id() == node && ready && !process.is_broken()
            })
        };
        if self.policy().is_some() {
            let mut others = self.hosts.iter().filter_map(|host| host.process.as_ref());
            let peer = process.executor.node().peer();
            return match process.runs() {
                true => peer.is_some_and(|peer| fit(peer, true)),
                false => others.any(|other| other.id() != id && other.runs() && !other.is_broken()),
            };
        }
        match self.witness.last {
            Some(Record::Protected { primary, in_sync, .. }) if primary == id => {
                in_sync.iter().any(|one| fit(one, true))
            }
            Some(Record::Protected { primary, in_sync, .. }) if in_sync.has(id) => fit(primary, false),
            Some(Record::Solo { owner, .. }) => owner != id,
            None => id != self.first_owner,
            Some(_) => true,
        }
    }

    /// All faults end.
    pub(crate) fn heal(&mut self) {
        let now = self.now;
        self.trace.line(now, || "HEAL".to_owned());
        self.healed_at = Some(now);
        self.network.heal();
        self.witness.down_until = now;
        (self.plan.loss, self.plan.witness_loses, self.plan.cut_fails) = (0, 0, 0);
        for host in 0..self.plan.hosts {
            let address = self.address(host);
            self.hosts[host].full_until = now;
            for drive in &mut self.hosts[host].drives {
                (drive.slow_until, drive.full_until, drive.hung_until) = (now, now, now);
            }
            self.at(now, Event::Remount(host));
            self.hosts[host].witness_cut_until = now;
            if self.hosts[host].down {
                let soon = self.rng.micros(1000, 50_000);
                self.after(soon, Event::Restart(host));
            }
            if let Some(process) = self.process(address) {
                process.paused_until = process.paused_until.min(now);
                process.stalled_until = process.stalled_until.min(now);
                let mut body = process.body();
                body.knobs.cut_fails = 0;
                body.disks.iter_mut().for_each(|disk| disk.catch_up(now));
                let requests = body.guest.vcpu.in_flight.clone();
                drop(body);
                let disks = requests.iter().map(|write| disk_of(write.block, self.plan.disks));
                disks.collect::<Vec<_>>().into_iter().for_each(|disk| self.at(now, Event::DiskDone(address, disk)));
            }
            self.wake(address);
        }
        self.after(Duration::from_millis(2), Event::Look);
    }

    /// After the faults: whether the pair is protected and serves, is lost for good, or is late.
    pub(crate) fn look(&mut self) {
        self.after(Duration::from_millis(2), Event::Look);
        self.create_record();
        self.look_after_vm();
        if self.protected_pair().is_none() {
            self.protected_since = None;
        }
        let since = match self.protected_pair() {
            Some(_) => *self.protected_since.get_or_insert(self.now),
            None => self.now,
        };
        if self.client.acknowledged > since && self.now.since(since) > AFTERGLOW {
            self.come_back();
            self.end.get_or_insert(End::Protected);
        } else if let Some(reason) = self.lost() {
            self.trace.line(self.now, || format!("LOST {reason}"));
            self.end = Some(End::Lost(reason));
        } else if let Some(healed) = self.healed_at
            && self.now.since(healed) > BOUND
        {
            let states = self.hosts.iter().map(|host| host.process.as_ref().map(|process| process.state()));
            let states: Vec<_> = states.collect();
            self.moment(Moment::Late { states: format!("{states:?}, witness {:?}", self.witness.record) });
            self.end.get_or_insert(End::Lost("late".to_owned()));
        }
    }

    /// Whether only a human can bring the VM back: nobody runs it, and whose disks are the newest cannot
    /// prove that.
    fn lost(&self) -> Option<String> {
        let here = |node: NodeId| {
            self.hosts.iter().filter_map(|host| host.process.as_ref()).find(|process| process.id() == node)
        };
        let gone = |node: NodeId| here(node).is_none_or(|process| process.is_broken());
        let back = |node: NodeId| self.comes_back(node);
        if self.policy().is_some() {
            let runs =
                |host: &Host| host.process.as_ref().is_some_and(|process| process.runs() && !process.is_broken());
            let served = self.hosts.iter().any(runs) || self.newest_disks().is_some();
            return (!served).then(|| "no disks are left that anybody could start from".to_owned());
        }
        match self.witness.record {
            None if self.witness.last.is_none() => {
                gone(self.first_owner).then(|| "the only owner died before it was on record".to_owned())
            }
            None => {
                let alive = |node: NodeId| here(node).is_some_and(|process| process.runs() && !process.is_broken());
                let runs = match self.witness.last {
                    Some(Record::Solo { owner, .. }) => alive(owner),
                    Some(Record::Protected { primary, .. }) => alive(primary),
                    _ => false,
                };
                (!runs).then(|| "nobody runs the VM, and the record is lost".to_owned())
            }
            Some(Record::Solo { owner, .. }) => {
                (gone(owner) && !back(owner)).then(|| format!("{owner} died while it was alone"))
            }
            Some(Record::Protected { primary, in_sync, .. }) => {
                let yielded = here(primary).is_some_and(|process| process.state() == State::Fenced);
                let both = (gone(primary) || yielded) && in_sync.iter().all(gone);
                (both && !back(primary)).then(|| "both copies died".to_owned())
            }
            Some(Record::Stopped { .. }) => {
                (!self.starts_again()).then(|| "shut down, and the disks that it was run from are gone".to_owned())
            }
        }
    }
}
