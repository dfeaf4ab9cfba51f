//! One node: its role, its term, and the dispatch of inputs to the role that it is in.
//!
//! ```text
//!         protect                      claim refused
//!  Solo <--------> Primary ------------------------------> Fenced
//!   ^     alone                                              ^
//!   |  take over                      beat of a higher term  |
//!  Standby                            (Solo or Primary) -----'
//! ```
//!
//! The engine feeds `handle`, performs what `poll_action` yields in order, calls again when `poll_timeout`
//! says so.

use std::collections::VecDeque;
use std::time::Duration;

use crate::events::{Action, Beat, Event, Input, Settings};
use crate::failure_detector::{FailureDetector, Light, LinkId};
use crate::primary::Primary;
use crate::session::{Cx, Outcome, refusal};
use crate::standby::Standby;
use crate::witness::{Claim, Record};
use crate::{Epoch, NodeId, Term, Time};

/// While a session has nothing to lose yet, silence up to this long counts as slowness, not death: the first
/// copy loads both hosts, and a standby without a checkpoint could not take over anyway.
const COPY_PATIENCE: Duration = Duration::from_secs(5);

#[cfg_attr(feature = "model", derive(Clone, Eq, Hash, PartialEq))]
#[derive(Debug)]
enum Role {
    Solo,
    Primary(Box<Primary>),
    Standby(Box<Standby>),
    Fenced,
}

/// What a node is doing, for status.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// Runs the VM; there is no standby.
    Solo,
    /// Runs the VM; the first copy to a standby is under way, or not acknowledged yet.
    Syncing,
    /// Runs the VM; a failure of this host loses nothing.
    Protected,
    /// Does not run the VM; no primary has joined.
    StandbyEmpty,
    /// Does not run the VM; the first copy is arriving.
    StandbySyncing,
    /// Does not run the VM; can take over.
    StandbyReady,
    /// May no longer run the VM.
    Fenced,
}

/// One node of a pair.
#[cfg_attr(feature = "model", derive(Clone, Eq, Hash, PartialEq))]
#[derive(Debug)]
pub struct Node {
    id: NodeId,
    term: Term,
    settings: Settings,
    role: Role,
    detector: FailureDetector,
    /// Which links were last reported as silent: a change is an event.
    red: [bool; LinkId::ALL.len()],
    actions: VecDeque<Action>,
}

impl Node {
    /// A node that runs the VM, alone, in `term`.
    #[must_use]
    pub fn solo(id: NodeId, term: Term, settings: Settings, now: Time) -> Self {
        Self::new(id, term, Role::Solo, settings, now)
    }

    /// A node that waits for a primary.
    #[must_use]
    pub fn standby(id: NodeId, settings: Settings, now: Time) -> Self {
        Self::new(id, Term(0), Role::Standby(Box::new(Standby::new(id))), settings, now)
    }

    fn new(id: NodeId, term: Term, role: Role, settings: Settings, now: Time) -> Self {
        let detector = FailureDetector::new(settings.silence, now);
        Self { id, term, settings, role, detector, red: Default::default(), actions: VecDeque::new() }
    }

    /// Tells the node what happened.
    pub fn handle(&mut self, input: Input, now: Time) {
        if let Input::Beat { link, at, beat } = input {
            self.on_beat(link, at, beat, now);
            return;
        }
        let opens = matches!(input, Input::SessionOpened { .. } | Input::PrimaryJoined { .. });
        if opens {
            self.detector = FailureDetector::new(self.settings.silence, now);
            self.red = Default::default();
        }
        self.notice_stall(now);
        let copied = self.is_copying();
        let outcome = self.tell_role(input, now);
        self.turn(outcome);
        if copied && !self.is_copying() {
            // Silence that was tolerated until now must not suddenly count.
            self.detector = FailureDetector::new(self.settings.silence, now);
        }
        self.on_time(now);
        self.check();
    }

    fn tell_role(&mut self, input: Input, now: Time) -> Option<Outcome> {
        let (id, term) = (self.id, self.term);
        let (role, mut cx) = self.role_in(now);
        match (role, input) {
            (role @ Role::Solo, Input::SessionOpened { peer }) => {
                *role = Role::Primary(Box::new(Primary::new(id, peer, term, now)));
                cx.tell(Event::SyncStarted);
                None
            }
            (Role::Solo, Input::TakeOverFailed { reason }) => Some(cx.fence(reason)),
            (Role::Standby(_), Input::PrimaryJoined { term: its, .. }) if its < term => None,
            (_, Input::RecordRead { record }) => self.record_read(record, now),
            (Role::Primary(primary), input) => primary.handle(input, &mut cx),
            (Role::Standby(standby), input) => {
                let joined = if let Input::PrimaryJoined { term, .. } = input { Some(term) } else { None };
                let outcome = standby.handle(input, &mut cx);
                assert!(joined.is_none_or(|joined| joined >= term), "from term {term} back to {joined:?}");
                self.term = joined.unwrap_or(term);
                outcome
            }
            (Role::Solo | Role::Fenced, _) => None,
        }
    }

