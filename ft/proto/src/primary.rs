//! The primary's half of a session: cut epochs, await acknowledgements, release; and how it ends.
//!
//! ```text
//! Copying --synced--> Base --committed--> Registering --granted--> Protected --switchover--> Moving
//!                      |                                               ^                        |
//!                      '--committed, and there is no witness to tell---'       last epoch committed: yield
//! ```
//!
//! How it ends depends on whether the standby has a right to take over, which it has from `Registering` on, or
//! from `Base` on if there is no witness; and then on who decides: the witness, or the policy.
//!
//! | | no right | witness | `primary`, `both` | `standby` |
//! |---|---|---|---|---|
//! | stream lost, silence, no acknowledgement, cut failed | Solo | Leaving | Solo | Fenced |
//! | an operator stops the protection | Solo | Leaving | Solo | Dismissing |
//! | the standby has dropped its copy | Solo | Leaving | Solo | Solo |
//! | yield, before Protected or Moving | as for a lost stream, but in Registering it waits for Protected | | | |
//! | yield, in Protected or Moving | | Fenced | Fenced | Fenced |
//!
//! `Leaving` claims to go alone: granted, Solo; refused, Fenced. `Dismissing` asks the standby to drop its copy: if
//! it has, Solo; if the stream is lost before, Fenced. Nothing is cut or released in these two: the standby may be
//! taking over.

use std::time::Duration;

use crate::commit_rule::{Mode, Replica, committed};
use crate::events::{Action, Alone, CutKind, Event, Input, OnPartition, Settings, WitnessAnswer};
use crate::failure_detector::LinkId;
use crate::pipeline::Pipeline;
use crate::session::{Cx, Outcome, PendingClaim, refusal};
use crate::witness::{Claim, Record, Verdict};
use crate::{Epoch, NodeId, Term, Time};

/// Unanswered claims to go alone before the standby is asked to take over: one may be a hiccup, and staying
/// is better than moving.
const UNANSWERED_MAX: u32 = 2;
/// Before the first checkpoint the standby may take so many times as long to acknowledge.
const BASE_PATIENCE: u32 = 10;

/// A session with a standby.
#[cfg_attr(feature = "model", derive(Clone, Eq, Hash, PartialEq))]
#[derive(Debug)]
pub(crate) struct Primary {
    id: NodeId,
    term: Term,
    replica: Replica,
    epochs: Pipeline,
    held_acks: Option<HeldAcks>,
    state: State,
}

/// How far the session has come.
#[cfg_attr(feature = "model", derive(Clone, Eq, Hash, PartialEq))]
#[derive(Debug)]
enum State {
    /// Memory and disks are being copied; output flows freely.
    Copying,
    /// The first checkpoint is cut and not committed; output is held.
    Base { epoch: Epoch },
    /// The standby is complete; the witness is being told.
    Registering(Registering),
    /// The standby may take over.
    Protected(Watch),
    /// It may, and by an operator's wish it will.
    Moving { watch: Watch, last: LastCut },
    /// The standby is being asked to drop its copy, by an operator's wish.
    Dismissing { reason: String, was_protected: bool },
    /// The witness is being asked to let this node go on alone.
    Leaving(Leaving),
}

#[cfg_attr(feature = "model", derive(Clone, Eq, Hash, PartialEq))]
#[derive(Debug)]
struct Registering {
    claim: PendingClaim,
    /// Why the VM shall go on at the standby as soon as that may run it.
    then_yield: Option<String>,
}

/// Whether the witness still has the record of the protected pair.
#[cfg_attr(feature = "model", derive(Clone, Eq, Hash, PartialEq))]
#[derive(Debug, Default)]
struct Watch {
    /// It had none. When the standby acknowledges this epoch, which was cut later, it can be given the record
    /// again.
    lost: Option<Epoch>,
    /// It is being given the record again.
    restore: Option<PendingClaim>,
}

