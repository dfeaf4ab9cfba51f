//! What `ft.events` answers: what happened to the protection of a VM, oldest first.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::words::words;

words! {
    /// What can happen to the protection of a VM.
    pub enum EventName {
        /// The first copy begins.
        SyncStarted = "sync-started",
        /// The copy of memory begins.
        MemoryCopyStarted = "memory-copy-started",
        /// How far the copy of memory is.
        MemoryCopyProgress = "memory-copy-progress",
        /// All of memory that is not in the base checkpoint is copied.
        MemoryCopyDone = "memory-copy-done",
        /// The resynchronisation of a disk begins.
        ResyncStarted = "resync-started",
        /// How far the resynchronisation of a disk is.
        ResyncProgress = "resync-progress",
        /// The standby's disk is equal.
        ResyncDone = "resync-done",
        /// From now on a failure of the primary loses nothing.
        Protected = "protected",
        /// Protection has ended; this node runs the VM alone.
        ProtectionLost = "protection-lost",
        /// An operator has suspended protection.
        ProtectionSuspended = "protection-suspended",
        /// No standby accepts this VM, for these reasons; they are asked again.
        StandbyUnavailable = "standby-unavailable",
        /// The host that runs the VM now has made this one its standby.
        PrimaryJoined = "primary-joined",
        /// The standby holds a complete copy.
        StandbyReady = "standby-ready",
        /// The standby has dropped its copy.
        StandbyReset = "standby-reset",
        /// This host cannot be built as a standby, for this reason; it is tried again.
        StandbyFailed = "standby-failed",
        /// This host waits as a standby; why it does not run the VM.
        StartedAsStandby = "started-as-standby",
        /// A connection broke before the greeting was over.
        HandshakeFailed = "handshake-failed",
        /// The stream from the primary has ended.
        StreamLost = "stream-lost",
        /// One link is silent; the VM stays protected.
        LinkSilent = "link-silent",
        /// A silent link carries heartbeats again.
        LinkRestored = "link-restored",
        /// The peer is silent on every link.
        PeerSuspected = "peer-suspected",
        /// This process was stopped or starved of CPU time.
        LocalStall = "local-stall",
        /// Somebody was not let in at the port of `listen`; told once an hour at most, counted in the status.
        CallerTurnedAway = "caller-turned-away",
        /// The certificate of this host expires, or has expired.
        CertificateExpires = "certificate-expires",
        /// Something failed on this host that the engine cannot repair.
        LocalError = "local-error",
        /// A device process, or what it serves, has failed.
        DeviceFailed = "device-failed",
        /// A checkpoint could not be captured.
        CheckpointFailed = "checkpoint-failed",
        /// The primary has stopped the VM and asks the standby to take over.
        PrimaryYielded = "primary-yielded",
        /// The standby begins to take over.
        TakeoverStarted = "takeover-started",
        /// The VM runs on this node, from the last committed checkpoint.
        TakeoverCompleted = "takeover-completed",
        /// The primary was heard again before the witness answered.
        TakeoverWithdrawn = "takeover-withdrawn",
        /// The primary is silent, and by the policy this standby does not take over.
        TakeoverSuppressed = "takeover-suppressed",
        /// This node may no longer run the VM, and has stopped it.
        Fenced = "fenced",
        /// The witness cannot be reached; the claim is repeated until it can.
        WitnessUnreachable = "witness-unreachable",
        /// The witness has lost the VM's record.
        WitnessRecordLost = "witness-record-lost",
        /// The primary has restored the witness's record.
        WitnessRecordRestored = "witness-record-restored",
        /// The witness's record is that of another VM.
        WitnessVmMismatch = "witness-vm-mismatch",
    }
}

/// One event.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct EventRecord {
    /// Counts up from 1.
    pub seq: u64,
    /// When, RFC 3339.
    pub time: String,
    /// What: an [`EventName`], or one that this release does not know.
    pub event: String,
    /// Its details, by name.
    #[serde(default)]
    pub detail: Value,
}

/// An event that programs act on, with its details.
#[derive(Clone, Debug, PartialEq)]
pub enum Known {
    /// The host that runs the VM now has made this one its standby.
    PrimaryJoined(PrimaryJoined),
    /// The standby's copy is useless now.
    StandbyReset(StandbyReset),
}

impl EventRecord {
    /// Which event it is; `None`: one that this release does not know.
    #[must_use]
    pub fn name(&self) -> Option<EventName> {
        EventName::ALL.iter().copied().find(|name| name.name() == self.event)
    }

    /// The event if it is one that programs act on.
    #[must_use]
    pub fn known(&self) -> Option<Known> {
        match self.name()? {
            EventName::PrimaryJoined => PrimaryJoined::deserialize(&self.detail).ok().map(Known::PrimaryJoined),
            EventName::StandbyReset => StandbyReset::deserialize(&self.detail).ok().map(Known::StandbyReset),
            _ => None,
        }
    }
}

/// A standby has accepted a primary.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct PrimaryJoined {
    /// The primary.
    pub node: String,
    /// Where its connection came from.
    pub address: String,
    /// Its term.
    pub term: u64,
    /// How it came to run the VM, if it took over.
    pub took_over: Option<TookOver>,
}

/// How a node came to run the VM.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct TookOver {
    /// The node that it took over from.
    pub from: Value,
    /// For how long that was silent, in milliseconds; null if it had yielded.
    pub silence_ms: Option<u64>,
    /// From the decision to the running guest, in microseconds.
    pub total_us: u64,
    /// From the guest's last instruction there to its first one here, in microseconds, if the other one had
    /// yielded.
    pub gap_us: Option<u64>,
}

/// The standby's copy is useless now.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct StandbyReset {
    /// Why.
    pub reason: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_event_is_documented() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol.md");
        let document = std::fs::read_to_string(path).unwrap();
        for name in EventName::ALL {
            assert!(document.contains(&format!("`{name}`")), "{name} is not in docs/protocol.md");
        }
    }

    #[test]
    fn events_that_programs_act_on_are_typed_and_all_others_are_read() {
        let read = |value| serde_json::from_value::<EventRecord>(value).unwrap();
        let reset = json!({"seq": 2, "time": "t", "event": "standby-reset", "detail": {"reason": "stream lost"}});
        let reason = Some("stream lost".to_owned());
        assert_eq!(read(reset).known(), Some(Known::StandbyReset(StandbyReset { reason })));
        assert_eq!(read(json!({"seq": 1, "time": "t", "event": "from-the-future"})).known(), None);
    }
}
