//! The model of the engine's thread: works off its inbox, tells the real node, performs what the node
//! decides. Follows `ft/src/engine/mod.rs` step by step; what is synchronous there keeps this thread busy
//! here.

use std::time::Duration;

use ft_proto::device_ctl::{Command, Report};
use ft_proto::witness::{Claim, Record};
use ft_proto::{Action, Epoch, Input, LinkId, State, Time};

use crate::guest::Frame;
use crate::invariants::Moment;
use crate::mutation::Mutation;
use crate::process::{Address, Busy, Message, Process, Session};
use crate::world::{Event, World, name};

impl World {
    /// Puts a message into an inbox and lets the engine work if it can.
    pub(crate) fn tell(&mut self, address: Address, message: Message) {
        let Some(process) = self.process(address) else { return };
        process.inbox.push_back(message);
        self.work(address);
    }

    /// Works until there is nothing to do, or the thread is busy.
    pub(crate) fn work(&mut self, address: Address) {
        let now = self.now;
        while self.end.is_none() {
            let Some(process) = self.process(address) else { return };
            if !process.is_awake(now) {
                return;
            }
            let Some(message) = process.inbox.pop_front() else { break };
            self.consume(address, message);
        }
        self.arm_timer(address);
    }

    fn consume(&mut self, address: Address, message: Message) {
        match message {
            Message::Beat { link, at, beat } => self.input(address, Input::Beat { link, at, beat }),
            Message::MayStart(answer) => self.may_start(address, answer),
            Message::Record(record) => self.record_read(address, record),
            Message::Witness(answer) => self.input(address, Input::Witness(answer)),
            Message::Owned(answer) => self.owned(address, answer),
            Message::OpeningTimeout(number) => self.opening_timeout(address, number),
            Message::Stream(stream, segment) => self.stream_segment(address, stream, segment),
            Message::Report(report) => self.report(address, report),
            Message::DeviceFailed => self.device_failed(address),
            Message::Pump(session) => self.pump(address, session),
            Message::Timer => self.look_at_clock(address),
            Message::Stop => self.input(address, Input::StopRequested),
            Message::Move => self.input(address, Input::SwitchoverRequested),
            Message::SimulateCrash => self.simulate_crash(address),
        }
    }

    /// Tells the node and performs what it decides.
    pub(crate) fn input(&mut self, address: Address, input: Input) {
        let local = self.local(address.0);
        let trace = !matches!(input, Input::Beat { .. } | Input::Timeout | Input::CutWanted);
        let text = if trace { Some(format!("{input:?}")) } else { None };
        let Some(process) = self.process(address) else { return };
        process.looked = local;
        process.node.handle(input, local);
        if let Some(text) = text {
            self.note(address.0, || format!("<- {text}"));
        }
        self.perform_all(address);
    }

    fn look_at_clock(&mut self, address: Address) {
        let local = self.local(address.0);
        let catch_up = self.mutation == Some(Mutation::CatchUpClock);
        let Some(process) = self.process(address) else { return };
        process.timer.1 = None;
        if catch_up && process.node.peer().is_some() {
            let mut at = process.looked;
            while at < local {
                process.node.handle(Input::Timeout, at);
                at = at + Duration::from_millis(10);
            }
        }
        self.input(address, Input::Timeout);
    }

    pub(crate) fn perform_all(&mut self, address: Address) {
        loop {
            self.say(address);
            let Some(process) = self.process(address) else { return };
            if !matches!(process.busy, Busy::No) {
                return;
            }
            let Some(action) = process.node.poll_action() else { return };
            if !matches!(action, Action::Cut { .. } | Action::Release(_) | Action::Commit(_)) {
                self.note(address.0, || format!("-> {action:?}"));
            }
            self.perform(address, action);
            self.aimed_fault(address);
        }
    }

    fn perform(&mut self, address: Address, action: Action) {
        match action {
            Action::Cut { epoch, kind } => self.cut(address, epoch, kind),
            Action::Release(committed) => {
                let frames = self.command_nic(address, &Command::Release((&committed).into()));
                self.note(address.0, || format!("-> release {} ({} frames)", committed.epoch(), frames.len()));
                self.leave_host(address, frames);
                if self.mutation == Some(Mutation::SettleOnAck) {
                    self.settle_on_ack(address, committed.epoch());
                }
            }
            Action::Commit(committed) => self.commit(address, &committed),
            Action::AskWitness(claim) => self.ask(address, claim),
            Action::TakeOver { committed, term } => self.take_over(address, committed, term),
            Action::GoAlone(alone) => self.go_alone(address, &alone),
            Action::Yield => self.yield_to_standby(address),
            Action::Dismiss => unreachable!("there is a witness here"),
            Action::Fence { reason } => self.fence(address, &reason),
            Action::Reset { reason } => self.reset_standby(address, reason),
            Action::Event(_) => {}
        }
    }

