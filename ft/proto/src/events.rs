//! The whole surface of the core on one page: what can happen to a node, and what it can ask its shell to do.
//!
//! Bulk data never passes through here: the shell moves pages and states, the core handles their epoch numbers.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::failure_detector::LinkId;
use crate::witness::{Claim, Record, Verdict};
use crate::{Committed, Epoch, NodeId, Term, Time};

/// What a node is told. Times of arrival are the `now` of `Node::handle`, but for beats, which wait in a queue.
#[derive(Clone, Debug)]
pub enum Input {
    /// Primary: a standby has accepted us; the first copy of memory and disks begins.
    SessionOpened {
        /// The standby.
        peer: NodeId,
    },
    /// Primary: the first copy is in the stream, to the last page and block that are not still being written.
    Synced,
    /// Primary: a device holds the first output of the running epoch, or has reached a bound: cut soon.
    CutWanted,
    /// Primary: the epoch was cut, the guest runs the next one, and the image is on its way.
    CutDone {
        /// The sealed epoch.
        epoch: Epoch,
        /// How long the guest stood still for it.
        paused: Duration,
        /// Pages that it has.
        pages: u64,
    },
    /// Primary: the cut failed; dirty bits were put back and the guest runs on in the same epoch.
    CutFailed {
        /// The epoch that goes on.
        epoch: Epoch,
        /// Why.
        reason: String,
    },
    /// Primary: the standby says that it holds everything of `epoch`.
    Acked {
        /// The sender's term.
        term: Term,
        /// The epoch.
        epoch: Epoch,
    },
    /// Primary: protection shall end; the VM goes on alone.
    StopRequested,
    /// Primary: the VM shall go on at the standby (a device process here is dead, or an operator wants it).
    YieldRequested {
        /// Why.
        reason: String,
    },
    /// Primary: the VM shall go on at the standby, and nothing shall be lost on the way.
    SwitchoverRequested,
    /// Primary: this node shall be as good as dead, without a word to its standby.
    CeaseRequested,
    /// Standby: a primary was accepted; its copies begin.
    PrimaryJoined {
        /// The primary.
        peer: NodeId,
        /// Its term.
        term: Term,
        /// How many disks have a stream of their own.
        disks: u16,
    },
    /// Standby: all pages and the state of `epoch` are staged and their checksum is right.
    MemoryComplete {
        /// The epoch.
        epoch: Epoch,
        /// Disks of which the epoch has nothing; their streams say nothing of it.
        idle: Vec<u16>,
    },
    /// Standby: all writes of `epoch` to one disk are held and their checksum is right.
    DiskComplete {
        /// The epoch.
        epoch: Epoch,
        /// Index of the disk.
        disk: u16,
    },
    /// Standby: the primary gives the VM up, with nothing that could still be released there.
    Yielded {
        /// The sender's term.
        term: Term,
    },
    /// The peer ends the session in good order: it stays up, or has shut the VM down. A standby that says so has dropped its copy.
    PeerLeft {
        /// The sender's term.
        term: Term,
        /// Why.
        reason: String,
    },
    /// The stream between the two is closed, broken, or carried something wrong.
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
    /// The witness's record was read: of a VM that is on record, now and then while it runs here.
    RecordRead {
        /// The record; `None`: it is lost.
        record: Option<Record>,
    },
    /// The shell could not perform [`Action::TakeOver`].
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
    /// It could not be reached, and whether the claim took effect is unknown.
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
    /// Whether it runs the VM and means to go on; if not, its standby shall take over.
    pub runs: bool,
}

/// What the shell shall do, in this order.
#[cfg_attr(feature = "model", derive(Clone, Hash))]
#[derive(Debug, Eq, PartialEq)]
pub enum Action {
    /// Seal `epoch`: stop, capture, resume, send. Answer with `CutDone` or `CutFailed`.
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
    /// Primary: nobody else can run the VM; end the session and let held output go.
    GoAlone(Alone),
    /// Primary: tell the standby to take over; this node has stopped.
    Yield,
    /// Primary: tell the standby to drop its copy; the session goes on until it says that it has.
    Dismiss,
    /// Stop the VM for good and drop its held output: another node runs it, or may.
    Fence {
        /// Why.
        reason: String,
    },
    /// Standby: drop what was received and wait for a primary.
    Reset {
        /// Why.
        reason: String,
    },
    /// Tell the outside.
    Event(Event),
}

