//! How long to wait before the next try of something that fails again and again: one second at first, then
//! twice as long each time, up to a minute.

use std::time::Duration;

/// After the first failure.
pub const SHORTEST: Duration = Duration::from_secs(1);
/// After many of them.
pub const LONGEST: Duration = Duration::from_secs(60);

/// The pauses between the tries of one thing.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: SHORTEST }
    }
}

impl Backoff {
    /// It has failed: how long to wait before the next try.
    pub fn failed(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST);
        pause
    }

    /// Whether it has failed since it was begun, or begun anew.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.next > SHORTEST
    }

    /// It has succeeded, or is another thing now.
    pub fn begin_anew(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_minute() {
        let mut backoff = Backoff::default();
        assert!(!backoff.has_failed());
        let pauses: Vec<_> = (0..8).map(|_| backoff.failed().as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(backoff.has_failed());
        backoff.begin_anew();
        assert_eq!((backoff.has_failed(), backoff.failed()), (false, SHORTEST));
    }
}
