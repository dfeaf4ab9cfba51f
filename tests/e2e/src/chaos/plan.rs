//! Which faults a run has, drawn from its seed. Pure: the same seed is the same run.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::witness::Absence;

/// Which of the two hosts a fault strikes, by what it is at that moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// The one that runs the VM.
    Primary,
    /// The other one.
    Standby,
}

/// Which device process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Device {
    /// vhost-user-blk-repl.
    Disk,
    /// vhost-user-net-buffer.
    Network,
}

/// How a paused VM comes to the other host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Move {
    /// Every process of its host is killed.
    HostDies,
    /// By command.
    Switchover,
}

/// What of a standby's disk is put back to an earlier copy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Backup {
    /// Image and record.
    Both,
    /// The image alone.
    Image,
    /// The record alone.
    Record,
}

/// A fault by kind, as drawn and as named on the command line.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Kind {
    /// Every process of both hosts is killed at once, perhaps with the witness; they come back one after the
    /// other, in either order, and nobody says who is what. The guest boots again, from disks with everything
    /// that was acknowledged.
    Blackout,
    /// The standby is killed and its image changed in place before it comes back.
    ChangedImage,
    /// A device process of the primary is killed.
    DevicePrimary,
    /// A device process of the standby is killed.
    DeviceStandby,
    /// The file system with the primary's image is full.
    DiskFull,
    /// The primary's VMM is stopped for longer than the limit of silence, then continued.
    FreezePrimary,
    /// The standby's VMM is stopped for longer than the limit of silence, then continued.
    FreezeStandby,
    /// A VMM is stopped for a moment, shorter than the limit of silence.
    Hiccup,
    /// The primary is told to end and hands the VM over.
    HandOver,
    /// The heartbeat link alone is cut for a while.
    HeartbeatCut,
    /// Every process of the primary is killed at once.
    HostPrimary,
    /// Every process of the standby is killed at once.
    HostStandby,
    /// Every process of the primary is killed while the witness is away.
    HostWithoutWitness,
    /// Both links are cut.
    Partition,
    /// Both links are cut while the witness is away.
    PartitionWithoutWitness,
    /// The VM is paused and then moved, or its host is killed: it stays paused on the other host until it is
    /// resumed there.
    PausedMove,
    /// The replication link alone is cut for a while.
    ReplicationCut,
    /// The standby is killed and comes back with its image, its record or both as they were earlier.
    RestoredStandby,
    /// The replication link is slow and loses packets for a while.
    SlowLink,
    /// A host is killed and comes back as role=primary with a force= of its last term, then as usual.
    StaleForce,
    /// Forged and foreign datagrams and connections at all ports of both hosts.
    Stranger,
    /// Protection is suspended by command for a while.
    Suspend,
    /// The VM is moved to the standby by command, with nothing in flight.
    Switchover,
    /// The primary plays dead by command.
    TestFailover,
    /// A host is killed and comes back with nothing where the witness's record should be, then as usual.
    UnmountedWitness,
    /// The primary's VMM alone is killed.
    VmmPrimary,
    /// The standby's VMM alone is killed.
    VmmStandby,
    /// The witness is away for a while.
    WitnessAway,
}

/// A fault with all its details.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// SIGKILL to all processes of both hosts.
    Blackout {
        /// Which of them is back first.
        first: Side,
        /// How much later the other one is.
        pause: Duration,
        /// Whether the witness goes too, and is back only after a host has asked for it.
        with_witness: bool,
    },
    /// SIGKILL to all processes of the standby; then something is written to its image, at places that the
    /// number decides.
    ChangedImage(u64),
    /// SIGKILL to a device process.
    DeviceDies(Side, Device),
    /// No room for the primary's image to grow, while the guest writes a new file.
    DiskFull,
    /// SIGSTOP to a VMM for a time.
    Frozen(Side, Duration),
    /// SIGTERM to the primary's VMM.
    HandOver,
    /// The heartbeat link down for a time.
    HeartbeatCut(Duration),
    /// SIGKILL to all processes of a host.
    HostDies(Side),
    /// SIGKILL to all processes of the primary; the witness is away from before until a time after.
    HostDiesWithoutWitness(Absence, Duration),
    /// Both links down.
    Partition,
    /// Both links down; the witness is away from before until a time after.
    PartitionWithoutWitness(Absence, Duration),
    /// The VM is paused and comes to the other host.
    PausedMove(Move),
    /// The replication link down for a time.
    ReplicationCut(Duration),
    /// SIGKILL to all processes of the standby; what it comes back with was copied a time before.
    RestoredStandby(Backup, Duration),
    /// The replication link has a delay (each way) and loses packets, for a time.
    SlowLink {
        /// Delay of each packet.
        delay: Duration,
        /// Packets lost, in tenths of a percent.
        loss: u16,
        /// For how long.
        span: Duration,
    },
    /// SIGKILL to all processes of a host, which is then started with an operator's word for the term that is
    /// over.
    StaleForce(Side),
    /// Somebody who does not belong to the pair speaks to it for a time.
    Stranger(Duration),
    /// `ft suspend` at the primary, `ft resume` after a time.
    Suspended(Duration),
    /// `ft switchover` at the primary.
    Switchover,
    /// `ft test-failover` at the primary.
    TestFailover,
    /// SIGKILL to all processes of a host, which is then started with another, empty place for the witness.
    UnmountedWitness(Side),
    /// SIGKILL to a VMM alone.
    VmmDies(Side),
    /// The witness cannot be reached for a time.
    WitnessAway(Absence, Duration),
}

