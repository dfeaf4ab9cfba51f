//! How far a copy has come: how long it still takes, and which of its steps are worth an event. Pure.

use std::time::Duration;

use ft_proto::Time;

use crate::clock::millis;

/// Percent of a copy between two events.
const STEP: u128 = 10;
/// And at least so much time: a short copy has a beginning and an end.
const PAUSE: Duration = Duration::from_secs(1);

/// One copy since it began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProgressMeter {
    begun: Time,
    told: u128,
    told_at: Time,
}

impl ProgressMeter {
    pub(crate) fn begin(now: Time) -> Self {
        Self { begun: now, told: 0, told_at: now }
    }

    /// Seconds that are left at the rate so far.
    pub(crate) fn eta_s(&self, done: u64, total: u64, now: Time) -> Option<u64> {
        let millis = now.since(self.begun).as_millis();
        let left = millis * u128::from(total.saturating_sub(done)) / 1000;
        left.checked_div(u128::from(done)).and_then(|seconds| u64::try_from(seconds).ok())
    }

    /// Whether the copy has come so far since the last time that an event should say so. What is to be copied
    /// may grow meanwhile: a step is told once.
    pub(crate) fn is_news(&mut self, done: u64, total: u64, now: Time) -> bool {
        let percent = (u128::from(done) * 100).checked_div(u128::from(total)).unwrap_or(0);
        let news = percent >= self.told + STEP && percent < 100 && now.since(self.told_at) >= PAUSE;
        if news {
            (self.told, self.told_at) = (percent / STEP * STEP, now);
        }
        news
    }

    /// How long it has taken so far, in milliseconds.
    pub(crate) fn millis(&self, now: Time) -> u64 {
        millis(now.since(self.begun))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(n: u64) -> Time {
        Time::default() + Duration::from_secs(n)
    }

    #[test]
    fn the_rate_so_far_tells_what_is_left() {
        let meter = ProgressMeter::begin(second(5));
        assert_eq!(meter.eta_s(0, 100, second(6)), None);
        assert_eq!(meter.eta_s(40, 100, second(9)), Some(6));
        assert_eq!((meter.eta_s(100, 100, second(9)), meter.millis(second(9))), (Some(0), 4000));
    }

    #[test]
    fn a_long_copy_has_nine_steps_and_a_short_one_none() {
        let mut meter = ProgressMeter::begin(second(0));
        let told: Vec<u64> = (1..=100).filter(|n| meter.is_news(*n, 100, second(*n))).collect();
        assert_eq!(told, [10, 20, 30, 40, 50, 60, 70, 80, 90]);
        let mut meter = ProgressMeter::begin(second(0));
        assert!((1..=100).all(|n| !meter.is_news(n, 100, second(0))));
    }

    #[test]
    fn a_step_is_told_once_although_there_is_more_to_copy_by_then() {
        let mut meter = ProgressMeter::begin(second(0));
        assert!(meter.is_news(50, 100, second(2)));
        assert!(!meter.is_news(51, 200, second(4)));
        assert!(!meter.is_news(110, 200, second(6)));
        assert!(meter.is_news(120, 200, second(8)));
    }
}
