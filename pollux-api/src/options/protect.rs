//! How a VM is protected: the options of `ft protect`, the JSON of `ft.protect`, and what `--ft` has of them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::define::{option_key, option_struct};
use super::grammar::{ByteSize, OptionError, OptionValue, Options};
use super::help::{OptionHelp, table};
use crate::words::words;

/// Shortest silence that is not an ordinary scheduling delay, in milliseconds.
const DETECT_MS_MIN: u64 = 50;
/// Shortest limit of an epoch, in microseconds.
const MAX_EPOCH_US_MIN: u64 = 1000;
/// The largest part of its time for which a guest may be paused, in percent.
const PAUSE_SHARE_MAX: u32 = 90;
/// The fewest bytes of uncommitted writes that a disk can be limited to.
pub const DISK_BUFFER_MIN: ByteSize = ByteSize(4 << 20);
/// The most bytes of uncommitted writes that a standby holds for a disk.
pub const DISK_BUFFER_MAX: ByteSize = ByteSize(1 << 30);

option_struct! {
    /// How a VM is to be protected, and by which standby: as a client says it.
    #[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
    #[serde(deny_unknown_fields)]
    pub struct ProtectRequest {
        required {
            /// the standby's listen address
            peer ("ADDR:PORT"): Endpoint,
            /// its address on the second link
            heartbeat ("ADDR:PORT"): Endpoint,
        }
        optional {
            /// decides which host continues when they cannot reach each other, the same on both hosts: a file
            /// on storage that both mount, or a key in etcd, in quotes:
            /// etcd://HOST:PORT[+HOST:PORT]/KEY[?cacert=FILE&cert=FILE&key=FILE&user=NAME&password_file=FILE]
            witness ("PLACE"): String,
            /// without a witness, which host continues: primary, standby, or both, which risks two running
            /// copies; the same on both hosts
            on_partition ("POLICY"): OnPartition,
        }
    }

    /// What a protected VM and its standby are tuned by.
    #[derive(Clone, Debug, Eq, PartialEq)]
    tuned by Tuning {
        /// silence on both links after which the peer is considered dead, at least 50; 0: never
        detect_ms ("N"): u64 = 300,
        /// shortest epoch
        min_epoch_us ("N"): u64 = 100,
        /// longest epoch
        max_epoch_us ("N"): u64 = 20_000,
        /// epochs with many pages are made shorter until the standby has them in this time
        latency_us ("N"): u64 = 2000,
        /// but not so short that the guest is paused for a larger part of its time
        pause_share ("PERCENT"): u32 = 5,
        /// uncommitted writes per disk before the disk waits
        disk_buffer ("SIZE"): ByteSize = ByteSize(64 << 20),
        /// limit of a disk's copy or resynchronisation, per second; 0: none
        disk_rate ("SIZE"): ByteSize = ByteSize(0),
        /// off; delta: only the changes to pages that the standby has are sent; delta+zstd: and compressed;
        /// auto: delta, and compressed while that is measured to be faster
        compression ("HOW"): Compression = Compression::Auto,
        /// memory for earlier versions of pages, at most a quarter of the guest's
        delta_cache ("SIZE"): ByteSize = ByteSize(64 << 20),
    }
}

/// `ADDR:PORT`. Names and interfaces are those of the host whose VMM is asked.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(transparent)]
pub struct Endpoint(pub String);

impl OptionValue for Endpoint {
    const EXPECTED: &'static str = "ADDR:PORT, IPv6 in brackets";

    fn from_text(text: &str) -> Option<Self> {
        let is_host = |host: &str| match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').is_some_and(|address| address.contains(':')),
            None => !host.is_empty() && !host.contains(':'),
        };
        let (host, port) = text.rsplit_once(':')?;
        (is_host(host) && port.parse::<u16>().is_ok()).then(|| Self(text.to_owned()))
    }
}

words! {
    /// Which host goes on when the two cannot see each other and there is no witness to ask.
    pub enum OnPartition {
        /// The primary; the standby never takes over by itself.
        Primary = "primary",
        /// The standby; a primary without its standby stops.
        Standby = "standby",
        /// Both: every single failure is survived, a partition splits the VM in two.
        Both = "both",
    }
}

