//! The standby's half of a session: collect the parts of each epoch, commit whole ones in order, take over.
//!
//! ```text
//! Empty --primary joined--> Copying --base complete--> Ready --silence / yield--> claim --granted--> Solo
//!   ^--- stream lost, primary gone ---'                   ^--- (refused: another runs) ---> Empty
//! ```
//!
//! A claim that gets no answer, because the witness is out of reach, is withdrawn when the primary is heard again: epochs are
//! committed as before, whatever the witness has made of the claim, since nobody but this standby can use the right that it
//! was given. It asks until it knows: if the claim was granted after all, it takes over.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::events::{Action, Event, Input, OnPartition, Settings, WitnessAnswer};
use crate::node::{Outcome, RETRY};
use crate::witness::{Claim, Record, Verdict};
use crate::{Committed, Epoch, NodeId, Term, Time};

/// How long a primary that lives, and has stopped, may take to say so on the stream.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A standby, with or without a primary.
#[cfg_attr(feature = "model", derive(Clone, Eq, Hash, PartialEq))]
#[derive(Debug)]
pub(crate) struct Standby {
    pub(crate) id: NodeId,
    pub(crate) session: Option<Session>,
}

/// What is held of one primary.
#[cfg_attr(feature = "model", derive(Clone, Eq, Hash, PartialEq))]
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) primary: NodeId,
    pub(crate) term: Term,
    disks: u16,
    /// Whether the stream still works; a copy without one is still a copy.
    connected: bool,
    /// The last epoch of which everything was complete.
    pub(crate) committed: Option<Epoch>,
    parts: BTreeMap<Epoch, Parts>,
    wish: Wish,
    /// Since when the primary's beats say that it does not run the VM any more, or wants to be relieved: it will not be back.
    stopped: Option<Time>,
    /// Nothing of the primary is waited for any more.
    yielded: bool,
    no_claim_before: Time,
    /// Before that the witness is not asked again whether this copy has its right.
    no_question_before: Time,
    held_back: bool,
    /// When to ask the witness again, which did not answer.
    retry: Option<Time>,
}

