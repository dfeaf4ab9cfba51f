//! What `ft status` and `ft events` show: kept by the engine, read by the API without making the engine wait.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ft_proto::device_ctl::ResyncKind;
use ft_proto::wire::DiskProgress;
use ft_proto::{Event, Light, Time};
use serde::Serialize;

use crate::claims::ClaimStatus;
use crate::course::Course;

/// Events that are kept.
const EVENTS_MAX: usize = 1000;
/// Epochs that the percentiles look back on.
const RECENT: usize = 1024;

/// A pair's status as one node sees it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    /// `primary`, `standby`, `solo`, or `none`.
    pub role: &'static str,
    /// See docs/protocol.md for the states. `protected` only while the failure of either host loses nothing.
    pub state: &'static str,
    /// What this pair has of a copy of the VM that could go on with it: `none`, `copying` or `in-sync`.
    pub replica: &'static str,
    /// NodeTerm.
    pub term: u64,
    /// Running epoch of a primary, committed epoch of a standby.
    pub epoch: u64,
    /// The VM's identity; `None`: a standby that no VM has used yet.
    pub vm: Option<String>,
    /// This node.
    pub node: String,
    /// The other node.
    pub peer: Option<Peer>,
    /// Both host-to-host links.
    pub links: Vec<LinkStatus>,
    /// Who decides on a partition.
    pub witness: Option<WitnessStatus>,
    /// What it has been asked for and has not answered yet.
    pub claim: Option<ClaimStatus>,
    /// Heartbeats that were not the peer's in this session, or damaged.
    pub ignored_beats: u64,
    /// Time that the guest stood still for a checkpoint, in microseconds.
    pub pause_us: Percentiles,
    /// Time from the beginning of a checkpoint to its release, in microseconds.
    pub commit_us: Percentiles,
    /// Pages sent per epoch.
    pub dirty_pages: Percentiles,
    /// Bytes sent per epoch.
    pub epoch_bytes: Percentiles,
    /// Bytes per epoch if pages were sent whole and nothing was packed.
    pub epoch_raw_bytes: Percentiles,
    /// What is done so that less is sent.
    pub compression: Option<CompressionStatus>,
    /// Frames that the network devices held at the last seal.
    pub held_frames: u64,
    /// Bytes that devices held or had uncommitted at the last seal.
    pub held_bytes: u64,
    /// Committed epochs of this session.
    pub epochs: u64,
    /// The search for a standby, if there are peers to ask.
    pub search: Option<SearchStatus>,
    /// First copy of memory, while it runs; bytes.
    pub memory_sync: Option<Progress>,
    /// The disks.
    pub disks: Vec<DiskStatus>,
    /// Last takeover of this node.
    pub takeover: Option<Takeover>,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
}

/// The other node.
#[derive(Clone, Debug, Serialize)]
pub struct Peer {
    /// Where it listens or came from.
    pub address: String,
    /// Its name.
    pub node: String,
}

/// Who decides on a partition.
#[derive(Clone, Debug, Serialize)]
pub struct WitnessStatus {
    /// Its address, or the policy that stands in for it.
    pub name: String,
    /// Whether it answered the last time that it was asked.
    pub answered: Option<bool>,
    /// Why it did not.
    pub error: Option<String>,
    /// What its record said when it was last seen.
    pub record: Option<String>,
}

/// What a primary does so that less crosses the link, and what came of it in all epochs of the session.
#[derive(Clone, Debug, Serialize)]
pub struct CompressionStatus {
    /// `auto`, `off`, `delta` or `delta+zstd`.
    pub setting: &'static str,
    /// Whether the last epoch was packed.
    pub packing: bool,
    /// Bytes if pages were sent whole and nothing was packed.
    pub raw: u64,
    /// Bytes sent.
    pub sent: u64,
}

/// The search for a standby.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SearchStatus {
    /// Whether a VM that runs alone is protected without being asked.
    pub on: bool,
    /// Why nobody has accepted yet.
    pub waiting_for: Vec<String>,
}

/// One host-to-host link.
#[derive(Clone, Debug, Serialize)]
pub struct LinkStatus {
    /// `replication` or `heartbeat`.
    pub name: &'static str,
    /// `green`, `yellow`, `red`.
    pub state: &'static str,
    /// How long the peer has been silent on it.
    pub silence_ms: u64,
}

