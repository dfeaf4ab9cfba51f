//! How long epochs are, within the operator's limits, by what the last ones cost.
//!
//! An epoch that no output cuts must be neither too long nor too short. Output in the middle of it waits
//! until all of its pages have arrived, so while that takes too long, epochs with many pages are made
//! shorter. But each epoch costs the guest a pause, and write faults on its pages, so the pause must stay a
//! small share of the guest's time.

use std::time::Duration;

use crate::events::Settings;

/// An epoch that output cuts lasts at least this many times the pause before it: a guest that always sends
/// keeps most of its time.
const REST: u32 = 2;
/// With fewer pages than this a shorter epoch would not be faster.
const PAGES_FEW: u64 = 128;

/// What the last epochs cost, and what follows for the next.
#[cfg_attr(feature = "model", derive(Clone, Eq, Hash, PartialEq))]
#[derive(Debug)]
pub(crate) struct Pace {
    /// The guest's last pause.
    pause: Duration,
    /// The longest epoch, as far as the standby's latency decides it.
    longest: Duration,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self { pause: Duration::ZERO, longest: Duration::MAX }
    }

    /// The shortest epoch.
    pub(crate) fn shortest(&self, settings: &Settings) -> Duration {
        settings.min_epoch.max(self.pause.saturating_mul(REST)).min(settings.max_epoch)
    }

    /// The longest epoch.
    pub(crate) fn longest(&self, settings: &Settings) -> Duration {
        let share = settings.pause_share.clamp(1, 100);
        let least = self.pause.saturating_mul(100 - share) / share;
        self.longest.max(least).max(self.shortest(settings)).min(settings.max_epoch)
    }

    /// The guest was paused for a checkpoint.
    pub(crate) fn paused(&mut self, pause: Duration) {
        self.pause = pause;
    }

    /// An epoch of `pages` is committed, this long after the guest resumed.
    pub(crate) fn committed(&mut self, pages: u64, took: Duration, settings: &Settings) {
        let longest = self.longest(settings);
        if took > settings.latency && pages > PAGES_FEW {
            self.longest = longest / 4 * 3;
        } else if took < settings.latency / 2 {
            self.longest = longest.saturating_mul(5) / 4;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn settings() -> Settings {
        Settings { min_epoch: MS / 10, max_epoch: MS * 20, latency: MS * 2, pause_share: 25, ..Settings::default() }
    }

    /// A guest that writes so many pages per millisecond, and a link that needs 2 µs for each.
    fn settle(pages_per_ms: u64, pause: Duration) -> (Duration, Duration) {
        let mut pace = Pace::new();
        let settings = settings();
        for _ in 0..200 {
            pace.paused(pause);
            let epoch = pace.longest(&settings);
            let pages = pages_per_ms * u64::try_from(epoch.as_micros()).unwrap() / 1000;
            pace.committed(pages, Duration::from_micros(200 + 2 * pages), &settings);
        }
        let epoch = pace.longest(&settings);
        (epoch, Duration::from_micros(200 + 2 * pages_per_ms * u64::try_from(epoch.as_micros()).unwrap() / 1000))
    }

    #[test]
    fn a_guest_that_writes_little_has_the_longest_epochs() {
        assert_eq!(settle(10, MS / 10).0, MS * 20);
    }

    #[test]
    fn a_guest_that_writes_much_has_epochs_that_arrive_in_time() {
        let (epoch, took) = settle(500, MS / 10);
        assert!(epoch < MS * 3 && took <= MS * 2 && took >= MS, "{epoch:?}, {took:?}");
    }

    #[test]
    fn the_guest_keeps_its_share_whatever_comes_late() {
        let (epoch, took) = settle(5000, MS);
        assert_eq!(epoch, MS * 3, "a pause of 1 ms, a quarter of the time");
        assert!(took > MS * 2);
        let mut pace = Pace::new();
        pace.paused(MS);
        assert_eq!(pace.shortest(&settings()), MS * 2);
    }

    #[test]
    fn what_is_slow_for_other_reasons_does_not_shorten_epochs() {
        let mut pace = Pace::new();
        (0..100).for_each(|_| pace.committed(PAGES_FEW, MS * 50, &settings()));
        assert_eq!(pace.longest(&settings()), MS * 20);
    }

    #[test]
    fn bounds_hold_whatever_is_set() {
        let mut pace = Pace::new();
        pace.paused(Duration::from_secs(10));
        let settings = Settings { pause_share: 0, ..settings() };
        assert_eq!((pace.shortest(&settings), pace.longest(&settings)), (MS * 20, MS * 20));
        (0..100).for_each(|_| pace.committed(u64::MAX, Duration::MAX, &settings));
        (0..100).for_each(|_| pace.committed(0, Duration::ZERO, &settings));
        assert_eq!(pace.longest(&settings), MS * 20);
    }
}
