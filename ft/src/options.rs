//! What an operator says: which part a node has in its pair, how to be a standby, and how to be protected.

use std::net::SocketAddr;
use std::time::Duration;

use ft_proto::{HostId, OnPartition, Settings, Term};
use serde::{Deserialize, Serialize};

use crate::transport::addresses::resolve;
use crate::witness::WitnessAddress;

/// The most bytes of uncommitted writes that a standby holds for a disk.
pub(crate) const DISK_BUFFER_MAX: u64 = 1 << 30;

/// `role=` of `--ft`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Role {
    /// Whoever the witness lets: the first one boots the VM, the other one stands by.
    Auto,
    /// Boots the VM.
    #[default]
    Primary,
    /// Waits for who runs it.
    Standby,
}

/// `--ft …`: the same for both hosts of a pair, but for addresses.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct NodeOptions {
    /// What to begin as.
    pub role: Role,
    /// How to be a standby, now or when another host runs the VM.
    pub standby: Option<StandbyOptions>,
    /// Hosts that may be the standby when this one runs the VM alone, and how it is protected then.
    pub peers: Vec<ProtectOptions>,
    /// The witness's record.
    pub witness: Option<WitnessAddress>,
    /// This host's name; `None`: one that is made of the machine and its VM.
    pub node: Option<HostId>,
    /// Run the VM although the witness is in this term, or the disks are: its runner is gone for good. No later term is overridden.
    pub force: Option<Term>,
    /// How long a standby that came up alone waits for the host with the newest disks; `None`: until it comes.
    pub blackout_wait: Option<Duration>,
}

/// How to be a standby.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StandbyOptions {
    /// Where primaries connect (TCP), and the first link's heartbeats arrive (UDP, same port).
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    /// Where the second link's heartbeats arrive (UDP).
    #[serde(deserialize_with = "address")]
    pub heartbeat: SocketAddr,
    /// Where the witness keeps its record: a file that both hosts see, or a key in etcd.
    #[serde(default)]
    pub witness: Option<WitnessAddress>,
    /// Who goes on in a partition, without a witness. A primary that asks for another policy is refused.
    #[serde(default)]
    pub on_partition: Option<OnPartition>,
    /// Silence after which this side takes the primary for dead, in milliseconds, instead of what the primary asks for; 0:
    /// never.
    #[serde(default)]
    pub detect_ms: Option<u64>,
}

/// How to be protected, and by whom.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ProtectOptions {
    /// The standby's `listen`.
    #[serde(deserialize_with = "address")]
    pub peer: SocketAddr,
    /// The standby's `heartbeat`.
    #[serde(deserialize_with = "address")]
    pub heartbeat: SocketAddr,
    /// Where the witness keeps its record: a file that both hosts see, or a key in etcd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witness: Option<WitnessAddress>,
    /// Who goes on in a partition; only, and necessarily, without a witness.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_partition: Option<OnPartition>,
    /// Silence on both links after which the peer is taken for dead, in milliseconds; 0: never.
    #[serde(default = "ProtectOptions::default_detect_ms")]
    pub detect_ms: u64,
    /// Shortest epoch, in microseconds.
    #[serde(default = "ProtectOptions::default_min_epoch_us")]
    pub min_epoch_us: u64,
    /// Longest epoch, in microseconds.
    #[serde(default = "ProtectOptions::default_max_epoch_us")]
    pub max_epoch_us: u64,
    /// Epochs with many pages are made shorter until the standby has them in this time, in microseconds.
    #[serde(default = "ProtectOptions::default_latency_us")]
    pub latency_us: u64,
    /// But not so short that the guest stands still for a larger part of its time, in percent.
    #[serde(default = "ProtectOptions::default_pause_share")]
    pub pause_share: u32,
    /// The most bytes of uncommitted disk writes per disk before the disk waits.
    #[serde(default = "ProtectOptions::default_disk_buffer")]
    pub disk_buffer: u64,
    /// Limit of the first disk copy in bytes per second; 0 is none.
    #[serde(default)]
    pub disk_rate: u64,
    /// What is done so that less crosses the link.
    #[serde(default)]
    pub compression: Compression,
    /// Memory for earlier versions of pages, in bytes; never more than a quarter of the guest's.
    #[serde(default = "ProtectOptions::default_delta_cache")]
    pub delta_cache: u64,
}

