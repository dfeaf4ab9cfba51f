//! The world of one run: virtual time, a queue of events, and everything that they happen to.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use ft::NodeTerm;
use ft::sim::{Begin, Executor, Message};
use ft_proto::{LinkId, NodeId, State, Term, Time};
use ft_wire::device_ctl::Report;

use crate::body::{Body, Later, Question, Said};
use crate::client::Client;
use crate::guest::{BLOCKS, Blocks, Frame, Guest, Request};
use crate::ids::VM;
use crate::invariants::{Checks, Moment, Scene, Violation};
use crate::mutation::Mutation;
use crate::network::{Network, StreamId};
use crate::plan::Plan;
use crate::platform::Sim;
use crate::process::{Address, Delivery, Host, Process};
use crate::rng::Rng;
use crate::slot::Slot;
use crate::trace::{BEGIN, Trace};
use crate::truth::Truth;
use crate::witness_record::Witness;

/// Something that happens at a time.
pub(crate) enum Event {
    /// For the inbox of an engine.
    Tell(Address, Box<Message<Sim>>),
    /// A device reports.
    Report(Address, usize, Report),
    /// Another thread of a process is through with something.
    Later(Address, Later),
    /// What the witness has on record, for a host that looked.
    Record(Address, Option<ft_proto::witness::Record>),
    /// A host is called.
    Dial(Address, usize, Slot<std::io::Result<StreamId>>),
    Beat {
        to: usize,
        link: LinkId,
        bytes: Vec<u8>,
    },
    BeatTick(Address, u64),
    Timer(Address, u64),
    /// A pause or a stall is over.
    Wake(Address),
    /// The head of a stream's lane is due.
    Stream(StreamId, usize),
    GuestStep(Address),
    DiskDone(Address, usize),
    CopyTick(Address, StreamId),
    /// The whole copy that a stream brought is on stable storage.
    Received(Address, StreamId, u64),
    /// So is an epoch.
    Durable(Address, StreamId, ft_proto::Epoch),
    WitnessJudges {
        from: Address,
        starter: bool,
        token: u64,
        question: Question,
    },
    WitnessAnswers {
        to: Address,
        starter: bool,
        token: u64,
        said: Option<Said>,
    },
    Operator(usize),
    Restart(usize),
    /// The VM is being shut down; its protection may take until then to end.
    Ending {
        address: Address,
        limit: Time,
        back: Duration,
    },
    /// And is.
    Ended(Address, Duration),
    /// A host that waits may ask for the VM.
    Election(usize),
    /// A host that runs the VM looks at the witness's record.
    Watch(usize),
    /// Somebody saves a disk.
    Backup,
    /// A disk that was mislaid is found.
    Remount(usize),
    Fault,
    ClientTick,
    Request(Request),
    Reply(Frame),
    Heal,
    /// After the faults: is it over?
    Look,
}

struct Scheduled {
    at: Time,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// How a run ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// Protected again.
    Protected,
    /// Two hosts run the VM, as the policy permits in a partition.
    Forked,
    /// More failed than can be survived.
    Lost(String),
    /// Something is wrong.
    Violated(Violation),
}

/// Everything there is.
pub(crate) struct World {
    pub(crate) now: Time,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    pub(crate) rng: Rng,
    pub(crate) plan: Plan,
    pub(crate) mutation: Option<Mutation>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) network: Network,
    pub(crate) witness: Witness,
    pub(crate) client: Client,
    pub(crate) truth: Truth,
    pub(crate) checks: Checks,
    pub(crate) trace: Trace,
    pub(crate) first_owner: NodeId,
    /// When the faults ended.
    pub(crate) healed_at: Option<Time>,
    /// Since when a pair is protected, after the faults.
    pub(crate) protected_since: Option<Time>,
    pub(crate) end: Option<End>,
    pub(crate) events: u64,
    pub(crate) takeovers: u64,
    pub(crate) resyncs: u64,
    pub(crate) starts: u64,
    pub(crate) restores: u64,
    /// The host that ran the VM last: it has the newest disks.
    pub(crate) runner: usize,
    /// What is on the disk of the VM that was shut down.
    pub(crate) newest: Blocks,
    pub(crate) withdrawals: u64,
    /// Since when nobody runs the VM, where no witness says who may.
    pub(crate) away_since: Option<Time>,
}

