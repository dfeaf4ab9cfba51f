//! What `ft status` and `ft events` show: kept by the engine, read by the API without making the engine wait.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use ft_proto::{Event, Light, LinkId};
use host_kit::sync::lock;
use pollux_api::EventRecord;
use pollux_api::event::EventName;
use pollux_api::status::{LinkName, LinkState, Percentiles, Replica, Role, State, Status};

/// Events that are kept.
const EVENTS_MAX: usize = 1000;
/// Epochs that the percentiles look back on.
const RECENT: usize = 1024;

/// Status and events, shared between the engine and the API. It outlives an engine: events are numbered
/// through.
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

    /// No standby can be built on this host, and what waited here before has ended. An event once, until
    /// there is one again.
    pub fn standby_failed(&self, reason: &str) {
        let former = self.status();
        if former.state != State::StandbyFailed {
            self.note(EventName::StandbyFailed, serde_json::json!({ "reason": reason }));
        }
        self.publish(Status {
            role: Role::None,
            state: State::StandbyFailed,
            replica: Replica::None,
            peer: None,
            links: Vec::new(),
            claim: None,
            memory_sync: None,
            last_error: Some(reason.to_owned()),
            ..former
        });
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
        // Its tag: the name says it.
        detail.as_object_mut().and_then(|map| map.remove("event"));
        self.note(event_name(event), detail)
    }

    /// Appends an event that the core does not know.
    pub fn note(&self, event: EventName, detail: serde_json::Value) -> EventRecord {
        tracing::info!(target: "ft", "{event} {detail}");
        let mut history = lock(&self.history);
        history.seq += 1;
        let time = jiff::Timestamp::now().to_string();
        let record = EventRecord { seq: history.seq, time, event: event.name().to_owned(), detail };
        if history.events.len() == EVENTS_MAX {
            history.events.pop_front();
        }
        history.events.push_back(record.clone());
        record
    }
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

/// An event of the core as the API calls it.
fn event_name(event: &Event) -> EventName {
    match event {
        Event::SyncStarted => EventName::SyncStarted,
        Event::Protected { .. } => EventName::Protected,
        Event::ProtectionLost { .. } => EventName::ProtectionLost,
        Event::LinkSilent { .. } => EventName::LinkSilent,
        Event::LinkRestored { .. } => EventName::LinkRestored,
        Event::PeerSuspected { .. } => EventName::PeerSuspected,
        Event::LocalStall => EventName::LocalStall,
        Event::TakeoverStarted { .. } => EventName::TakeoverStarted,
        Event::WitnessUnreachable { .. } => EventName::WitnessUnreachable,
        Event::WitnessRecordLost => EventName::WitnessRecordLost,
        Event::WitnessRecordRestored => EventName::WitnessRecordRestored,
        Event::TakeoverWithdrawn => EventName::TakeoverWithdrawn,
        Event::StandbyReady { .. } => EventName::StandbyReady,
        Event::StandbyReset { .. } => EventName::StandbyReset,
        Event::TakeoverSuppressed => EventName::TakeoverSuppressed,
        Event::Fenced { .. } => EventName::Fenced,
        Event::CheckpointFailed { .. } => EventName::CheckpointFailed,
    }
}

/// A light as the API spells it.
pub(crate) fn link_state(light: Light) -> LinkState {
    match light {
        Light::Green => LinkState::Green,
        Light::Yellow => LinkState::Yellow,
        Light::Red => LinkState::Red,
    }
}

/// A link as the API spells it.
pub(crate) fn link_name(link: LinkId) -> LinkName {
    match link {
        LinkId::Replication => LinkName::Replication,
        LinkId::Heartbeat => LinkName::Heartbeat,
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
    fn a_standby_that_cannot_be_built_is_told_once_and_shown_as_none() {
        let board = Board::default();
        let vm = Some("0a".to_owned());
        let peer = Some(pollux_api::status::Peer::default());
        board.publish(Status { state: State::StandbyReady, replica: Replica::InSync, vm, peer, ..Status::default() });
        board.standby_failed("the address is in use");
        board.standby_failed("the image is gone");
        let status = board.status();
        assert_eq!((status.role, status.state, status.replica), (Role::None, State::StandbyFailed, Replica::None));
        assert_eq!((status.vm.as_deref(), status.last_error.as_deref()), (Some("0a"), Some("the image is gone")));
        assert!(status.peer.is_none());
        let events: Vec<_> = board.events().into_iter().map(|event| event.event).collect();
        assert_eq!(events, ["standby-failed"]);
        board.publish(Status { state: State::StandbyEmpty, ..status });
        board.standby_failed("the address is in use");
        assert_eq!(board.events().len(), 2, "it was well in between");
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