words! {
    /// How the traffic on the link is reduced.
    pub enum Compression: Default {
        /// What changed in pages is sent where that is less than the page, and packed while that is measured
        /// to be faster.
        Auto = "auto" [default],
        /// Pages are sent whole.
        Off = "off",
        /// What changed in pages is sent where that is less than the page.
        Delta = "delta",
        /// And always packed.
        DeltaZstd = "delta+zstd",
    }
}

impl OptionValue for OnPartition {
    const EXPECTED: &'static str = "primary, standby or both";

    fn from_text(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|policy| policy.name() == text)
    }
}

impl OptionValue for Compression {
    const EXPECTED: &'static str = "auto, off, delta or delta+zstd";

    fn from_text(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|setting| setting.name() == text)
    }
}

impl ProtectRequest {
    /// Reads the text after `ft protect`.
    ///
    /// # Errors
    /// The first thing that is wrong, by its key.
    pub fn parse(text: &str) -> Result<Self, OptionError> {
        let keys: Vec<&str> = protect_options().iter().map(|option| option.key).collect();
        Self::read(&Options::parse("ft protect", text, &keys, &[])?)
    }

    /// Its JSON, in which only what is given is named.
    ///
    /// # Errors
    /// None that is known.
    pub fn to_json(&self) -> Result<serde_json::Value, serde_json::Error> {
        let mut json = serde_json::to_value(self)?;
        if let Some(map) = json.as_object_mut() {
            map.retain(|_, value| !value.is_null());
        }
        Ok(json)
    }
}

/// All options of `ft protect`.
fn protect_options() -> Vec<OptionHelp> {
    [ProtectRequest::help(), Tuning::help()].concat()
}

/// The options of `ft protect`, one below the other.
#[must_use]
pub fn protect_help() -> String {
    table(&protect_options())
}

/// What is wrong with options that can each be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Fault {
    /// Nothing decides on a partition.
    #[error(
        "no witness: give witness=PATH on a file system that both hosts mount or witness=etcd://HOST:PORT/KEY, or choose \
         with on_partition=primary, standby or both which host continues when they cannot reach each other (both risks two \
         running copies)"
    )]
    NoWitness,
    /// Two things decide on a partition.
    #[error("witness and on_partition exclude each other: a witness decides by itself")]
    WitnessAndPolicy,
    /// Healthy peers would be taken for dead.
    #[error("detect_ms={0} is shorter than an ordinary scheduling delay: use {DETECT_MS_MIN} or more")]
    DetectTooShort(u64),
    /// No epoch could be cut in time.
    #[error("max_epoch_us={max} must be at least {MAX_EPOCH_US_MIN} and not shorter than min_epoch_us={min}")]
    EpochLimits {
        /// Shortest epoch.
        min: u64,
        /// Longest epoch.
        max: u64,
    },
    /// The guest would not run, or not be paused.
    #[error("pause_share={0} must be from 1 to {PAUSE_SHARE_MAX} percent")]
    PauseShare(u32),
    /// A disk could not go on.
    #[error("disk_buffer={} is less than {} MiB", .0.0, DISK_BUFFER_MIN.0 >> 20)]
    DiskBufferTooSmall(ByteSize),
    /// No standby would hold so much.
    #[error("disk_buffer={} is more than {} MiB", .0.0, DISK_BUFFER_MAX.0 >> 20)]
    DiskBufferTooLarge(ByteSize),
}

