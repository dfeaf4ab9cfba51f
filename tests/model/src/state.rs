//! What a state of the system is made of, and what can happen in it.

use ft_proto::witness::{Claim, DiskState, Record};
use ft_proto::{Node, NodeId, OnPartition, Term, WitnessAnswer};

/// How far to go. Everything that makes the state space infinite has its limit here.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Sessions that are opened.
    pub sessions: usize,
    /// Epochs of each session.
    pub epochs: u64,
    /// Crashes of hosts; each may restart with its disks, as a standby that has nothing in memory.
    pub crashes: u32,
    /// Crashes of both hosts at once.
    pub blackouts: u32,
    /// Times that the stream is reset, with or without what was in it.
    pub breaks: u32,
    /// Claims or answers that are lost, or claims that take effect after their sender has given up.
    pub losses: u32,
    /// What operators do: stop the protection, move the VM, simulate a crash; and devices that die.
    pub operations: u32,
    /// Questions of hosts that are back whether they may start the VM.
    pub starts: u32,
    /// Times that the witness loses its record.
    pub record_losses: u32,
    /// Times that the record is read by who runs the VM.
    pub looks: u32,
    /// Beats that nobody sent, in the name of the peer.
    pub forged: u32,
}

/// Something between the two hosts, in order.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Msg {
    /// The standby accepts the session.
    Welcome,
    /// All of an epoch.
    Epoch(u64),
    /// The standby holds it.
    Ack(Term, u64),
    /// The primary has stopped.
    Yield(Term),
    /// The sender leaves in good order.
    Bye(Term),
    /// The end of the stream.
    Lost,
}

/// The stream of the last session.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Stream {
    /// Which session.
    pub session: usize,
    /// Host of the primary, and its node; the standby is on the other one.
    pub primary: (usize, NodeId),
    /// The standby's node.
    pub standby: NodeId,
    /// Its term.
    pub term: Term,
    /// Whether the standby may get more.
    pub down_open: bool,
    /// What is on its way to the standby.
    pub down: Vec<Msg>,
    /// Whether the primary may get more.
    pub up_open: bool,
    /// What is on its way to the primary.
    pub up: Vec<Msg>,
}

/// What really happened in a session.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Told {
    /// Everything up to this epoch was let out.
    pub released: u64,
    /// The VM went on at the standby from this epoch.
    pub taken: Option<u64>,
    /// The standby was registered at the witness.
    pub protected: bool,
}

/// One host.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Host {
    /// The node, while the host is up.
    pub node: Option<Node>,
    /// Whether output is held there.
    pub holds: bool,
    /// The term that the witness gave for the next session.
    pub owned: Option<Term>,
    /// Which session its node takes part in.
    pub session: Option<usize>,
    /// What its disks have on record.
    pub disk: DiskState,
    /// Its VM has never been on record at the witness.
    pub first: bool,
}

impl Host {
    pub(crate) fn down() -> Self {
        let (node, owned, session) = (None, None, None);
        Self { node, holds: false, owned, session, disk: DiskState::None, first: false }
    }
}

/// Starts that there were.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Started {
    /// On the host that ran the VM last.
    pub last: bool,
    /// On a host that had waited for that one.
    pub waited: bool,
    /// By itself on a host that another one had run the VM after.
    pub stale: bool,
}

/// A state of the whole system.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Sys {
    /// Both hosts.
    pub hosts: [Host; 2],
    /// What the witness has on record.
    pub record: Option<Record>,
    /// Claims on their way.
    pub asks: Vec<(NodeId, Claim)>,
    /// Claims whose senders have given up waiting.
    pub late: Vec<Claim>,
    /// Answers on their way.
    pub answers: Vec<(NodeId, WitnessAnswer)>,
    /// The stream, if one was opened.
    pub stream: Option<Stream>,
    /// What was read of the record, on its way to who runs the VM.
    pub reads: Vec<(NodeId, Option<Record>)>,
    /// By session.
    pub told: Vec<Told>,
    /// The host that ran the VM last.
    pub runner: usize,
    /// What starts there were.
    pub started: Started,
    /// Whether a lost record was written again.
    pub restored: bool,
    /// How many nodes there were on each host.
    pub incarnations: [u64; 2],
    /// What may still go wrong.
    pub left: Left,
    /// What is wrong from the start.
    pub flaw: Option<Flaw>,
    /// Who goes on without a witness.
    pub policy: Option<OnPartition>,
    /// What a claim without an answer can still do.
    pub late_claims: LateClaims,
}

