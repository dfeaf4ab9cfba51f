//! The primary's half of a session: cut epochs, await acknowledgements, release.
//!
//! ```text
//! Copying --Synced--> Base --ack of base--> Registering --granted--> Protected
//!    any phase, stream lost / stop / standby silent --> claim to be alone --granted--> Solo
//!                                                                         --refused--> Fenced
//! Protected, stop without a witness where the standby is to go on --standby has dropped its copy--> Solo
//! Protected, switchover: last cut --ack of it--> released, yielded: Fenced
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use crate::events::{Action, Alone, CutKind, Event, Input, OnPartition, Settings, WitnessAnswer};
use crate::failure_detector::LinkId;
use crate::node::{Outcome, RETRY};
use crate::pace::Pace;
use crate::witness::{Claim, Record, Verdict};
use crate::{Committed, Epoch, NodeId, Term, Time};

/// Unanswered claims to be alone before the standby is invited to take over: one may be a hiccup, and staying is better
/// than moving.
const INVITE_AFTER: u32 = 2;

/// How far a session has come.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Phase {
    /// Memory and disks are being copied; output flows freely.
    Copying,
    /// The first checkpoint is cut but not acknowledged; output is held.
    Base(Epoch),
    /// The standby is complete; the witness is being told.
    Registering,
    /// The standby may take over.
    Protected,
}

/// A session with a standby.
#[cfg_attr(feature = "model", derive(Clone, Eq, Hash, PartialEq))]
#[derive(Debug)]
pub(crate) struct Primary {
    pub(crate) id: NodeId,
    pub(crate) peer: NodeId,
    pub(crate) term: Term,
    pub(crate) phase: Phase,
    /// The epoch that the guest runs.
    pub(crate) running: Epoch,
    started: Time,
    /// Cut and not acknowledged.
    sealed: VecDeque<Sealed>,
    cutting: bool,
    pace: Pace,
    wanted: bool,
    /// The claim to be alone, and why; nothing is cut or released while it is open.
    leaving: Option<String>,
    /// The claim whose answer counts: answers to claims of earlier sessions, or before it, come too late.
    asked: Option<Claim>,
    /// When to ask again.
    retry: Option<Time>,
    /// How often the claim to be alone found no witness; not counted when leaving was an operator's wish.
    unanswered: u32,
    stopping: bool,
    /// Why the VM shall go on at the standby as soon as that may run it.
    yielding: Option<String>,
    /// How far the VM's planned move to the standby has come.
    moving: Option<Move>,
    /// This process was stopped: until the standby was heard at that time or later, acknowledgements wait.
    listening: Option<Time>,
    /// The newest acknowledgement that waits.
    waiting: Option<Epoch>,
    /// The witness has lost its record. When the standby has acknowledged this epoch, which was cut later, it is given it anew.
    lost: Option<Epoch>,
}

/// An epoch on its way.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Sealed {
    epoch: Epoch,
    since: Time,
    pages: u64,
}

/// A planned move of the VM.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Move {
    /// The next cut is the last one.
    Wanted,
    /// The guest has stopped; what it did and said is on its way.
    Stopped,
}

impl Primary {
    pub(crate) fn new(id: NodeId, peer: NodeId, term: Term, now: Time) -> Self {
        Self {
            id,
            peer,
            term,
            phase: Phase::Copying,
            running: Epoch(1),
            started: now,
            sealed: VecDeque::new(),
            cutting: false,
            pace: Pace::new(),
            wanted: false,
            leaving: None,
            asked: None,
            retry: None,
            unanswered: 0,
            stopping: false,
            yielding: None,
            moving: None,
            listening: None,
            waiting: None,
            lost: None,
        }
    }

