//! A limit for log lines that a guest, a client or a device process can cause as often as it likes.
//!
//! In: an attempt to log, or to do anything else that must not be done without limit. Out: whether it may be
//! done now, and how many attempts before it were not. Never: a line that is left out without being counted.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So many lines come from one place in a [`PERIOD`].
pub const BURST: u32 = 10;
/// After this time the next [`BURST`] lines may be logged.
pub const PERIOD: Duration = Duration::from_secs(10);

/// Logs like `tracing::warn!`, but from this place in the code no more than [`BURST`] lines in a [`PERIOD`].
#[macro_export]
macro_rules! warn_limited {
    ($($argument:tt)+) => { $crate::log_limited!(warn, $($argument)+) };
}

/// Logs like `tracing::info!`, but from this place in the code no more than [`BURST`] lines in a [`PERIOD`].
#[macro_export]
macro_rules! info_limited {
    ($($argument:tt)+) => { $crate::log_limited!(info, $($argument)+) };
}

/// What [`warn_limited!`](crate::warn_limited) and its like have in common: `log_limited!(LEVEL, ARGUMENTS OF
/// tracing::LEVEL)`.
#[macro_export]
macro_rules! log_limited {
    ($level:ident, $($argument:tt)+) => {{
        static LIMIT: $crate::log_limit::Limit = $crate::log_limit::Limit::of_log_lines();
        if let Some(left_out) = LIMIT.admit() {
            if left_out > 0 {
                tracing::$level!("{left_out} lines like the next one were left out");
            }
            tracing::$level!($($argument)+);
        }
    }};
}

/// Admits a number of attempts in each period of time and counts the others.
#[derive(Debug)]
pub struct Limit {
    burst: u32,
    period: Duration,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    since: Option<Instant>,
    admitted: u32,
    left_out: u64,
}

impl Limit {
    /// At most `burst` attempts in a `period`, which begins with the first of them.
    #[must_use]
    pub const fn new(burst: u32, period: Duration) -> Self {
        Self { burst, period, window: Mutex::new(Window { since: None, admitted: 0, left_out: 0 }) }
    }

    /// The limit for one place in the code that logs.
    #[must_use]
    pub const fn of_log_lines() -> Self {
        Self::new(BURST, PERIOD)
    }

    /// `None` when there were too many lately. Else how many attempts were turned down since the last one
    /// that was not.
    pub fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.since.is_none_or(|since| now.saturating_duration_since(since) >= self.period) {
            (window.since, window.admitted) = (Some(now), 0);
        }
        if window.admitted >= self.burst {
            window.left_out = window.left_out.saturating_add(1);
            return None;
        }
        window.admitted += 1;
        Some(std::mem::take(&mut window.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_the_rest_is_counted() {
        let (limit, start) = (Limit::new(3, Duration::from_secs(10)), Instant::now());
        let admitted: Vec<_> = (0..1000).filter_map(|_| limit.admit_at(start)).collect();
        assert_eq!(admitted, [0, 0, 0]);
        assert_eq!(limit.admit_at(start + Duration::from_secs(9)), None);
        let later = start + Duration::from_secs(10);
        assert_eq!((limit.admit_at(later), limit.admit_at(later)), (Some(998), Some(0)));
    }

    #[test]
    fn each_place_in_the_code_has_a_limit_of_its_own() {
        // Compiles in every form that `tracing` has; which lines come out is tested above.
        for number in 0..3 {
            warn_limited!("number {number}");
            warn_limited!(device = "_disk0", "number {}", number);
            info_limited!("another place");
        }
    }
}
