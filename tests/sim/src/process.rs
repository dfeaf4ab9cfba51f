//! One host and the process on it: the real engine, and what of it the world keeps.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::MutexGuard;
use std::time::Duration;

use ft::sim::{Begin, DeviceEnd, Executor, Inbox, Message, Parts, Platform as _, assemble};
use ft::{Board, ProtectOptions, StandbyOptions};
use ft_proto::{Beat, LinkId, NodeId, State, Term, Time};
use ft_wire::beat::{BeatFilter, BeatKey};

use crate::body::{Answer, Body, Effect, Question, Shared};
use crate::devices::Disk;
use crate::drive::Drive;
use crate::ids::{NIC, VM, device_of};
use crate::network::{Segment, StreamId};
use crate::platform::{DISK_CAPS, NIC_CAPS, Sim, SimBeats, SimControl};
use crate::slot::{Heard, Opening, Slot};
use crate::vm::SimGuest;

/// A host and which process on it: messages to a process that is gone reach nobody.
pub(crate) type Address = (usize, u64);

/// What waits for the engine's thread.
#[derive(Debug)]
pub(crate) enum Delivery {
    Beat {
        link: LinkId,
        at: Time,
        beat: Beat,
    },
    /// The session's stream.
    Stream,
    /// A device has reported.
    Report(usize),
    /// Somebody says something.
    Message(Box<Message<Sim>>),
    Timer,
}

/// Who asks the witness.
pub(crate) enum Asks {
    /// The engine, and whoever works for it.
    Engine(Answer),
    /// A host that waits.
    Starter,
}

/// Questions to the witness, one after the other.
#[derive(Default)]
pub(crate) struct Asker {
    pub(crate) questions: VecDeque<(Question, Asks)>,
    /// Which attempt is open.
    pub(crate) token: u64,
}

/// The heartbeat thread.
#[derive(Debug)]
pub(crate) struct Beats {
    pub(crate) key: Option<BeatKey>,
    pub(crate) filter: BeatFilter,
    /// Beats sent so far.
    pub(crate) sent: u64,
    pub(crate) said: (Term, bool),
    pub(crate) route: Option<usize>,
    pub(crate) interval: Duration,
    pub(crate) generation: u64,
}

impl Beats {
    fn new(said: (Term, bool)) -> Self {
        Self {
            key: None,
            filter: BeatFilter::default(),
            sent: 0,
            said,
            route: None,
            interval: Duration::from_millis(500),
            generation: 0,
        }
    }
}

/// One pollux-vmm with its devices.
pub(crate) struct Process {
    pub(crate) incarnation: u64,
    pub(crate) executor: Executor<Sim>,
    pub(crate) inbox: Inbox<Sim>,
    pub(crate) shared: Shared,
    /// What the engine has not been told.
    pub(crate) waiting: VecDeque<Delivery>,
    /// What it has done, and the world does not know yet.
    pub(crate) outbox: VecDeque<(Time, Effect)>,
    pub(crate) paused_until: Time,
    /// The engine's thread waits for a guest or a device.
    pub(crate) busy_until: Time,
    /// Or is starved.
    pub(crate) stalled_until: Time,
    pub(crate) timer: (u64, Option<Time>),
    /// How many times in a row that was in the past.
    pub(crate) overdue: u32,
    pub(crate) beats: Beats,
    /// The thread that opens a session.
    pub(crate) opening: Option<Opening>,
    /// What it has greeted somebody on, until that one answers.
    pub(crate) greetings: BTreeMap<StreamId, Slot<Heard>>,
    /// Streams on which somebody has said hello.
    pub(crate) greeted: BTreeSet<StreamId>,
    /// What came for a disk before it had its stream.
    pub(crate) unclaimed: BTreeMap<StreamId, Vec<Segment>>,
    pub(crate) asker: Asker,
    pub(crate) starter: Asker,
    /// The incarnation that the VM would start as, while the witness is asked.
    pub(crate) starting: Option<NodeId>,
    /// The VMM is about to build its VM anew.
    pub(crate) unusable: bool,
    /// The VM is being shut down.
    pub(crate) ending: bool,
    /// In which term it said last that it runs the VM.
    pub(crate) ran: Option<Term>,
    /// When a takeover was claimed, by whom the VM was run, and whether the claim was withdrawn since.
    pub(crate) claimed: Option<(Time, NodeId, bool)>,
    /// When the last report on its way arrives: they keep their order.
    pub(crate) last_report: Time,
    /// When the engine last did something.
    pub(crate) looked: Time,
}

