//! What can be in a state, and what can happen in it.

use ft_proto::witness::{Claim, DiskState, Record, Verdict, judge};
use ft_proto::{Beat, Input, LinkId, Node, NodeId, OnPartition, State, Term, WitnessAnswer};
use stateright::{Model, Property};

use crate::hosts::{T0, settings};
use crate::properties;

/// How far to go. Everything that makes the state space infinite has its limit here.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Sessions that are opened.
    pub sessions: usize,
    /// Epochs of each session.
    pub epochs: u64,
    /// Crashes of hosts; each may restart with its disks, as a standby that has nothing in memory.
    pub crashes: u32,
    /// Crashes of both hosts at once.
    pub blackouts: u32,
    /// Times that the stream is reset, with or without what was in it.
    pub breaks: u32,
    /// Claims or answers that are lost, or claims that take effect after their sender has given up.
    pub losses: u32,
    /// Wishes of operators: stop the protection, yield the VM.
    pub wishes: u32,
    /// Questions of hosts that are back whether they may start the VM.
    pub starts: u32,
    /// Times that the witness loses its record.
    pub record_losses: u32,
    /// Times that the record is read by who runs the VM.
    pub looks: u32,
    /// Beats that nobody sent, in the name of the peer.
    pub forged: u32,
}

/// Something between the two hosts, in order.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Msg {
    /// The standby accepts the session.
    Welcome,
    /// All of an epoch.
    Epoch(u64),
    /// The standby holds it.
    Ack(Term, u64),
    /// The primary has stopped.
    Yield(Term),
    /// The sender leaves in good order.
    Bye(Term),
    /// The end of the stream.
    Lost,
}

/// The stream of the last session.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Stream {
    /// Which session.
    pub session: usize,
    /// Host of the primary, and its node; the standby is on the other one.
    pub primary: (usize, NodeId),
    /// The standby's node.
    pub standby: NodeId,
    /// Its term.
    pub term: Term,
    /// Whether the standby may get more.
    pub down_open: bool,
    /// What is on its way to the standby.
    pub down: Vec<Msg>,
    /// Whether the primary may get more.
    pub up_open: bool,
    /// What is on its way to the primary.
    pub up: Vec<Msg>,
}

/// What really happened in a session.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Told {
    /// Everything up to this epoch was let out.
    pub released: u64,
    /// The VM went on at the standby from this epoch.
    pub taken: Option<u64>,
    /// The standby was registered at the witness.
    pub protected: bool,
}

/// One host.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Host {
    /// The node, while the host is up.
    pub node: Option<Node>,
    /// Whether output is held there.
    pub holds: bool,
    /// The term that the witness gave for the next session.
    pub owned: Option<Term>,
    /// Which session its node takes part in.
    pub session: Option<usize>,
    /// What its disks have on record.
    pub disk: DiskState,
    /// Its VM has never been on record at the witness.
    pub first: bool,
}

impl Host {
    pub(crate) fn down() -> Self {
        let (node, owned, session) = (None, None, None);
        Self { node, holds: false, owned, session, disk: DiskState::None, first: false }
    }
}

/// Starts that there were.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Started {
    /// On the host that ran the VM last.
    pub last: bool,
    /// On a host that had waited for that one.
    pub waited: bool,
    /// By itself on a host that another one had run the VM after.
    pub stale: bool,
}

/// A state of the whole system.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Sys {
    /// Both hosts.
    pub hosts: [Host; 2],
    /// What the witness has on record.
    pub record: Option<Record>,
    /// Claims on their way.
    pub asks: Vec<(NodeId, Claim)>,
    /// Claims whose senders have given up waiting.
    pub late: Vec<Claim>,
    /// Answers on their way.
    pub answers: Vec<(NodeId, WitnessAnswer)>,
    /// The stream, if one was opened.
    pub stream: Option<Stream>,
    /// What was read of the record, on its way to who runs the VM.
    pub reads: Vec<(NodeId, Option<Record>)>,
    /// By session.
    pub told: Vec<Told>,
    /// The host that ran the VM last.
    pub runner: usize,
    /// What starts there were.
    pub started: Started,
    /// Whether a lost record was written again.
    pub restored: bool,
    /// How many nodes there were on each host.
    pub incarnations: [u64; 2],
    /// What may still go wrong.
    pub left: Left,
    /// What is wrong from the start.
    pub flaw: Option<Flaw>,
    /// Who goes on without a witness.
    pub policy: Option<OnPartition>,
    /// What a claim without an answer can still do.
    pub late_claims: LateClaims,
}

/// What a claim can still do whose sender has given up waiting.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum LateClaims {
    /// It is judged whenever it arrives: worse than any keeper, for what must hold whatever happens.
    Judged,
    /// It was judged when it was made, and takes effect only on that record; a node's questions and their answers keep
    /// their order: what keepers and askers promise.
    Compared,
}

