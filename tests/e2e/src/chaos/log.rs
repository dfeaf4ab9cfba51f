//! A client's record of its own operations, shared with the run that looks at it while the client works.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::history::{Action, Ledger, Operation};
use crate::Result;

/// A record that the client appends to and others read.
#[derive(Clone, Debug)]
pub struct Log {
    origin: Instant,
    inner: Arc<Mutex<Inner>>,
}

/// What a client has seen.
#[derive(Clone, Debug, Default)]
pub struct Inner {
    /// Its operations, in the order in which it sent them.
    pub operations: Vec<Operation>,
    /// When a connection broke, and why, but for those that had to.
    pub breaks: Vec<(Duration, String)>,
    /// What tells the connection that it should have from any other.
    pub session: String,
}

impl Log {
    /// An empty record; times count from `origin`.
    #[must_use]
    pub fn new(origin: Instant) -> Self {
        Self { origin, inner: Arc::default() }
    }

    /// Notes `action` as sent, lets `work` carry it out, and notes what it answered. Without an answer it
    /// stays unknown.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn perform(&self, ledger: Ledger, action: Action, work: impl FnOnce() -> Result<Action>) -> Result<()> {
        let operation = Operation { ledger, action, invoked: self.origin.elapsed(), answered: None };
        let at = {
            let mut inner = self.lock();
            inner.operations.push(operation);
            inner.operations.len() - 1
        };
        let action = work()?;
        let answered = Some(self.origin.elapsed());
        self.lock().operations[at] = Operation { action, answered, ..operation };
        Ok(())
    }

    /// Notes that the connection broke.
    pub fn broke(&self, reason: String) {
        let at = self.origin.elapsed();
        self.lock().breaks.push((at, reason));
    }

    /// Notes a new connection that is right: the first one, or one after a break that had to be.
    pub fn began(&self, session: String) {
        self.lock().session = session;
    }

    /// How many operations were answered.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.lock().operations.iter().filter(|op| op.answered.is_some()).count()
    }

    /// The longest wait for an answer that touches the time since `from`, up to now.
    #[must_use]
    pub fn longest_wait(&self, from: Instant) -> Duration {
        let inner = self.lock();
        let answers = inner.operations.iter().filter_map(|op| op.answered);
        longest_gap(answers, from.saturating_duration_since(self.origin), self.origin.elapsed())
    }

    /// A copy of the record.
    #[must_use]
    pub fn copy(&self) -> Inner {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The longest time between two neighbours of `answers` (which rise), or the last one and `now`, that reaches
/// beyond `from`.
fn longest_gap(answers: impl Iterator<Item = Duration>, from: Duration, now: Duration) -> Duration {
    let mut longest = Duration::ZERO;
    let mut last = Duration::ZERO;
    for answer in answers.chain([now]) {
        if answer > from {
            longest = longest.max(answer.saturating_sub(last));
        }
        last = answer;
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn a_failed_operation_stays_unknown() {
        let log = Log::new(Instant::now());
        let write = Action::Write { seq: 1 };
        log.perform(Ledger::Keys, write, || Ok(write)).unwrap();
        log.perform(Ledger::Keys, Action::Write { seq: 2 }, || Err(Error::Interrupted)).unwrap_err();
        let copy = log.copy();
        assert!(copy.operations[0].answered.is_some_and(|at| at >= copy.operations[0].invoked));
        assert_eq!(copy.operations[1].answered, None);
        assert_eq!(log.answered(), 1);
    }

    #[test]
    fn the_longest_gap_counts_from_the_last_answer_before() {
        let answers = [1000, 1010, 1020, 1500, 1510].map(Duration::from_millis);
        let gap = |from: u64, now: u64| {
            let [from, now] = [from, now].map(Duration::from_millis);
            longest_gap(answers.into_iter(), from, now).as_millis()
        };
        assert_eq!(gap(1200, 1515), 480);
        assert_eq!(gap(1020, 1515), 480);
        assert_eq!(gap(1505, 1515), 10);
        assert_eq!(gap(1200, 2500), 990, "an answer that has not come counts too");
    }
}