/// Percentiles of the recent epochs.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Percentiles {
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
}

/// A copy under way, in bytes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Progress {
    /// Copied.
    pub done: u64,
    /// To copy.
    pub total: u64,
    /// Seconds left at the rate so far.
    pub eta_s: Option<u64>,
}

/// A disk.
#[derive(Clone, Debug, Serialize)]
pub struct DiskStatus {
    /// Its id.
    pub id: String,
    /// `-`, `copying`, `in-sync`, `lost`.
    pub state: &'static str,
    /// How the standby's image is, or was, made equal: `full`, `incremental`, `compare`.
    #[serde(serialize_with = "kind_name")]
    pub resync: Option<ResyncKind>,
    /// Bytes copied or found equal.
    pub done: u64,
    /// Bytes to look at.
    pub total: u64,
    /// Bytes sent for it.
    pub sent: u64,
    /// Seconds left at the rate so far.
    pub eta_s: Option<u64>,
    #[serde(skip)]
    course: Course,
}

impl DiskStatus {
    pub(crate) fn new(id: String) -> Self {
        Self {
            id,
            state: "-",
            resync: None,
            done: 0,
            total: 0,
            sent: 0,
            eta_s: None,
            course: Course::begin(Time::default()),
        }
    }

    /// A session begins.
    pub(crate) fn copying(&mut self) {
        *self = Self { state: "copying", ..Self::new(std::mem::take(&mut self.id)) };
    }

    /// How far its copy is. Returns whether that is worth an event.
    pub(crate) fn progress(&mut self, progress: DiskProgress, now: Time) -> bool {
        let DiskProgress { kind, done, total, sent } = progress;
        if self.resync.is_none() {
            (self.resync, self.course) = (Some(kind), Course::begin(now));
        }
        (self.done, self.total, self.sent) = (done, total, sent);
        self.eta_s = self.course.eta_s(done, total, now);
        self.course.is_news(done, total, now)
    }

    /// For the other host.
    pub(crate) fn counted(&self) -> Option<DiskProgress> {
        self.resync.map(|kind| DiskProgress { kind, done: self.done, total: self.total, sent: self.sent })
    }

    /// The copy is complete: how long it took, in milliseconds.
    pub(crate) fn in_sync(&mut self, now: Time) -> u64 {
        (self.state, self.done, self.eta_s) = ("in-sync", self.total, None);
        self.course.millis(now)
    }
}

fn kind_name<S: serde::Serializer>(kind: &Option<ResyncKind>, serializer: S) -> Result<S::Ok, S::Error> {
    kind.map(ResyncKind::name).serialize(serializer)
}

/// How a takeover went, in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Takeover {
    /// The checkpoint it went on from.
    pub epoch: u64,
    /// From the decision to all disks applied.
    pub disks_us: u64,
    /// From the decision to the running guest.
    pub total_us: u64,
    /// For how long the primary had been silent, in milliseconds, unless it had yielded.
    pub silence_ms: Option<u64>,
    /// From the primary's last beat to the running guest, unless it had yielded: the silence, the witness, the takeover.
    pub last_beat_us: Option<u64>,
    /// From the guest's last instruction there to its first one here, if it had yielded.
    pub gap_us: Option<u64>,
}

/// One event.
#[derive(Clone, Debug, Serialize)]
pub struct EventRecord {
    /// Counts up from 1.
    pub seq: u64,
    /// When, RFC 3339.
    pub time: String,
    /// What.
    pub event: String,
    /// Its details.
    pub detail: serde_json::Value,
}

/// Status and events, shared between the engine and the API. It outlives an engine: events are numbered through.
#[derive(Clone, Debug, Default)]
pub struct Board {
    /// Its lock covers a pointer: the engine does not wait for a reader's copy.
    status: Arc<Mutex<Arc<Status>>>,
    history: Arc<Mutex<Events>>,
}

#[derive(Debug, Default)]
struct Events {
    events: VecDeque<EventRecord>,
    seq: u64,
}

impl Board {
    /// A copy of the status.
    #[must_use]
    pub fn status(&self) -> Status {
        let status = lock(&self.status).clone();
        (*status).clone()
    }

