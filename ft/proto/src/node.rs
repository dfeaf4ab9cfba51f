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
//! The shell feeds `handle`, performs what `poll_action` yields in order, and calls back when `poll_timeout` says.

use std::collections::VecDeque;
use std::time::Duration;

use crate::events::{Action, Beat, Event, Input, Settings};
use crate::failure_detector::{FailureDetector, Light, LinkId};
use crate::primary::{Phase, Primary, fence, refusal};
use crate::standby::Standby;
use crate::witness::{Claim, Record};
use crate::{Epoch, NodeId, Term, Time};

/// Between two tries to reach the witness.
pub(crate) const RETRY: Duration = Duration::from_millis(200);

/// While a session has nothing to lose yet, silence up to this long is slow machinery, not death: the first copy loads
/// both hosts, and a standby without a checkpoint could not take over anyway.
const COPY_PATIENCE: Duration = Duration::from_secs(5);

/// What a role turns into.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// Runs the VM, unprotected, in this term.
    Solo(Term),
    /// Must not run the VM any more.
    Fenced,
}

#[cfg_attr(feature = "model", derive(Clone, Eq, Hash, PartialEq))]
#[derive(Debug)]
enum Role {
    Solo,
    Primary(Box<Primary>),
    Standby(Standby),
    Fenced,
}

