//! Drives the engine of a process: gives it what waits, and lets what it does happen.
//!
//! ```text
//! waiting, inbox --> executor (real) --> effects --> outbox --> world
//!                      '-- spends time: busy until then, and effects happen by then
//! ```

use std::time::Duration;

use ft::sim::{DeviceKey, Executor, Message};
use ft_proto::witness::{Claim, Record, Replicas};
use ft_proto::{Epoch, State, Time};
use ft_wire::device_ctl::{Command, Report};

use crate::body::{Body, Effect, Question};
use crate::guest::Frame;
use crate::ids::{NIC, disk_at};
use crate::invariants::Moment;
use crate::mutation::Mutation;
use crate::network::Payload;
use crate::platform::Sim;
use crate::process::{Address, Asks, Delivery, Host, Process};
use crate::truth::Cut;
use crate::world::{Event, World, name};

/// An engine that is woken so many times in a row for what is due already waits for something else.
const SPINS: u32 = 1000;

impl World {
    /// Leaves something for an engine, which works on it if it can.
    pub(crate) fn tell(&mut self, address: Address, delivery: Delivery) {
        let Some(process) = self.process(address) else { return };
        process.waiting.push_back(delivery);
        self.work(address);
    }

    /// Somebody says something to an engine.
    pub(crate) fn say_to(&mut self, address: Address, message: Message<Sim>) {
        self.tell(address, Delivery::Message(Box::new(message)));
    }

    /// Works until there is nothing to do, or the thread is busy.
    pub(crate) fn work(&mut self, address: Address) {
        let now = self.now;
        let mut through = false;
        while self.end.is_none() {
            let Some(process) = self.process(address).filter(|process| process.is_awake(now)) else { return };
            match next(process) {
                Some(delivery) => {
                    through = false;
                    self.deliver(address, delivery);
                }
                None if through => break,
                None => {
                    through = true;
                    self.call(address, |executor| {
                        executor.publish_if_due();
                        executor.look_around();
                    });
                }
            }
        }
        self.arm_timer(address);
    }

    fn deliver(&mut self, address: Address, delivery: Delivery) {
        match delivery {
            Delivery::Beat { link, at, beat } => {
                self.say(address, Message::Beat(link, at, beat));
            }
            Delivery::Stream => self.call(address, Executor::read_stream),
            Delivery::Report(device) => {
                self.call(address, |executor| executor.read_device(DeviceKey::from_number(device as u64)));
            }
            Delivery::Message(message) => self.say(address, *message),
            Delivery::Timer => self.look_at_clock(address),
        }
    }

    fn say(&mut self, address: Address, message: Message<Sim>) {
        // Nobody tells it to quit.
        self.call(address, |executor| {
            let _ = executor.message(message);
        });
    }

    fn look_at_clock(&mut self, address: Address) {
        let local = self.local(address.0);
        let Some(process) = self.process(address) else { return };
        process.timer.1 = None;
        let catch_up = process.body().has(Mutation::CatchUpClock) && process.executor.node().peer().is_some();
        let mut at = if catch_up { process.looked } else { local };
        while at < local {
            self.call_at(address, at, Executor::timer_fired);
            at = at + Duration::from_millis(10);
        }
        self.call(address, Executor::timer_fired);
    }

    pub(crate) fn call(&mut self, address: Address, work: impl FnOnce(&mut Executor<Sim>)) {
        let local = self.local(address.0);
        self.call_at(address, local, work);
    }

    /// The engine works, at this time by its clock.
    fn call_at(&mut self, address: Address, local: Time, work: impl FnOnce(&mut Executor<Sim>)) {
        let now = self.now;
        let Some(process) = self.process(address) else { return };
        process.looked = local;
        begin(&mut process.body(), now, local);
        work(&mut process.executor);
        let (spent, effects) = {
            let mut body = process.body();
            (body.spent, std::mem::take(&mut body.effects))
        };
        process.outbox.extend(effects.into_iter().map(|(spent, effect)| (now + spent, effect)));
        let any = |what: fn(&Effect) -> bool| process.outbox.iter().any(|(_, effect)| what(effect));
        let claims = any(|effect| matches!(effect, Effect::Ask(Question::Claim(_), _)));
        let has_base = any(|effect| matches!(effect, Effect::Applied { epoch: Epoch(1), .. }));
        let did = !process.outbox.is_empty();
        if spent > Duration::ZERO {
            process.busy_until = now + spent;
            let until = process.busy_until;
            self.at(until, Event::Wake(address));
        }
        self.flush(address);
        if did {
            // Nothing is worth so much trouble as a claim, or a copy that nobody knows of yet.
            self.aimed_fault(address.0, if claims { 20 } else { 1 });
        }
        if has_base {
            self.aim_at_peer(address);
        }
    }