    /// The events, oldest first.
    #[must_use]
    pub fn events(&self) -> Vec<EventRecord> {
        lock(&self.history).events.iter().cloned().collect()
    }

    /// Replaces the status.
    pub(crate) fn publish(&self, status: Status) {
        let status = Arc::new(status);
        // The old one is freed outside of the lock.
        let _old = std::mem::replace(&mut *lock(&self.status), status);
    }

    /// Appends an event and logs it.
    pub(crate) fn event(&self, event: &Event) -> EventRecord {
        let mut detail = serde_json::to_value(event).unwrap_or_default();
        let name = detail.as_object_mut().and_then(|map| map.remove("event"));
        let name = name.and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default();
        self.note(&name, detail)
    }

    /// Appends an event that the core does not know.
    pub fn note(&self, event: &str, detail: serde_json::Value) -> EventRecord {
        tracing::info!(target: "ft", "{event} {detail}");
        let mut history = lock(&self.history);
        history.seq += 1;
        let time = jiff::Timestamp::now().to_string();
        let record = EventRecord { seq: history.seq, time, event: event.to_owned(), detail };
        if history.events.len() == EVENTS_MAX {
            history.events.pop_front();
        }
        history.events.push_back(record.clone());
        record
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last [`RECENT`] samples of something.
#[derive(Debug)]
pub(crate) struct Recent {
    samples: Vec<u64>,
    next: usize,
}

impl Default for Recent {
    fn default() -> Self {
        Self { samples: Vec::with_capacity(RECENT), next: 0 }
    }
}

impl Recent {
    pub(crate) fn add(&mut self, sample: u64) {
        if self.samples.len() < RECENT {
            self.samples.push(sample);
        } else {
            self.samples[self.next] = sample;
        }
        self.next = (self.next + 1) % RECENT;
    }

    pub(crate) fn percentiles(&self) -> Percentiles {
        let mut sorted = self.samples.clone();
        sorted.sort_unstable();
        let at = |percent: usize| sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)));
        Percentiles { p50: at(50).copied().unwrap_or_default(), p99: at(99).copied().unwrap_or_default() }
    }
}

/// A light's name.
pub(crate) fn light_name(light: Light) -> &'static str {
    match light {
        Light::Green => "green",
        Light::Yellow => "yellow",
        Light::Red => "red",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_look_at_the_recent_samples_only() {
        let mut recent = Recent::default();
        (0..RECENT as u64).for_each(|_| recent.add(1_000_000));
        (0..RECENT as u64).for_each(|sample| recent.add(sample % 100));
        let Percentiles { p50, p99 } = recent.percentiles();
        assert!((47..=51).contains(&p50) && (98..=99).contains(&p99), "{p50} {p99}");
        assert_eq!(Recent::default().percentiles().p99, 0);
    }

    #[test]
    fn a_resynchronisation_has_a_beginning_a_rate_and_an_end() {
        let second = |n| Time::default() + std::time::Duration::from_secs(n);
        let progress = |done, sent| DiskProgress { kind: ResyncKind::Compare, done, total: 100, sent };
        let mut disk = DiskStatus::new("disk0".to_owned());
        disk.copying();
        assert_eq!(disk.counted(), None);
        assert!(!disk.progress(progress(0, 0), second(5)), "that it begins is told otherwise");
        assert_eq!((disk.resync, disk.eta_s), (Some(ResyncKind::Compare), None));
        assert!(disk.progress(progress(40, 7), second(9)));
        assert_eq!((disk.eta_s, disk.counted()), (Some(6), Some(progress(40, 7))));
        assert_eq!(disk.in_sync(second(15)), 10_000);
        assert_eq!((disk.state, disk.done, disk.eta_s), ("in-sync", 100, None));
        assert_eq!(serde_json::to_value(&disk).unwrap()["resync"], "compare");
    }

    #[test]
    fn events_have_a_name_and_details() {
        let board = Board::default();
        board.event(&Event::PeerSuspected { silence_ms: 301 });
        let event = board.events().pop().unwrap();
        assert_eq!((event.seq, event.event.as_str()), (1, "peer-suspected"));
        assert_eq!(event.detail, serde_json::json!({ "silence_ms": 301 }));
    }
}
