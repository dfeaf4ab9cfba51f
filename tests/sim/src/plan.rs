//! What a seed decides before its run begins: how many hosts, how fast things are, and which faults there
//! will be.

use std::path::Path;
use std::time::Duration;

use ft::sim::Compression;
use ft::{ProtectOptions, StandbyOptions, Tuning, WitnessAddress};
use ft_proto::{LinkId, OnPartition, Settings};

use crate::body::Knobs;
use crate::mutation::Mutation;
use crate::network::address_of;
use crate::rng::Rng;

/// One kind of fault; a seed uses some of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    /// One link between two hosts, one or both ways.
    CutLink,
    /// Both links between two hosts, one or both ways.
    Partition,
    /// The process dies; its kernel closes what it had open.
    Kill,
    /// The host dies; nobody is told.
    PowerLoss,
    /// The process is stopped and goes on later.
    Pause,
    /// The process is stopped while nobody reaches the witness, and goes on before anybody does.
    BlindPause,
    /// The engine's thread is starved; heartbeats go on.
    EngineStall,
    /// The clock of a host jumps ahead.
    ClockJump,
    /// Nobody, or one host, reaches the witness.
    WitnessDown,
    /// A disk takes its time.
    SlowDisk,
    /// A disk's device process hangs: nothing moves in its mirror stream.
    HangDisk,
    /// A stream is reset by something on the way.
    BreakStream,
    /// A frame in a stream is changed on the way.
    CorruptStream,
    /// A stream stalls for a while.
    StallStream,
    /// A device process fails: disk full, tap gone, process dead.
    DeviceFailure,
    /// An operator ends the protection.
    StopProtection,
    /// An operator ends it for a while.
    SuspendProtection,
    /// The VMM has the standby go on with the VM.
    HandOver,
    /// An operator moves the VM to its standby.
    Switchover,
    /// An operator shuts the VM down; some host starts it again.
    ShutDown,
    /// An operator has the standby take over.
    TestFailover,
    /// All hosts lose their power.
    Blackout,
    /// The witness loses its record.
    LoseRecord,
    /// What was saved of a disk is put back.
    RestoreDisk,
    /// A host reboots without the file system that its image is on.
    MislayDisk,
    /// An operator's word that is used up is said again.
    StaleForce,
    /// Beats come from somebody who does not belong to the session.
    ForgeBeats,
    /// Another VM's primary calls.
    StrangeCaller,
    /// A host cannot accept connections.
    NoDescriptors,
    /// A disk's record cannot be written.
    DiskFull,
}

impl Fault {
    pub(crate) const ALL: [Self; 30] = [
        Self::CutLink,
        Self::Partition,
        Self::Kill,
        Self::PowerLoss,
        Self::Pause,
        Self::BlindPause,
        Self::EngineStall,
        Self::ClockJump,
        Self::WitnessDown,
        Self::SlowDisk,
        Self::HangDisk,
        Self::BreakStream,
        Self::CorruptStream,
        Self::StallStream,
        Self::DeviceFailure,
        Self::StopProtection,
        Self::SuspendProtection,
        Self::HandOver,
        Self::Switchover,
        Self::ShutDown,
        Self::TestFailover,
        Self::Blackout,
        Self::LoseRecord,
        Self::RestoreDisk,
        Self::MislayDisk,
        Self::StaleForce,
        Self::ForgeBeats,
        Self::StrangeCaller,
        Self::NoDescriptors,
        Self::DiskFull,
    ];

    /// Whether it is nothing, or an operator's own doing, without a witness: nothing else tells a backup from
    /// the newest disks.
    fn needs_witness(self) -> bool {
        let these = [Self::BlindPause, Self::WitnessDown, Self::LoseRecord, Self::RestoreDisk, Self::StaleForce];
        these.contains(&self)
    }
}

/// What hosts are given in place of a witness.
const POLICIES: [Option<OnPartition>; 4] =
    [None, Some(OnPartition::Primary), Some(OnPartition::Standby), Some(OnPartition::Both)];

/// Everything that is fixed for a run. Chances are per million.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) hosts: usize,
    /// How many the VM has.
    pub(crate) disks: usize,
    pub(crate) settings: Settings,
    pub(crate) compression: Compression,
    /// Hosts that run the VM look for a standby by themselves.
    pub(crate) searches: bool,
    /// How long there are faults.
    pub(crate) faults_for: Duration,
    /// Longest time between two faults, in microseconds.
    pub(crate) fault_gap_us: u64,
    pub(crate) faults: Vec<Fault>,
    /// Longest fault, in milliseconds.
    pub(crate) fault_max_ms: u64,
    /// Chance that a fault strikes just when a node acts.
    pub(crate) aimed: u64,
    /// Whether faults may take all copies of the VM at once.
    pub(crate) double_failures: bool,
    pub(crate) loss: u64,
    pub(crate) duplicates: u64,
    /// Network delay in microseconds.
    pub(crate) delay_us: (u64, u64),
    pub(crate) witness_delay_us: (u64, u64),
    pub(crate) witness_loses: u64,
    /// The guest cannot be stopped at once.
    pub(crate) busy: u64,
    pub(crate) cut_fails: u64,
    pub(crate) pause_us: (u64, u64),
    /// How late other threads and device processes may say something, in microseconds.
    pub(crate) lag_us: u64,
    /// How long a disk takes for a write, in microseconds.
    pub(crate) disk_us: (u64, u64),
}

