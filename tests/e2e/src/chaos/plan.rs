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

/// A fault by kind, as drawn and as named on the command line.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Kind {
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
    /// The replication link alone is cut for a while.
    ReplicationCut,
    /// The replication link is slow and loses packets for a while.
    SlowLink,
    /// Protection is suspended by command for a while.
    Suspend,
    /// The VM is moved to the standby by command, with nothing in flight.
    Switchover,
    /// The primary plays dead by command.
    TestFailover,
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
    /// The replication link down for a time.
    ReplicationCut(Duration),
    /// The replication link has a delay (each way) and loses packets, for a time.
    SlowLink {
        /// Delay of each packet.
        delay: Duration,
        /// Packets lost, in tenths of a percent.
        loss: u16,
        /// For how long.
        span: Duration,
    },
    /// `ft suspend` at the primary, `ft resume` after a time.
    Suspended(Duration),
    /// `ft switchover` at the primary.
    Switchover,
    /// `ft test-failover` at the primary.
    TestFailover,
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
            | Self::Switchover
            | Self::TestFailover
            | Self::VmmDies(Side::Primary) => Outcome::Moves,
            Self::DeviceDies(Side::Standby, _)
            | Self::HostDies(Side::Standby)
            | Self::ReplicationCut(_)
            | Self::Suspended(_)
            | Self::VmmDies(Side::Standby) => Outcome::StaysAlone,
            Self::Frozen(_, span) if span < limit => Outcome::StaysProtected,
            Self::Frozen(Side::Primary, _) => Outcome::Moves,
            Self::Frozen(Side::Standby, _) => Outcome::StaysAlone,
            Self::HeartbeatCut(_) | Self::SlowLink { .. } | Self::WitnessAway(..) => Outcome::StaysProtected,
            Self::Partition | Self::PartitionWithoutWitness(..) => Outcome::Either,
        }
    }
}

/// An endless row of faults: each kind once, in an order that the seed decides, then again in another order.
#[derive(Debug)]
pub struct Plan {
    chance: Xoshiro256PlusPlus,
    kinds: Vec<Kind>,
    deck: Vec<Kind>,
    limit: Duration,
}

impl Plan {
    /// `limit` is the silence that counts as death; `kinds` may be a selection, empty means all.
    #[must_use]
    pub fn new(seed: u64, limit: Duration, kinds: &[Kind]) -> Self {
        let all = if kinds.is_empty() { Kind::value_variants() } else { kinds };
        Self { chance: Xoshiro256PlusPlus::seed_from_u64(seed), kinds: all.to_vec(), deck: vec![], limit }
    }

    /// The next fault.
    pub fn draw(&mut self) -> Fault {
        let kind = self.kind();
        self.detail(kind)
    }

    fn kind(&mut self) -> Kind {
        if self.deck.is_empty() {
            self.deck.clone_from(&self.kinds);
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
            Kind::ReplicationCut => Fault::ReplicationCut(long),
            Kind::SlowLink => Fault::SlowLink {
                delay: Duration::from_millis(self.chance.random_range(5..=40)),
                loss: self.chance.random_range(1..=10),
                span: long,
            },
            Kind::Suspend => Fault::Suspended(long),
            Kind::Switchover => Fault::Switchover,
            Kind::TestFailover => Fault::TestFailover,
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

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
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
            Self::ReplicationCut(span) => write!(f, "replication link cut for {} ms", span.as_millis()),
            Self::SlowLink { delay, loss, span } => {
                let (delay, span) = (delay.as_millis(), span.as_millis());
                let (percent, tenth) = (loss / 10, loss % 10);
                write!(f, "replication link with {delay} ms delay and {percent}.{tenth} % loss for {span} ms")
            }
            Self::Suspended(span) => write!(f, "ft suspend for {} ms", span.as_millis()),
            Self::Switchover => f.write_str("ft switchover"),
            Self::TestFailover => f.write_str("ft test-failover"),
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
    fn each_kind_comes_once_before_any_comes_again() {
        let all = Kind::value_variants();
        for seed in 0..20 {
            let mut plan = Plan::new(seed, LIMIT, &[]);
            for _ in 0..2 {
                let drawn: Vec<Kind> = all.iter().map(|_| plan.kind()).collect();
                assert!(all.iter().all(|kind| drawn.contains(kind)), "seed {seed}: {drawn:?}");
            }
        }
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