/// How far a planned move of the VM has come.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum LastCut {
    /// The next cut is the last one.
    Wanted,
    /// The guest has stopped; what it did and said is on its way.
    Begun,
}

#[cfg_attr(feature = "model", derive(Clone, Eq, Hash, PartialEq))]
#[derive(Debug)]
struct Leaving {
    reason: String,
    claim: PendingClaim,
    was_protected: bool,
    /// How often the claim found no witness; `None`: an operator wants to leave, so the standby is not asked
    /// to take over.
    unanswered: Option<u32>,
}

/// This process was stopped. Acknowledgements wait until the standby is heard again.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct HeldAcks {
    /// What it says from then on counts.
    until: Time,
    newest: Option<Epoch>,
}

/// Who wants to end the session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum By {
    Operator,
    Failure,
}

impl Primary {
    pub(crate) fn new(id: NodeId, peer: NodeId, term: Term, now: Time) -> Self {
        let replica = Replica::new(peer, Mode::Synchronous);
        Self { id, term, replica, epochs: Pipeline::new(now), held_acks: None, state: State::Copying }
    }

    pub(crate) fn peer(&self) -> NodeId {
        self.replica.node()
    }

    pub(crate) fn term(&self) -> Term {
        self.term
    }

    /// The epoch that the guest runs.
    pub(crate) fn running(&self) -> Epoch {
        self.epochs.running()
    }

    /// Whether the standby could lose nothing when it took over, even if this node is about to leave it.
    pub(crate) fn is_protected(&self) -> bool {
        match self.state {
            State::Copying | State::Base { .. } | State::Registering(_) => false,
            State::Protected(_) | State::Moving { .. } => true,
            State::Dismissing { was_protected, .. } | State::Leaving(Leaving { was_protected, .. }) => was_protected,
        }
    }

    /// Whether the standby may take over, and this node does not mean to leave it.
    pub(crate) fn can_fail_over(&self) -> bool {
        matches!(self.state, State::Protected(_) | State::Moving { .. })
    }

    /// Whether the standby is asked to take over: alone as it is, this node cannot let anything out or commit
    /// it, and the witness that could change that is out of its reach. It may be within the standby's, and
    /// only one can win.
    pub(crate) fn requests_takeover(&self) -> bool {
        let State::Leaving(Leaving { unanswered, .. }) = self.state else { return false };
        unanswered.is_some_and(|count| count >= UNANSWERED_MAX)
    }

    /// The claim that has no answer yet.
    pub(crate) fn pending_claim(&self) -> Option<Claim> {
        self.state.pending().map(PendingClaim::claim)
    }

    pub(crate) fn timeout(&self, settings: &Settings) -> Option<Time> {
        let retry = self.state.pending().and_then(PendingClaim::timeout);
        let cut = self.may_cut(settings).then(|| self.epochs.cut_at(settings));
        retry.into_iter().chain(cut).chain(self.ack_due(settings)).min()
    }

    pub(crate) fn handle(&mut self, input: Input, cx: &mut Cx<'_>) -> Option<Outcome> {
        match input {
            Input::Synced => self.synced(cx),
            Input::CutWanted => self.epochs.want_cut(),
            Input::CutDone { epoch, paused, pages } => self.epochs.cut_done(epoch, paused, pages, cx.now),
            Input::CutFailed { epoch, reason } => return self.cut_failed(epoch, reason, cx),
            Input::Acked { term, epoch } if term == self.term => {
                if let Some(held) = &mut self.held_acks {
                    held.newest = held.newest.max(Some(epoch));
                } else if let Some(outcome) = self.acked(epoch, cx) {
                    return Some(outcome);
                }
            }
            Input::SwitchoverRequested => self.begin_to_move(),
            // Not while it may be given the VM for itself alone: then nobody would run it.
            Input::CeaseRequested if self.can_fail_over() => {
                return Some(cx.fence("ended by request, as if it had died".to_owned()));
            }
            Input::StopRequested => return self.stop(cx),
            Input::YieldRequested { reason } => return self.yield_vm(reason, cx),
            Input::PeerLeft { reason, .. } => return self.peer_left(reason, cx),
            Input::StreamLost { reason } => return self.standby_lost(reason, cx),
            Input::Witness(answer) => return self.witness_answered(answer, cx),
            _ => {}
        }
        self.maybe_cut(cx);
        None
    }