    /// A primary may go just before its standby is on record.
    fn aim_at_peer(&mut self, address: Address) {
        let peer = self.process(address).and_then(|process| process.executor.node().peer());
        let is_peer = |host: &Host| host.process.as_ref().is_some_and(|process| Some(process.id()) == peer);
        if let Some(host) = self.hosts.iter().position(is_peer) {
            self.aimed_death(host, 120);
        }
    }

    /// What is due by now happens.
    pub(crate) fn flush(&mut self, address: Address) {
        let now = self.now;
        while let Some(process) = self.process(address).filter(|process| process.paused_until <= now) {
            let Some((_, effect)) = process.outbox.pop_front_if(|(due, _)| *due <= now) else { break };
            self.happens(address, effect);
        }
        let Some(process) = self.process(address) else { return };
        let (node, term) = (process.id(), process.term());
        let leftover = process.leftover();
        if process.runs() && process.ran.replace(term) != Some(term) {
            self.runs_beside(address);
            self.moment(Moment::Runs { node, term });
        }
        if let Some(what) = leftover {
            self.moment(Moment::LeftOver { node, what });
        }
    }

    pub(crate) fn happens(&mut self, address: Address, effect: Effect) {
        match effect {
            Effect::Key(key) => self.beats_of(address, |beats| beats.key = key),
            Effect::Say(term, runs) => {
                self.beats_of(address, |beats| beats.said = (term, runs));
                self.send_beats(address);
            }
            Effect::Route(to, interval) => self.route_beats(address, to, interval),
            Effect::Write(stream, bytes) => self.send(address.0, stream, Payload::Bytes(bytes)),
            Effect::Close(stream) => self.close(address.0, stream),
            Effect::Readable(stream) => self.readable(address, stream),
            Effect::Cut(session, epoch, cut, last) => {
                // A cut before this one may have let it go on meanwhile, in the same call of the engine.
                self.with_body(address, |body| body.guest.stopped = true);
                self.was_cut(address, (session, epoch), cut, last);
            }
            Effect::GoesOn => self.with_body(address, |body| body.guest.stopped = false),
            Effect::Applied { session, epoch, digest, idle } => self.applied(address, (session, epoch), digest, &idle),
            Effect::Starts { session, epoch } => self.taken_over(address, session, epoch),
            Effect::Fenced(reason) => self.fenced(address, &reason),
            Effect::Unusable => {
                if let Some(process) = self.process(address) {
                    process.unusable = true;
                }
            }
            Effect::DiskEnd(disk, epoch) => self.disk_end(address, disk, epoch),
            Effect::Command(NIC, command) => {
                let mut frames = self.command_nic(address, &command);
                frames.extend(self.send_waiting(address));
                if let Command::Release(release) = &command {
                    self.note(address.0, || format!("-> release {} ({} frames)", release.epoch(), frames.len()));
                }
                self.leave_host(address, frames);
            }
            Effect::Print(frames) => self.leave_host(address, frames),
            Effect::Command(device, command) => {
                if let Some(disk) = disk_at(device) {
                    self.command_disk(address, disk, &command);
                }
            }
            Effect::Connect(disk, command, stream) => self.connect_disk(address, disk, &command, stream),
            Effect::Ask(question, answer) => self.ask(address, question, answer),
            Effect::Open(opening) => self.open(address, opening),
            Effect::Dial(peer, slot) => {
                let (low, high) = self.plan.delay_us;
                let delay = self.rng.micros(low, high);
                self.after(delay, Event::Dial(address, peer, slot));
            }
            Effect::Greet(stream, slot) => {
                if let Some(process) = self.process(address) {
                    process.greetings.insert(stream, slot);
                }
            }
            Effect::Later(after, call) => self.after(after, Event::Later(address, call)),
            Effect::Forbidden(what) => self.forbidden(address, what),
            Effect::Told(event) => self.note(address.0, || format!("-> {event}")),
        }
    }

