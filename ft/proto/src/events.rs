//! The whole surface of the core on one page: what can happen to a node, and what it asks its engine to do.
//!
//! Bulk data never passes through here: the engine moves pages and states, the core handles their epoch
//! numbers.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::failure_detector::LinkId;
use crate::witness::{Claim, Record, Verdict};
use crate::{Committed, Epoch, NodeId, Term, Time};

/// What a node is told. Times of arrival are the `now` of `Node::handle`, but for beats, which wait in a
/// queue.
#[derive(Clone, Debug)]
pub enum Input {
    /// Primary: a standby has accepted us; the first copy of memory and disks begins.
    SessionOpened {
        /// The standby.
        peer: NodeId,
    },
    /// Primary: the first copy is in the stream, except for pages and blocks that are still being written.
    Synced,
    /// Primary: a device holds the first output of the running epoch, or has reached a bound: cut soon.
    CutWanted,
    /// Primary: the epoch was cut, the guest runs the next one, and the image is on its way.
    CutDone {
        /// The sealed epoch.
        epoch: Epoch,
        /// How long the guest was paused for it.
        paused: Duration,
        /// How many pages it contains.
        pages: u64,
    },
    /// Primary: the cut failed; the dirty bits were restored, and the guest continues in the same epoch.
    CutFailed {
        /// The epoch that continues.
        epoch: Epoch,
        /// Why.
        reason: String,
    },
    /// Primary: the standby acknowledges that it holds all of `epoch`.
    Acked {
        /// The sender's term.
        term: Term,
        /// The epoch.
        epoch: Epoch,
    },
    /// Primary: an operator ends the protection; the VM continues here without a standby.
    StopRequested,
    /// Primary: the VM must continue on the standby (a device process here died, or an operator asks for it).
    YieldRequested {
        /// Why.
        reason: String,
    },
    /// Primary: an operator moves the VM to the standby, without losing anything.
    SwitchoverRequested,
    /// Primary: an operator has this node stop as if it had crashed, without telling its standby.
    SimulateCrash,
    /// Standby: a primary was accepted; the first copy begins.
    PrimaryJoined {
        /// The primary.
        peer: NodeId,
        /// Its term.
        term: Term,
        /// How many disks have a stream of their own.
        disks: u16,
    },
    /// Standby: all pages and the state of `epoch` are staged, and their checksum is right.
    MemoryComplete {
        /// The epoch.
        epoch: Epoch,
        /// Disks without writes in the epoch; their streams do not mention it.
        idle: Vec<u16>,
    },
    /// Standby: all writes of `epoch` to one disk are staged, and their checksum is right.
    DiskComplete {
        /// The epoch.
        epoch: Epoch,
        /// Index of the disk.
        disk: u16,
    },
    /// Standby: the primary yields the VM, and can release nothing any more.
    Yielded {
        /// The sender's term.
        term: Term,
    },
    /// The peer ends the session deliberately: it stays up, or has shut the VM down. A standby that does so
    /// has dropped its copy.
    PeerLeft {
        /// The sender's term.
        term: Term,
        /// Why.
        reason: String,
    },
    /// The stream between the two is closed or broken, or carried something malformed.
    StreamLost {
        /// Why.
        reason: String,
    },
    /// A heartbeat arrived.
    Beat {
        /// Over which link.
        link: LinkId,
        /// When.
        at: Time,
        /// What it said.
        beat: Beat,
    },
    /// The witness answered a claim.
    Witness(WitnessAnswer),
    /// The witness's record was read, as happens now and then while a VM that has one runs here.
    RecordRead {
        /// The record; `None`: it is lost.
        record: Option<Record>,
    },
    /// [`Action::TakeOver`] could not be performed.
    TakeOverFailed {
        /// Why.
        reason: String,
    },
    /// The time that `Node::poll_timeout` named has come.
    Timeout,
}

/// What the witness made of a claim, or that it could not be asked.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum WitnessAnswer {
    /// It judged.
    Judged(Claim, Verdict),
    /// It could not be reached; whether the claim took effect is unknown.
    Unreachable(Claim, String),
}

impl WitnessAnswer {
    /// The claim that it answers.
    #[must_use]
    pub fn claim(&self) -> Claim {
        match self {
            Self::Judged(claim, _) | Self::Unreachable(claim, _) => *claim,
        }
    }
}

/// What a heartbeat says.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Beat {
    /// Who sends it.
    pub from: NodeId,
    /// Its term.
    pub term: Term,
    /// Whether it runs the VM and means to continue; if not, its standby is to take over.
    pub runs: bool,
}

/// What the engine is to do, in this order.
#[cfg_attr(feature = "model", derive(Clone, Hash))]
#[derive(Debug, Eq, PartialEq)]
pub enum Action {
    /// Seal `epoch`: stop, capture, resume, send. Answer with `CutDone` or `CutFailed`,
    /// before anything else that has happened since.
    Cut {
        /// The epoch that ends.
        epoch: Epoch,
        /// What is special about it.
        kind: CutKind,
    },
    /// Primary: everything up to this epoch may leave.
    Release(Committed),
    /// Standby: tell the primary that this epoch is held, then apply it to memory and disks.
    Commit(Committed),
    /// Ask the witness, answer with `Input::Witness`.
    AskWitness(Claim),
    /// Run the VM from the committed checkpoint on.
    TakeOver {
        /// The checkpoint.
        committed: Epoch,
        /// The new term.
        term: Term,
    },
    /// Primary: no other node can run the VM; end the session and release all held output.
    GoAlone(Alone),
    /// Primary: tell the standby to take over; this node has stopped.
    Yield,
    /// Primary: tell the standby to drop its copy; the session goes on until it says that it has.
    Dismiss,
    /// Stop the VM for good and discard its held output: another node runs it, or may.
    Fence {
        /// Why.
        reason: String,
    },
    /// Standby: drop the copy and wait for a primary.
    Reset {
        /// Why.
        reason: String,
    },
    /// Report to operators.
    Event(Event),
}