    /// Time has passed. `silent`: the replication link has been for too long.
    pub(crate) fn on_time(&mut self, silent: bool, cx: &mut Cx<'_>) -> Option<Outcome> {
        if let Some(claim) = self.state.pending_mut().filter(|claim| claim.is_due(cx.now)) {
            claim.ask_again(cx);
        }
        // Without the link that carries the epochs nothing can be committed, whatever the other link says.
        if silent && !matches!(self.state, State::Leaving(_)) {
            let reason = format!("no sign of the standby on the {} link", LinkId::Replication.name());
            return self.standby_lost(reason, cx);
        }
        if self.ack_due(cx.settings).is_some_and(|due| due <= cx.now) {
            return self.leave("the standby lives but acknowledges nothing".to_owned(), By::Failure, cx);
        }
        self.maybe_cut(cx);
        None
    }

    /// This process was stopped until `now`. Acknowledgements may be waiting to be read, and so may the news
    /// that the standby has taken over since. What it has acknowledged does no harm if it is said late, but
    /// the network would look for the VM here.
    pub(crate) fn woke(&mut self, now: Time, beat_interval: Duration) {
        self.epochs.woke(now);
        let newest = self.held_acks.and_then(|held| held.newest);
        self.held_acks = Some(HeldAcks { until: now + beat_interval, newest });
    }

    /// A beat of a standby that does not run the VM arrived at `at`.
    pub(crate) fn heard(&mut self, at: Time, cx: &mut Cx<'_>) -> Option<Outcome> {
        let held = self.held_acks.take_if(|held| held.until <= at)?;
        self.acked(held.newest?, &mut Cx { now: at, settings: cx.settings, out: cx.out })
    }

    /// The standby says that it runs the VM in a later term.
    pub(crate) fn contested(&mut self, reason: String, cx: &mut Cx<'_>) -> Option<Outcome> {
        match cx.settings.on_partition {
            // It does not take over by itself there.
            Some(OnPartition::Primary) => None,
            Some(OnPartition::Standby | OnPartition::Both) => Some(cx.fence(reason)),
            None => self.leave(reason, By::Failure, cx),
        }
    }

    /// The witness's record was read.
    pub(crate) fn record_read(&mut self, record: Option<Record>, cx: &mut Cx<'_>) -> Option<Outcome> {
        let running = self.running();
        let registered = Record::Protected { primary: self.id, standby: self.peer(), term: self.term };
        let watch = self.state.watch_mut()?;
        match record {
            None => {
                if watch.lost.is_none() {
                    watch.lost = Some(running);
                    cx.tell(Event::WitnessRecordLost);
                }
                None
            }
            Some(record) if record == registered => {
                watch.lost = None;
                None
            }
            // Whatever happened there, a claim finds out.
            other => self.leave(refusal(other), By::Failure, cx),
        }
    }

    /// The first copy is complete.
    fn synced(&mut self, cx: &mut Cx<'_>) {
        if matches!(self.state, State::Copying) {
            self.state = State::Base { epoch: self.running() };
            self.epochs.cut(CutKind::Base, cx);
        }
    }

    fn begin_to_move(&mut self) {
        if let State::Protected(watch) = &mut self.state {
            self.state = State::Moving { watch: std::mem::take(watch), last: LastCut::Wanted };
        }
    }

