//! The standby's half of a session: collect the parts of each epoch, commit whole ones in order, take over.
//!
//! ```text
//! Empty --primary joined--> Copying --base complete--> Ready
//! Copying --stream lost, primary silent, stopped or left--> Empty
//! Ready --primary left--> Empty
//!
//! Ready, with a witness:
//!   Content --primary silent, stopped or yielded--> TakingOver --granted--> Solo
//!   Content --primary says that it runs in a later term--> Withdrawing
//!   TakingOver, no answer --primary heard again--> Withdrawing --granted--> Content
//!   Withdrawing --primary silent, stopped or yielded--> TakingOver
//!   Withdrawing --the takeover had been granted--> Solo
//!   TakingOver, Withdrawing --not registered yet--> Content
//!   TakingOver, Withdrawing --refused: another node runs the VM--> Empty
//! Ready, without a witness:
//!   primary silent, stopped or yielded --the policy says so--> Solo
//!   primary says that it runs in a later term --> Empty
//! ```
//!
//! Nothing is acknowledged in `TakingOver`. If the witness is unreachable, and the primary is heard again
//! before it, the claim is withdrawn: epochs are committed again, whatever became of the claim, since only
//! this standby could use what it grants. The standby asks until it knows; if the claim was granted after
//! all, it takes over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::events::{Action, Event, Input, OnPartition, WitnessAnswer};
use crate::session::{Cx, Outcome, PendingClaim, RETRY};
use crate::witness::{Claim, Record, Verdict};
use crate::{Committed, Epoch, NodeId, Term, Time};

/// How long a primary that is alive but has stopped may take to say so on the stream.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A standby, with or without a primary.
#[cfg_attr(feature = "model", derive(Clone, Eq, Hash, PartialEq))]
#[derive(Debug)]
pub(crate) struct Standby {
    id: NodeId,
    state: State,
}

#[cfg_attr(feature = "model", derive(Clone, Eq, Hash, PartialEq))]
#[derive(Debug)]
enum State {
    /// No primary has joined.
    Empty,
    /// The first copy is arriving.
    Copying(Copying),
    /// There is a checkpoint to take over from.
    Ready(Ready),
}

/// Whose copy is held.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Session {
    primary: NodeId,
    term: Term,
}

#[cfg_attr(feature = "model", derive(Clone, Eq, Hash, PartialEq))]
#[derive(Debug)]
struct Copying {
    session: Session,
    arriving: Arriving,
    /// Since when the primary's beats say that it no longer runs the VM.
    stopped: Option<Time>,
}

#[cfg_attr(feature = "model", derive(Clone, Eq, Hash, PartialEq))]
#[derive(Debug)]
struct Ready {
    session: Session,
    /// The last complete epoch.
    committed: Epoch,
    /// Parts of later ones; `None`: the stream has ended, which leaves the copy as good as it is.
    arriving: Option<Arriving>,
    primary: PrimarySays,
    claim: ClaimState,
    no_claim_before: Time,
    /// Until then the witness is not asked again whether this copy may still take over.
    no_question_before: Time,
    /// It was reported that by the policy this standby does not take over although the primary is silent.
    suppressed: bool,
}

/// What the primary says of itself.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum PrimarySays {
    /// It runs the VM, as far as is known.
    Runs,
    /// Since then its beats say that it no longer does, or that it asks to be taken over from: it will not
    /// return.
    Stopped(Time),
    /// It has yielded the VM, or is not waited for any longer.
    Yielded,
}

/// What the standby has asked the witness for.
#[cfg_attr(feature = "model", derive(Hash))]
#[derive(Clone, Debug, Eq, PartialEq)]
enum ClaimState {
    /// Nothing: the primary runs the VM.
    Content,
    /// To take over. Nothing is acknowledged until the claim is refused or withdrawn.
    TakingOver(PendingClaim),
    /// To void an unanswered claim to take over; or, after the primary's beats named a later term, to confirm
    /// that this copy may still take over.
    Withdrawing(PendingClaim),
}

/// Epochs that are arriving.
#[cfg_attr(feature = "model", derive(Clone, Eq, Hash, PartialEq))]
#[derive(Debug)]
struct Arriving {
    /// How many disks have a stream of their own.
    disks: u16,
    epochs: BTreeMap<Epoch, Parts>,
}