    pub(crate) fn handle(
        &mut self,
        input: Input,
        settings: &Settings,
        now: Time,
        out: &mut VecDeque<Action>,
    ) -> Option<Outcome> {
        match input {
            Input::Synced if self.phase == Phase::Copying && self.leaving.is_none() && !self.cutting => {
                self.cut(CutKind::Base, out);
                self.phase = Phase::Base(self.running);
            }
            Input::CutWanted => self.wanted = true,
            Input::CutDone { epoch, paused, pages } if self.cutting && epoch == self.running => {
                self.cutting = false;
                self.sealed.push_back(Sealed { epoch, since: now, pages });
                self.running = epoch.next();
                self.pace.paused(paused);
                self.started = now;
            }
            Input::CutFailed { epoch, reason } if self.cutting && epoch == self.running => {
                self.cutting = false;
                out.push_back(Action::Event(Event::CutFailed { reason: reason.clone() }));
                return self.leave(format!("the checkpoint could not be captured: {reason}"), settings, out);
            }
            Input::Acked { term, epoch } if term == self.term => {
                if self.listening.is_some() {
                    self.waiting = self.waiting.max(Some(epoch));
                } else if let Some(outcome) = self.acked(epoch, settings, now, out) {
                    return Some(outcome);
                }
            }
            Input::SwitchoverRequested if self.has_a_successor() => {
                self.moving.get_or_insert(Move::Wanted);
            }
            // Not while it may be given the VM for itself alone: then nobody would run it.
            Input::CeaseRequested if self.has_a_successor() => {
                return Some(fence("ended by request, as if it had died".to_owned(), out));
            }
            Input::StopRequested => return self.stop(settings, out),
            Input::YieldRequested { reason } => return self.give_up(reason, settings, out),
            // It has dropped its copy: nobody but this node can run the VM.
            Input::PeerLeft { reason, .. } if settings.on_partition == Some(OnPartition::Standby) => {
                let reason = self.leaving.take().unwrap_or(reason);
                return Some(self.alone(self.term.next(), reason, out));
            }
            Input::PeerLeft { reason, .. } => return self.leave(reason, settings, out),
            Input::StreamLost { reason } => return self.lost(reason, settings, out),
            Input::Witness(answer) => return self.witness_answered(answer, settings, now, out),
            _ => {}
        }
        self.maybe_cut(settings, now, out);
        None
    }

    /// Time has passed. `silent`: the replication link has been for too long.
    pub(crate) fn on_time(
        &mut self,
        silent: bool,
        settings: &Settings,
        now: Time,
        out: &mut VecDeque<Action>,
    ) -> Option<Outcome> {
        if self.retry.is_some_and(|at| at <= now) {
            self.retry = None;
            out.extend(self.asked.map(Action::AskWitness));
        }
        // Without the link that carries the epochs nothing can be committed, whatever the other link says.
        if silent && (self.leaving.is_none() || self.dismisses(settings)) {
            let reason = format!("no sign of the standby on the {} link", name(LinkId::Replication));
            return self.lost(reason, settings, out);
        }
        if self.ack_due(settings).is_some_and(|due| due <= now) {
            return self.leave("the standby lives but acknowledges nothing".to_owned(), settings, out);
        }
        self.maybe_cut(settings, now, out);
        None
    }

    /// This process was stopped until `now`. Acknowledgements may be waiting to be read, and so may the news that the standby has
    /// taken over since. What it has acknowledged does no harm if it is said late, but the network would look for the VM here.
    pub(crate) fn woke(&mut self, now: Time, beat_interval: Duration) {
        self.sealed.iter_mut().for_each(|sealed| sealed.since = now);
        self.listening = Some(now + beat_interval);
    }

    /// A beat of a standby that does not run the VM arrived at `at`.
    pub(crate) fn heard(&mut self, at: Time, settings: &Settings, out: &mut VecDeque<Action>) -> Option<Outcome> {
        self.listening.take_if(|until| *until <= at)?;
        let epoch = self.waiting.take()?;
        self.acked(epoch, settings, at, out)
    }

    /// Whether the standby is invited to take over: alone as it is, this node cannot let anything out or commit it, and
    /// the witness that could change that is out of its reach. It may be within the standby's, and only one can win.
    pub(crate) fn invites(&self) -> bool {
        self.unanswered >= INVITE_AFTER
    }

