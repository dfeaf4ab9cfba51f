//! Real time for the core.

use std::time::{Duration, Instant};

use ft_proto::Time;

/// Turns the monotonic clock into the core's [`Time`]; copies of one clock agree.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that starts now, away from zero so that spans can be subtracted.
    #[must_use]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Time {
        const AWAY: u64 = 1 << 40;
        Time(AWAY.saturating_add(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Whole microseconds, as status and the peer are told.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Whole milliseconds, likewise.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}