    /// The state of this session allows a cut, and there is room for another sealed epoch.
    fn may_cut(&self, settings: &Settings) -> bool {
        let cuts = match self.state {
            State::Copying | State::Dismissing { .. } | State::Leaving(_) => false,
            State::Moving { last, .. } => last == LastCut::Wanted,
            State::Base { .. } | State::Registering(_) | State::Protected(_) => true,
        };
        cuts && self.epochs.has_room(settings)
    }

    fn maybe_cut(&mut self, cx: &mut Cx<'_>) {
        if !self.may_cut(cx.settings) {
            return;
        }
        if let State::Moving { last, .. } = &mut self.state {
            *last = LastCut::Begun;
            self.epochs.cut(CutKind::Last, cx);
        } else if self.epochs.is_due(cx.settings, cx.now) {
            self.epochs.cut(CutKind::Plain, cx);
        }
    }

    fn cut_failed(&mut self, epoch: Epoch, reason: String, cx: &mut Cx<'_>) -> Option<Outcome> {
        if !self.epochs.cut_failed(epoch) {
            return None;
        }
        let why = format!("the checkpoint could not be captured: {reason}");
        cx.tell(Event::CutFailed { reason });
        self.leave(why, By::Failure, cx)
    }

    /// When a standby that has acknowledged nothing since is left, although it lives.
    fn ack_due(&self, settings: &Settings) -> Option<Time> {
        let patience = match self.state {
            State::Dismissing { .. } | State::Leaving(_) => return None,
            State::Base { .. } => BASE_PATIENCE,
            _ => 1,
        };
        let since = self.epochs.waits_since().filter(|_| settings.silence.is_some())?;
        Some(since + settings.ack_limit * patience)
    }

    /// The standby holds everything up to `epoch`.
    fn acked(&mut self, epoch: Epoch, cx: &mut Cx<'_>) -> Option<Outcome> {
        // Too late: it may be taking over.
        if matches!(self.state, State::Leaving(_) | State::Dismissing { .. }) || !self.epochs.awaits(epoch) {
            return None;
        }
        self.replica.acknowledge(epoch);
        let committed = committed(std::slice::from_ref(&self.replica)).filter(|epoch| self.epochs.awaits(*epoch))?;
        self.epochs.commit(committed, cx);
        match &self.state {
            State::Base { epoch: base } if committed >= *base => self.base_committed(cx),
            State::Protected(_) | State::Moving { .. } => self.restore_record(epoch, cx),
            _ => {}
        }
        let moved = matches!(self.state, State::Moving { last: LastCut::Begun, .. }) && self.epochs.is_drained();
        if moved { self.yield_vm("moved by request".to_owned(), cx) } else { None }
    }

    fn base_committed(&mut self, cx: &mut Cx<'_>) {
        assert!(matches!(self.state, State::Base { epoch } if epoch < self.running()), "no base was cut");
        if cx.settings.on_partition.is_some() {
            return self.protected(cx);
        }
        let claim = Claim::Register { primary: self.id, standby: self.peer(), term: self.term };
        let claim = PendingClaim::ask(claim, cx);
        self.state = State::Registering(Registering { claim, then_yield: None });
    }

    fn protected(&mut self, cx: &mut Cx<'_>) {
        assert!(matches!(self.state, State::Base { .. } | State::Registering(_)), "protected from {:?}", self.state);
        self.state = State::Protected(Watch::default());
        cx.tell(Event::Protected { epoch: self.running(), term: self.term });
    }

    /// The standby has acknowledged `epoch`. If that was cut after the witness's record was found lost, the
    /// standby has not taken over before the loss, and cannot have since: the two agree, and the record can
    /// be written anew.
    fn restore_record(&mut self, epoch: Epoch, cx: &mut Cx<'_>) {
        let claim = Claim::Restore { primary: self.id, standby: self.peer(), term: self.term };
        if let Some(watch) = self.state.watch_mut()
            && watch.restore.is_none()
            && watch.lost.is_some_and(|lost| epoch >= lost)
        {
            assert!(epoch < self.epochs.running(), "epoch {epoch} is acknowledged while it runs");
            watch.restore = Some(PendingClaim::ask(claim, cx));
        }
    }