    fn ask(&mut self, address: Address, claim: Claim) {
        let now = self.now;
        let Some(process) = self.process(address) else { return };
        let asker = process.asker;
        if let Session::Standby(side) = &mut process.session {
            match claim {
                Claim::TakeOver { .. } if side.claimed_at.is_none() || side.withdrawn => {
                    (side.claimed_at, side.withdrawn) = (Some(now), false);
                }
                Claim::Withdraw { .. } => {
                    self.withdrawals += u64::from(!std::mem::replace(&mut side.withdrawn, true));
                }
                _ => {}
            }
        }
        self.ask_witness(address, asker, claim);
    }

    fn record_read(&mut self, address: Address, record: Option<Record>) {
        let at_once = self.mutation == Some(Mutation::RestoreWithoutAck) && record.is_none();
        if let Some(process) =
            self.process(address).filter(|process| at_once && process.node.state() == State::Protected)
            && let Some(standby) = process.node.peer()
        {
            let (primary, term, asker) = (process.node.id(), process.node.term(), process.asker);
            self.ask_witness(address, asker, Claim::Restore { primary, standby, term });
        }
        self.input(address, Input::RecordRead { record });
    }

    fn fence(&mut self, address: Address, reason: &str) {
        let node = self.process(address).map(|process| process.node.id());
        let record = self.witness.record;
        if let Some(node) =
            node.filter(|node| record.is_some_and(|r| matches!(r, Record::Solo { owner, .. } if owner == *node)))
            && !reason.starts_with("there is no")
            && !reason.starts_with("the disk")
        {
            self.moment(Moment::Fenced { node, reason: reason.to_owned() });
        }
        self.command_nic(address, &Command::Discard { after: Epoch(0) });
        if let Some(process) = self.process(address) {
            process.guest.running = false;
        }
    }

    /// What the beats say must never lag behind what is done.
    fn say(&mut self, address: Address) {
        let Some(process) = self.process(address) else { return };
        let (term, runs, node) = (process.node.term(), process.node.beat().runs, process.node.id());
        if std::mem::replace(&mut process.said, (term, runs)) == (term, runs) {
            return;
        }
        if process.node.runs() {
            self.moment(Moment::Runs { node, term });
        }
        self.send_beats(address);
    }

    fn send_beats(&mut self, address: Address) {
        let Some(process) = self.process(address) else { return };
        let Some(to) = process.route else { return };
        let key = process.key;
        let (term, runs) = process.said;
        let beat = ft_proto::Beat { from: process.node.id(), term, runs };
        if !runs {
            // Its standby has been told.
            let until = self.now;
            self.truth.disturb(address.0, to, until);
        }
        for link in LinkId::ALL {
            if self.network.is_blocked(address.0, to, link, self.now) || self.rng.chance(self.plan.loss) {
                continue;
            }
            for _ in 0..=u32::from(self.rng.chance(self.plan.duplicates)) {
                let (low, high) = self.plan.delay_us;
                let delay = self.rng.micros(low, high);
                self.after(delay, Event::Beat { to, link, key, beat });
            }
        }
    }

    /// The heartbeat thread's own clock.
    pub(crate) fn beat_tick(&mut self, address: Address, generation: u64) {
        let now = self.now;
        let Some(process) = self.process(address).filter(|process| process.beat_generation == generation) else {
            return;
        };
        let (paused, interval) = (process.paused_until, process.beat_interval);
        if paused > now {
            return self.at(paused, Event::BeatTick(address, generation));
        }
        self.send_beats(address);
        self.after(interval, Event::BeatTick(address, generation));
    }

    /// Beats go to that host from now on.
    pub(crate) fn route_beats(&mut self, address: Address, to: usize, interval: Option<Duration>) {
        let Some(process) = self.process(address) else { return };
        process.route = Some(to);
        process.beat_interval = interval.unwrap_or(Duration::from_millis(500));
        process.beat_generation += 1;
        let generation = process.beat_generation;
        self.at(self.now, Event::BeatTick(address, generation));
    }

    /// What is not of this session is dropped before anybody looks at it.
    pub(crate) fn beat_arrives(&mut self, to: usize, link: LinkId, key: u64, beat: ft_proto::Beat) {
        let (address, at) = (self.address(to), self.local(to));
        let fences = self.mutation == Some(Mutation::BeatFences);
        let Some(process) = self.process(address) else { return };
        if fences && beat.runs && beat.term > process.node.term() && process.node.runs() {
            let node = process.node.id();
            return self.moment(Moment::Fenced { node, reason: "a beat of a higher term".to_owned() });
        }
        if process.key != key {
            return;
        }
        self.tell(address, Message::Beat { link, at, beat });
    }