/// What has arrived of an epoch.
#[cfg_attr(feature = "model", derive(Clone, Eq, Hash, PartialEq))]
#[derive(Debug, Default)]
struct Parts {
    memory: bool,
    disks: BTreeSet<u16>,
}

impl Standby {
    pub(crate) fn new(id: NodeId) -> Self {
        Self { id, state: State::Empty }
    }

    /// The session's primary.
    pub(crate) fn peer(&self) -> Option<NodeId> {
        self.session().map(|session| session.primary)
    }

    /// The session's term.
    pub(crate) fn term(&self) -> Option<Term> {
        self.session().map(|session| session.term)
    }

    /// The last complete epoch.
    pub(crate) fn committed(&self) -> Option<Epoch> {
        match &self.state {
            State::Empty | State::Copying(_) => None,
            State::Ready(ready) => Some(ready.committed),
        }
    }

    fn session(&self) -> Option<Session> {
        match &self.state {
            State::Empty => None,
            State::Copying(copying) => Some(copying.session),
            State::Ready(ready) => Some(ready.session),
        }
    }

    /// The claim that has no answer yet.
    pub(crate) fn pending_claim(&self) -> Option<Claim> {
        let State::Ready(ready) = &self.state else { return None };
        ready.claim.pending().map(PendingClaim::claim)
    }

    /// Whether an answer of the witness is open that may make this node run the VM.
    pub(crate) fn awaits_witness(&self) -> bool {
        self.pending_claim().is_some()
    }

    pub(crate) fn timeout(&self) -> Option<Time> {
        let retry = match &self.state {
            State::Ready(ready) => ready.claim.pending().and_then(PendingClaim::timeout),
            State::Empty | State::Copying(_) => None,
        };
        retry.into_iter().chain(self.stop_due()).min()
    }

    /// What holds in each state, whatever the peer has sent.
    pub(crate) fn check(&self) {
        match &self.state {
            State::Empty => {}
            State::Copying(copying) => copying.arriving.check(Epoch(0)),
            State::Ready(ready) => ready.check(),
        }
    }

    pub(crate) fn handle(&mut self, input: Input, cx: &mut Cx<'_>) -> Option<Outcome> {
        match input {
            Input::PrimaryJoined { peer, term, disks } => {
                assert!(self.term().is_none_or(|held| held <= term), "a session of term {term} after a later one");
                let session = Session { primary: peer, term };
                self.state = State::Copying(Copying { session, arriving: Arriving::new(disks), stopped: None });
            }
            Input::MemoryComplete { epoch, idle } => self.collect(epoch, |parts| parts.add_memory(idle), cx),
            Input::DiskComplete { epoch, disk } => self.collect(epoch, |parts| parts.add_disk(disk), cx),
            Input::Yielded { term } if self.term() == Some(term) => return self.take_over_from_stopped(cx),
            Input::PeerLeft { reason, .. } => self.reset(reason, cx),
            Input::StreamLost { reason } => return self.stream_lost(reason, cx),
            Input::Witness(answer) => return self.witness_answered(answer, cx),
            _ => {}
        }
        None
    }

    /// Time has passed. `suspects`: the primary is silent on every link.
    pub(crate) fn on_time(&mut self, suspects: bool, cx: &mut Cx<'_>) -> Option<Outcome> {
        if self.stop_due().is_some_and(|due| due <= cx.now) {
            return self.take_over_from_stopped(cx);
        }
        if let State::Ready(ready) = &mut self.state {
            ready.ask_again(self.id, suspects, cx);
        }
        if suspects { self.on_silence(cx) } else { None }
    }

    /// A beat of the primary says that it no longer runs the VM. What it sent before, and its `Yield`, may
    /// still be on the stream: they are waited for until the stream ends, its link is `mute`, or
    /// [`LAST_WORDS`] have passed.
    pub(crate) fn primary_stopped(&mut self, term: Term, mute: bool, cx: &mut Cx<'_>) -> Option<Outcome> {
        if self.term() != Some(term) {
            return None;
        }
        let connected = match &mut self.state {
            State::Empty => return None,
            State::Copying(copying) => {
                copying.stopped.get_or_insert(cx.now);
                true
            }
            State::Ready(ready) => {
                if ready.primary == PrimarySays::Runs {
                    ready.primary = PrimarySays::Stopped(cx.now);
                }
                ready.arriving.is_some()
            }
        };
        if connected && !mute { None } else { self.take_over_from_stopped(cx) }
    }

