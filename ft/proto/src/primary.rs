//! The primary's half of a session: cut epochs, await acknowledgements, release; and how it ends.
//!
//! ```text
//! Copying --synced--> Base --committed--> Registering --granted--> Protected --switchover--> Moving
//!                      |                                               ^                        |
//!                      '--committed, and there is no witness to tell---'       last epoch committed: yield
//! ```
//!
//! How it ends depends on whether the standby has a right to take over, which it has from `Registering` on,
//! or, if there is no witness, as soon as the first checkpoint is on its way to it; and then on who decides:
//! the witness, or the policy.
//!
//! | | no right | witness | `primary`, `both` | `standby` |
//! |---|---|---|---|---|
//! | stream lost, silence, no acknowledgement, cut failed | Solo | Leaving | Solo | Fenced |
//! | an operator stops the protection | Solo | Leaving | Solo | Dismissing |
//! | the standby has dropped its copy | Solo | Leaving | Solo | Solo |
//! | yield, in Protected or Moving | | Fenced | Fenced | Fenced |
//!
//! A yield in Registering waits for Protected; before, it counts as a lost stream.
//!
//! `Leaving` claims to go alone: granted, Solo; refused, Fenced. `Dismissing` asks the standby to drop its
//! copy: if it has, Solo; if the stream is lost before, Fenced. Nothing is cut or released in these two: the
//! standby may be taking over.

use std::time::Duration;

use crate::commit_rule::{Mode, Replica, committed};
use crate::events::{Action, Alone, CutKind, Event, Input, OnPartition, Settings, WitnessAnswer};
use crate::failure_detector::LinkId;
use crate::pipeline::Pipeline;
use crate::session::{Cx, Outcome, PendingClaim, refusal};
use crate::witness::{Claim, Record, Replicas, Verdict};
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
    /// The standby's copy is complete; it is being registered at the witness.
    Registering(Registering),
    /// The standby may take over.
    Protected(Watch),
    /// It may, and an operator has asked for it.
    Moving { watch: Watch, last: LastCut },
    /// An operator ends the protection, and the standby has been asked to drop its copy.
    Dismissing { reason: String, was_protected: bool },
    /// The witness has been asked to let this node continue alone.
    Leaving(Leaving),
}

#[cfg_attr(feature = "model", derive(Clone, Eq, Hash, PartialEq))]
#[derive(Debug)]
struct Registering {
    claim: PendingClaim,
    /// Why the VM is to continue on the standby as soon as that may run it.
    then_yield: Option<String>,
}

/// Whether the witness still has the record that says so.
#[cfg_attr(feature = "model", derive(Clone, Eq, Hash, PartialEq))]
#[derive(Debug, Default)]
struct Watch {
    /// It was lost. It can be restored once the standby acknowledges this epoch, which was cut afterwards.
    lost: Option<Epoch>,
    /// The claim that restores it.
    restore: Option<PendingClaim>,
}

/// How far a planned move of the VM has come.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum LastCut {
    /// The next cut is the last one.
    Wanted,
    /// The guest has stopped; its last epochs are on their way.
    Begun,
}

#[cfg_attr(feature = "model", derive(Clone, Eq, Hash, PartialEq))]
#[derive(Debug)]
struct Leaving {
    reason: String,
    claim: PendingClaim,
    was_protected: bool,
    /// How often the witness was unreachable; `None`: an operator wants to leave, and the standby is not
    /// asked to take over.
    unanswered: Option<u32>,
}

