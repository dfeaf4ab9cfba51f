//! Counts what is not worth a line of the log each, and makes one line of it per interval.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Between two lines.
const INTERVAL: Duration = Duration::from_secs(10);

/// Counts by cause.
#[derive(Debug)]
pub(crate) struct Tally {
    /// What is counted.
    what: &'static str,
    counts: BTreeMap<&'static str, u64>,
    /// The first one of them since the last line, in words.
    first: String,
    /// No line before this.
    next: Option<Instant>,
}

impl Tally {
    /// Nothing yet of `what`.
    pub(crate) fn new(what: &'static str) -> Self {
        Self { what, counts: BTreeMap::new(), first: String::new(), next: None }
    }

    /// One more, because of `cause`.
    pub(crate) fn add(&mut self, cause: &'static str, example: impl FnOnce() -> String) {
        *self.counts.entry(cause).or_default() += 1;
        if self.first.is_empty() {
            self.first = example();
        }
    }

    /// When [`Self::line`] has something to say, if nothing is added.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.next.filter(|_| !self.counts.is_empty())
    }

    /// What was counted since the last line, if it is time for one.
    pub(crate) fn line(&mut self, now: Instant) -> Option<String> {
        if self.counts.is_empty() || self.next.is_some_and(|next| now < next) {
            return None;
        }
        self.next = Some(now + INTERVAL);
        let all: u64 = self.counts.values().sum();
        let causes: Vec<_> = self.counts.iter().map(|(cause, count)| format!("{count} {cause}")).collect();
        let line = format!("{}: {all} ({}), the first {}", self.what, causes.join(", "), self.first);
        self.counts.clear();
        self.first.clear();
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_the_others_by_their_number() {
        let (mut tally, now) = (Tally::new("callers turned away"), Instant::now());
        assert_eq!((tally.line(now), tally.due()), (None, None));
        tally.add("silent", || "10.0.0.9:1".to_owned());
        assert_eq!(tally.line(now).unwrap(), "callers turned away: 1 (1 silent), the first 10.0.0.9:1");
        for n in 2..24_000 {
            tally.add(if n % 2 == 0 { "silent" } else { "not of our protocol" }, || format!("10.0.0.9:{n}"));
            assert_eq!(tally.line(now), None);
        }
        assert_eq!(tally.due(), Some(now + INTERVAL));
        let line = tally.line(now + INTERVAL).unwrap();
        assert_eq!(line, "callers turned away: 23998 (11999 not of our protocol, 11999 silent), the first 10.0.0.9:2");
        assert_eq!((tally.line(now + 2 * INTERVAL), tally.due()), (None, None));
    }
}