    /// An operator wants no protection. Where the policy would let the standby go on it is asked to drop its
    /// copy first; if the stream ends before it says that it has, nobody knows, and the policy decides.
    fn stop(&mut self, cx: &mut Cx<'_>) -> Option<Outcome> {
        let reason = "stopped by request".to_owned();
        let leaves = matches!(self.state, State::Leaving(_) | State::Dismissing { .. });
        let dismisses = cx.settings.on_partition == Some(OnPartition::Standby) && self.standby_has_a_right(cx.settings);
        if leaves || !dismisses {
            return self.leave(reason, By::Operator, cx);
        }
        self.state = State::Dismissing { reason, was_protected: self.is_protected() };
        cx.act(Action::Dismiss);
        None
    }

    /// The standby has ended the session in good order: it has dropped its copy.
    fn peer_left(&mut self, reason: String, cx: &mut Cx<'_>) -> Option<Outcome> {
        if cx.settings.on_partition != Some(OnPartition::Standby) {
            return self.leave(reason, By::Failure, cx);
        }
        // Nobody but this node can run the VM.
        let reason = self.state.reason_to_leave().unwrap_or(reason);
        Some(self.alone(self.term.next(), reason, cx))
    }

    /// The standby is not heard any more.
    fn standby_lost(&mut self, reason: String, cx: &mut Cx<'_>) -> Option<Outcome> {
        match self.state {
            // Whether it has dropped its copy, nobody knows.
            State::Dismissing { .. } => Some(leave_to_standby(&reason, cx)),
            _ => self.leave(reason, By::Failure, cx),
        }
    }

    /// Whether the standby could take over: then leaving it needs a claim.
    fn standby_has_a_right(&self, settings: &Settings) -> bool {
        match self.state {
            State::Copying => false,
            State::Base { .. } => settings.on_partition.is_some(),
            _ => true,
        }
    }

    /// Ends the session: at once where the standby has no right, else by claim.
    fn leave(&mut self, reason: String, by: By, cx: &mut Cx<'_>) -> Option<Outcome> {
        if matches!(self.state, State::Leaving(_) | State::Dismissing { .. }) {
            return None;
        }
        if !self.standby_has_a_right(cx.settings) {
            return Some(self.alone(self.term, reason, cx));
        }
        match cx.settings.on_partition {
            Some(OnPartition::Primary | OnPartition::Both) => Some(self.alone(self.term.next(), reason, cx)),
            Some(OnPartition::Standby) => Some(leave_to_standby(&reason, cx)),
            None => {
                let claim = Claim::GoAlone { primary: self.id, standby: self.peer(), term: self.term };
                let claim = PendingClaim::ask(claim, cx);
                let unanswered = (by == By::Failure).then_some(0);
                let was_protected = self.is_protected();
                self.state = State::Leaving(Leaving { reason, claim, was_protected, unanswered });
                None
            }
        }
    }

    /// Hands the VM to the standby, or keeps it when there is no complete one.
    fn yield_vm(&mut self, reason: String, cx: &mut Cx<'_>) -> Option<Outcome> {
        match &mut self.state {
            State::Registering(registering) => {
                registering.then_yield = Some(reason);
                None
            }
            State::Protected(_) | State::Moving { .. } => {
                cx.act(Action::Fence { reason: reason.clone() });
                cx.act(Action::Yield);
                cx.tell(Event::Fenced { reason });
                Some(Outcome::Fenced)
            }
            _ => self.leave(reason, By::Failure, cx),
        }
    }

