//! What the guest has done to its own machine and nobody has dealt with yet: a power-off or a reset happens
//! once, so whoever takes the VM over before then must be told of it too.
//!
//! In: events of the vCPUs and of the devices; when they are dealt with. Out: the first of them, to the
//! control loop; the one that is pending, in checkpoints, and to the control loop of the host that takes
//! over. Never: a failure of this host in a checkpoint, which is nothing that the guest has done.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::machine::cpu::{GuestEvent, OnGuestEvent};
use crate::machine::state::{StateError, StateReader, StateWriter};

const SECTION: &str = "guest-event";
const VERSION: u16 = 1;

/// An event after which the guest does nothing of its own accord any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Final {
    PowerOff,
    Reset,
}

impl Final {
    fn of(event: &GuestEvent) -> Option<Self> {
        match event {
            GuestEvent::Shutdown => Some(Self::PowerOff),
            GuestEvent::Reset => Some(Self::Reset),
            // Where the guest goes on, it crashes again by itself.
            GuestEvent::Crash(_) | GuestEvent::HostFailed(_) => None,
        }
    }
}

impl From<Final> for GuestEvent {
    fn from(event: Final) -> Self {
        match event {
            Final::PowerOff => Self::Shutdown,
            Final::Reset => Self::Reset,
        }
    }
}

#[derive(Default)]
struct State {
    /// An event was reported and is not dealt with; more of the same are not news: a guest that resets tries
    /// several ways one after the other.
    reported: bool,
    pending: Option<Final>,
}

/// The event of one VM that is pending, if there is one.
pub(crate) struct PendingEvent {
    state: Mutex<State>,
    report: OnGuestEvent,
}

impl PendingEvent {
    /// Nothing is pending; events go to `report`.
    pub(super) fn new(report: OnGuestEvent) -> Self {
        Self { state: Mutex::default(), report }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `event` has happened. It is pending before the vCPU that it is of can be in a checkpoint.
    pub(super) fn happened(&self, event: GuestEvent) {
        let mut state = self.lock();
        state.pending = state.pending.or(Final::of(&event));
        let is_news = !std::mem::replace(&mut state.reported, true);
        drop(state);
        if is_news {
            (self.report)(event);
        }
    }

    /// Reports what is pending in a state that was loaded: from now on this host has to deal with it.
    pub(crate) fn taken_over(&self) {
        let pending = self.lock().pending;
        if let Some(event) = pending {
            self.happened(event.into());
        }
    }

    /// The VM is reset: whatever led to that is dealt with.
    pub(super) fn dealt_with(&self) {
        *self.lock() = State::default();
    }

    /// Appends what is pending.
    pub(super) fn save(&self, out: &mut StateWriter<'_>) -> Result<(), StateError> {
        out.section(SECTION, VERSION, &self.lock().pending)
    }

    /// Nothing is reported yet.
    pub(super) fn load(&self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        *self.lock() = State { reported: false, pending: from.take(SECTION, VERSION)? };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;

    fn new() -> (PendingEvent, mpsc::Receiver<GuestEvent>) {
        let (send, events) = mpsc::channel();
        (PendingEvent::new(Arc::new(move |event| send.send(event).unwrap())), events)
    }

    /// What the host reports that takes over from `from`.
    fn reported_elsewhere(from: &PendingEvent) -> Vec<GuestEvent> {
        let mut state = Vec::new();
        from.save(&mut StateWriter::new(&mut state)).unwrap();
        let (to, events) = new();
        // A standby loads more than once.
        for _ in 0..2 {
            to.load(&mut StateReader::new(&state).unwrap()).unwrap();
        }
        assert!(events.try_recv().is_err(), "the VM does not run there yet");
        to.taken_over();
        events.try_iter().collect()
    }

    #[test]
    fn the_first_event_is_reported_and_stays_pending_until_it_is_dealt_with() {
        let (here, events) = new();
        assert!(reported_elsewhere(&here).is_empty());
        for event in [GuestEvent::Reset, GuestEvent::Reset, GuestEvent::Shutdown] {
            here.happened(event);
        }
        assert_eq!(events.try_iter().collect::<Vec<_>>(), [GuestEvent::Reset]);
        assert_eq!(reported_elsewhere(&here), [GuestEvent::Reset]);
        here.dealt_with();
        assert!(reported_elsewhere(&here).is_empty());
        here.happened(GuestEvent::Shutdown);
        assert_eq!(events.try_iter().collect::<Vec<_>>(), [GuestEvent::Shutdown]);
        assert_eq!(reported_elsewhere(&here), [GuestEvent::Shutdown]);
    }

    #[test]
    fn what_fails_on_a_host_is_not_pending_on_the_next_and_hides_nothing_that_is() {
        let (here, events) = new();
        here.happened(GuestEvent::HostFailed(String::new()));
        assert!(reported_elsewhere(&here).is_empty());
        here.happened(GuestEvent::Shutdown);
        assert_eq!(events.try_iter().collect::<Vec<_>>(), [GuestEvent::HostFailed(String::new())]);
        assert_eq!(reported_elsewhere(&here), [GuestEvent::Shutdown]);
    }

    #[test]
    fn a_guest_that_goes_on_to_do_the_same_after_a_takeover_is_heard_once() {
        let (here, events) = new();
        here.happened(GuestEvent::Reset);
        here.taken_over();
        assert_eq!(events.try_iter().count(), 1);
    }
}