    /// This process was stopped until `now`: the time before does not count against the primary.
    pub(crate) fn woke(&mut self, now: Time) {
        match &mut self.state {
            State::Copying(Copying { stopped: Some(since), .. }) => *since = now,
            State::Ready(ready) if matches!(ready.primary, PrimarySays::Stopped(_)) => {
                ready.primary = PrimarySays::Stopped(now);
            }
            _ => {}
        }
    }

    /// A beat of the primary says that it runs the VM in a later term: this copy is out of date. If there is
    /// a witness, a beat is only a reason to ask it.
    pub(crate) fn superseded(&mut self, term: Term, cx: &mut Cx<'_>) {
        let State::Ready(ready) = &mut self.state else { return };
        if cx.settings.on_partition.is_some() {
            self.reset(format!("the VM runs elsewhere in term {term}"), cx);
        } else if ready.claim == ClaimState::Content && cx.now >= ready.no_question_before {
            ready.no_question_before = cx.now + RETRY;
            ready.claim = ClaimState::Withdrawing(PendingClaim::ask(ready.session.withdrawal(self.id), cx));
        }
    }

    fn reset(&mut self, reason: String, cx: &mut Cx<'_>) {
        if !matches!(std::mem::replace(&mut self.state, State::Empty), State::Empty) {
            cx.act(Action::Reset { reason: reason.clone() });
            cx.tell(Event::StandbyReset { reason });
        }
    }

    /// A part of an epoch has arrived. Ignored if the epoch is committed already, or the stream has ended.
    fn collect(&mut self, epoch: Epoch, part: impl FnOnce(&mut Parts), cx: &mut Cx<'_>) {
        let committed = self.committed().unwrap_or_default();
        let arriving = match &mut self.state {
            State::Empty => None,
            State::Copying(copying) => Some(&mut copying.arriving),
            State::Ready(ready) => ready.arriving.as_mut(),
        };
        let Some(arriving) = arriving.filter(|_| epoch > committed) else { return };
        part(arriving.epochs.entry(epoch).or_default());
        self.commit_whole_epochs(cx);
    }

    fn commit_whole_epochs(&mut self, cx: &mut Cx<'_>) {
        self.state = match std::mem::replace(&mut self.state, State::Empty) {
            State::Copying(copying) => copying.commit_base(cx),
            other => other,
        };
        if let State::Ready(ready) = &mut self.state {
            ready.commit_whole_epochs(cx);
        }
    }

    fn stream_lost(&mut self, reason: String, cx: &mut Cx<'_>) -> Option<Outcome> {
        match &mut self.state {
            State::Empty => None,
            State::Copying(_) => {
                self.reset(reason, cx);
                None
            }
            State::Ready(ready) => {
                ready.arriving = None;
                if ready.primary == PrimarySays::Runs { None } else { self.take_over_from_stopped(cx) }
            }
        }
    }

    /// When a primary that has stopped is not waited for any longer, unless this standby is taking over
    /// already.
    fn stop_due(&self) -> Option<Time> {
        match &self.state {
            State::Empty => None,
            State::Copying(copying) => copying.stopped.map(|since| since + LAST_WORDS),
            State::Ready(ready) => match (ready.primary, &ready.claim) {
                (_, ClaimState::TakingOver(_)) | (PrimarySays::Runs, _) => None,
                (PrimarySays::Stopped(since), _) => Some((since + LAST_WORDS).max(ready.no_claim_before)),
                (PrimarySays::Yielded, _) => Some(ready.no_claim_before),
            },
        }
    }

    /// Takes over from a primary that has stopped for good.
    fn take_over_from_stopped(&mut self, cx: &mut Cx<'_>) -> Option<Outcome> {
        match &mut self.state {
            State::Empty => None,
            State::Copying(_) => {
                self.reset("the primary stopped before its first checkpoint".to_owned(), cx);
                None
            }
            State::Ready(ready) => {
                ready.primary = PrimarySays::Yielded;
                ready.claim_takeover(self.id, cx)
            }
        }
    }

