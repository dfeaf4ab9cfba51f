//! What the engine of a process and the world around it share: the guest, its devices, what has arrived,
//! and the effects of what the engine does.
//!
//! An engine that is called runs to the end at one moment of virtual time. What takes its thread time is
//! spent on its own account: effects carry how much was spent before them, and the world lets them happen
//! by then, unless the process is dead.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ft_proto::witness::Claim;
use ft_proto::{Epoch, Term, Time, WitnessAnswer};
use ft_wire::beat::BeatKey;
use ft_wire::device_ctl::{Command, Report};

use crate::console::Console;
use crate::devices::{Disk, Nic};
use crate::guest::{Frame, Guest, Vcpu};
use crate::ids::device_of;
use crate::intake::Feed;
use crate::mutation::Mutation;
use crate::network::StreamId;
use crate::rng::Rng;
use crate::slot::{Heard, Opening, Slot};
use crate::truth::Cut;

/// What the witness is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Question {
    Claim(Claim),
    Read,
}

/// What it answers; `Err`: it does not.
pub(crate) type Told = Result<Said, String>;

/// What it says.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Said {
    Verdict(ft_proto::witness::Verdict),
    Record(Option<ft_proto::witness::Record>),
}

impl Said {
    /// The answer to a claim.
    pub(crate) fn to(claim: Claim, told: Told) -> WitnessAnswer {
        match told {
            Ok(Self::Verdict(verdict)) => WitnessAnswer::Judged(claim, verdict),
            Ok(Self::Record(_)) => WitnessAnswer::Unreachable(claim, "that was not asked".to_owned()),
            Err(reason) => WitnessAnswer::Unreachable(claim, reason),
        }
    }
}

pub(crate) type Later = Box<dyn FnOnce() + Send>;
pub(crate) type Answer = Box<dyn FnOnce(Told) + Send>;

/// Something that the engine does to the world.
pub(crate) enum Effect {
    /// Beats are of this session from now on.
    Key(Option<BeatKey>),
    /// What beats say.
    Say(Term, bool),
    /// Where they go, and how often.
    Route(Option<usize>, Duration),
    /// Bytes for the other end of a stream.
    Write(StreamId, Vec<u8>),
    Close(StreamId),
    /// There may be something to read.
    Readable(StreamId),
    /// A checkpoint was cut; perhaps the last one, before the VM moves.
    Cut(u64, Epoch, Cut, bool),
    /// Everything that was stopped for it goes on.
    GoesOn,
    /// A standby has committed and applied an epoch.
    Applied {
        session: u64,
        epoch: Epoch,
        digest: u64,
        /// Of each disk, whether it has nothing of it.
        idle: Vec<bool>,
    },
    /// The guest runs here, from this checkpoint on.
    Starts {
        session: u64,
        epoch: Epoch,
    },
    Fenced(String),
    /// The VMM builds this VM anew.
    Unusable,
    /// A disk ends an epoch of which it has something.
    DiskEnd(usize, Epoch),
    Command(usize, Command),
    /// Console output leaves.
    Print(Vec<Frame>),
    /// A disk is given a stream.
    Connect(usize, Command, StreamId),
    Ask(Question, Answer),
    /// The way to a session begins.
    Open(Opening),
    /// A host is called.
    Dial(usize, Slot<io::Result<StreamId>>),
    /// What comes next on a stream answers a greeting.
    Greet(StreamId, Slot<Heard>),
    /// Something on another thread is through after so long.
    Later(Duration, Later),
    /// The engine has asked of its guest or a device what that may not be asked.
    Forbidden(String),
    /// An event, for the trace.
    Told(String),
}

/// What a plan says of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Knobs {
    pub(crate) cut_fails: u64,
    pub(crate) busy: u64,
    pub(crate) pause_us: (u64, u64),
    pub(crate) lag_us: u64,
    pub(crate) ack_limit: Duration,
    pub(crate) depth: usize,
    pub(crate) mutation: Option<Mutation>,
}

/// Bytes that the kernel holds for the engine's thread.
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) bytes: VecDeque<u8>,
    pub(crate) closed: bool,
}

