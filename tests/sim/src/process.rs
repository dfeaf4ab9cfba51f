//! One host and the process on it: the real node, the model of everything around it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ft_proto::device_ctl::Report;
use ft_proto::witness::Claim;
use ft_proto::{Beat, CutKind, Epoch, LinkId, Node, NodeId, Term, Time, WitnessAnswer};

use crate::devices::{Disk, DiskImage, Nic};
use crate::guest::{Guest, Image};
use crate::network::{Segment, StreamId};
use crate::record::Record;

/// A host and which process on it: messages to a process that is gone reach nobody.
pub(crate) type Address = (usize, u64);

/// What waits for the engine's thread.
#[derive(Debug)]
pub(crate) enum Message {
    Beat {
        link: LinkId,
        at: Time,
        beat: Beat,
    },
    Witness(WitnessAnswer),
    /// The witness's answer to the question whether the VM may start here.
    MayStart(WitnessAnswer),
    /// What the witness has on record.
    Record(Option<ft_proto::witness::Record>),
    /// The witness's answer to the connecting thread.
    Owned(WitnessAnswer),
    OpeningTimeout(u64),
    Stream(StreamId, Segment),
    Report(Report),
    DeviceFailed,
    Pump(u64),
    Timer,
    Stop,
    /// An operator moves the VM.
    Move,
    /// An operator tests a failover.
    SimulateCrash,
}

/// What keeps the engine's thread from its inbox.
#[derive(Debug)]
pub(crate) enum Busy {
    No,
    /// Starved.
    Until(Time),
    /// The guest is paused; `None`: the capture fails.
    Cut {
        epoch: Epoch,
        kind: CutKind,
        began: Time,
        image: Option<Image>,
    },
    TakeOver {
        committed: Epoch,
        term: Term,
        latest: Box<Image>,
        session: u64,
        primary: NodeId,
        primary_host: usize,
    },
}

/// What this node holds open towards another one.
#[derive(Debug)]
pub(crate) enum Session {
    None,
    Primary(PrimarySide),
    Standby(Box<StandbySide>),
}

/// A session in which this node is the primary.
#[derive(Debug)]
pub(crate) struct PrimarySide {
    pub(crate) stream: StreamId,
    pub(crate) session: u64,
    pub(crate) copy: Option<FirstCopy>,
    pub(crate) disk_in_sync: bool,
}

/// How far the first copy of memory has come.
#[derive(Debug, Default)]
pub(crate) struct FirstCopy {
    pub(crate) next_page: usize,
    pub(crate) dirty: VecDeque<usize>,
    pub(crate) small: bool,
    pub(crate) rounds: u32,
}

/// A session in which this node is the standby.
#[derive(Debug)]
pub(crate) struct StandbySide {
    pub(crate) primary: NodeId,
    pub(crate) primary_host: usize,
    pub(crate) session: u64,
    /// `None` once the stream has ended; what was committed is still good.
    pub(crate) stream: Option<StreamId>,
    pub(crate) arriving: Image,
    pub(crate) state_seen: bool,
    pub(crate) whole: BTreeMap<Epoch, Image>,
    pub(crate) latest: Option<Image>,
    /// The last committed epoch that the disk has something of.
    pub(crate) disk_epoch: Epoch,
    /// When the takeover was claimed first, since a claim was withdrawn last.
    pub(crate) claimed_at: Option<Time>,
    /// The claim was withdrawn.
    pub(crate) withdrawn: bool,
}

/// The way to a session, on a thread of its own.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) number: u64,
    pub(crate) target: usize,
    pub(crate) term: Term,
    pub(crate) stream: Option<StreamId>,
    pub(crate) disk_stream: Option<StreamId>,
    pub(crate) peer: Option<(NodeId, u64)>,
    /// The record of the standby's image.
    pub(crate) record: Option<Record>,
}

/// A thread that asks the witness, one claim after the other.
#[derive(Debug, Default)]
pub(crate) struct Asker {
    pub(crate) claims: VecDeque<Claim>,
    /// Which attempt is open.
    pub(crate) token: u64,
}

/// One pollux-vmm with its devices.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) incarnation: u64,
    pub(crate) node: Node,
    pub(crate) guest: Guest,
    pub(crate) nic: Nic,
    pub(crate) disk: Disk,
    pub(crate) session: Session,
    pub(crate) opening: Option<Opening>,
    pub(crate) opened: u64,
    pub(crate) inbox: VecDeque<Message>,
    pub(crate) busy: Busy,
    pub(crate) paused_until: Time,
    pub(crate) timer: (u64, Option<Time>),
    pub(crate) said: (Term, bool),
    pub(crate) route: Option<usize>,
    /// What the two ends of the last session know, and nobody else.
    pub(crate) key: u64,
    pub(crate) beat_generation: u64,
    pub(crate) beat_interval: Duration,
    pub(crate) askers: BTreeMap<u64, Asker>,
    pub(crate) asker: u64,
    /// The incarnation that the VM would start as, while the witness is asked.
    pub(crate) starting: Option<NodeId>,
    /// A device process is dead.
    pub(crate) broken: bool,
    /// Sessions that the disk was told to drop and has not confirmed: it still speaks of them.
    pub(crate) dropped: u32,
    /// When the last report on its way arrives: they keep their order.
    pub(crate) last_report: Time,
    /// When the node last looked at the clock.
    pub(crate) looked: Time,
}

impl Process {
    pub(crate) fn new(incarnation: u64, node: Node, looked: Time) -> Self {
        Self {
            incarnation,
            said: (node.term(), node.runs()),
            node,
            guest: Guest::default(),
            nic: Nic::default(),
            disk: Disk::default(),
            session: Session::None,
            opening: None,
            opened: 0,
            inbox: VecDeque::new(),
            busy: Busy::No,
            paused_until: Time(0),
            timer: (0, None),
            route: None,
            key: 0,
            beat_generation: 0,
            beat_interval: Duration::from_millis(500),
            askers: BTreeMap::new(),
            asker: 1,
            starting: None,
            broken: false,
            dropped: 0,
            last_report: Time(0),
            looked,
        }
    }

    /// Whether the engine's thread can do anything now.
    pub(crate) fn is_awake(&self, now: Time) -> bool {
        self.paused_until <= now && matches!(self.busy, Busy::No)
    }

    /// Whether the guest can execute now.
    pub(crate) fn guest_runs(&self, now: Time) -> bool {
        self.guest.running && !self.guest.stopped && self.paused_until <= now
    }
}

/// A machine: what outlives its processes.
#[derive(Debug, Default)]
pub(crate) struct Host {
    pub(crate) process: Option<Process>,
    pub(crate) incarnations: u64,
    pub(crate) image: DiskImage,
    /// How far its clock is ahead.
    pub(crate) ahead: Duration,
    pub(crate) slow_disk_until: Time,
    pub(crate) hung_disk_until: Time,
    pub(crate) witness_cut_until: Time,
    pub(crate) down: bool,
    /// It accepts no connection until then.
    pub(crate) full_until: Time,
    /// Its disk's record cannot be written until then.
    pub(crate) disk_full_until: Time,
    /// Its disk, while another one is in its place.
    pub(crate) mislaid: Option<DiskImage>,
    /// What was saved of its disk, and of the record.
    pub(crate) backup: Option<([u64; crate::guest::BLOCKS], Record)>,
}