/// What is done so that less crosses the link.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum Compression {
    /// What changed in pages is sent where that is less than the page, and packed while that is measured to be faster.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// Pages are sent whole.
    #[serde(rename = "off")]
    Off,
    /// What changed in pages is sent where that is less than the page.
    #[serde(rename = "delta")]
    Delta,
    /// And always packed.
    #[serde(rename = "delta+zstd")]
    DeltaZstd,
}

impl Compression {
    /// The names, and what they mean.
    pub const NAMES: [(&str, Self); 4] =
        [("auto", Self::Auto), ("off", Self::Off), ("delta", Self::Delta), ("delta+zstd", Self::DeltaZstd)];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, named)| *named == self).map_or("", |(name, _)| name)
    }
}

impl ProtectOptions {
    /// Protection by the standby that listens at these addresses, everything else as it is by default.
    #[must_use]
    pub fn by(peer: SocketAddr, heartbeat: SocketAddr) -> Self {
        Self {
            peer,
            heartbeat,
            witness: None,
            on_partition: None,
            detect_ms: Self::default_detect_ms(),
            min_epoch_us: Self::default_min_epoch_us(),
            max_epoch_us: Self::default_max_epoch_us(),
            latency_us: Self::default_latency_us(),
            pause_share: Self::default_pause_share(),
            disk_buffer: Self::default_disk_buffer(),
            disk_rate: 0,
            compression: Compression::default(),
            delta_cache: Self::default_delta_cache(),
        }
    }

    fn default_detect_ms() -> u64 {
        300
    }

    fn default_min_epoch_us() -> u64 {
        100
    }

    fn default_max_epoch_us() -> u64 {
        20_000
    }

    fn default_latency_us() -> u64 {
        2000
    }

    fn default_pause_share() -> u32 {
        5
    }

    fn default_disk_buffer() -> u64 {
        64 << 20
    }

    fn default_delta_cache() -> u64 {
        64 << 20
    }

    /// What is wrong with them, all of it.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.witness.is_none() && self.on_partition.is_none() {
            faults.push(
                "no witness: give witness=PATH on a file system that both hosts see or witness=etcd://HOST:PORT/KEY, or say \
                 with on_partition=primary, standby or both who goes on when the hosts cannot see each other (both risks \
                 two running copies)"
                    .to_owned(),
            );
        }
        if self.witness.is_some() && self.on_partition.is_some() {
            faults.push("witness and on_partition exclude each other: a witness decides by itself".to_owned());
        }
        if self.detect_ms != 0 && self.detect_ms < 50 {
            faults.push(format!(
                "detect_ms={} is shorter than an ordinary scheduling delay: use 50 or more",
                self.detect_ms
            ));
        }
        if self.max_epoch_us < self.min_epoch_us || self.max_epoch_us < 1000 {
            faults.push(format!(
                "max_epoch_us={} must be at least 1000 and not shorter than min_epoch_us={}",
                self.max_epoch_us, self.min_epoch_us
            ));
        }
        if !(1..=90).contains(&self.pause_share) {
            faults.push(format!("pause_share={} must be from 1 to 90 percent", self.pause_share));
        }
        if self.disk_buffer < 4 << 20 {
            faults.push(format!("disk_buffer={} is less than 4 MiB", self.disk_buffer));
        }
        if self.disk_buffer > DISK_BUFFER_MAX {
            faults.push(format!("disk_buffer={} is more than {} MiB", self.disk_buffer, DISK_BUFFER_MAX >> 20));
        }
        faults
    }

    /// The core's settings.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            silence: silence(self.detect_ms),
            min_epoch: Duration::from_micros(self.min_epoch_us),
            max_epoch: Duration::from_micros(self.max_epoch_us),
            latency: Duration::from_micros(self.latency_us),
            pause_share: self.pause_share,
            on_partition: self.on_partition,
            ..Settings::default()
        }
    }
}

/// `ADDR:PORT`, as [`resolve`] reads it.
fn address<'de, D: serde::Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(from)?;
    resolve(&text).map_err(|error| serde::de::Error::custom(format!("{text} is not ADDR:PORT: {error}")))
}

/// The silence limit that `detect_ms` names.
pub(crate) fn silence(detect_ms: u64) -> Option<Duration> {
    (detect_ms != 0).then(|| Duration::from_millis(detect_ms))
}