/// What may still go wrong.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Left {
    pub(crate) crashes: u32,
    pub(crate) blackouts: u32,
    pub(crate) breaks: u32,
    pub(crate) losses: u32,
    pub(crate) wishes: u32,
    pub(crate) starts: u32,
    pub(crate) record_losses: u32,
    pub(crate) looks: u32,
    pub(crate) forged: u32,
}

/// Something that can happen. Numbers are hosts, or places in queues.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Act {
    /// A node that is alone asks the witness for its next reign.
    Own(usize),
    /// It opens a session with the other host.
    Open(usize),
    /// The first copy is complete.
    Synced(usize),
    /// The guest wants its output out.
    Want(usize),
    /// The standby gets what is next in the stream.
    Down,
    /// The primary gets what is next in the stream.
    Up,
    /// The stream ends for both, after what is in it or at once.
    Break {
        /// At once.
        truncate: bool,
    },
    /// A node hears nothing of the other for longer than the limit.
    Silence(usize),
    /// A beat of a node reaches the other one.
    Beat(usize),
    /// A claim takes effect.
    Judge(usize),
    /// A claim takes effect; its answer is lost.
    JudgeMute(usize),
    /// A claim is lost.
    LoseClaim(usize),
    /// A claim's sender gives up; the claim is still on its way.
    Delay(usize),
    /// A claim that nobody waits for takes effect.
    JudgeLate(usize),
    /// An answer arrives.
    Answer(usize),
    /// It is time to ask the witness again.
    Retry(usize),
    /// A host dies.
    Crash(usize),
    /// Both hosts die at once.
    Blackout,
    /// It is back, with its disks, and stands by.
    Restart(usize),
    /// It asks whether it may start the VM.
    Start {
        /// Which.
        at: usize,
        /// It has waited for the other one for as long as an operator said.
        waited: bool,
    },
    /// Disks note what they were told.
    Note(usize),
    /// The witness loses its record.
    LoseRecord,
    /// The record is read for a node that runs the VM.
    Look(usize),
    /// What was read arrives.
    Read(usize),
    /// A node gets a beat in the name of its peer that the peer has not sent.
    Forge {
        /// Which.
        at: usize,
        /// What it says.
        term: Term,
        /// What it says.
        runs: bool,
    },
    /// An operator ends the protection.
    Stop(usize),
    /// A device dies: the VM shall go on at the standby.
    Yield(usize),
    /// An operator moves the VM.
    Move(usize),
    /// An operator has the VM's host be as good as dead.
    Cease(usize),
}

/// A defect to build in: a check that cannot fail is no check.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Flaw {
    /// The witness grants whatever it is asked for.
    GrantsAll,
    /// A record that a grant leaves as it is does not count as changed.
    UnwrittenGrants,
    /// The witness lets any host start the VM when it has no record.
    StartsOnAbsence,
    /// A primary writes a lost record again without having heard of its standby since.
    RestoresAtOnce,
}

/// The system within its bounds.
#[derive(Clone, Copy, Debug)]
pub struct System {
    /// How far to go.
    pub bounds: Bounds,
    /// What is wrong.
    pub flaw: Option<Flaw>,
    /// Who goes on in a partition when there is no witness to ask; `None`: there is one.
    pub policy: Option<OnPartition>,
    /// What a claim without an answer can still do.
    pub late_claims: LateClaims,
}

impl Model for System {
    type State = Sys;
    type Action = Act;

    fn init_states(&self) -> Vec<Sys> {
        let host = |node, disk, first| Host { node: Some(node), disk, first, ..Host::down() };
        let Bounds { crashes, blackouts, breaks, losses, wishes, starts, record_losses, looks, forged, .. } =
            self.bounds;
        let settings = settings(self.policy);
        let ran = DiskState::Alone(Term(1));
        vec![Sys {
            hosts: [
                host(Node::solo(NodeId::numbered(1, 1), Term(1), settings, T0), ran, true),
                host(Node::standby(NodeId::numbered(2, 1), settings, T0), DiskState::Hole, false),
            ],
            record: None,
            asks: Vec::new(),
            late: Vec::new(),
            answers: Vec::new(),
            stream: None,
            reads: Vec::new(),
            told: Vec::new(),
            runner: 0,
            started: Started::default(),
            restored: false,
            incarnations: [1, 1],
            left: Left { crashes, blackouts, breaks, losses, wishes, starts, record_losses, looks, forged },
            flaw: self.flaw,
            policy: self.policy,
            late_claims: self.late_claims,
        }]
    }