/// What is on the way from a device process to the engine.
#[derive(Debug, Default)]
pub(crate) struct Link {
    /// Reports that the engine has not read.
    pub(crate) reports: VecDeque<Report>,
    /// An answer that takes its time.
    pub(crate) answer: Option<Report>,
    /// The process is dead.
    pub(crate) broken: bool,
}

/// All of it.
pub(crate) struct Body {
    /// Where it is.
    pub(crate) host: usize,
    /// The host's clock when the engine was called.
    pub(crate) local: Time,
    /// And the world's.
    pub(crate) now: Time,
    /// What its thread has spent since.
    pub(crate) spent: Duration,
    pub(crate) effects: VecDeque<(Duration, Effect)>,
    pub(crate) rng: Rng,
    pub(crate) knobs: Knobs,
    pub(crate) guest: Guest,
    pub(crate) nic: Nic,
    pub(crate) disks: Vec<Disk>,
    pub(crate) console: Console,
    /// The ways to the devices.
    pub(crate) links: Vec<Link>,
    pub(crate) received: BTreeMap<StreamId, Received>,
    /// The stream that the engine's thread reads.
    pub(crate) watched: Option<StreamId>,
    /// What receives on a standby.
    pub(crate) feeds: BTreeMap<StreamId, Feed>,
    /// The session that is open, or was the last one; by its secret, which is never another one's.
    pub(crate) session: u64,
    /// Standby: the last epoch of it that is committed.
    pub(crate) committed: Epoch,
    /// Whether the first disk had nothing of the epoch that was sealed last.
    pub(crate) sealed_idle: bool,
    /// How long the guest was paused last.
    pub(crate) last_pause: Option<Duration>,
    /// What the vCPU was at the last checkpoint, and of which epoch that is.
    pub(crate) captured: (Epoch, Vcpu),
    /// The checkpoint that was loaded, and its session.
    pub(crate) loaded: (u64, Epoch),
    pub(crate) said: Option<(Term, bool)>,
    /// Whether the witness answered the last time.
    pub(crate) answered: Option<bool>,
}

impl Body {
    pub(crate) fn new(host: usize, disks: usize, rng: Rng, knobs: Knobs) -> Self {
        Self {
            host,
            local: Time(0),
            now: Time(0),
            spent: Duration::ZERO,
            effects: VecDeque::new(),
            rng,
            knobs,
            guest: Guest::new(disks, knobs.mutation),
            nic: Nic::default(),
            disks: (0..disks).map(|_| Disk::default()).collect(),
            console: Console::default(),
            links: (0..device_of(disks)).map(|_| Link::default()).collect(),
            received: BTreeMap::new(),
            watched: None,
            feeds: BTreeMap::new(),
            session: 0,
            committed: Epoch(0),
            sealed_idle: false,
            last_pause: None,
            captured: (Epoch(0), Vcpu::default()),
            loaded: (0, Epoch(0)),
            said: None,
            answered: None,
        }
    }

    pub(crate) fn effect(&mut self, effect: Effect) {
        self.effects.push_back((self.spent, effect));
    }

    /// Console output leaves.
    pub(crate) fn print(&mut self, frames: Vec<Frame>) {
        if !frames.is_empty() {
            self.effect(Effect::Print(frames));
        }
    }

    /// Whether a device process is dead.
    pub(crate) fn is_broken(&self) -> bool {
        self.links.iter().any(|link| link.broken)
    }

    /// The disk that has a stream, in whatever part.
    pub(crate) fn disk_on(&self, stream: StreamId) -> Option<usize> {
        self.disks.iter().position(|disk| disk.is_on(stream))
    }

    /// The engine's thread is kept for so long.
    pub(crate) fn spend(&mut self, span: Duration) {
        self.spent += span;
    }

    pub(crate) fn has(&self, mutation: Mutation) -> bool {
        self.knobs.mutation == Some(mutation)
    }

    pub(crate) fn micros(&mut self, from: u64, to: u64) -> Duration {
        self.rng.micros(from, to)
    }
}

/// A body, shared.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<Body>>);

impl Shared {
    pub(crate) fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(body)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn effect(&self, effect: Effect) {
        self.lock().effect(effect);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}