/// What a standby wants of the witness.
#[cfg_attr(feature = "model", derive(Hash))]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Wish {
    /// Nothing: the primary runs the VM.
    Nothing,
    /// To run the VM: nothing is acknowledged until the claim is refused or withdrawn.
    TakeOver,
    /// That a claim to take over, to which there was no answer, does not count; or to know whether it has the right to one.
    Withdraw,
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
        Self { id, session: None }
    }

    pub(crate) fn handle(
        &mut self,
        input: Input,
        settings: &Settings,
        now: Time,
        out: &mut VecDeque<Action>,
    ) -> Option<Outcome> {
        if let Input::PrimaryJoined { peer, term, disks } = input {
            self.session = Some(Session::new(peer, term, disks));
            return None;
        }
        let session = self.session.as_mut()?;
        match input {
            Input::MemoryComplete { epoch, idle } if session.collects(epoch) => {
                let parts = session.parts.entry(epoch).or_default();
                parts.memory = true;
                parts.disks.extend(idle);
                session.commit_whole_epochs(out);
            }
            Input::DiskComplete { epoch, disk } if session.collects(epoch) => {
                session.parts.entry(epoch).or_default().disks.insert(disk);
                session.commit_whole_epochs(out);
            }
            Input::Yielded { term } if term == session.term => return self.relieve(settings, now, out),
            Input::PeerLeft { reason, .. } => self.reset(reason, out),
            Input::StreamLost { reason } => {
                session.connected = false;
                session.parts.clear();
                if session.committed.is_none() {
                    self.reset(reason, out);
                } else if session.stopped.is_some() {
                    return self.relieve(settings, now, out);
                }
            }
            Input::Witness(answer) => return self.witness_answered(answer, now, out),
            _ => {}
        }
        self.granted_by_policy(settings, out)
    }

    /// A beat of the primary says that it does not run the VM any more. What it sent before, and its `Yield`, may still be on
    /// the stream: beats are no reason to take over without them before it ends, its link is `mute`, or [`LAST_WORDS`] have passed.
    pub(crate) fn primary_stopped(
        &mut self,
        term: Term,
        mute: bool,
        settings: &Settings,
        now: Time,
        out: &mut VecDeque<Action>,
    ) -> Option<Outcome> {
        let session = self.session.as_mut().filter(|session| session.term == term)?;
        session.stopped.get_or_insert(now);
        if session.connected && !mute {
            return None;
        }
        self.relieve(settings, now, out)
    }

    /// Time that this process slept through was not given to the primary.
    pub(crate) fn woke(&mut self, now: Time) {
        if let Some(stopped) = self.session.as_mut().and_then(|session| session.stopped.as_mut()) {
            *stopped = now;
        }
    }

    /// Takes over from a primary that has stopped for good.
    fn relieve(&mut self, settings: &Settings, now: Time, out: &mut VecDeque<Action>) -> Option<Outcome> {
        let session = self.session.as_mut()?;
        if session.committed.is_none() {
            self.reset("the primary stopped before its first checkpoint".to_owned(), out);
            return None;
        }
        session.yielded = true;
        session.claim(self.id, settings, now, out);
        self.granted_by_policy(settings, out)
    }

    /// The primary is silent on every link.
    fn on_silence(&mut self, settings: &Settings, now: Time, out: &mut VecDeque<Action>) -> Option<Outcome> {
        let id = self.id;
        let session = self.session.as_mut()?;
        if session.committed.is_none() {
            self.reset("the primary fell silent before its first checkpoint".to_owned(), out);
            return None;
        }
        if session.stopped.is_some() {
            return self.relieve(settings, now, out);
        }
        if settings.on_partition == Some(OnPartition::Primary) {
            if !std::mem::replace(&mut session.held_back, true) {
                out.push_back(Action::Event(Event::TakeOverHeldBack));
            }
            return None;
        }
        session.claim(id, settings, now, out);
        self.granted_by_policy(settings, out)
    }

    /// Time has passed. `suspects`: the primary is silent on every link.
    pub(crate) fn on_time(
        &mut self,
        suspects: bool,
        settings: &Settings,
        now: Time,
        out: &mut VecDeque<Action>,
    ) -> Option<Outcome> {
        let session = self.session.as_mut()?;
        if session.relief_due().is_some_and(|due| due <= now) {
            return self.relieve(settings, now, out);
        }
        self.ask_again(suspects, now, out);
        if suspects { self.on_silence(settings, now, out) } else { None }
    }

    fn ask_again(&mut self, suspects: bool, now: Time, out: &mut VecDeque<Action>) {
        let id = self.id;
        let Some(session) = self.session.as_mut().filter(|session| session.retry.is_some_and(|at| at <= now)) else {
            return;
        };
        session.retry = None;
        if session.wish == Wish::TakeOver && session.connected && !session.yielded && !suspects {
            session.wish = Wish::Withdraw;
            out.push_back(Action::Event(Event::TakeOverWithdrawn));
            session.commit_whole_epochs(out);
        }
        out.extend(session.claim_of(id).map(Action::AskWitness));
    }

    /// The claim that has no answer yet.
    pub(crate) fn pending_claim(&self) -> Option<Claim> {
        self.session.as_ref().and_then(|session| session.claim_of(self.id))
    }

    /// Whether an answer of the witness is open that may make this node run the VM.
    pub(crate) fn awaits_witness(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.wish != Wish::Nothing)
    }

    pub(crate) fn timeout(&self) -> Option<Time> {
        let session = self.session.as_ref()?;
        session.retry.into_iter().chain(session.relief_due()).min()
    }

    /// A beat of the primary says that it runs the VM in a later term: then what is held here is of the past. With a witness a
    /// beat is only a reason to ask whether this copy still has its right.
    pub(crate) fn superseded(&mut self, term: Term, settings: &Settings, now: Time, out: &mut VecDeque<Action>) {
        let id = self.id;
        let Some(session) = self.session.as_mut().filter(|session| session.committed.is_some()) else { return };
        if settings.on_partition.is_some() {
            self.reset(format!("the VM runs elsewhere in term {term}"), out);
        } else if session.wish == Wish::Nothing && now >= session.no_question_before {
            session.no_question_before = now + RETRY;
            session.wish = Wish::Withdraw;
            session.retry = None;
            out.extend(session.claim_of(id).map(Action::AskWitness));
        }
    }

    pub(crate) fn reset(&mut self, reason: String, out: &mut VecDeque<Action>) {
        if self.session.take().is_some() {
            out.push_back(Action::Reset { reason: reason.clone() });
            out.push_back(Action::Event(Event::StandbyReset { reason }));
        }
    }

    /// Without a witness the claim is its own answer.
    fn granted_by_policy(&mut self, settings: &Settings, out: &mut VecDeque<Action>) -> Option<Outcome> {
        let session = self.session.as_ref()?;
        let granted = session.wish == Wish::TakeOver && settings.on_partition.is_some();
        granted.then(|| take_over(session, session.term.next(), out))
    }

    fn witness_answered(&mut self, answer: WitnessAnswer, now: Time, out: &mut VecDeque<Action>) -> Option<Outcome> {
        let id = self.id;
        // Answers to claims of earlier sessions come too late.
        let session = self.session.as_mut().filter(|session| session.claim_of(id) == Some(answer.claim()))?;
        let taking = session.wish == Wish::TakeOver;
        match answer {
            WitnessAnswer::Judged(_, Verdict::Granted(record)) if taking => {
                return Some(take_over(session, record.term(), out));
            }
            WitnessAnswer::Judged(_, Verdict::Granted(_)) => session.wish = Wish::Nothing,
            // The claim that was to be withdrawn had been granted: the primary may not go on.
            WitnessAnswer::Judged(_, Verdict::Refused(Some(Record::Solo { owner, term, .. })))
                if owner == id && term == session.term.next() =>
            {
                return Some(take_over(session, term, out));
            }
            // The primary has not registered this copy yet: it is good, and may soon be what the VM lives on.
            WitnessAnswer::Judged(_, Verdict::Refused(Some(Record::Solo { owner, term, .. })))
                if owner == session.primary && term == session.term =>
            {
                session.wish = Wish::Nothing;
                session.no_claim_before = now + RETRY;
                session.commit_whole_epochs(out);
            }
            // A record that is lost gives the VM to nobody. The copy may be the only one: it is kept until there is a record again.
            WitnessAnswer::Judged(_, Verdict::Refused(None)) => {
                out.push_back(Action::Event(Event::WitnessRecordLost));
                session.retry = Some(now + RETRY);
            }
            WitnessAnswer::Judged(_, Verdict::Refused(Some(_))) => {
                self.reset("the witness gives the VM to another node".to_owned(), out);
            }
            WitnessAnswer::Unreachable(_, reason) => {
                out.push_back(Action::Event(Event::WitnessUnreachable { reason }));
                session.retry = Some(now + RETRY);
            }
        }
        None
    }
}