/// What must come of a fault.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// One of the two goes on alone; the witness decides which.
    Either,
    /// The other host takes over.
    Moves,
    /// The VM stays where it is and stays protected.
    StaysProtected,
    /// The VM stays where it is, without a standby.
    StaysAlone,
}

impl Fault {
    /// What must come of it.
    #[must_use]
    pub fn outcome(&self, limit: Duration) -> Outcome {
        match *self {
            Self::DeviceDies(Side::Primary, _)
            | Self::DiskFull
            | Self::HandOver
            | Self::HostDies(Side::Primary)
            | Self::HostDiesWithoutWitness(..)
            | Self::PausedMove(_)
            | Self::StaleForce(Side::Primary)
            | Self::Switchover
            | Self::TestFailover
            | Self::UnmountedWitness(Side::Primary)
            | Self::VmmDies(Side::Primary) => Outcome::Moves,
            Self::Blackout { .. }
            | Self::ChangedImage(_)
            | Self::DeviceDies(Side::Standby, _)
            | Self::HostDies(Side::Standby)
            | Self::ReplicationCut(_)
            | Self::RestoredStandby(..)
            | Self::StaleForce(Side::Standby)
            | Self::Suspended(_)
            | Self::UnmountedWitness(Side::Standby)
            | Self::VmmDies(Side::Standby) => Outcome::StaysAlone,
            Self::Frozen(_, span) if span < limit => Outcome::StaysProtected,
            Self::Frozen(Side::Primary, _) => Outcome::Moves,
            Self::Frozen(Side::Standby, _) => Outcome::StaysAlone,
            Self::HeartbeatCut(_) | Self::SlowLink { .. } | Self::Stranger(_) | Self::WitnessAway(..) => {
                Outcome::StaysProtected
            }
            Self::Partition | Self::PartitionWithoutWitness(..) => Outcome::Either,
        }
    }

    /// Whether the guest boots again, which ends its clients' connections.
    #[must_use]
    pub fn restarts_guest(&self) -> bool {
        matches!(self, Self::Blackout { .. })
    }
}

/// Without a selection, a blackout is in one of so many rounds through all kinds: it ends the connections
/// whose long life the other kinds are about.
const BLACKOUT_EVERY: u32 = 3;

/// An endless row of faults: each kind once, in an order that the seed decides, then again in another order.
#[derive(Debug)]
pub struct Plan {
    chance: Xoshiro256PlusPlus,
    kinds: Vec<Kind>,
    selected: bool,
    deck: Vec<Kind>,
    decks: u32,
    limit: Duration,
}

impl Plan {
    /// `limit` is the silence that counts as death; `kinds` may be a selection, empty means all.
    #[must_use]
    pub fn new(seed: u64, limit: Duration, kinds: &[Kind]) -> Self {
        let all = if kinds.is_empty() { Kind::value_variants() } else { kinds };
        let chance = Xoshiro256PlusPlus::seed_from_u64(seed);
        Self { chance, kinds: all.to_vec(), selected: !kinds.is_empty(), deck: vec![], decks: 0, limit }
    }

    /// The next fault.
    pub fn draw(&mut self) -> Fault {
        let kind = self.kind();
        self.detail(kind)
    }

    fn kind(&mut self) -> Kind {
        if self.deck.is_empty() {
            self.deck.clone_from(&self.kinds);
            if !self.selected && !self.decks.is_multiple_of(BLACKOUT_EVERY) {
                self.deck.retain(|kind| *kind != Kind::Blackout);
            }
            self.decks += 1;
            self.deck.shuffle(&mut self.chance);
        }
        self.deck.pop().unwrap_or(Kind::HostPrimary)
    }