    pub(crate) fn with_body(&mut self, address: Address, change: impl FnOnce(&mut Body)) {
        if let Some(process) = self.process(address) {
            change(&mut process.body());
        }
    }

    /// Another thread of the process is through with something.
    pub(crate) fn later(&mut self, address: Address, call: crate::body::Later) {
        let now = self.now;
        let Some(process) = self.process(address) else { return };
        if process.paused_until > now {
            let until = process.paused_until;
            return self.at(until, Event::Later(address, call));
        }
        call();
        self.go_on_opening(address);
        self.work(address);
    }

    /// The engine may not do this.
    pub(crate) fn forbidden(&mut self, address: Address, what: String) {
        let Some(process) = self.process(address) else { return };
        let node = process.id();
        self.moment(Moment::Forbidden { node, what });
    }

    fn ask(&mut self, address: Address, question: Question, answer: crate::body::Answer) {
        let now = self.now;
        if let (Question::Claim(claim), Some(process)) = (question, self.process(address)) {
            let (peer, claimed) = (process.executor.node().peer(), process.claimed);
            match (claim, claimed) {
                (Claim::TakeOver { primary, .. }, None | Some((_, _, true))) => {
                    process.claimed = Some((now, peer.unwrap_or(primary), false));
                }
                (Claim::Withdraw { .. }, Some((at, primary, false))) => {
                    process.claimed = Some((at, primary, true));
                    self.withdrawals += 1;
                }
                _ => {}
            }
        }
        self.ask_witness(address, question, Asks::Engine(answer));
    }

    /// A host that runs the VM looks at the record now and then, more often than the engine does by itself.
    pub(crate) fn tell_record(&mut self, address: Address, record: Option<Record>) {
        let Some(process) = self.process(address) else { return };
        let at_once = process.body().has(Mutation::RestoreWithoutAck) && record.is_none();
        let node = process.executor.node();
        if let Some(standby) = node.peer().filter(|_| at_once && node.state() == State::Protected) {
            let claim = Claim::Restore { primary: node.id(), in_sync: Replicas::one(standby), term: node.term() };
            self.ask_witness(address, Question::Claim(claim), Asks::Engine(Box::new(drop)));
        }
        let stored = record.map(|record| ft::Stored { vm: Some(crate::ids::VM), record });
        self.say_to(address, Message::RecordRead(Ok(stored)));
    }

    fn was_cut(&mut self, address: Address, of: (u64, Epoch), cut: Cut, last: bool) {
        self.truth.cuts.insert(of, cut);
        self.note(address.0, || format!("-> cut {} at {:?}", of.1, cut.at));
        if last {
            // A VM that is about to move may have to stay.
            let host = self.rng.index(self.plan.hosts);
            self.aimed_fault(host, 100);
        }
    }

    fn fenced(&mut self, address: Address, reason: &str) {
        let record = self.witness.record;
        let Some(process) = self.process(address) else { return };
        let node = process.id();
        process.body().guest.running = false;
        if record.is_some_and(|record| matches!(record, Record::Solo { owner, .. } if owner == node))
            && !reason.starts_with("there is no")
            && !process.is_broken()
        {
            self.moment(Moment::Fenced { node, reason: reason.to_owned() });
        }
    }

    pub(crate) fn arm_timer(&mut self, address: Address) {
        let (ahead, local) = (self.hosts[address.0].ahead, self.local(address.0));
        let Some(process) = self.process(address) else { return };
        let next = process.executor.due();
        if next == process.timer.1 {
            return;
        }
        process.timer.0 += 1;
        process.timer.1 = next;
        let generation = process.timer.0;
        let overdue = next.is_some_and(|next| next <= local);
        process.overdue = if overdue { process.overdue + 1 } else { 0 };
        if process.overdue > SPINS {
            let node = process.id();
            self.moment(Moment::Spins { node });
        }
        if let Some(next) = next {
            let at = Time(next.0.saturating_sub(ahead.as_nanos() as u64));
            self.at(at.max(Time(self.now.0 + 1)), Event::Timer(address, generation));
        }
    }