    fn actions(&self, sys: &Sys, acts: &mut Vec<Act>) {
        for at in 0..2 {
            self.host_actions(sys, at, acts);
        }
        if let Some(stream) = &sys.stream {
            acts.extend((!stream.down.is_empty()).then_some(Act::Down));
            acts.extend((!stream.up.is_empty()).then_some(Act::Up));
            if sys.left.breaks > 0 {
                acts.extend([Act::Break { truncate: true }, Act::Break { truncate: false }]);
            }
        }
        for at in (0..sys.asks.len()).filter(|at| self.comes_next(&sys.asks, *at)) {
            acts.push(Act::Judge(at));
            if sys.left.losses > 0 {
                acts.extend([Act::JudgeMute(at), Act::LoseClaim(at), Act::Delay(at)]);
            }
        }
        if sys.left.blackouts > 0 && sys.hosts.iter().all(|host| host.node.is_some()) {
            acts.push(Act::Blackout);
        }
        acts.extend((0..sys.late.len()).map(Act::JudgeLate));
        acts.extend((0..sys.reads.len()).map(Act::Read));
        if sys.left.record_losses > 0 && sys.record.is_some() {
            acts.push(Act::LoseRecord);
        }
        let read = |at: &usize| sys.reads.iter().any(|(id, _)| *id == sys.answers[*at].0);
        let next = |at: &usize| self.comes_next(&sys.answers, *at) && !read(at);
        acts.extend((0..sys.answers.len()).filter(next).map(Act::Answer));
    }