/// What a claim can still do whose sender has given up waiting.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum LateClaims {
    /// It is judged whenever it arrives: worse than any keeper, for what must hold whatever happens.
    Judged,
    /// It was judged when it was made, and takes effect only on that record; a node's questions and their
    /// answers keep their order: what keepers and askers promise.
    Compared,
}

/// What may still go wrong.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Left {
    pub(crate) crashes: u32,
    pub(crate) blackouts: u32,
    pub(crate) breaks: u32,
    pub(crate) losses: u32,
    pub(crate) operations: u32,
    pub(crate) starts: u32,
    pub(crate) record_losses: u32,
    pub(crate) looks: u32,
    pub(crate) forged: u32,
}

/// Something that can happen. Numbers are hosts, or places in queues.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Act {
    /// A node that is alone asks the witness for its next term.
    Own(usize),
    /// It opens a session with the other host.
    Open(usize),
    /// The first copy is complete.
    Synced(usize),
    /// The guest wants its output out.
    Want(usize),
    /// The standby gets what is next in the stream.
    Down,
    /// The primary gets what is next in the stream.
    Up,
    /// The stream ends for both, after what is in it or at once.
    Break {
        /// At once.
        truncate: bool,
    },
    /// A node hears nothing of the other for longer than the limit.
    Silence(usize),
    /// A beat of a node reaches the other one.
    Beat(usize),
    /// A claim takes effect.
    Judge(usize),
    /// A claim takes effect; its answer is lost.
    JudgeMute(usize),
    /// A claim is lost.
    LoseClaim(usize),
    /// A claim's sender gives up; the claim is still on its way.
    Delay(usize),
    /// A claim that nobody waits for takes effect.
    JudgeLate(usize),
    /// An answer arrives.
    Answer(usize),
    /// It is time to ask the witness again.
    Retry(usize),
    /// A host dies.
    Crash(usize),
    /// Both hosts die at once.
    Blackout,
    /// It is back, with its disks, and stands by.
    Restart(usize),
    /// It asks whether it may start the VM.
    Start {
        /// Which.
        at: usize,
        /// It has waited for the other one for as long as an operator said.
        waited: bool,
    },
    /// Disks note what they were told.
    Note(usize),
    /// The witness loses its record.
    LoseRecord,
    /// The record is read for a node that runs the VM.
    Look(usize),
    /// What was read arrives.
    Read(usize),
    /// A node gets a beat in the name of its peer that the peer has not sent.
    Forge {
        /// Which.
        at: usize,
        /// What it says.
        term: Term,
        /// What it says.
        runs: bool,
    },
    /// An operator ends the protection.
    Stop(usize),
    /// A device dies: the VM is to continue on the standby.
    Yield(usize),
    /// An operator moves the VM.
    Move(usize),
    /// An operator simulates a crash of the primary.
    SimulateCrash(usize),
}

/// A defect to build in: a check that cannot fail is no check.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Flaw {
    /// The witness grants whatever it is asked for.
    GrantsAll,
    /// A record that a grant leaves as it is does not count as changed.
    UnwrittenGrants,
    /// The witness lets any host start the VM when it has no record.
    StartsOnAbsence,
    /// A primary writes a lost record again without having heard of its standby since.
    RestoresAtOnce,
}

/// The system within its bounds.
#[derive(Clone, Copy, Debug)]
pub struct System {
    /// How far to go.
    pub bounds: Bounds,
    /// What is wrong.
    pub flaw: Option<Flaw>,
    /// Who goes on in a partition when there is no witness to ask; `None`: there is one.
    pub policy: Option<OnPartition>,
    /// What a claim without an answer can still do.
    pub late_claims: LateClaims,
}

impl Sys {
    /// The host on which a node lives.
    pub(crate) fn host_of(&self, id: NodeId) -> Option<usize> {
        self.hosts.iter().position(|host| host.node.as_ref().is_some_and(|node| node.id() == id))
    }
}