    pub(crate) fn timer(&mut self, address: Address, generation: u64) {
        if self.process(address).is_some_and(|process| process.timer.0 == generation) {
            self.tell(address, Delivery::Timer);
        }
    }

    /// A pause, a stall or a wait may be over.
    pub(crate) fn wake(&mut self, address: Address) {
        let (now, local) = (self.now, self.local(address.0));
        let Some(process) = self.process(address) else { return };
        if process.paused_until > now {
            return;
        }
        // Datagrams waited in the kernel: they are read, and timed, only now.
        let paused = process.paused_until == now;
        for delivery in &mut process.waiting {
            if let Delivery::Beat { at, .. } = delivery
                && paused
            {
                *at = local;
            }
        }
        self.flush(address);
        self.go_on_opening(address);
        self.work(address);
    }

    pub(crate) fn command_nic(&mut self, address: Address, command: &Command) -> Vec<Frame> {
        let mutation = self.mutation;
        let Some(process) = self.process(address) else { return Vec::new() };
        let mut body = process.body();
        if body.links[NIC].broken { Vec::new() } else { body.nic.command(command, mutation) }
    }

    /// What the guest has sent while its card was sealed, now that it is not.
    fn send_waiting(&mut self, address: Address) -> Vec<Frame> {
        let Some(process) = self.process(address) else { return Vec::new() };
        let sent: Vec<_> = {
            let mut body = process.body();
            let waiting = body.nic.take_waiting();
            waiting.into_iter().map(|frame| body.nic.send(frame)).collect()
        };
        let mut out = Vec::new();
        for (frame, report) in sent {
            out.extend(frame);
            if let Some(report) = report {
                self.report_later(address, NIC, report);
            }
        }
        out
    }

    /// Frames leave a host: from here on they cannot be taken back.
    pub(crate) fn leave_host(&mut self, address: Address, frames: Vec<Frame>) {
        let Some(process) = self.process(address) else { return };
        let (node, term) = (process.id(), process.term());
        for frame in frames {
            self.trace.line(self.now, || format!("{} ** {frame:?}", name(address.0)));
            self.moment(Moment::Visible { node, term, frame });
            if !self.rng.chance(self.plan.loss) {
                let delay = self.rng.micros(20, 300);
                self.after(delay, Event::Reply(frame));
            }
        }
    }

    /// A device reports: the message takes a moment.
    pub(crate) fn report_later(&mut self, address: Address, device: usize, report: Report) {
        let (now, delay) = (self.now, self.rng.micros(3, self.plan.lag_us));
        let Some(process) = self.process(address) else { return };
        process.last_report = process.last_report.max(now + delay);
        let due = process.last_report;
        self.at(due, Event::Report(address, device, report));
    }

    pub(crate) fn reported(&mut self, address: Address, device: usize, report: Report) {
        self.with_body(address, |body| body.links[device].reports.push_back(report));
        self.tell(address, Delivery::Report(device));
    }

    /// When a disk request that comes now costs its time.
    pub(crate) fn disk_latency(&mut self, host: usize, disk: usize) -> Duration {
        if self.hosts[host].drives[disk].slow_until > self.now {
            self.rng.micros(3000, 30_000)
        } else {
            let (low, high) = self.plan.disk_us;
            self.rng.micros(low, high)
        }
    }

    /// The guest can execute.
    pub(crate) fn guest_can(process: &Process, now: Time) -> bool {
        process.guest_runs(now) && !process.is_broken()
    }
}

/// What the engine's thread does next: beats that have arrived are told before the clock is looked at.
fn next(process: &mut Process) -> Option<Delivery> {
    let not_the_clock = process.waiting.iter().position(|delivery| !matches!(delivery, Delivery::Timer));
    if let Some(at) = not_the_clock {
        return process.waiting.remove(at);
    }
    process.inbox.acknowledge();
    let message = process.inbox.next().map(|message| Delivery::Message(Box::new(message)));
    message.or_else(|| process.waiting.pop_front())
}

/// A thread begins to work. Returns what there was before.
pub(crate) fn begin(body: &mut Body, now: Time, local: Time) -> (Time, Time, Duration) {
    let before = (body.now, body.local, body.spent);
    (body.now, body.local, body.spent) = (now, local, Duration::ZERO);
    before
}