impl World {
    pub(crate) fn new(seed: u64, mutation: Option<Mutation>, checks: Checks, trace: Trace) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(&mut rng);
        let hosts = (0..plan.hosts).map(|_| Host::new(plan.disks)).collect();
        let mut world = Self {
            now: BEGIN,
            queue: BinaryHeap::new(),
            scheduled: 0,
            network: Network::new(plan.hosts),
            rng,
            plan,
            mutation,
            hosts,
            witness: Witness::default(),
            client: Client::default(),
            truth: Truth::default(),
            checks,
            trace,
            first_owner: NodeId::numbered(0, 1),
            healed_at: None,
            protected_since: None,
            end: None,
            events: 0,
            takeovers: 0,
            resyncs: 0,
            starts: 0,
            restores: 0,
            runner: 0,
            newest: [0; BLOCKS],
            withdrawals: 0,
            away_since: None,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        let plan = format!("{:?}", self.plan);
        self.trace.line(self.now, || plan);
        self.first_owner = self.boot();
        for host in 1..self.plan.hosts {
            self.start_standby(host);
        }
        for host in 0..self.plan.hosts {
            let soon = self.rng.micros(0, 20_000);
            self.after(soon, Event::Operator(host));
            self.after(soon * 2, Event::Election(host));
            self.after(soon * 3, Event::Watch(host));
        }
        let first = self.rng.micros(0, 250_000);
        self.after(first, Event::Fault);
        self.after(Duration::from_millis(1), Event::ClientTick);
        self.after(Duration::from_millis(30), Event::Backup);
        self.after(self.plan.faults_for, Event::Heal);
    }

    /// The VM is started on the first host, unprotected.
    fn boot(&mut self) -> NodeId {
        let node = self.new_node(0);
        let at = self.truth.new_branch(None);
        self.run_from(0, Term(1));
        let begin = Begin::Run(NodeTerm { vm: VM, node, term: Term(1), first: true });
        self.start_process(0, begin, |guest| (guest.running, guest.vcpu.at) = (true, at));
        node
    }

    /// An engine begins, with its guest and devices.
    pub(crate) fn start_process(&mut self, host: usize, begin: Begin, guest: impl FnOnce(&mut Guest)) {
        let mut body = Body::new(host, self.plan.disks, Rng::new(self.rng.word()), self.plan.knobs(self.mutation));
        (body.now, body.local) = (self.now, self.local(host));
        guest(&mut body.guest);
        let runs = body.guest.running;
        let others = (0..self.plan.hosts).filter(|other| *other != host && self.plan.searches);
        let peers = others.map(|other| self.plan.protect_by(other)).collect();
        let listen = self.plan.stand_by(host);
        let process = Process::new(self.next_incarnation(host), begin, body, listen, peers);
        let address = (host, process.incarnation);
        self.hosts[host].process = Some(process);
        self.hosts[host].down = false;
        self.call(address, Executor::begin);
        if runs {
            self.say_to(address, Message::VmStarted);
            self.after(Duration::from_micros(10), Event::GuestStep(address));
        } else {
            self.work(address);
        }
    }

    /// An empty standby is started on a host.
    pub(crate) fn start_standby(&mut self, host: usize) {
        let id = self.new_node(host);
        self.start_process(host, Begin::StandBy(id), |_| {});
        self.note(host, || format!("starts as standby {id}"));
    }

    /// The disks of a host note that the VM runs from them.
    pub(crate) fn run_from(&mut self, host: usize, term: Term) {
        self.hosts[host].drives.iter_mut().for_each(|drive| drive.image.record.run_alone(term));
    }

    fn new_node(&mut self, host: usize) -> NodeId {
        let id = NodeId::numbered(host as u64, self.rng.word());
        self.name_node(host, id);
        id
    }

    /// What a node is called in traces.
    pub(crate) fn name_node(&mut self, host: usize, id: NodeId) {
        let name = format!("{}{}", name(host), self.hosts[host].incarnations + 1);
        self.trace.name(id, name);
    }

    pub(crate) fn next_incarnation(&mut self, host: usize) -> u64 {
        self.hosts[host].incarnations += 1;
        self.hosts[host].incarnations
    }

    /// A host's clock.
    pub(crate) fn local(&self, host: usize) -> Time {
        self.now + self.hosts[host].ahead
    }

    pub(crate) fn at(&mut self, at: Time, event: Event) {
        self.scheduled += 1;
        self.queue.push(Reverse(Scheduled { at: at.max(self.now), number: self.scheduled, event }));
    }