impl Session {
    fn new(primary: NodeId, term: Term, disks: u16) -> Self {
        Self {
            primary,
            term,
            disks,
            connected: true,
            committed: None,
            parts: BTreeMap::new(),
            wish: Wish::Nothing,
            stopped: None,
            yielded: false,
            no_claim_before: Time::default(),
            no_question_before: Time::default(),
            held_back: false,
            retry: None,
        }
    }

    /// Guards: the stream is gone, or the epoch is already committed.
    fn collects(&self, epoch: Epoch) -> bool {
        self.connected && self.committed.is_none_or(|committed| epoch > committed)
    }

    /// The only place on a standby where an epoch becomes committed.
    fn commit_whole_epochs(&mut self, out: &mut VecDeque<Action>) {
        if self.wish == Wish::TakeOver {
            return;
        }
        let mut next = self.committed.map_or(Epoch(1), Epoch::next);
        while self.parts.get(&next).is_some_and(|parts| parts.memory && parts.disks.len() == self.disks.into()) {
            self.parts.remove(&next);
            let first = self.committed.replace(next).is_none();
            out.push_back(Action::Commit(Committed::new(next)));
            if first {
                out.push_back(Action::Event(Event::StandbyReady { term: self.term }));
            }
            next = next.next();
        }
    }

    /// What the witness is asked for.
    fn claim_of(&self, standby: NodeId) -> Option<Claim> {
        let Self { primary, term, .. } = *self;
        match self.wish {
            Wish::Nothing => None,
            Wish::TakeOver => Some(Claim::TakeOver { primary, standby, term }),
            Wish::Withdraw => Some(Claim::Withdraw { primary, standby, term }),
        }
    }

    /// When a primary that has stopped is not waited for any longer, if it has and nothing has been claimed.
    fn relief_due(&self) -> Option<Time> {
        let due = if self.yielded { Some(self.no_claim_before) } else { self.stopped.map(|since| since + LAST_WORDS) };
        due.filter(|_| self.wish != Wish::TakeOver).map(|due| due.max(self.no_claim_before))
    }

    fn claim(&mut self, id: NodeId, settings: &Settings, now: Time, out: &mut VecDeque<Action>) {
        if self.committed.is_none() || now < self.no_claim_before || self.wish == Wish::TakeOver {
            return;
        }
        self.wish = Wish::TakeOver;
        self.retry = None;
        if settings.on_partition.is_none() {
            out.extend(self.claim_of(id).map(Action::AskWitness));
        }
    }
}

fn take_over(session: &Session, term: Term, out: &mut VecDeque<Action>) -> Outcome {
    let committed = session.committed.unwrap_or_default();
    out.push_back(Action::Event(Event::TakingOver { epoch: committed, term }));
    out.push_back(Action::TakeOver { committed, term });
    Outcome::Solo(term)
}