    pub(crate) fn arm_timer(&mut self, address: Address) {
        let ahead = self.hosts[address.0].ahead;
        let Some(process) = self.process(address) else { return };
        let next = process.node.poll_timeout();
        if next == process.timer.1 {
            return;
        }
        process.timer.0 += 1;
        process.timer.1 = next;
        let generation = process.timer.0;
        if let Some(next) = next {
            let at = Time(next.0.saturating_sub(ahead.as_nanos() as u64));
            self.at(at.max(Time(self.now.0 + 1)), Event::Timer(address, generation));
        }
    }

    pub(crate) fn timer(&mut self, address: Address, generation: u64) {
        if self.process(address).is_some_and(|process| process.timer.0 == generation) {
            self.tell(address, Message::Timer);
        }
    }

    /// A pause or a stall may be over.
    pub(crate) fn wake(&mut self, address: Address) {
        let (now, local) = (self.now, self.local(address.0));
        let Some(process) = self.process(address) else { return };
        if process.paused_until > now {
            return;
        }
        if let Busy::Until(until) = process.busy {
            if until > now {
                return;
            }
            process.busy = Busy::No;
        }
        // Datagrams waited in the kernel: they are read, and timed, only now.
        let paused = process.paused_until == now;
        for message in &mut process.inbox {
            if let Message::Beat { at, .. } = message
                && paused
            {
                *at = local;
            }
        }
        self.perform_all(address);
        self.work(address);
    }

    /// The thread goes on after a cut or a takeover.
    pub(crate) fn go_on(&mut self, address: Address, input: Option<Input>) {
        if let Some(input) = input {
            self.input(address, input);
        }
        self.perform_all(address);
        self.work(address);
    }

    pub(crate) fn command_nic(&mut self, address: Address, command: &Command) -> Vec<Frame> {
        let mutation = self.mutation;
        self.process(address).map_or(Vec::new(), |process| process.nic.command(command, mutation))
    }

    /// Frames leave a host: from here on they cannot be taken back.
    pub(crate) fn leave_host(&mut self, address: Address, frames: Vec<Frame>) {
        let Some(process) = self.process(address) else { return };
        if process.broken {
            return;
        }
        let (node, term) = (process.node.id(), process.node.term());
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
    pub(crate) fn report_later(&mut self, address: Address, report: Report) {
        let (now, delay) = (self.now, self.rng.micros(3, 40));
        let Some(process) = self.process(address) else { return };
        process.last_report = process.last_report.max(now + delay);
        let due = process.last_report;
        self.at(due, Event::Tell(address, Message::Report(report)));
    }

    fn report(&mut self, address: Address, report: Report) {
        let Some(process) = self.process(address) else { return };
        match report {
            Report::Discarded => process.dropped = process.dropped.saturating_sub(1),
            Report::Complete { .. } | Report::InSync | Report::MirrorLost { .. } if process.dropped > 0 => {}
            Report::Held { epoch } if epoch == process.node.epoch() => self.input(address, Input::CutWanted),
            Report::Complete { epoch } => self.input(address, Input::DiskComplete { epoch, disk: 0 }),
            Report::InSync => {
                if let Session::Primary(side) = &mut process.session {
                    side.disk_in_sync = true;
                }
            }
            Report::MirrorLost { reason } if !matches!(process.session, Session::None) => {
                self.input(address, Input::StreamLost { reason });
            }
            _ => {}
        }
    }

    fn device_failed(&mut self, address: Address) {
        let Some(process) = self.process(address) else { return };
        let (term, reason) = (process.node.term(), "a device process is dead".to_owned());
        match process.session {
            Session::None => {}
            Session::Primary(_) => self.input(address, Input::YieldRequested { reason }),
            Session::Standby(_) => self.input(address, Input::PeerLeft { term, reason }),
        }
    }

    /// When a disk request that comes now costs its time.
    pub(crate) fn disk_latency(&mut self, host: usize) -> Duration {
        if self.hosts[host].slow_disk_until > self.now {
            self.rng.micros(3000, 30_000)
        } else {
            let (low, high) = self.plan.disk_us;
            self.rng.micros(low, high)
        }
    }

    /// The guest can execute.
    pub(crate) fn guest_can(process: &Process, now: Time) -> bool {
        process.guest_runs(now) && !process.broken
    }
}