impl Process {
    /// `peers`: whom the engine asks by itself to be its standby.
    pub(crate) fn new(
        incarnation: u64,
        begin: Begin,
        body: Body,
        listen: StandbyOptions,
        peers: Vec<ProtectOptions>,
    ) -> Self {
        let (inbox, post) = Inbox::new().expect("there is a descriptor");
        let (looked, shared) = (body.local, Shared::new(body));
        let platform = Sim(shared.clone());
        let witness = listen.witness.as_ref().and_then(|address| platform.witness(address).ok());
        let device = |device, caps| DeviceEnd { caps, control: SimControl::new(device, shared.clone()) };
        let disks = (0..shared.lock().disks.len()).map(|disk| device(device_of(disk), DISK_CAPS));
        let executor = assemble(Parts {
            platform,
            guest: Box::new(SimGuest::new(shared.clone())),
            devices: std::iter::once(device(NIC, NIC_CAPS)).chain(disks).collect(),
            post,
            board: Board::default(),
            beats: SimBeats(shared.clone()),
            begin,
            vm: Some(VM),
            listen: Some(listen),
            peers,
            witness,
        });
        Self {
            incarnation,
            beats: Beats::new((executor.node().term(), executor.node().runs())),
            executor,
            inbox,
            shared,
            waiting: VecDeque::new(),
            outbox: VecDeque::new(),
            paused_until: Time(0),
            busy_until: Time(0),
            stalled_until: Time(0),
            timer: (0, None),
            overdue: 0,
            opening: None,
            greetings: BTreeMap::new(),
            greeted: BTreeSet::new(),
            unclaimed: BTreeMap::new(),
            asker: Asker::default(),
            starter: Asker::default(),
            starting: None,
            unusable: false,
            ending: false,
            ran: None,
            claimed: None,
            last_report: Time(0),
            looked,
        }
    }

    /// Guest and devices. Not to be held while the engine works.
    pub(crate) fn body(&self) -> MutexGuard<'_, Body> {
        self.shared.lock()
    }

    pub(crate) fn id(&self) -> NodeId {
        self.executor.node().id()
    }

    pub(crate) fn term(&self) -> Term {
        self.executor.node().term()
    }

    pub(crate) fn state(&self) -> State {
        self.executor.node().state()
    }

    /// Whether it believes to run the VM.
    pub(crate) fn runs(&self) -> bool {
        self.executor.node().runs()
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.body().is_broken()
    }

    /// What is left over of a session, if the VM runs alone and the world knows.
    pub(crate) fn leftover(&self) -> Option<&'static str> {
        let body = self.body();
        if self.state() != State::Solo || !self.outbox.is_empty() || !body.guest.running {
            return None;
        }
        let (disks, nic) = (&body.disks, &body.nic);
        let works = !body.is_broken();
        let found = [
            (body.guest.stopped, "its guest stands still"),
            (works && (disks.iter().any(|disk| disk.sealed) || nic.is_sealed()), "a device does not serve"),
            (works && nic.holds() || body.console.holds(), "its output is held"),
            (works && disks.iter().any(Disk::is_mirrored), "a disk is mirrored"),
            (body.guest.tracked && !self.executor.keeps_base(), "its writes are tracked for nobody"),
            (!body.guest.tracked && self.executor.keeps_base(), "what follows its last checkpoint is not tracked"),
        ];
        found.into_iter().find_map(|(is, what)| is.then_some(what))
    }

    /// Whether the engine's thread can do anything now.
    pub(crate) fn is_awake(&self, now: Time) -> bool {
        self.paused_until.max(self.busy_until).max(self.stalled_until) <= now
    }

    /// Whether the guest can execute now.
    pub(crate) fn guest_runs(&self, now: Time) -> bool {
        let body = self.body();
        body.guest.running && !body.guest.stopped && self.paused_until <= now
    }
}

/// A machine: what outlives its processes.
#[derive(Default)]
pub(crate) struct Host {
    pub(crate) process: Option<Process>,
    pub(crate) incarnations: u64,
    pub(crate) drives: Vec<Drive>,
    /// How far its clock is ahead.
    pub(crate) ahead: Duration,
    pub(crate) witness_cut_until: Time,
    pub(crate) down: bool,
    /// It accepts no connection until then.
    pub(crate) full_until: Time,
}

impl Host {
    /// A host with so many disks.
    pub(crate) fn new(disks: usize) -> Self {
        Self { drives: (0..disks).map(|_| Drive::default()).collect(), ..Self::default() }
    }
}