    /// The primary is silent on every link.
    fn on_silence(&mut self, cx: &mut Cx<'_>) -> Option<Outcome> {
        match &mut self.state {
            State::Empty => None,
            State::Copying(_) => {
                self.reset("the primary fell silent before its first checkpoint".to_owned(), cx);
                None
            }
            State::Ready(ready) if ready.primary != PrimarySays::Runs => self.take_over_from_stopped(cx),
            State::Ready(ready) if cx.settings.on_partition == Some(OnPartition::Primary) => {
                if !std::mem::replace(&mut ready.suppressed, true) {
                    cx.tell(Event::TakeoverSuppressed);
                }
                None
            }
            State::Ready(ready) => ready.claim_takeover(self.id, cx),
        }
    }

    fn witness_answered(&mut self, answer: WitnessAnswer, cx: &mut Cx<'_>) -> Option<Outcome> {
        let State::Ready(ready) = &mut self.state else { return None };
        let pending = ready.claim.pending_mut().filter(|claim| claim.is_answered_by(&answer))?;
        match answer {
            WitnessAnswer::Unreachable(_, reason) => pending.unreachable(reason, cx),
            // The copy may be the only one left: it is kept until there is a record again.
            WitnessAnswer::Judged(_, Verdict::Refused(None)) => pending.record_lost(cx),
            WitnessAnswer::Judged(_, Verdict::Granted(record)) => return ready.granted(record, cx),
            WitnessAnswer::Judged(_, Verdict::Refused(Some(Record::Solo { owner, term, .. }))) => {
                let Session { primary, term: ours } = ready.session;
                if owner == self.id && term == ours.next() {
                    // The claim that was to be withdrawn had been granted: the primary may not go on.
                    return Some(ready.take_over(term, cx));
                }
                if owner == primary && term == ours {
                    ready.not_registered(cx);
                } else {
                    self.refused(cx);
                }
            }
            WitnessAnswer::Judged(_, Verdict::Refused(Some(_))) => self.refused(cx),
        }
        None
    }

    fn refused(&mut self, cx: &mut Cx<'_>) {
        self.reset("the witness gives the VM to another node".to_owned(), cx);
    }
}

impl Copying {
    /// Commits the first epoch, if it is complete: there is a checkpoint to take over from.
    fn commit_base(mut self, cx: &mut Cx<'_>) -> State {
        let Self { session, stopped, .. } = self;
        let committed = Epoch(1);
        if !self.arriving.take_whole(committed) {
            return State::Copying(self);
        }
        cx.act(Action::Commit(Committed::new(committed)));
        cx.tell(Event::StandbyReady { term: session.term });
        State::Ready(Ready {
            session,
            committed,
            arriving: Some(self.arriving),
            primary: stopped.map_or(PrimarySays::Runs, PrimarySays::Stopped),
            claim: ClaimState::Content,
            no_claim_before: Time::default(),
            no_question_before: Time::default(),
            suppressed: false,
        })
    }
}

impl Ready {
    fn check(&self) {
        assert!(self.committed > Epoch(0), "ready without a checkpoint");
        if let Some(arriving) = &self.arriving {
            arriving.check(self.committed);
        }
        let claimed = match &self.claim {
            ClaimState::Content => true,
            ClaimState::TakingOver(claim) => matches!(claim.claim(), Claim::TakeOver { .. }),
            ClaimState::Withdrawing(claim) => matches!(claim.claim(), Claim::Withdraw { .. }),
        };
        assert!(claimed, "the witness was asked for something else: {:?}", self.claim);
        let term = self.claim.pending().map(|claim| claim.claim().term());
        assert!(term.is_none_or(|term| term == self.session.term), "a claim of term {term:?} in another session");
    }

    /// The only place on a standby where an epoch becomes committed, but for the first one.
    fn commit_whole_epochs(&mut self, cx: &mut Cx<'_>) {
        if matches!(self.claim, ClaimState::TakingOver(_)) {
            return;
        }
        let Some(arriving) = &mut self.arriving else { return };
        while arriving.take_whole(self.committed.next()) {
            self.committed = self.committed.next();
            cx.act(Action::Commit(Committed::new(self.committed)));
        }
    }

