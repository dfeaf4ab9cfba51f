//! How often this host has become a standby, and has failed to: when it is tried again.

use std::time::{Duration, Instant};

use host_kit::backoff::{Backoff, LONGEST};

/// How often this host has become a standby, and has failed to.
#[derive(Debug, Default)]
pub(super) struct Rebuilds {
    backoff: Backoff,
    /// When it did the last time, after the first.
    built: Option<Instant>,
}

impl Rebuilds {
    /// Whether what was built the last time has lasted; so has what was never built anew.
    pub(super) fn is_lasting(&self) -> bool {
        self.built.is_none_or(|built| built.elapsed() >= LONGEST)
    }

    pub(super) fn have_failed(&self) -> bool {
        self.backoff.has_failed() && !(self.built.is_some() && self.is_lasting())
    }

    pub(super) fn built(&mut self) {
        self.built = Some(Instant::now());
    }

    /// When to try again.
    pub(super) fn failed(&mut self) -> Duration {
        if self.built.take().is_some_and(|built| built.elapsed() >= LONGEST) {
            self.backoff.begin_anew();
        }
        self.backoff.failed()
    }
}