    /// Whether the standby may take over, and this node does not mean to leave it.
    pub(crate) fn has_a_successor(&self) -> bool {
        self.phase == Phase::Protected && self.leaving.is_none()
    }

    fn ack_due(&self, settings: &Settings) -> Option<Time> {
        let first = matches!(self.phase, Phase::Base(_));
        let limit = settings.ack_limit * if first { 10 } else { 1 };
        let sealed = self.sealed.front().filter(|_| self.leaving.is_none() && settings.silence.is_some())?;
        Some(sealed.since + limit)
    }

    pub(crate) fn timeout(&self, settings: &Settings) -> Option<Time> {
        let cut = self.may_cut(settings).then(|| {
            self.started + if self.wanted { self.pace.shortest(settings) } else { self.pace.longest(settings) }
        });
        self.retry.into_iter().chain(cut).chain(self.ack_due(settings)).min()
    }

    /// Whether the standby could take over: then leaving it needs a claim.
    fn standby_has_a_right(&self, settings: &Settings) -> bool {
        match self.phase {
            Phase::Copying => false,
            Phase::Base(_) => settings.on_partition.is_some(),
            Phase::Registering | Phase::Protected => true,
        }
    }

    fn may_cut(&self, settings: &Settings) -> bool {
        let open = self.leaving.is_none() && self.moving != Some(Move::Stopped);
        self.phase != Phase::Copying && !self.cutting && open && self.sealed.len() < settings.depth
    }

    fn maybe_cut(&mut self, settings: &Settings, now: Time, out: &mut VecDeque<Action>) {
        if self.moving.is_some() && self.may_cut(settings) {
            self.moving = Some(Move::Stopped);
            return self.cut(CutKind::Last, out);
        }
        let age = now.since(self.started);
        let wanted = self.wanted && age >= self.pace.shortest(settings);
        if self.may_cut(settings) && (wanted || age >= self.pace.longest(settings)) {
            self.cut(CutKind::Plain, out);
        }
    }

    fn cut(&mut self, kind: CutKind, out: &mut VecDeque<Action>) {
        self.cutting = true;
        self.wanted = false;
        out.push_back(Action::Cut { epoch: self.running, kind });
    }

    /// The only place on a primary where an epoch becomes committed.
    fn acked(&mut self, epoch: Epoch, settings: &Settings, now: Time, out: &mut VecDeque<Action>) -> Option<Outcome> {
        // One that was never sealed, one that is already committed, or too late.
        let sealed = self.sealed.iter().find(|sealed| sealed.epoch == epoch).filter(|_| self.leaving.is_none())?;
        self.pace.committed(sealed.pages, now.since(sealed.since), settings);
        self.sealed.retain(|sealed| sealed.epoch > epoch);
        out.push_back(Action::Release(Committed::new(epoch)));
        if let Phase::Base(base) = self.phase
            && epoch >= base
        {
            if settings.on_partition.is_some() {
                self.protected(out);
            } else {
                self.phase = Phase::Registering;
                let Self { id: primary, peer: standby, term, .. } = *self;
                self.ask(Claim::Register { primary, standby, term }, out);
            }
        }
        self.maybe_restore(epoch, out);
        if self.moving == Some(Move::Stopped) && self.sealed.is_empty() && !self.cutting {
            return self.give_up("moved by request".to_owned(), settings, out);
        }
        None
    }

    /// The standby says that it runs the VM in a later term.
    pub(crate) fn contested(
        &mut self,
        reason: String,
        settings: &Settings,
        out: &mut VecDeque<Action>,
    ) -> Option<Outcome> {
        match settings.on_partition {
            // It does not take over by itself there.
            Some(OnPartition::Primary) => None,
            Some(OnPartition::Standby | OnPartition::Both) => Some(fence(reason, out)),
            None => self.leave(reason, settings, out),
        }
    }