    fn detail(&mut self, kind: Kind) -> Fault {
        // Beyond any doubt longer than the limit, and beyond any doubt shorter.
        let long = self.limit * self.chance.random_range(20..=35) / 10;
        let short = self.limit * self.chance.random_range(10..=30) / 100;
        let device = if self.chance.random_bool(0.5) { Device::Disk } else { Device::Network };
        let side = if self.chance.random_bool(0.5) { Side::Primary } else { Side::Standby };
        let absence = if self.chance.random_bool(0.5) { Absence::Hangs } else { Absence::Gone };
        match kind {
            Kind::Blackout => Fault::Blackout {
                first: side,
                pause: Duration::from_millis(self.chance.random_range(0..=8000)),
                with_witness: self.chance.random_bool(0.3),
            },
            Kind::ChangedImage => Fault::ChangedImage(self.chance.random()),
            Kind::DevicePrimary => Fault::DeviceDies(Side::Primary, device),
            Kind::DeviceStandby => Fault::DeviceDies(Side::Standby, device),
            Kind::DiskFull => Fault::DiskFull,
            Kind::FreezePrimary => Fault::Frozen(Side::Primary, long),
            Kind::FreezeStandby => Fault::Frozen(Side::Standby, long),
            Kind::Hiccup => Fault::Frozen(side, short),
            Kind::HandOver => Fault::HandOver,
            Kind::HeartbeatCut => Fault::HeartbeatCut(long),
            Kind::HostPrimary => Fault::HostDies(Side::Primary),
            Kind::HostStandby => Fault::HostDies(Side::Standby),
            Kind::HostWithoutWitness => Fault::HostDiesWithoutWitness(absence, long),
            Kind::Partition => Fault::Partition,
            Kind::PartitionWithoutWitness => Fault::PartitionWithoutWitness(absence, long),
            Kind::PausedMove => {
                let how = if self.chance.random_bool(0.5) { Move::HostDies } else { Move::Switchover };
                Fault::PausedMove(how)
            }
            Kind::ReplicationCut => Fault::ReplicationCut(long),
            Kind::RestoredStandby => {
                let what = [Backup::Both, Backup::Image, Backup::Record][self.chance.random_range(0..3)];
                Fault::RestoredStandby(what, long)
            }
            Kind::SlowLink => Fault::SlowLink {
                delay: Duration::from_millis(self.chance.random_range(5..=40)),
                loss: self.chance.random_range(1..=10),
                span: long,
            },
            Kind::StaleForce => Fault::StaleForce(side),
            Kind::Stranger => Fault::Stranger(Duration::from_secs(self.chance.random_range(5..=10))),
            Kind::Suspend => Fault::Suspended(long),
            Kind::Switchover => Fault::Switchover,
            Kind::TestFailover => Fault::TestFailover,
            Kind::UnmountedWitness => Fault::UnmountedWitness(side),
            Kind::VmmPrimary => Fault::VmmDies(Side::Primary),
            Kind::VmmStandby => Fault::VmmDies(Side::Standby),
            Kind::WitnessAway => Fault::WitnessAway(absence, long),
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Standby => "standby",
        })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disk => "disk",
            Self::Network => "network",
        })
    }
}

