//! What `ft.events` answers: what happened to the protection of a VM, oldest first.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// One event.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct EventRecord {
    /// Counts up from 1.
    pub seq: u64,
    /// When, RFC 3339.
    pub time: String,
    /// What.
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
    /// The event if it is one that programs act on.
    #[must_use]
    pub fn known(&self) -> Option<Known> {
        match self.event.as_str() {
            PrimaryJoined::EVENT => PrimaryJoined::deserialize(&self.detail).ok().map(Known::PrimaryJoined),
            StandbyReset::EVENT => StandbyReset::deserialize(&self.detail).ok().map(Known::StandbyReset),
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

impl PrimaryJoined {
    /// The event's name.
    pub const EVENT: &str = "primary-joined";
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

impl StandbyReset {
    /// The event's name.
    pub const EVENT: &str = "standby-reset";
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_that_programs_act_on_are_typed_and_all_others_are_read() {
        let read = |value| serde_json::from_value::<EventRecord>(value).unwrap();
        let reset = json!({"seq": 2, "time": "t", "event": "standby-reset", "detail": {"reason": "stream lost"}});
        let reason = Some("stream lost".to_owned());
        assert_eq!(read(reset).known(), Some(Known::StandbyReset(StandbyReset { reason })));
        assert_eq!(read(json!({"seq": 1, "time": "t", "event": "from-the-future"})).known(), None);
    }
}