/// Everything that is wrong with how a VM is to be protected.
#[must_use]
pub fn faults(has_witness: bool, has_policy: bool, tuning: &Tuning) -> Vec<Fault> {
    let Tuning { detect_ms, min_epoch_us: min, max_epoch_us: max, pause_share, disk_buffer, .. } = *tuning;
    let share_is_sane = (1..=PAUSE_SHARE_MAX).contains(&pause_share);
    let checks = [
        (!has_witness && !has_policy, Fault::NoWitness),
        (has_witness && has_policy, Fault::WitnessAndPolicy),
        (detect_ms != 0 && detect_ms < DETECT_MS_MIN, Fault::DetectTooShort(detect_ms)),
        (max < min || max < MAX_EPOCH_US_MIN, Fault::EpochLimits { min, max }),
        (!share_is_sane, Fault::PauseShare(pause_share)),
        (disk_buffer < DISK_BUFFER_MIN, Fault::DiskBufferTooSmall(disk_buffer)),
        (disk_buffer > DISK_BUFFER_MAX, Fault::DiskBufferTooLarge(disk_buffer)),
    ];
    checks.into_iter().filter_map(|(wrong, fault)| wrong.then_some(fault)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn options_become_json() {
        let text = "peer=10.0.0.2:7000,heartbeat=[fe80::2%eth0]:7001,witness=etcd://a:1+b:2/k?user=u&password_file=/p,\
                    detect_ms=0,disk_buffer=64M";
        let expected = json!({"peer": "10.0.0.2:7000", "heartbeat": "[fe80::2%eth0]:7001",
                              "witness": "etcd://a:1+b:2/k?user=u&password_file=/p", "detect_ms": 0, "disk_buffer": 64 << 20});
        let request = ProtectRequest::parse(text).unwrap();
        assert_eq!(request.to_json().unwrap(), expected);
        assert_eq!(serde_json::from_value::<ProtectRequest>(expected).unwrap(), request);
    }

    #[test]
    fn errors_name_the_key() {
        for (text, expected) in [
            ("", "ft protect: peer= is missing"),
            ("peer=a:1", "ft protect: heartbeat= is missing"),
            ("peer", "ft protect: expected key=value, got \"peer\""),
            ("peer=a", "ft protect: peer=a is not ADDR:PORT, IPv6 in brackets"),
            ("peer=fd00::2:7000,heartbeat=b:1", "ft protect: peer=fd00::2:7000 is not ADDR:PORT, IPv6 in brackets"),
            ("peer=a:1,peer=b:1", "ft protect: peer is given twice"),
            ("peer=a:1,heartbeat=b:1,detect_ms=soon", "ft protect: detect_ms=soon is not a number"),
            ("peer=a:1,heartbeat=b:1,on_partition=me", "ft protect: on_partition=me is not primary, standby or both"),
            (
                "peer=a:1,heartbeat=b:1,disk_rate=5MM",
                "ft protect: disk_rate=5MM is not a size in bytes, or with K, M or G",
            ),
        ] {
            assert_eq!(ProtectRequest::parse(text).unwrap_err().to_string(), expected, "{text}");
        }
        let unknown = ProtectRequest::parse("color=red").unwrap_err().to_string();
        assert!(unknown.starts_with("ft protect: unknown key \"color\", the keys are peer, heartbeat,"), "{unknown}");
    }

    #[test]
    fn what_is_left_out_takes_its_default_and_unknown_fields_are_errors() {
        let request: ProtectRequest = serde_json::from_value(json!({"peer": "a:1", "heartbeat": "b:1"})).unwrap();
        assert_eq!(request.tuning(), Tuning::default());
        assert_eq!((Tuning::default().detect_ms, Tuning::default().delta_cache), (300, ByteSize(64 << 20)));
        for wrong in [json!({"peer": "a:1"}), json!({"peer": "a:1", "heartbeat": "b:1", "color": "red"})] {
            assert!(serde_json::from_value::<ProtectRequest>(wrong).is_err());
        }
    }

    #[test]
    fn every_fault_is_told_at_once() {
        assert_eq!(faults(true, false, &Tuning::default()), []);
        let tuning = Tuning { detect_ms: 1, max_epoch_us: 10, pause_share: 0, ..Tuning::default() };
        let told: Vec<String> = faults(false, false, &tuning).iter().map(Fault::to_string).collect();
        let starts =
            ["no witness: give witness=PATH", "detect_ms=1 is shorter", "max_epoch_us=10 must", "pause_share=0"];
        assert!(told.len() == 4 && told.iter().zip(starts).all(|(told, start)| told.starts_with(start)), "{told:?}");
    }

    #[test]
    fn help_names_every_key_of_the_json_with_its_default() {
        let help = protect_help();
        let all = "peer=a:1,heartbeat=b:1,witness=/w,on_partition=both,detect_ms=1,min_epoch_us=1,max_epoch_us=1,latency_us=1,\
                   pause_share=1,disk_buffer=1,disk_rate=1,compression=off,delta_cache=1";
        let json = ProtectRequest::parse(all).unwrap().to_json().unwrap();
        for key in json.as_object().unwrap().keys() {
            assert!(help.contains(&format!("  {key}=")), "{key} is not in\n{help}");
        }
        assert_eq!(json.as_object().unwrap().len(), protect_options().len());
        for part in ["(required)", "never (300)", "(20000)", "disk waits (64M)", "(auto)"] {
            assert!(help.contains(part), "{part} is not in\n{help}");
        }
    }
}