/// What a node is doing, for status.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// Runs the VM; there is no standby.
    Solo,
    /// Runs the VM; the first copy to a standby is on its way, or not yet acknowledged.
    Syncing,
    /// Runs the VM; a failure loses nothing.
    Protected,
    /// Does not run the VM; no primary has joined.
    StandbyEmpty,
    /// Does not run the VM; the first copy is arriving.
    StandbySyncing,
    /// Does not run the VM; can take over.
    StandbyReady,
    /// Must not run the VM any more.
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
    /// Last reported look of each link, so that a change is an event.
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
        Self::new(id, Term(0), Role::Standby(Standby::new(id)), settings, now)
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
        let outcome = match (&mut self.role, input) {
            (Role::Solo, Input::SessionOpened { peer }) => {
                self.role = Role::Primary(Box::new(Primary::new(self.id, peer, self.term, now)));
                self.actions.push_back(Action::Event(Event::SyncStarted));
                None
            }
            (Role::Solo, Input::TakeOverFailed { reason }) => {
                self.actions.push_back(Action::Fence { reason: reason.clone() });
                self.actions.push_back(Action::Event(Event::Fenced { reason }));
                Some(Outcome::Fenced)
            }
            (Role::Standby(_), Input::PrimaryJoined { term, .. }) if term < self.term => None,
            (_, Input::RecordRead { record }) => self.record_read(record),
            (Role::Primary(primary), input) => primary.handle(input, &self.settings, now, &mut self.actions),
            (Role::Standby(standby), input) => {
                if let Input::PrimaryJoined { term, .. } = input {
                    self.term = term;
                }
                standby.handle(input, &self.settings, now, &mut self.actions)
            }
            (Role::Solo | Role::Fenced, _) => None,
        };
        self.turn(outcome);
        if copied && !self.is_copying() {
            // Silence that was tolerated until now must not count all at once.
            self.detector = FailureDetector::new(self.settings.silence, now);
        }
        self.on_time(now);
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

    /// New settings, for the session that opens next and the one that is open.
    pub fn configure(&mut self, settings: Settings, now: Time) {
        if self.settings.silence != settings.silence {
            self.detector = FailureDetector::new(settings.silence, now);
        }
        self.settings = settings;
    }

    /// A term that the witness gave before the session opened.
    pub fn adopt_term(&mut self, term: Term) {
        self.term = self.term.max(term);
    }

    /// This node's name.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The reign that this node believes in.
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

    /// Whether this node runs the VM and another one can go on with it at any moment.
    #[must_use]
    pub fn has_a_successor(&self) -> bool {
        matches!(&self.role, Role::Primary(primary) if primary.has_a_successor())
    }

    /// What this node is doing.
    #[must_use]
    pub fn state(&self) -> State {
        match &self.role {
            Role::Solo => State::Solo,
            Role::Primary(primary) if primary.phase == Phase::Protected => State::Protected,
            Role::Primary(_) => State::Syncing,
            Role::Standby(Standby { session: None, .. }) => State::StandbyEmpty,
            Role::Standby(Standby { session: Some(session), .. }) if session.committed.is_some() => State::StandbyReady,
            Role::Standby(_) => State::StandbySyncing,
            Role::Fenced => State::Fenced,
        }
    }

    /// Whether this node is a standby that has to hear from the witness before it knows who runs the VM.
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
            Role::Primary(primary) => primary.running,
            Role::Standby(Standby { session: Some(session), .. }) => session.committed.unwrap_or_default(),
            _ => Epoch::default(),
        }
    }

    /// The other node of the session.
    #[must_use]
    pub fn peer(&self) -> Option<NodeId> {
        match &self.role {
            Role::Primary(primary) => Some(primary.peer),
            Role::Standby(standby) => standby.session.as_ref().map(|session| session.primary),
            Role::Solo | Role::Fenced => None,
        }
    }

    /// How a link looks and how long it has been silent.
    #[must_use]
    pub fn link(&self, link: LinkId, now: Time) -> (Light, Duration) {
        (self.detector.light(link, now), self.detector.silence(link, now))
    }

    /// What this node's heartbeats say.
    #[must_use]
    pub fn beat(&self) -> Beat {
        let invites = matches!(&self.role, Role::Primary(primary) if primary.invites());
        Beat { from: self.id, term: self.term, runs: self.runs() && !invites }
    }

    /// Whether a session is open that has nothing to lose yet.
    fn is_copying(&self) -> bool {
        matches!(self.state(), State::Syncing | State::StandbySyncing)
    }

    fn has_peer(&self) -> bool {
        self.peer().is_some()
    }

    fn turn(&mut self, outcome: Option<Outcome>) {
        match outcome {
            Some(Outcome::Solo(term)) => {
                self.term = term;
                self.role = Role::Solo;
            }
            Some(Outcome::Fenced) => self.role = Role::Fenced,
            None => {}
        }
    }

    fn on_beat(&mut self, link: LinkId, at: Time, beat: Beat, now: Time) {
        // Whoever is not in this node's session has nothing to say about it.
        if self.peer() != Some(beat.from) {
            return;
        }
        if beat.runs && beat.term > self.term {
            return self.contested(beat, now);
        }
        self.notice_stall(now);
        self.detector.heard(link, at);
        let mute = self.detector.light(LinkId::Replication, now) == Light::Red;
        let outcome = match &mut self.role {
            Role::Primary(primary) if !beat.runs => primary.heard(at, &self.settings, &mut self.actions),
            // One that may not run any more is as good as dead, however lively its process.
            Role::Standby(standby) if !beat.runs => {
                standby.primary_stopped(beat.term, mute, &self.settings, now, &mut self.actions)
            }
            _ => None,
        };
        self.turn(outcome);
    }

    /// The peer says that it runs the VM in a later term. A beat alone decides nothing where there is a witness to ask.
    fn contested(&mut self, beat: Beat, now: Time) {
        let outcome = match &mut self.role {
            Role::Primary(primary) => {
                let reason = format!("node {} says that it runs the VM in term {}", beat.from, beat.term);
                primary.contested(reason, &self.settings, &mut self.actions)
            }
            Role::Standby(standby) => {
                standby.superseded(beat.term, &self.settings, now, &mut self.actions);
                None
            }
            Role::Solo | Role::Fenced => None,
        };
        self.turn(outcome);
    }

    /// The witness's record was read. It is the last word on who runs the VM, whatever was thought here.
    fn record_read(&mut self, record: Option<Record>) -> Option<Outcome> {
        match &mut self.role {
            Role::Solo => {
                let Some(record) = record else {
                    self.actions.push_back(Action::Event(Event::WitnessRecordLost));
                    return None;
                };
                let reason = refusal(Some(record));
                (record.term() > self.term && !record.is_of(self.id)).then(|| fence(reason, &mut self.actions))
            }
            Role::Primary(primary) => primary.record_read(record, &self.settings, &mut self.actions),
            Role::Standby(_) | Role::Fenced => None,
        }
    }

    /// Before anything is done that may be out of date by now.
    fn notice_stall(&mut self, now: Time) {
        if !self.has_peer() || !self.detector.check(now) {
            return;
        }
        self.actions.push_back(Action::Event(Event::OwnStall));
        match &mut self.role {
            Role::Primary(primary) => primary.woke(now, self.detector.check_interval().unwrap_or_default()),
            Role::Standby(standby) => standby.woke(now),
            Role::Solo | Role::Fenced => {}
        }
    }

    /// Looks at the clock: lights, silence, retries, cuts.
    fn on_time(&mut self, now: Time) {
        if !self.has_peer() {
            return;
        }
        self.report_lights(now);
        let patience = if self.is_copying() { COPY_PATIENCE } else { Duration::ZERO };
        let suspects = self.detector.suspects(now, patience);
        let outcome = match &mut self.role {
            Role::Primary(primary) => {
                let link = LinkId::Replication;
                let silent =
                    self.detector.light(link, now) == Light::Red && self.detector.silence(link, now) > patience;
                primary.on_time(silent, &self.settings, now, &mut self.actions)
            }
            Role::Standby(standby) => standby.on_time(suspects, &self.settings, now, &mut self.actions),
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
                (true, false) => self.actions.push_back(Action::Event(Event::LinkBack { link })),
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
