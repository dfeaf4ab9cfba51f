//! Deliberate defects of the platform that the engine runs on here, its devices above all: each must be
//! caught by the invariant that it is there for.

use clap::ValueEnum;

/// One defect.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Mutation {
    /// The net device lets frames out when their epoch is sealed, not when it is committed.
    ReleaseOnCut,
    /// The witness grants every claim.
    WitnessGrantsAll,
    /// The standby writes pages to memory as they arrive.
    ApplyOnArrival,
    /// The standby acknowledges without waiting for its disk.
    AckBeforeDisk,
    /// A disk says of every epoch but the first that it has nothing of it.
    AlwaysIdle,
    /// The net device lets the newest frames out first.
    NewestFirst,
    /// A takeover keeps the disk writes of epochs that were never committed.
    TakeOverWithoutDiscard,
    /// A primary trusts that a standby's disk is what it was the last time.
    SkipResync,
    /// A write to the disk is not marked in the image's record.
    ForgetMarks,
    /// A primary takes a mark back when the write is committed, not when the standby has it on stable
    /// storage.
    SettleOnAck,
    /// A host that wants to boot the VM says that its disks are the newest, whatever they are.
    StartFromAnyDisks,
    /// A process that wakes from a stall makes up for every look at the clock that it missed.
    CatchUpClock,
    /// What the witness did not answer is never asked again.
    ForgetClaims,
    /// A witness without a record lets any host start the VM.
    StartOnAbsence,
    /// The name of the last owner is enough to start the VM, whatever its disks say.
    HostNameOnly,
    /// A standby's host starts the VM without having waited for the other one.
    CopyStartsByItself,
    /// An operator's word to override the record is good for ever.
    ForceForEver,
    /// A beat of a higher term ends whoever runs the VM, whoever sent it.
    BeatFences,
    /// A lost record is written again without having heard of the standby since.
    RestoreWithoutAck,
    /// An image that was put back is taken for the one that its record is about.
    RestoredImageIncremental,
    /// A host leaves the VM to a copy that is not on record, and so can never take over.
    DeferToAnyCopy,
    /// Marks are taken back, and the state keeps its name.
    SameNameForLess,
    /// All disks are rolled back to the epoch of the checkpoint, those that have nothing of it, too.
    RollBackAlike,
    /// A standby's memory is not cleared before a full copy.
    KeepOldMemory,
    /// A guest that was stopped to move stays stopped when it does not move.
    StayStopped,
    /// Writes are tracked for ever once they are.
    TrackForEver,
    /// Pages that were harvested and may not have reached the standby are not marked again.
    ForgetHarvest,
    /// All sessions have the same name, so any checkpoint that was kept is taken for the one that the primary
    /// goes on from.
    SessionsAlike,
    /// A device confirms that a session is dropped, and then says the last of it.
    DropSessionLate,
    /// What one disk has of an epoch counts as what all of them have.
    OneDiskForAll,
    /// All disks say that they have nothing of an epoch if the first one has nothing.
    IdleLikeTheFirst,
    /// A host says of its disks what the record of the first one says.
    OneDiskProves,
    /// A primary goes on alone, whatever the policy says.
    BothGoOn,
    /// A disk process serves any image, also one that another host may have run the VM after.
    ServeAnyImage,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 34] = [
        Self::ReleaseOnCut,
        Self::WitnessGrantsAll,
        Self::ApplyOnArrival,
        Self::AckBeforeDisk,
        Self::AlwaysIdle,
        Self::NewestFirst,
        Self::TakeOverWithoutDiscard,
        Self::SkipResync,
        Self::ForgetMarks,
        Self::SettleOnAck,
        Self::StartFromAnyDisks,
        Self::CatchUpClock,
        Self::ForgetClaims,
        Self::StartOnAbsence,
        Self::HostNameOnly,
        Self::CopyStartsByItself,
        Self::ForceForEver,
        Self::BeatFences,
        Self::RestoreWithoutAck,
        Self::RestoredImageIncremental,
        Self::SameNameForLess,
        Self::DeferToAnyCopy,
        Self::RollBackAlike,
        Self::KeepOldMemory,
        Self::StayStopped,
        Self::TrackForEver,
        Self::ForgetHarvest,
        Self::SessionsAlike,
        Self::DropSessionLate,
        Self::OneDiskForAll,
        Self::IdleLikeTheFirst,
        Self::OneDiskProves,
        Self::BothGoOn,
        Self::ServeAnyImage,
    ];

    /// The invariant that must catch it.
    #[must_use]
    pub fn caught_by(self) -> &'static str {
        match self {
            Self::ReleaseOnCut => "output_commit",
            Self::WitnessGrantsAll => "single_runner",
            Self::ApplyOnArrival | Self::KeepOldMemory | Self::ForgetHarvest | Self::SessionsAlike => "epoch_atomic",
            Self::RollBackAlike | Self::DropSessionLate | Self::OneDiskForAll => "contract",
            Self::StayStopped | Self::TrackForEver => "nothing_left",
            Self::AckBeforeDisk => "no_lost_ack",
            Self::NewestFirst => "release_order",
            Self::TakeOverWithoutDiscard | Self::AlwaysIdle | Self::IdleLikeTheFirst => "disk_matches_memory",
            Self::SkipResync
            | Self::ForgetMarks
            | Self::SettleOnAck
            | Self::StartFromAnyDisks
            | Self::StartOnAbsence
            | Self::HostNameOnly
            | Self::CopyStartsByItself
            | Self::RestoredImageIncremental
            | Self::SameNameForLess
            | Self::OneDiskProves
            | Self::ServeAnyImage => "no_stale_image",
            Self::ForceForEver | Self::RestoreWithoutAck | Self::BothGoOn => "single_runner",
            Self::BeatFences => "no_false_fence",
            Self::CatchUpClock => "no_false_takeover",
            Self::ForgetClaims | Self::DeferToAnyCopy => "reprotected",
        }
    }
}