    /// If it is time to, repeats the claim; or withdraws it, if it is to take over and the primary is heard
    /// again.
    fn ask_again(&mut self, id: NodeId, suspects: bool, cx: &mut Cx<'_>) {
        let Some(pending) = self.claim.pending_mut().filter(|claim| claim.is_due(cx.now)) else { return };
        let back = self.arriving.is_some() && self.primary != PrimarySays::Yielded && !suspects;
        if back && matches!(pending.claim(), Claim::TakeOver { .. }) {
            cx.tell(Event::TakeoverWithdrawn);
            self.claim = ClaimState::Content;
            self.commit_whole_epochs(cx);
            self.claim = ClaimState::Withdrawing(PendingClaim::ask(self.session.withdrawal(id), cx));
        } else {
            pending.ask_again(cx);
        }
    }

    fn claim_takeover(&mut self, id: NodeId, cx: &mut Cx<'_>) -> Option<Outcome> {
        if cx.now < self.no_claim_before || matches!(self.claim, ClaimState::TakingOver(_)) {
            return None;
        }
        // Without a witness the claim is its own answer.
        if cx.settings.on_partition.is_some() {
            return Some(self.take_over(self.session.term.next(), cx));
        }
        self.claim = ClaimState::TakingOver(PendingClaim::ask(self.session.takeover(id), cx));
        None
    }

    fn granted(&mut self, record: Record, cx: &mut Cx<'_>) -> Option<Outcome> {
        if matches!(self.claim, ClaimState::TakingOver(_)) {
            return Some(self.take_over(record.term(), cx));
        }
        self.claim = ClaimState::Content;
        None
    }

    /// The primary has not registered this copy yet, and may do so at any moment: the copy is kept.
    fn not_registered(&mut self, cx: &mut Cx<'_>) {
        self.claim = ClaimState::Content;
        self.no_claim_before = cx.now + RETRY;
        self.commit_whole_epochs(cx);
    }

    fn take_over(&self, term: Term, cx: &mut Cx<'_>) -> Outcome {
        let committed = self.committed;
        assert!(term > self.session.term, "a takeover from term {} in term {term}", self.session.term);
        cx.tell(Event::TakeoverStarted { epoch: committed, term });
        cx.act(Action::TakeOver { committed, term });
        Outcome::Solo(term)
    }
}

impl Session {
    fn takeover(self, standby: NodeId) -> Claim {
        Claim::TakeOver { primary: self.primary, standby, term: self.term }
    }

    fn withdrawal(self, standby: NodeId) -> Claim {
        Claim::Withdraw { primary: self.primary, standby, term: self.term }
    }
}

impl ClaimState {
    fn pending(&self) -> Option<&PendingClaim> {
        match self {
            Self::Content => None,
            Self::TakingOver(claim) | Self::Withdrawing(claim) => Some(claim),
        }
    }

    fn pending_mut(&mut self) -> Option<&mut PendingClaim> {
        match self {
            Self::Content => None,
            Self::TakingOver(claim) | Self::Withdrawing(claim) => Some(claim),
        }
    }
}

impl Arriving {
    fn new(disks: u16) -> Self {
        Self { disks, epochs: BTreeMap::new() }
    }

    fn check(&self, committed: Epoch) {
        let first = self.epochs.first_key_value().map(|(first, _)| *first);
        assert!(first.is_none_or(|first| first > committed), "parts of {first:?} are left, {committed} is committed");
    }

    /// Takes out `epoch` if it is complete.
    fn take_whole(&mut self, epoch: Epoch) -> bool {
        let disks = usize::from(self.disks);
        let whole = self.epochs.get(&epoch).is_some_and(|parts| parts.memory && parts.disks.len() == disks);
        whole && self.epochs.remove(&epoch).is_some()
    }
}

impl Parts {
    fn add_memory(&mut self, idle: Vec<u16>) {
        self.memory = true;
        self.disks.extend(idle);
    }

    fn add_disk(&mut self, disk: u16) {
        self.disks.insert(disk);
    }
}