impl Plan {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let mut pick = |choices: &[u64]| choices[rng.index(choices.len())];
        let settings = Settings {
            silence: Some(Duration::from_millis(pick(&[60, 90, 150]))),
            ack_limit: Duration::from_millis(pick(&[200, 600])),
            min_epoch: Duration::from_micros(pick(&[300, 1000, 3000])),
            max_epoch: Duration::from_micros(pick(&[3000, 6000, 12_000])),
            latency: Duration::from_micros(pick(&[500, 2000])),
            pause_share: 25,
            depth: pick(&[1, 2, 2]) as usize,
            on_partition: POLICIES[pick(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]) as usize],
        };
        let plan = Self {
            hosts: pick(&[2, 2, 3]) as usize,
            disks: pick(&[1, 1, 2, 3]) as usize,
            settings,
            compression: [Compression::Auto, Compression::Off, Compression::Delta][pick(&[0, 1, 2]) as usize],
            searches: pick(&[0, 1]) == 1,
            faults_for: Duration::from_millis(pick(&[1000, 2000, 4000])),
            fault_gap_us: pick(&[30_000, 100_000, 300_000]),
            faults: Vec::new(),
            fault_max_ms: pick(&[100, 400, 1600]),
            aimed: pick(&[0, 500, 5000]),
            double_failures: pick(&[0, 1]) == 1,
            loss: pick(&[0, 0, 10_000, 50_000]),
            duplicates: pick(&[0, 0, 50_000]),
            delay_us: (20, pick(&[60, 300, 2000])),
            witness_delay_us: (100, pick(&[1000, 10_000, 60_000])),
            witness_loses: pick(&[0, 0, 50_000, 300_000]),
            busy: pick(&[0, 0, 3000]),
            cut_fails: pick(&[0, 0, 0, 3000]),
            pause_us: (50, pick(&[100, 400, 2000])),
            lag_us: pick(&[40, 40, 3000, 30_000]),
            disk_us: (10, pick(&[120, 120, 2000])),
        };
        // Few kinds at a time: faults of all kinds at once hide what each of them does.
        let kinds = rng.range(1, 6);
        let mut faults: Vec<_> = (0..kinds).map(|_| Fault::ALL[rng.index(Fault::ALL.len())]).collect();
        // These do harm only together with others, in few of the runs that have them.
        if rng.chance(400_000) {
            faults.push([Fault::LoseRecord, Fault::RestoreDisk, Fault::PowerLoss][rng.index(3)]);
        }
        if settings.on_partition.is_some() {
            faults.iter_mut().filter(|fault| fault.needs_witness()).for_each(|fault| *fault = Fault::Partition);
        }
        Self { faults, ..plan }
    }

    /// What a process is told of it.
    pub(crate) fn knobs(&self, mutation: Option<Mutation>) -> Knobs {
        let Self { cut_fails, busy, pause_us, lag_us, ref settings, .. } = *self;
        Knobs { cut_fails, busy, pause_us, lag_us, ack_limit: settings.ack_limit, depth: settings.depth, mutation }
    }

    /// Protection by the standby on a host.
    pub(crate) fn protect_by(&self, host: usize) -> ProtectOptions {
        let micros = |span: Duration| span.as_micros() as u64;
        let by = ProtectOptions::by(address_of(host, LinkId::Replication), address_of(host, LinkId::Heartbeat));
        let tuning = Tuning {
            detect_ms: self.settings.silence.map_or(0, |silence| silence.as_millis() as u64),
            min_epoch_us: micros(self.settings.min_epoch),
            max_epoch_us: micros(self.settings.max_epoch),
            latency_us: micros(self.settings.latency),
            pause_share: self.settings.pause_share,
            compression: self.compression,
            ..Tuning::default()
        };
        ProtectOptions { witness: self.witness(), on_partition: self.settings.on_partition, tuning, ..by }
    }

    /// How a host stands by.
    pub(crate) fn stand_by(&self, host: usize) -> StandbyOptions {
        StandbyOptions {
            listen: address_of(host, LinkId::Replication),
            heartbeat: address_of(host, LinkId::Heartbeat),
            witness: self.witness(),
            on_partition: self.settings.on_partition,
            detect_ms: None,
            keeps_data: false,
        }
    }

    /// Where the witness is, if there is one: asked by the world.
    fn witness(&self) -> Option<WitnessAddress> {
        self.settings.on_partition.is_none().then(|| Path::new("/witness").into())
    }
}
