//! What a primary asks of a standby, and what comes of it: a session, or all reasons why there is none.

use ft_proto::wire::TookOver;
use ft_proto::{NodeId, Term, VmId};

use crate::guest::Shape;
use crate::identity::SessionKey;
use crate::options::ProtectOptions;

/// A session that the standby has accepted.
#[derive(Debug)]
pub struct Opened<C, S> {
    /// What was asked for.
    pub options: ProtectOptions,
    /// Epochs and acknowledgements.
    pub stream: C,
    /// A mirror stream per mirrored disk, with its index.
    pub disks: Vec<(u16, C)>,
    /// Heartbeats.
    pub beats: S,
    /// The standby.
    pub peer: NodeId,
    /// The term that the witness has this node in.
    pub term: Term,
    /// The session.
    pub key: SessionKey,
    /// The session whose last checkpoint the standby's memory still is, if it was asked for.
    pub base: Option<u64>,
}

/// Why there is no session.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Unopened {
    /// All reasons, one sentence each.
    pub reasons: Vec<String>,
    /// Each of them is an answer that stays the same until somebody changes something; none is that nobody
    /// answered.
    pub settled: bool,
}

impl Unopened {
    /// For now; the next try may go better.
    #[must_use]
    pub fn now(reason: String) -> Self {
        Self { reasons: vec![reason], settled: false }
    }

    /// Until somebody changes something.
    #[must_use]
    pub fn settled(reasons: Vec<String>) -> Self {
        Self { reasons, settled: true }
    }

    /// And for these reasons, as far as they are not told yet.
    pub(super) fn and(&mut self, more: Self) {
        if more.reasons.is_empty() {
            return;
        }
        self.settled = more.settled && (self.settled || self.reasons.is_empty());
        for reason in more.reasons {
            if !self.reasons.contains(&reason) {
                self.reasons.push(reason);
            }
        }
    }

    pub(super) fn is_none(&self) -> bool {
        self.reasons.is_empty()
    }
}

/// Everything that speaks for this node.
#[derive(Clone, Debug)]
pub struct Applicant<W> {
    /// Its name.
    pub node: NodeId,
    /// Its term.
    pub term: Term,
    /// Its VM.
    pub vm: VmId,
    /// Which has never been on record at a witness.
    pub first: bool,
    /// What proves that it comes from the last session with whoever it calls; 0: nothing.
    pub previous: u128,
    /// What the VM is made of.
    pub shape: Shape,
    /// What speaks against it already.
    pub blockers: Vec<String>,
    /// Who says whether it may run the VM.
    pub witness: Option<W>,
    /// How it came to run the VM.
    pub took_over: Option<TookOver>,
    /// The session since whose last checkpoint every write to memory is known.
    pub base: Option<u64>,
    /// Nobody waits for the reasons: the first ones are enough.
    pub brief: bool,
}