    fn next_state(&self, before: &Sys, act: Act) -> Option<Sys> {
        let mut sys = before.clone();
        sys.happen(act)?;
        let sys = sys.reduced();
        (sys != *before).then_some(sys)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

impl Sys {
    fn happen(&mut self, act: Act) -> Option<()> {
        let sys = self;
        match act {
            Act::Own(at) => {
                let first = sys.hosts[at].first;
                let node = sys.hosts[at].node.as_ref()?;
                let claim = Claim::Own { node: node.id(), term: node.term(), first };
                sys.asks.push((node.id(), claim));
            }
            Act::Open(at) => sys.open(at)?,
            Act::Synced(at) => sys.synced(at),
            Act::Want(at) => sys.input(at, Input::CutWanted),
            Act::Down => sys.down()?,
            Act::Up => sys.up()?,
            Act::Break { truncate } => {
                sys.left.breaks -= 1;
                sys.end_stream(truncate);
            }
            Act::Silence(at) => sys.silence(at),
            Act::Beat(at) => sys.beat(at)?,
            Act::Judge(at) => sys.judge(at, false),
            Act::JudgeMute(at) => sys.judge(at, true),
            Act::LoseClaim(at) => {
                let (node, claim) = sys.asks.remove(at);
                sys.unanswered(node, claim);
            }
            Act::Delay(at) => {
                let (node, claim) = sys.asks.remove(at);
                if sys.late_claims == LateClaims::Judged || matches!(judge(sys.record, claim), Verdict::Granted(_)) {
                    sys.late.push(claim);
                }
                sys.unanswered(node, claim);
            }
            Act::JudgeLate(at) => {
                let claim = sys.late.remove(at);
                sys.rule(claim);
            }
            Act::Answer(at) => {
                let (node, answer) = sys.answers.remove(at);
                sys.answered(node, answer);
            }
            Act::Retry(at) => sys.retry(at),
            Act::Crash(at) => sys.crash(at),
            Act::Blackout => sys.blackout(),
            Act::Restart(at) => sys.restart(at),
            Act::Start { at, waited } => sys.ask_to_start(at, waited)?,
            Act::Note(at) => sys.note(at),
            Act::LoseRecord => {
                sys.left.record_losses -= 1;
                sys.record = None;
                if sys.late_claims == LateClaims::Compared {
                    sys.late.clear();
                }
            }
            Act::Look(at) => sys.look(at),
            Act::Read(at) => sys.read(at),
            Act::Forge { at, term, runs } => {
                sys.left.forged -= 1;
                let beat = Beat { from: sys.hosts[at].node.as_ref()?.peer()?, term, runs };
                sys.input(at, Input::Beat { link: LinkId::Heartbeat, at: T0, beat });
            }
            wish => sys.wished(&wish),
        }
        Some(())
    }

    /// What an operator wants.
    fn wished(&mut self, wish: &Act) {
        let sys = self;
        sys.left.wishes -= 1;
        match *wish {
            Act::Stop(at) => {
                sys.input(at, Input::StopRequested);
            }
            Act::Move(at) => {
                sys.input(at, Input::SwitchoverRequested);
            }
            Act::Cease(at) => {
                sys.input(at, Input::CeaseRequested);
                if sys.hosts[at].node.as_ref().is_some_and(|node| node.state() == State::Fenced) {
                    sys.end_stream(false);
                }
            }
            Act::Yield(at) => {
                sys.input(at, Input::YieldRequested { reason: String::new() });
            }
            _ => {}
        }
    }
}

impl System {
    /// Whether nothing of the same node is before it, where that matters.
    fn comes_next<T>(&self, queue: &[(NodeId, T)], at: usize) -> bool {
        self.late_claims == LateClaims::Judged || queue[..at].iter().all(|(node, _)| *node != queue[at].0)
    }

    fn host_actions(&self, sys: &Sys, at: usize, acts: &mut Vec<Act>) {
        let Some(node) = &sys.hosts[at].node else { return acts.push(Act::Restart(at)) };
        let (id, state) = (node.id(), node.state());
        if sys.left.crashes > 0 {
            acts.push(Act::Crash(at));
        }
        if sys.hosts[1 - at].node.as_ref().is_some_and(|other| other.peer() == Some(id)) {
            acts.push(Act::Beat(at));
        }
        self.outside_actions(sys, at, acts);
        let asks_own = |claim: &Claim| matches!(claim, Claim::Own { node, .. } if *node == id);
        let pending = sys.asks.iter().any(|(_, claim)| asks_own(claim))
            || sys.answers.iter().any(|(_, answer)| asks_own(&answer.claim()));
        match state {
            State::Solo if sys.hosts[at].owned.is_some() => acts.push(Act::Open(at)),
            State::Solo if sys.told.len() < self.bounds.sessions && !pending => acts.push(Act::Own(at)),
            State::Syncing | State::Protected => {
                acts.extend([Act::Synced(at), Act::Silence(at), Act::Retry(at)]);
                if node.epoch().0 < self.bounds.epochs {
                    acts.push(Act::Want(at));
                }
                if sys.left.wishes > 0 {
                    acts.extend([Act::Stop(at), Act::Yield(at)]);
                    if state == State::Protected {
                        acts.extend([Act::Move(at), Act::Cease(at)]);
                    }
                }
            }
            State::StandbySyncing | State::StandbyReady => acts.extend([Act::Silence(at), Act::Retry(at)]),
            _ => {}
        }
    }

    /// What disks, the witness and strangers do.
    fn outside_actions(&self, sys: &Sys, at: usize, acts: &mut Vec<Act>) {
        let Some(node) = &sys.hosts[at].node else { return };
        let starts = [false, true].map(|waited| Act::Start { at, waited });
        let granted = |act: &Act| matches!(act, Act::Start { at, waited } if sys.start_claim(*at, *waited).is_some());
        acts.extend(starts.into_iter().filter(granted));
        if sys.left.starts > 0 && sys.left.crashes + sys.left.blackouts > 0 {
            acts.push(Act::Note(at));
        }
        // Who asks the witness asks one thing after the other.
        let asked = sys.asks.iter().map(|(id, _)| id).chain(sys.answers.iter().map(|(id, _)| id));
        let looks = sys.left.looks > 0 && asked.chain(sys.reads.iter().map(|(id, _)| id)).all(|id| *id != node.id());
        if looks && matches!(node.state(), State::Solo | State::Protected) {
            acts.push(Act::Look(at));
        }
        if sys.left.forged > 0 && node.peer().is_some() {
            let terms = Sys::forged_terms(node.term());
            acts.extend(terms.iter().flat_map(|term| [true, false].map(|runs| Act::Forge { at, term: *term, runs })));
        }
    }
}

impl Sys {
    /// The host on which a node lives.
    pub(crate) fn host_of(&self, id: NodeId) -> Option<usize> {
        self.hosts.iter().position(|host| host.node.as_ref().is_some_and(|node| node.id() == id))
    }

    /// The witness judges.
    pub(crate) fn rule(&mut self, claim: Claim) -> Verdict {
        let verdict = self.judged(claim);
        if let Verdict::Granted(record) = verdict {
            let written = self.record != Some(record) || self.flaw != Some(Flaw::UnwrittenGrants);
            if written && self.late_claims == LateClaims::Compared {
                self.late.clear();
            }
            self.restored |= self.record.is_none() && matches!(claim, Claim::Restore { .. });
            self.record = Some(record);
        }
        verdict
    }

    fn judge(&mut self, at: usize, mute: bool) {
        let (node, claim) = self.asks.remove(at);
        let verdict = self.rule(claim);
        if mute {
            self.unanswered(node, claim);
        } else {
            self.answers.push((node, WitnessAnswer::Judged(claim, verdict)));
        }
    }

    fn unanswered(&mut self, node: NodeId, claim: Claim) {
        self.left.losses -= 1;
        self.answers.push((node, WitnessAnswer::Unreachable(claim, String::new())));
    }
}
