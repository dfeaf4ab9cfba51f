//! What a primary asks of a standby, and what comes of it: a session, or all reasons why there is none.

use std::sync::{Arc, Mutex, PoisonError};

use ft_proto::{LinkId, NodeId, Term, VmId};
use ft_wire::nonce::Nonce;
use ft_wire::session::{Hello, Purpose, TookOver, encode_body};
use pollux_api::Blocker;

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
    /// All reasons.
    pub blockers: Vec<Blocker>,
}

impl Unopened {
    /// And for these reasons, as far as they are not told yet.
    pub(super) fn and(&mut self, more: impl Into<Self>) {
        for blocker in more.into().blockers {
            if !self.blockers.contains(&blocker) {
                self.blockers.push(blocker);
            }
        }
    }

    pub(super) fn is_none(&self) -> bool {
        self.blockers.is_empty()
    }

    /// Whether the next try has the same answer until somebody changes something.
    pub(crate) fn persists(&self) -> bool {
        self.blockers.iter().all(Blocker::persists)
    }

    /// All reasons, one sentence each.
    pub(crate) fn sentences(&self) -> Vec<String> {
        self.blockers.iter().map(Blocker::to_string).collect()
    }
}

impl From<Blocker> for Unopened {
    fn from(blocker: Blocker) -> Self {
        Self { blockers: vec![blocker] }
    }
}

/// What a primary says of itself to a standby.
#[derive(Clone, Debug)]
pub struct Introduction {
    /// Its name.
    pub node: NodeId,
    /// Its VM.
    pub vm: VmId,
    /// What proves that it comes from the last session with whoever it calls.
    pub previous: Nonce,
    /// What the VM is made of.
    pub shape: Shape,
    /// How it came to run the VM.
    pub took_over: Option<TookOver>,
    /// The session since whose last checkpoint every write to memory is known.
    pub base: Option<u64>,
}

impl Introduction {
    /// Asks for a session, or (`check`) what would speak against one; heartbeats come from `beats`.
    #[must_use]
    pub fn session(&self, check: bool, options: &ProtectOptions, beats: [String; LinkId::ALL.len()]) -> Hello {
        self.hello(Purpose::Session {
            check,
            shape: encode_body(&self.shape),
            beats,
            detect_ms: options.tuning.detect_ms,
            disk_buffer: options.tuning.disk_buffer.0,
            took_over: self.took_over,
            on_partition: options.on_partition,
            base: self.base,
            previous: self.previous,
        })
    }

    /// Brings the mirror stream of a disk of the session.
    #[must_use]
    pub fn disk(&self, index: u16, SessionKey { session, nonce }: SessionKey) -> Hello {
        self.hello(Purpose::Disk { index, session, nonce })
    }

    fn hello(&self, purpose: Purpose) -> Hello {
        Hello { vm: Some(self.vm), node: self.node, purpose }
    }
}

/// The right to claim anything for a VM, which ends with it: what the witness is told of the VM's end is the
/// last that it is told.
#[derive(Clone, Debug, Default)]
pub struct Mandate(Arc<Mutex<bool>>);

impl Mandate {
    /// The VM has ended. Whoever is in the middle of a claim has made it when this returns.
    pub fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Whether the VM has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a claim, unless the VM has ended.
    pub(super) fn claim<T>(&self, claim: impl FnOnce() -> T) -> Option<T> {
        let ended = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (!*ended).then(claim)
    }
}

/// Everything that speaks for this node.
#[derive(Clone, Debug)]
pub struct Applicant<W> {
    /// What it says to a standby.
    pub introduction: Introduction,
    /// Its term.
    pub term: Term,
    /// Its VM has never been on record at a witness.
    pub first: bool,
    /// What speaks against it already.
    pub blockers: Vec<Blocker>,
    /// Who says whether it may run the VM.
    pub witness: Option<W>,
    /// Whether anything may still be claimed there.
    pub mandate: Mandate,
    /// Nobody waits for the reasons: the first ones are enough.
    pub brief: bool,
}