/// What is special about a checkpoint.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum CutKind {
    /// The first whole one of a session: output is held from here on.
    Base,
    /// Nothing.
    Plain,
    /// The last one here: the guest and its devices stay stopped until `GoAlone` lets them run again, or for good.
    Last,
}

/// Proof that no other node can be running the VM: held output may leave without a standby.
///
/// Made only where the witness (or, without one, the configured policy) has said so.
#[cfg_attr(feature = "model", derive(Clone, Hash))]
#[derive(Debug, Eq, PartialEq)]
pub struct Alone {
    pub(crate) term: Term,
}

impl Alone {
    /// The term of this node's reign.
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
    /// The first copy has begun.
    SyncStarted,
    /// From now on a failure of the primary loses nothing.
    Protected {
        /// The base checkpoint.
        epoch: Epoch,
        /// The term.
        term: Term,
    },
    /// Protection has ended; this node goes on alone.
    ProtectionLost {
        /// Why.
        reason: String,
        /// The term it goes on in.
        term: Term,
    },
    /// One link is silent; the VM stays protected.
    LinkSilent {
        /// The link.
        #[serde(serialize_with = "link_name")]
        link: LinkId,
    },
    /// A silent link is back.
    LinkBack {
        /// The link.
        #[serde(serialize_with = "link_name")]
        link: LinkId,
    },
    /// The peer is silent on every link.
    PeerSuspected {
        /// For how long, in milliseconds.
        silence_ms: u64,
    },
    /// This process was stopped or starved; the peer gets at least a third of the limit to speak up.
    OwnStall,
    /// The standby begins to take over.
    TakingOver {
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
    /// The witness has no record of the VM any more: if a host fails now, nobody may go on.
    WitnessRecordLost,
    /// The primary has given the witness its record again.
    WitnessRecordRestored,
    /// The primary is back before the witness is: the standby commits its epochs again and asks what became of its claim.
    TakeOverWithdrawn,
    /// The standby holds a whole copy.
    StandbyReady {
        /// Of this primary's term.
        term: Term,
    },
    /// The standby's copy is useless now.
    StandbyReset {
        /// Why.
        reason: String,
    },
    /// The primary is silent, and without a witness the policy says that the standby waits.
    TakeOverHeldBack,
    /// This node may not run the VM any more and has stopped it.
    Fenced {
        /// Why.
        reason: String,
    },
    /// A capture failed.
    CutFailed {
        /// Why.
        reason: String,
    },
}

fn link_name<S: serde::Serializer>(link: &LinkId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(link.name())
}

/// Who goes on when the two hosts cannot see each other and there is no witness to ask.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnPartition {
    /// The primary goes on; the standby never takes over by itself.
    Primary,
    /// The standby takes over; a primary without its standby stops.
    Standby,
    /// Both: every single failure is survived, a partition splits the VM in two.
    Both,
}

/// A node's settings.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Settings {
    /// Silence on every link after which the peer is taken for dead; `None`: never.
    pub silence: Option<Duration>,
    /// A standby that lives but has not acknowledged an epoch for so long is left: its disk hangs, or something between.
    /// The first checkpoint may take ten times as long. Counts only with a limit of silence.
    pub ack_limit: Duration,
    /// No epoch is cut earlier after the one before.
    pub min_epoch: Duration,
    /// An epoch is cut after this time even if nothing asks for it.
    pub max_epoch: Duration,
    /// While the standby needs longer than this for an epoch with many pages, epochs are made shorter.
    pub latency: Duration,
    /// But not so short that the guest stands still for a larger part of its time, in percent. Not for epochs that output cuts.
    pub pause_share: u32,
    /// How many sealed epochs may wait for the standby; the guest runs one more.
    pub depth: usize,
    /// Who decides when the two cannot see each other: `None` is the witness.
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
