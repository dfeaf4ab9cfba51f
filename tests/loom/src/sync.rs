//! What the VMM's files synchronise with here: loom's, which tries every order of what threads do to it.
//!
//! Time does not pass: whoever may spin does so for one round and sleeps then, so that both are tried.

use std::cell::Cell;
use std::time::Duration;

pub(super) use loom::sync::atomic::AtomicU32;
pub(super) use loom::sync::{Condvar, Mutex, MutexGuard};
pub(super) use loom::thread::yield_now as spin_loop;

/// Is over after it was asked for twice: before the first round, and before the second.
pub(super) struct Deadline(Cell<u32>);

impl Deadline {
    pub(super) fn after(_: Duration) -> Self {
        Self(Cell::new(2))
    }

    /// For whoever relies on being notified.
    pub(super) fn never() -> Self {
        Self(Cell::new(u32::MAX))
    }

    pub(super) fn is_over(&self) -> bool {
        let left = self.0.get();
        self.0.set(left.saturating_sub(1));
        left == 0
    }
}
