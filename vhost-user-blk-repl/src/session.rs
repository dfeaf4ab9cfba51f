//! The right to report about a mirror stream, which ends with the stream: late reports would be taken for the
//! next one's.

use std::sync::{Arc, Mutex};

use device_kit::control::Reporter;
use ft_wire::device_ctl::Report;
use host_kit::sync::lock;

/// Right to report about one mirror stream, until it is closed.
#[derive(Clone)]
pub struct Session {
    reporter: Reporter,
    live: Arc<Mutex<bool>>,
}

impl Session {
    /// A live session.
    #[must_use]
    pub fn new(reporter: Reporter) -> Self {
        Self { reporter, live: Arc::new(Mutex::new(true)) }
    }

    /// Reports, if the session is not closed.
    pub fn report(&self, report: &Report) {
        let live = lock(&self.live);
        if *live {
            self.reporter.report(report);
        }
    }

    /// Reports progress, if the session is not closed and the VMM is not behind.
    pub fn progress(&self, report: &Report) {
        let live = lock(&self.live);
        if *live {
            self.reporter.report_if_room(report);
        }
    }

    /// Reports one last thing and closes the session.
    pub fn finish(&self, report: &Report) {
        let mut live = lock(&self.live);
        if *live {
            self.reporter.report(report);
        }
        *live = false;
    }

    /// No report is sent after this returns.
    pub fn close(&self) {
        *lock(&self.live) = false;
    }
}
