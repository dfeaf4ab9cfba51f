//! What threads of vCPUs synchronise with: the standard library's. `tests/loom` puts loom's in its place, and
//! has the same code run through all its interleavings.

use std::time::{Duration, Instant};

pub(super) use std::hint::spin_loop;
pub(super) use std::sync::atomic::AtomicU32;
pub(super) use std::sync::{Condvar, Mutex, MutexGuard};

/// Until when to spin.
pub(super) struct Deadline(Instant);

impl Deadline {
    /// From now on for `time`.
    pub(super) fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.0
    }
}