/// What is special about a checkpoint.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum CutKind {
    /// The first complete one of a session: output is held from here on.
    Base,
    /// Nothing is.
    Plain,
    /// It is the last one here: the guest and its devices stay paused until `GoAlone` resumes them, or for
    /// good.
    Last,
}

/// Proof that no other node can be running the VM: held output may be released without a standby.
///
/// Made only where the witness (or, without one, the configured policy) has said so.
#[cfg_attr(feature = "model", derive(Clone, Hash))]
#[derive(Debug, Eq, PartialEq)]
pub struct Alone {
    pub(crate) term: Term,
}

impl Alone {
    /// The term in which this node runs the VM.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }
}

/// What happened, for operators. Serialised by name with its details.
#[cfg_attr(feature = "model", derive(Hash))]
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The first copy begins.
    SyncStarted,
    /// From now on a failure of the primary loses nothing.
    Protected {
        /// The base checkpoint.
        epoch: Epoch,
        /// The term.
        term: Term,
    },
    /// Protection has ended; this node runs the VM alone.
    ProtectionLost {
        /// Why.
        reason: String,
        /// The term in which it does.
        term: Term,
    },
    /// One link is silent; the VM stays protected.
    LinkSilent {
        /// The link.
        #[serde(serialize_with = "link_name")]
        link: LinkId,
    },
    /// A silent link carries heartbeats again.
    LinkRestored {
        /// The link.
        #[serde(serialize_with = "link_name")]
        link: LinkId,
    },
    /// The peer is silent on every link.
    PeerSuspected {
        /// For how long, in milliseconds.
        silence_ms: u64,
    },
    /// This process was stopped or starved of CPU time; the peer gets at least a third of the limit to be
    /// heard.
    LocalStall,
    /// The standby begins to take over.
    TakeoverStarted {
        /// From this checkpoint.
        epoch: Epoch,
        /// In this term.
        term: Term,
    },
    /// The witness cannot be reached; the claim is repeated until it can.
    WitnessUnreachable {
        /// Why.
        reason: String,
    },
    /// The witness has lost the VM's record: if a host fails now, the other one may not continue.
    WitnessRecordLost,
    /// The primary has restored the witness's record.
    WitnessRecordRestored,
    /// The primary was heard again before the witness: the standby commits epochs again, and asks what became
    /// of its claim.
    TakeoverWithdrawn,
    /// The standby holds a complete copy.
    StandbyReady {
        /// Of this primary's term.
        term: Term,
    },
    /// The standby has dropped its copy.
    StandbyReset {
        /// Why.
        reason: String,
    },
    /// The primary is silent, but there is no witness, and by the policy the standby does not take over.
    TakeoverSuppressed,
    /// This node may no longer run the VM, and has stopped it.
    Fenced {
        /// Why.
        reason: String,
    },
    /// A capture failed.
    CheckpointFailed {
        /// Why.
        reason: String,
    },
}

fn link_name<S: serde::Serializer>(link: &LinkId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(link.name())
}

/// Who continues when the two hosts cannot see each other and there is no witness to ask.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnPartition {
    /// The primary continues; the standby never takes over by itself.
    Primary,
    /// The standby takes over; a primary without its standby stops.
    Standby,
    /// Both: every single failure is survived, a partition splits the VM in two.
    Both,
}

/// A node's settings.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Settings {
    /// Silence on every link after which the peer is considered dead; `None`: never.
    pub silence: Option<Duration>,
    /// A standby that is alive but has not acknowledged an epoch for this long is left: its disk hangs, or
    /// something in between. The first checkpoint may take ten times as long. Applies only with a limit of
    /// silence.
    pub ack_limit: Duration,
    /// The shortest epoch.
    pub min_epoch: Duration,
    /// The longest epoch: it is cut even if nothing asks for it.
    pub max_epoch: Duration,
    /// While the standby takes longer than this for an epoch with many pages, epochs are made shorter.
    pub latency: Duration,
    /// But not so short that the guest is paused for a larger share of its time, in percent. Does not apply
    /// to epochs that output cuts.
    pub pause_share: u32,
    /// How many sealed epochs may wait for the standby, besides the one that the guest runs.
    pub depth: usize,
    /// Who continues when the two cannot see each other; `None`: the witness decides.
    pub on_partition: Option<OnPartition>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            silence: Some(Duration::from_millis(300)),
            ack_limit: Duration::from_secs(10),
            min_epoch: Duration::from_micros(100),
            max_epoch: Duration::from_millis(20),
            latency: Duration::from_millis(2),
            pause_share: 5,
            depth: 2,
            on_partition: None,
        }
    }
}
