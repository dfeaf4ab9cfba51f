//! Who may stop or change the VM as a whole: its owner or the engine, one at a time, and the owner only while
//! the VM is here.
//!
//! In: attempts to enter, and where the VM is, as the engine knows it. Out: a guard, or why not. Never: the
//! engine that waits for the owner, whose changes take as long as the slowest device does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

/// Whoever holds it is inside.
pub type Inside = parking_lot::ArcMutexGuard<parking_lot::RawMutex, ()>;

/// Why the owner may not change the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotHere {
    /// Its last checkpoint is on its way to the standby. It may still stay.
    #[error("the VM is being moved to its standby: try again in a moment")]
    Leaving,
    /// Another host runs it.
    #[error("another host runs this VM")]
    Gone,
}

/// How long the engine waits for the owner, who is pausing a vCPU as a rule.
const MOMENT: Duration = Duration::from_millis(1);

const HERE: u8 = 0;
const LEAVING: u8 = 1;
const GONE: u8 = 2;

/// One VM's gate.
#[derive(Debug, Default)]
pub struct Gate {
    mutex: Arc<parking_lot::Mutex<()>>,
    place: AtomicU8,
    /// The owner has begun to change the VM as a whole, and has not come to the end of it.
    in_pieces: AtomicBool,
}

impl Gate {
    /// For the owner: waits until a checkpoint under way is taken, which is short.
    ///
    /// # Errors
    /// When the VM is not here, or not for certain.
    pub fn enter(&self) -> Result<Inside, NotHere> {
        let inside = self.mutex.lock_arc();
        match self.place.load(Ordering::SeqCst) {
            HERE => Ok(inside),
            LEAVING => Err(NotHere::Leaving),
            _ => Err(NotHere::Gone),
        }
    }

    /// For the engine: `None` while the owner is inside, unless that is over in a [`MOMENT`]. An owner who
    /// comes and goes as fast as clients ask for it does not keep the engine out; one who has left the VM in
    /// pieces does, as nobody could go on from them.
    #[must_use]
    pub fn try_enter(&self) -> Option<Inside> {
        let inside = self.mutex.try_lock_arc_for(MOMENT)?;
        (!self.in_pieces.load(Ordering::SeqCst)).then_some(inside)
    }

    /// The owner takes the VM apart, or has put it together again. Said from inside.
    pub fn in_pieces(&self, yes: bool) {
        self.in_pieces.store(yes, Ordering::SeqCst);
    }

    /// The VM is paused, and another host may run it from now on. Said from inside.
    pub fn leaving(&self) {
        self.place.store(LEAVING, Ordering::SeqCst);
    }

    /// It runs here after all.
    pub fn stays(&self) {
        self.place.store(HERE, Ordering::SeqCst);
    }

    /// Another host runs it. Said at any time, since it does not wait for whoever is inside.
    pub fn gone(&self) {
        self.place.store(GONE, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_the_engine_does_not_wait() {
        let gate = Gate::default();
        let inside = gate.enter().unwrap();
        assert!(gate.try_enter().is_none());
        drop(inside);
        assert!(gate.try_enter().is_some());
    }

    #[test]
    fn what_the_owner_has_left_in_pieces_is_in_no_checkpoint() {
        let gate = Gate::default();
        let inside = gate.enter().unwrap();
        gate.in_pieces(true);
        drop(inside);
        assert!(gate.try_enter().is_none());
        let again = gate.enter().unwrap();
        gate.in_pieces(false);
        drop(again);
        assert!(gate.try_enter().is_some());
    }

    #[test]
    fn the_owner_is_told_where_the_vm_is_instead_of_waiting() {
        let gate = Gate::default();
        let inside = gate.try_enter().unwrap();
        gate.leaving();
        drop(inside);
        assert_eq!(gate.enter().err(), Some(NotHere::Leaving));
        gate.stays();
        assert!(gate.enter().is_ok());
        gate.gone();
        assert_eq!(gate.enter().err(), Some(NotHere::Gone));
    }
}