    /// The witness's record was read.
    pub(crate) fn record_read(
        &mut self,
        record: Option<Record>,
        settings: &Settings,
        out: &mut VecDeque<Action>,
    ) -> Option<Outcome> {
        let Self { id: primary, peer: standby, term, .. } = *self;
        if self.phase != Phase::Protected || self.leaving.is_some() {
            return None;
        }
        match record {
            None => {
                if self.lost.is_none() {
                    self.lost = Some(self.running);
                    out.push_back(Action::Event(Event::WitnessRecordLost));
                }
                None
            }
            Some(record) if record == (Record::Protected { primary, standby, term }) => {
                self.lost = None;
                None
            }
            // Whatever happened there, a claim finds out.
            other => self.leave(refusal(other), settings, out),
        }
    }

    /// The standby has acknowledged `epoch`. If that was cut after the witness's record was found lost, the standby has not taken
    /// over before the loss, and cannot have since: the two agree, and the record can be written anew.
    fn maybe_restore(&mut self, epoch: Epoch, out: &mut VecDeque<Action>) {
        let due = self.lost.is_some_and(|lost| epoch >= lost);
        if due && self.phase == Phase::Protected && self.asked.is_none() {
            let Self { id: primary, peer: standby, term, .. } = *self;
            self.ask(Claim::Restore { primary, standby, term }, out);
        }
    }

    /// The claim that has no answer yet.
    pub(crate) fn pending_claim(&self) -> Option<Claim> {
        self.asked
    }

    fn protected(&mut self, out: &mut VecDeque<Action>) {
        self.phase = Phase::Protected;
        out.push_back(Action::Event(Event::Protected { epoch: self.running, term: self.term }));
    }

    /// An operator wants no protection. Where the policy would let the standby go on it is asked to drop its copy first; if the
    /// stream ends before it says that it has, nobody knows, and the policy decides.
    fn stop(&mut self, settings: &Settings, out: &mut VecDeque<Action>) -> Option<Outcome> {
        let reason = "stopped by request".to_owned();
        if self.leaving.is_some() {
            return None;
        }
        self.stopping = true;
        if settings.on_partition == Some(OnPartition::Standby) && self.standby_has_a_right(settings) {
            (self.moving, self.leaving) = (None, Some(reason));
            out.push_back(Action::Dismiss);
            return None;
        }
        self.leave(reason, settings, out)
    }

    /// Whether the standby is being asked to drop its copy.
    fn dismisses(&self, settings: &Settings) -> bool {
        self.leaving.is_some() && settings.on_partition == Some(OnPartition::Standby)
    }

    /// The standby is not heard any more.
    fn lost(&mut self, reason: String, settings: &Settings, out: &mut VecDeque<Action>) -> Option<Outcome> {
        if self.dismisses(settings) {
            self.leaving = None;
        }
        self.leave(reason, settings, out)
    }

    /// Ends the session: at once where the standby has no right, else by claim.
    fn leave(&mut self, reason: String, settings: &Settings, out: &mut VecDeque<Action>) -> Option<Outcome> {
        if self.leaving.is_some() {
            return None;
        }
        self.moving = None;
        if !self.standby_has_a_right(settings) {
            return Some(self.alone(self.term, reason, out));
        }
        match settings.on_partition {
            Some(OnPartition::Primary | OnPartition::Both) => Some(self.alone(self.term.next(), reason, out)),
            Some(OnPartition::Standby) => Some(fence(format!("{reason}; the policy lets the standby go on"), out)),
            None => {
                self.leaving = Some(reason);
                let Self { id: primary, peer: standby, term, .. } = *self;
                self.ask(Claim::GoAlone { primary, standby, term }, out);
                None
            }
        }
    }