    pub(crate) fn after(&mut self, span: Duration, event: Event) {
        self.at(self.now + span, event);
    }

    /// The process, if it is still that one.
    pub(crate) fn process(&mut self, address: Address) -> Option<&mut Process> {
        self.hosts[address.0].process.as_mut().filter(|process| process.incarnation == address.1)
    }

    pub(crate) fn address(&self, host: usize) -> Address {
        (host, self.hosts[host].process.as_ref().map_or(0, |process| process.incarnation))
    }

    pub(crate) fn note(&mut self, host: usize, text: impl FnOnce() -> String) {
        self.trace.line(self.now, || format!("{} {}", name(host), text()));
    }

    pub(crate) fn moment(&mut self, moment: Moment) {
        let record = match moment {
            Moment::Visible { node, .. } if self.policy().is_some() => self.believed(node),
            _ => self.witness.last,
        };
        let (first_owner, policy) = (self.first_owner, self.policy());
        let found = self.checks.look(&moment, &Scene { truth: &self.truth, record, first_owner, policy });
        if let Some(mut violation) = found
            && self.end.is_none()
        {
            violation.what = self.trace.readable(violation.what);
            self.trace.line(self.now, || format!("VIOLATION of {}: {}", violation.invariant, violation.what));
            self.end = Some(End::Violated(violation));
        }
    }

    /// Runs to the end.
    pub(crate) fn run(&mut self) -> End {
        loop {
            if let Some(end) = self.end.clone() {
                return end;
            }
            let Some(Reverse(next)) = self.queue.pop() else { return End::Lost("nothing happens any more".to_owned()) };
            self.now = next.at;
            self.events += 1;
            self.happen(next.event);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tell(address, message) => self.tell(address, Delivery::Message(message)),
            Event::Report(address, device, report) => self.reported(address, device, report),
            Event::Later(address, call) => self.later(address, call),
            Event::Record(address, record) => self.tell_record(address, record),
            Event::Dial(address, peer, slot) => self.dial(address, peer, slot),
            Event::Beat { to, link, bytes } => self.beat_arrives(to, link, &bytes),
            Event::BeatTick(address, generation) => self.beat_tick(address, generation),
            Event::Timer(address, generation) => self.timer(address, generation),
            Event::Wake(address) => self.wake(address),
            Event::Stream(stream, lane) => self.stream_due(stream, lane),
            Event::GuestStep(address) => self.guest_step(address),
            Event::DiskDone(address, disk) => self.disk_done(address, disk),
            Event::CopyTick(address, stream) => self.copy_tick(address, stream),
            Event::Received(address, stream, base) => self.copy_received(address, stream, base),
            Event::Durable(address, stream, epoch) => self.tell_durable(address, stream, epoch),
            Event::WitnessJudges { from, starter, token, question } => {
                self.witness_judges(from, starter, token, question);
            }
            Event::WitnessAnswers { to, starter, token, said } => self.witness_answers(to, starter, token, said),
            Event::Operator(host) => self.operator(host),
            Event::Ending { address, limit, back } => self.ending(address, limit, back),
            Event::Ended(address, back) => self.ended(address, back),
            Event::Restart(host) => self.restart(host),
            Event::Election(host) => self.election(host),
            Event::Watch(host) => self.watch(host),
            Event::Backup => self.back_up(),
            Event::Remount(host) => self.remount(host),
            Event::Fault => self.fault(),
            Event::ClientTick => self.client_tick(),
            Event::Request(request) => self.request_arrives(request),
            Event::Reply(frame) => self.client_hears(frame),
            Event::Heal => self.heal(),
            Event::Look => self.look(),
        }
    }

    /// The host that runs the VM under protection, with its standby ready.
    pub(crate) fn protected_pair(&self) -> Option<(usize, usize)> {
        let processes = || self.hosts.iter().enumerate().filter_map(|(at, host)| Some((at, host.process.as_ref()?)));
        let (primary, process) = processes().find(|(_, process)| process.state() == State::Protected)?;
        let peer = process.executor.node().peer()?;
        let (standby, _) = processes().find(|(_, process)| {
            process.id() == peer
                && process.state() == State::StandbyReady
                && process.term() == self.hosts[primary].process.as_ref().map_or(Term(0), |p| p.term())
        })?;
        Some((primary, standby))
    }
}

/// What a host is called in traces.
pub(crate) fn name(host: usize) -> char {
    char::from(b'A' + host as u8)
}