impl fmt::Display for Backup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Both => "image and record",
            Self::Image => "image",
            Self::Record => "record",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blackout { first, pause, with_witness } => {
                let witness = if *with_witness { " and the witness" } else { "" };
                write!(f, "SIGKILL to both hosts{witness}, {first} back {} ms before the other", pause.as_millis())
            }
            Self::ChangedImage(_) => f.write_str("SIGKILL to the standby, its image changed"),
            Self::DeviceDies(side, device) => write!(f, "SIGKILL to the {device} process of the {side}"),
            Self::DiskFull => f.write_str("no room on the primary's disk"),
            Self::Frozen(side, span) => write!(f, "SIGSTOP to the {side}'s VMM for {} ms", span.as_millis()),
            Self::HandOver => f.write_str("SIGTERM to the primary's VMM"),
            Self::HeartbeatCut(span) => write!(f, "heartbeat link cut for {} ms", span.as_millis()),
            Self::HostDies(side) => write!(f, "SIGKILL to every process of the {side}"),
            Self::HostDiesWithoutWitness(how, span) => {
                write!(f, "SIGKILL to every process of the primary, witness {how} for {} ms", span.as_millis())
            }
            Self::Partition => f.write_str("both links cut"),
            Self::PartitionWithoutWitness(how, span) => {
                write!(f, "both links cut, witness {how} for {} ms", span.as_millis())
            }
            Self::PausedMove(Move::HostDies) => f.write_str("SIGKILL to the primary of a paused VM"),
            Self::PausedMove(Move::Switchover) => f.write_str("ft switchover of a paused VM"),
            Self::ReplicationCut(span) => write!(f, "replication link cut for {} ms", span.as_millis()),
            Self::SlowLink { delay, loss, span } => {
                let (delay, span) = (delay.as_millis(), span.as_millis());
                let (percent, tenth) = (loss / 10, loss % 10);
                write!(f, "replication link with {delay} ms delay and {percent}.{tenth} % loss for {span} ms")
            }
            Self::RestoredStandby(what, span) => {
                write!(f, "SIGKILL to the standby, its {what} as {} ms before", span.as_millis())
            }
            Self::StaleForce(side) => write!(f, "SIGKILL to the {side}, back with force= of its last term"),
            Self::Stranger(span) => write!(f, "strangers at all ports for {} ms", span.as_millis()),
            Self::Suspended(span) => write!(f, "ft suspend for {} ms", span.as_millis()),
            Self::Switchover => f.write_str("ft switchover"),
            Self::TestFailover => f.write_str("ft test-failover"),
            Self::UnmountedWitness(side) => write!(f, "SIGKILL to the {side}, back with an empty witness"),
            Self::VmmDies(side) => write!(f, "SIGKILL to the {side}'s VMM"),
            Self::WitnessAway(how, span) => write!(f, "witness {how} for {} ms", span.as_millis()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    fn draws(seed: u64, count: usize) -> Vec<Fault> {
        let mut plan = Plan::new(seed, LIMIT, &[]);
        (0..count).map(|_| plan.draw()).collect()
    }

    #[test]
    fn a_seed_is_one_sequence() {
        assert_eq!(draws(7, 50), draws(7, 50));
        assert_ne!(draws(7, 50), draws(8, 50));
        assert_eq!(draws(7, 10), draws(7, 50)[..10], "a longer run begins as a shorter one");
    }

    #[test]
    fn each_kind_comes_once_before_any_comes_again_and_blackouts_are_rarer() {
        let all = Kind::value_variants();
        for seed in 0..20 {
            let mut plan = Plan::new(seed, LIMIT, &[]);
            for deck in 0..2 * BLACKOUT_EVERY {
                let dark = deck.is_multiple_of(BLACKOUT_EVERY);
                let expected: Vec<Kind> = all.iter().copied().filter(|kind| dark || *kind != Kind::Blackout).collect();
                let drawn: Vec<Kind> = expected.iter().map(|_| plan.kind()).collect();
                assert!(expected.iter().all(|kind| drawn.contains(kind)), "seed {seed}: {drawn:?}");
            }
        }
    }

    #[test]
    fn blackouts_alone_come_in_either_order_with_the_witness_and_without() {
        let mut plan = Plan::new(1, LIMIT, &[Kind::Blackout]);
        let drawn: Vec<Fault> = (0..50).map(|_| plan.draw()).collect();
        assert!(drawn.iter().all(|fault| fault.restarts_guest() && fault.outcome(LIMIT) == Outcome::StaysAlone));
        for (side, witness) in
            [(Side::Primary, false), (Side::Primary, true), (Side::Standby, false), (Side::Standby, true)]
        {
            let is = |fault: &Fault| matches!(fault, Fault::Blackout { first, with_witness, .. } if (*first, *with_witness) == (side, witness));
            assert!(drawn.iter().any(is), "{side} first, witness {witness}");
        }
    }

    #[test]
    fn who_is_killed_and_comes_back_wrongly_has_lost_the_vm() {
        for wrong in [Fault::StaleForce, Fault::UnmountedWitness] {
            assert_eq!(wrong(Side::Primary).outcome(LIMIT), Outcome::Moves);
            assert_eq!(wrong(Side::Standby).outcome(LIMIT), Outcome::StaysAlone);
        }
        for wrong in [Fault::ChangedImage(1), Fault::RestoredStandby(Backup::Both, LIMIT)] {
            assert_eq!(wrong.outcome(LIMIT), Outcome::StaysAlone);
        }
        assert_eq!(Fault::Stranger(LIMIT).outcome(LIMIT), Outcome::StaysProtected);
        assert!(!draws(2, 200).iter().any(|fault| fault.restarts_guest() != matches!(fault, Fault::Blackout { .. })));
    }

    #[test]
    fn a_selection_draws_nothing_else() {
        let mut plan = Plan::new(1, LIMIT, &[Kind::Partition, Kind::HandOver]);
        assert!((0..10).all(|_| matches!(plan.draw(), Fault::Partition | Fault::HandOver)));
    }

    #[test]
    fn freezes_are_clearly_shorter_or_longer_than_the_limit() {
        for fault in draws(3, 200) {
            if let Fault::Frozen(_, span) = fault {
                assert!(span * 3 <= LIMIT || span >= LIMIT * 2, "{fault}");
                let stays = fault.outcome(LIMIT) == Outcome::StaysProtected;
                assert_eq!(stays, span < LIMIT, "{fault}");
            }
        }
    }
}