    /// Hands the VM to the standby, or keeps it when there is no complete one.
    fn give_up(&mut self, reason: String, settings: &Settings, out: &mut VecDeque<Action>) -> Option<Outcome> {
        if self.phase == Phase::Registering && self.leaving.is_none() {
            self.yielding = Some(reason);
            return None;
        }
        if self.phase != Phase::Protected || self.leaving.is_some() {
            return self.leave(reason, settings, out);
        }
        out.push_back(Action::Fence { reason: reason.clone() });
        out.push_back(Action::Yield);
        out.push_back(Action::Event(Event::Fenced { reason }));
        Some(Outcome::Fenced)
    }

    fn ask(&mut self, claim: Claim, out: &mut VecDeque<Action>) {
        self.asked = Some(claim);
        self.retry = None;
        out.push_back(Action::AskWitness(claim));
    }

    fn witness_answered(
        &mut self,
        answer: WitnessAnswer,
        settings: &Settings,
        now: Time,
        out: &mut VecDeque<Action>,
    ) -> Option<Outcome> {
        if self.asked != Some(answer.claim()) {
            return None;
        }
        match answer {
            WitnessAnswer::Unreachable(_, reason) => {
                out.push_back(Action::Event(Event::WitnessUnreachable { reason }));
                self.retry = Some(now + RETRY);
                self.unanswered += u32::from(self.leaving.is_some() && !self.stopping);
                None
            }
            // A record that is lost gives the VM to nobody. An operator may bring it back.
            WitnessAnswer::Judged(_, Verdict::Refused(None)) => {
                out.push_back(Action::Event(Event::WitnessRecordLost));
                self.retry = Some(now + RETRY);
                None
            }
            WitnessAnswer::Judged(Claim::Restore { .. }, Verdict::Refused(record)) => {
                (self.asked, self.lost) = (None, None);
                self.leave(refusal(record), settings, out)
            }
            // It names this very node, alone, in another term: somebody has made it anew. Then nobody else can run the VM.
            WitnessAnswer::Judged(_, Verdict::Refused(Some(Record::Solo { owner, term, .. }))) if owner == self.id => {
                let anew = || format!("the witness has another record, in term {term}, of this node alone");
                let reason = self.leaving.take().unwrap_or_else(anew);
                Some(self.alone(self.term.max(term), reason, out))
            }
            WitnessAnswer::Judged(_, Verdict::Refused(record)) => Some(fence(refusal(record), out)),
            WitnessAnswer::Judged(Claim::Restore { .. }, Verdict::Granted(_)) => {
                (self.asked, self.lost) = (None, None);
                out.push_back(Action::Event(Event::WitnessRecordRestored));
                None
            }
            WitnessAnswer::Judged(_, Verdict::Granted(record)) => {
                self.asked = None;
                if let Some(reason) = self.leaving.take() {
                    return Some(self.alone(record.term(), reason, out));
                }
                self.protected(out);
                let reason = self.yielding.take()?;
                self.give_up(reason, settings, out)
            }
        }
    }

    fn alone(&self, term: Term, reason: String, out: &mut VecDeque<Action>) -> Outcome {
        out.push_back(Action::GoAlone(Alone { term }));
        out.push_back(Action::Event(Event::ProtectionLost { reason, term }));
        Outcome::Solo(term)
    }
}

pub(crate) fn fence(reason: String, out: &mut VecDeque<Action>) -> Outcome {
    out.push_back(Action::Fence { reason: reason.clone() });
    out.push_back(Action::Event(Event::Fenced { reason }));
    Outcome::Fenced
}

pub(crate) fn refusal(record: Option<Record>) -> String {
    match record {
        Some(Record::Solo { owner, term, .. }) => {
            format!("the witness says that node {owner} runs the VM in term {term}")
        }
        Some(Record::Protected { primary, term, .. }) => {
            format!("the witness says that node {primary} runs the VM, protected, in term {term}")
        }
        Some(Record::Stopped { term, .. }) => format!("the witness says that the VM was shut down in term {term}"),
        None => "the witness has lost its record".to_owned(),
    }
}

fn name(link: LinkId) -> &'static str {
    match link {
        LinkId::Replication => "replication",
        LinkId::Heartbeat => "heartbeat",
    }
}