    /// The role, and the context of its transitions.
    fn role_in(&mut self, now: Time) -> (&mut Role, Cx<'_>) {
        let Self { role, settings, actions, .. } = self;
        (role, Cx { settings, now, out: actions })
    }

    /// What always holds between two inputs. A violation is a defect of the core: what peers, guests and
    /// operators say is refused before.
    fn check(&self) {
        let session = match &self.role {
            Role::Primary(primary) => {
                primary.check();
                Some(primary.term())
            }
            Role::Standby(standby) => {
                standby.check();
                standby.term()
            }
            Role::Solo | Role::Fenced => None,
        };
        assert!(session.is_none_or(|term| term == self.term), "a session of term {session:?} in term {}", self.term);
    }

    /// What to do next, until there is nothing.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call `handle` with [`Input::Timeout`] if nothing else happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let check = self.has_peer().then(|| self.detector.next_check()).flatten();
        let role = match &self.role {
            Role::Primary(primary) => primary.timeout(&self.settings),
            Role::Standby(standby) => standby.timeout(),
            Role::Solo | Role::Fenced => None,
        };
        check.into_iter().chain(role).min()
    }

    /// New settings, for an open session and for the next one.
    pub fn configure(&mut self, settings: Settings, now: Time) {
        if self.settings.silence != settings.silence {
            self.detector = FailureDetector::new(settings.silence, now);
        }
        self.settings = settings;
    }

    /// A term that the witness gave before the session opened. An open one keeps its own.
    pub fn adopt_term(&mut self, term: Term) {
        if !self.has_peer() {
            self.term = self.term.max(term);
        }
    }

    /// This node's name.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The latest term that this node knows.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// The settings in force.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether this node may run the VM.
    #[must_use]
    pub fn runs(&self) -> bool {
        matches!(self.role, Role::Solo | Role::Primary(_))
    }

    /// Whether this node runs the VM, and another one can take over at any moment.
    #[must_use]
    pub fn can_fail_over(&self) -> bool {
        matches!(&self.role, Role::Primary(primary) if primary.can_fail_over())
    }

    /// What this node is doing.
    #[must_use]
    pub fn state(&self) -> State {
        match &self.role {
            Role::Solo => State::Solo,
            Role::Primary(primary) if primary.is_protected() => State::Protected,
            Role::Primary(_) => State::Syncing,
            Role::Standby(standby) if standby.peer().is_none() => State::StandbyEmpty,
            Role::Standby(standby) if standby.committed().is_none() => State::StandbySyncing,
            Role::Standby(_) => State::StandbyReady,
            Role::Fenced => State::Fenced,
        }
    }

    /// Whether this node is a standby that waits for the witness to decide who runs the VM.
    #[must_use]
    pub fn awaits_witness(&self) -> bool {
        matches!(&self.role, Role::Standby(standby) if standby.awaits_witness())
    }

    /// The claim that the witness has not answered yet.
    #[must_use]
    pub fn pending_claim(&self) -> Option<Claim> {
        match &self.role {
            Role::Primary(primary) => primary.pending_claim(),
            Role::Standby(standby) => standby.pending_claim(),
            Role::Solo | Role::Fenced => None,
        }
    }

    /// The running epoch of a primary, the committed one of a standby.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        match &self.role {
            Role::Primary(primary) => primary.running(),
            Role::Standby(standby) => standby.committed().unwrap_or_default(),
            Role::Solo | Role::Fenced => Epoch::default(),
        }
    }

    /// The other node of the session.
    #[must_use]
    pub fn peer(&self) -> Option<NodeId> {
        match &self.role {
            Role::Primary(primary) => Some(primary.peer()),
            Role::Standby(standby) => standby.peer(),
            Role::Solo | Role::Fenced => None,
        }
    }

    /// The state of a link, and how long it has been silent.
    #[must_use]
    pub fn link(&self, link: LinkId, now: Time) -> (Light, Duration) {
        (self.detector.light(link, now), self.detector.silence(link, now))
    }

    /// What this node's heartbeats say.
    #[must_use]
    pub fn beat(&self) -> Beat {
        let gives_up = matches!(&self.role, Role::Primary(primary) if primary.requests_takeover());
        Beat { from: self.id, term: self.term, runs: self.runs() && !gives_up }
    }

    /// Whether a session is open, and has nothing to lose yet.
    fn is_copying(&self) -> bool {
        matches!(self.state(), State::Syncing | State::StandbySyncing)
    }

    fn has_peer(&self) -> bool {
        self.peer().is_some()
    }

    fn turn(&mut self, outcome: Option<Outcome>) {
        match outcome {
            Some(Outcome::Solo(term)) => {
                assert!(term >= self.term, "from term {} back to {term}", self.term);
                assert!(!matches!(self.role, Role::Fenced), "a fenced node runs the VM again");
                self.term = term;
                self.role = Role::Solo;
            }
            Some(Outcome::Fenced) => {
                assert!(self.runs(), "a node is fenced that does not run the VM");
                self.role = Role::Fenced;
            }
            None => {}
        }
    }

    fn on_beat(&mut self, link: LinkId, at: Time, beat: Beat, now: Time) {
        // A node that is not in this session.
        if self.peer() != Some(beat.from) {
            return;
        }
        if beat.runs && beat.term > self.term {
            return self.contested(beat, now);
        }
        self.notice_stall(now);
        self.detector.heard(link, at);
        let mute = self.detector.light(LinkId::Replication, now) == Light::Red;
        let (role, mut cx) = self.role_in(now);
        let outcome = match role {
            Role::Primary(primary) if !beat.runs => primary.heard(at, &mut cx),
            // A primary that may no longer run the VM counts as dead, however alive its process is.
            Role::Standby(standby) if !beat.runs => standby.primary_stopped(beat.term, mute, &mut cx),
            _ => None,
        };
        self.turn(outcome);
        self.check();
    }

    /// The peer says that it runs the VM in a later term. A beat alone decides nothing where there is a
    /// witness to ask.
    fn contested(&mut self, beat: Beat, now: Time) {
        let (role, mut cx) = self.role_in(now);
        let outcome = match role {
            Role::Primary(primary) => {
                let reason = format!("node {} says that it runs the VM in term {}", beat.from, beat.term);
                primary.contested(reason, &mut cx)
            }
            Role::Standby(standby) => {
                standby.superseded(beat.term, &mut cx);
                None
            }
            Role::Solo | Role::Fenced => None,
        };
        self.turn(outcome);
    }

    /// The witness's record was read. It decides who runs the VM, whatever this node believes.
    fn record_read(&mut self, record: Option<Record>, now: Time) -> Option<Outcome> {
        let (id, term) = (self.id, self.term);
        let (role, mut cx) = self.role_in(now);
        match (role, record) {
            (Role::Solo, None) => {
                cx.tell(Event::WitnessRecordLost);
                None
            }
            (Role::Solo, Some(record)) if record.term() > term && !record.is_of(id) => {
                Some(cx.fence(refusal(Some(record))))
            }
            (Role::Primary(primary), record) => primary.record_read(record, &mut cx),
            (Role::Solo | Role::Standby(_) | Role::Fenced, _) => None,
        }
    }

    /// Notices that this process was stopped, before it acts on what may be out of date.
    fn notice_stall(&mut self, now: Time) {
        if !self.has_peer() || !self.detector.check(now) {
            return;
        }
        let beat_interval = self.detector.check_interval().unwrap_or_default();
        let (role, mut cx) = self.role_in(now);
        cx.tell(Event::LocalStall);
        match role {
            Role::Primary(primary) => primary.woke(now, beat_interval),
            Role::Standby(standby) => standby.woke(now),
            Role::Solo | Role::Fenced => {}
        }
    }

    /// Acts on the time: link states, silence, retries, cuts.
    fn on_time(&mut self, now: Time) {
        if !self.has_peer() {
            return;
        }
        self.report_lights(now);
        let patience = if self.is_copying() { COPY_PATIENCE } else { Duration::ZERO };
        let suspects = self.detector.suspects(now, patience);
        let link = LinkId::Replication;
        let silent = self.detector.light(link, now) == Light::Red && self.detector.silence(link, now) > patience;
        let (role, mut cx) = self.role_in(now);
        let outcome = match role {
            Role::Primary(primary) => primary.on_time(silent, &mut cx),
            Role::Standby(standby) => standby.on_time(suspects, &mut cx),
            Role::Solo | Role::Fenced => None,
        };
        self.turn(outcome);
    }

    fn report_lights(&mut self, now: Time) {
        let red = LinkId::ALL.map(|link| self.detector.light(link, now) == Light::Red);
        if red == self.red {
            return;
        }
        let before = std::mem::replace(&mut self.red, red);
        for (link, (was, is)) in LinkId::ALL.into_iter().zip(before.into_iter().zip(red)) {
            match (was, is) {
                (false, true) => self.actions.push_back(Action::Event(Event::LinkSilent { link })),
                (true, false) => self.actions.push_back(Action::Event(Event::LinkRestored { link })),
                _ => {}
            }
        }
        if red.iter().all(|red| *red) {
            let silence = LinkId::ALL.iter().map(|link| self.detector.silence(*link, now)).min().unwrap_or_default();
            let silence_ms = u64::try_from(silence.as_millis()).unwrap_or(u64::MAX);
            self.actions.push_back(Action::Event(Event::PeerSuspected { silence_ms }));
        }
    }
}
