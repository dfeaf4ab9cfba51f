//! What both halves of a session share: the context that a transition acts in, its outcome, and a claim that
//! waits for its answer.

use std::collections::VecDeque;
use std::time::Duration;

use crate::events::{Action, Event, Settings, WitnessAnswer};
use crate::witness::{Claim, Record};
use crate::{Term, Time};

/// Between two attempts to reach the witness.
pub(crate) const RETRY: Duration = Duration::from_millis(200);

/// What a transition may look at besides its own state, and where its actions go.
#[derive(Debug)]
pub(crate) struct Cx<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) now: Time,
    pub(crate) out: &'a mut VecDeque<Action>,
}

impl Cx<'_> {
    pub(crate) fn act(&mut self, action: Action) {
        self.out.push_back(action);
    }

    pub(crate) fn tell(&mut self, event: Event) {
        self.act(Action::Event(event));
    }

    /// Stops the VM on this node for good.
    pub(crate) fn fence(&mut self, reason: String) -> Outcome {
        self.act(Action::Fence { reason: reason.clone() });
        self.tell(Event::Fenced { reason });
        Outcome::Fenced
    }
}

/// What a role turns into.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// Runs the VM, unprotected, in this term.
    Solo(Term),
    /// May no longer run the VM.
    Fenced,
}

/// A claim that the witness has not answered yet.
#[cfg_attr(feature = "model", derive(Hash))]
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct PendingClaim {
    claim: Claim,
    /// When to ask again; `None`: the answer to the last question is outstanding.
    retry: Option<Time>,
}

impl PendingClaim {
    /// Asks the witness.
    pub(crate) fn ask(claim: Claim, cx: &mut Cx<'_>) -> Self {
        cx.act(Action::AskWitness(claim));
        Self { claim, retry: None }
    }

    pub(crate) fn claim(&self) -> Claim {
        self.claim
    }

    /// Whether `answer` is to this claim. Answers to claims of earlier sessions, or to earlier claims of this
    /// one, are too late.
    pub(crate) fn is_answered_by(&self, answer: &WitnessAnswer) -> bool {
        self.claim == answer.claim()
    }

    pub(crate) fn unreachable(&mut self, reason: String, cx: &mut Cx<'_>) {
        cx.tell(Event::WitnessUnreachable { reason });
        self.retry = Some(cx.now + RETRY);
    }

    /// The witness has no record. That gives the VM to nobody; an operator may bring the record back.
    pub(crate) fn record_lost(&mut self, cx: &mut Cx<'_>) {
        cx.tell(Event::WitnessRecordLost);
        self.retry = Some(cx.now + RETRY);
    }

    /// Whether it is time to ask again.
    pub(crate) fn is_due(&self, now: Time) -> bool {
        self.retry.is_some_and(|at| at <= now)
    }

    pub(crate) fn ask_again(&mut self, cx: &mut Cx<'_>) {
        assert!(self.is_due(cx.now), "{:?} is asked again while its answer is outstanding", self.claim);
        *self = Self::ask(self.claim, cx);
    }

    pub(crate) fn timeout(&self) -> Option<Time> {
        self.retry
    }
}

/// Why a node may not run the VM, according to `record`.
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