    fn witness_answered(&mut self, answer: WitnessAnswer, cx: &mut Cx<'_>) -> Option<Outcome> {
        let pending = self.state.pending_mut().filter(|claim| claim.is_answered_by(&answer))?;
        match answer {
            WitnessAnswer::Unreachable(_, reason) => {
                pending.unreachable(reason, cx);
                if let State::Leaving(Leaving { unanswered: Some(count), .. }) = &mut self.state {
                    *count = count.saturating_add(1);
                }
                None
            }
            WitnessAnswer::Judged(_, Verdict::Refused(None)) => {
                pending.record_lost(cx);
                None
            }
            WitnessAnswer::Judged(_, Verdict::Refused(Some(record))) => self.refused(record, cx),
            WitnessAnswer::Judged(_, Verdict::Granted(record)) => self.granted(record, cx),
        }
    }

    fn refused(&mut self, record: Record, cx: &mut Cx<'_>) -> Option<Outcome> {
        match record {
            // The record could not be restored: there is another one. A claim finds out.
            _ if self.can_fail_over() => self.leave(refusal(Some(record)), By::Failure, cx),
            // It names this very node, alone, in another term: somebody has made it anew. Then nobody else
            // can run the VM.
            Record::Solo { owner, term, .. } if owner == self.id => {
                let anew = || format!("the witness has another record, in term {term}, of this node alone");
                let reason = self.state.reason_to_leave().unwrap_or_else(anew);
                Some(self.alone(self.term.max(term), reason, cx))
            }
            record => Some(cx.fence(refusal(Some(record)))),
        }
    }

    fn granted(&mut self, record: Record, cx: &mut Cx<'_>) -> Option<Outcome> {
        match &mut self.state {
            State::Registering(registering) => {
                let then_yield = registering.then_yield.take();
                self.protected(cx);
                self.yield_vm(then_yield?, cx)
            }
            State::Protected(watch) | State::Moving { watch, .. } => {
                *watch = Watch::default();
                cx.tell(Event::WitnessRecordRestored);
                None
            }
            State::Leaving(leaving) => {
                let reason = std::mem::take(&mut leaving.reason);
                Some(self.alone(record.term(), reason, cx))
            }
            State::Copying | State::Base { .. } | State::Dismissing { .. } => {
                unreachable!("{:?} has no claim", self.state)
            }
        }
    }

    /// The only place where a session ends with the proof that nobody else can run the VM.
    fn alone(&self, term: Term, reason: String, cx: &mut Cx<'_>) -> Outcome {
        assert!(term >= self.term, "term {term} after term {}", self.term);
        cx.act(Action::GoAlone(Alone { term }));
        cx.tell(Event::ProtectionLost { reason, term });
        Outcome::Solo(term)
    }
}

impl State {
    fn pending(&self) -> Option<&PendingClaim> {
        match self {
            Self::Copying | Self::Base { .. } | Self::Dismissing { .. } => None,
            Self::Registering(Registering { claim, .. }) | Self::Leaving(Leaving { claim, .. }) => Some(claim),
            Self::Protected(watch) | Self::Moving { watch, .. } => watch.restore.as_ref(),
        }
    }

    fn pending_mut(&mut self) -> Option<&mut PendingClaim> {
        match self {
            Self::Copying | Self::Base { .. } | Self::Dismissing { .. } => None,
            Self::Registering(Registering { claim, .. }) | Self::Leaving(Leaving { claim, .. }) => Some(claim),
            Self::Protected(watch) | Self::Moving { watch, .. } => watch.restore.as_mut(),
        }
    }

    fn watch_mut(&mut self) -> Option<&mut Watch> {
        match self {
            Self::Protected(watch) | Self::Moving { watch, .. } => Some(watch),
            _ => None,
        }
    }

    /// Why this node has begun to leave the standby, if it has; taken out, as the session ends with it.
    fn reason_to_leave(&mut self) -> Option<String> {
        match self {
            Self::Dismissing { reason, .. } | Self::Leaving(Leaving { reason, .. }) => Some(std::mem::take(reason)),
            _ => None,
        }
    }
}

fn leave_to_standby(reason: &str, cx: &mut Cx<'_>) -> Outcome {
    cx.fence(format!("{reason}; the policy lets the standby go on"))
}