/// Acknowledgements that wait: this process was stopped, and the standby has not been heard since.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct HeldAcks {
    /// It must be heard at this time or later.
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

    /// Whether the standby is asked to take over: this node has left it, so it cannot commit or release
    /// anything, and cannot reach the witness. The standby may reach it, and only one of the two can win.
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

    /// What holds in each state, whatever the peer has sent.
    pub(crate) fn check(&self) {
        // The replica's next epoch is the oldest that was not committed, or the first one of all.
        self.epochs.check_follows(self.replica.acknowledged().unwrap_or(Epoch(0)));
        let committed = self.replica.acknowledged().is_some();
        match &self.state {
            State::Copying => {
                assert!(self.epochs.is_drained(), "an epoch was cut before the first copy is complete");
                assert!(!committed, "an epoch was committed that was never cut");
            }
            State::Base { epoch } => {
                assert!(!committed, "the base is committed, and nobody was told");
                assert!(*epoch <= self.running(), "the base is an epoch of the future");
                assert!(!self.epochs.is_drained(), "the base is gone");
            }
            State::Registering(_) | State::Protected(_) => assert!(committed, "protected without a checkpoint"),
            State::Moving { last, .. } => {
                assert!(committed, "moving without a checkpoint");
                assert!(*last == LastCut::Wanted || !self.epochs.is_drained(), "the last epoch is committed, and kept");
            }
            State::Dismissing { was_protected, .. } => {
                assert!(committed || !was_protected, "protected without a checkpoint");
            }
            State::Leaving(_) => assert!(committed, "a claim against a standby that has no right"),
        }
        if let State::Protected(Watch { lost, .. }) | State::Moving { watch: Watch { lost, .. }, .. } = self.state {
            assert!(lost.is_none_or(|lost| lost <= self.running()), "the record was lost in an epoch of the future");
        }
        let claimed = match (&self.state, self.pending_claim()) {
            (_, None) => true,
            (State::Registering(_), Some(claim)) => matches!(claim, Claim::Register { .. }),
            (State::Leaving(_), Some(claim)) => matches!(claim, Claim::GoAlone { .. }),
            (_, Some(claim)) => matches!(claim, Claim::Restore { .. }),
        };
        assert!(claimed, "the witness was asked for something else: {:?}", self.state);
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
            Input::SimulateCrash if self.can_fail_over() => {
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
            return self.leave("the standby is alive but acknowledges no epochs".to_owned(), By::Failure, cx);
        }
        self.maybe_cut(cx);
        None
    }

    /// This process was stopped until `now`. Acknowledgements may be waiting to be read, but so may the news
    /// that the standby has taken over since. A late release of what it acknowledged would do no harm by
    /// itself, but the network would look for the VM here.
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

    /// The standby claims to run the VM in a later term.
    pub(crate) fn contested(&mut self, reason: String, cx: &mut Cx<'_>) -> Option<Outcome> {
        match cx.settings.on_partition {
            // By this policy it does not take over by itself.
            Some(OnPartition::Primary) => None,
            Some(OnPartition::Standby | OnPartition::Both) => Some(cx.fence(reason)),
            None => self.leave(reason, By::Failure, cx),
        }
    }

    /// The witness's record was read.
    pub(crate) fn record_read(&mut self, record: Option<Record>, cx: &mut Cx<'_>) -> Option<Outcome> {
        let running = self.running();
        let registered = record.is_some_and(|record| record.protects(self.id, self.peer(), self.term));
        let watch = self.state.watch_mut()?;
        match record {
            None => {
                if watch.lost.is_none() {
                    watch.lost = Some(running);
                    cx.tell(Event::WitnessRecordLost);
                }
                None
            }
            Some(_) if registered => {
                watch.lost = None;
                None
            }
            // A claim finds out what happened.
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

    /// Whether this state allows a cut, and another epoch may be sealed.
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
        cx.tell(Event::CheckpointFailed { reason });
        self.leave(why, By::Failure, cx)
    }

    /// When a standby that is alive but has not acknowledged the oldest epoch is left.
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

    /// The standby has acknowledged `epoch`. If that was cut after the loss of the witness's record was
    /// noticed, the standby had not taken over before the loss, and cannot have since: the two agree, and the
    /// record can be restored.
    fn restore_record(&mut self, epoch: Epoch, cx: &mut Cx<'_>) {
        let claim = Claim::Restore { primary: self.id, in_sync: Replicas::one(self.peer()), term: self.term };
        if let Some(watch) = self.state.watch_mut()
            && watch.restore.is_none()
            && watch.lost.is_some_and(|lost| epoch >= lost)
        {
            assert!(epoch < self.epochs.running(), "epoch {epoch} is acknowledged while it runs");
            watch.restore = Some(PendingClaim::ask(claim, cx));
        }
    }

    /// An operator ends the protection. Where the policy lets the standby continue, it is asked to drop its
    /// copy first; if the stream ends before it confirms, nobody knows whether it has, and the policy
    /// decides.
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

    /// The standby is silent, or its stream has ended.
    fn standby_lost(&mut self, reason: String, cx: &mut Cx<'_>) -> Option<Outcome> {
        match self.state {
            // It may have dropped its copy, or not.
            State::Dismissing { .. } => Some(leave_to_standby(&reason, cx)),
            _ => self.leave(reason, By::Failure, cx),
        }
    }

    /// Whether the standby could take over: then leaving it needs a claim. It could not while it has nothing
    /// of the first checkpoint.
    fn standby_has_a_right(&self, settings: &Settings) -> bool {
        match self.state {
            State::Copying => false,
            State::Base { epoch } => settings.on_partition.is_some() && epoch < self.running(),
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
                let claim = Claim::GoAlone { primary: self.id, in_sync: Replicas::one(self.peer()), term: self.term };
                let claim = PendingClaim::ask(claim, cx);
                let unanswered = (by == By::Failure).then_some(0);
                let was_protected = self.is_protected();
                self.state = State::Leaving(Leaving { reason, claim, was_protected, unanswered });
                None
            }
        }
    }

    /// Hands the VM over to the standby, or keeps it if the standby is not complete.
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
            // It names this node, alone, in another term: somebody has created it anew, and no other node can
            // run the VM.
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

    /// Takes out why this node is leaving the standby, if it is, for the end of the session.
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
