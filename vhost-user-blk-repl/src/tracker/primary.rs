//! Handle on a primary's session with its standby, for the image's record.

use std::sync::Arc;
use std::time::Instant;

use ft_proto::Epoch;
use tracing::warn;

use crate::image::Image;
use crate::image::range::Range;
use crate::record::{Base, Record};
use crate::tracker::journal::RecordWriteError;
use crate::tracker::recorder::Recorder;

/// The session. Once it has ended, no marks are removed any more.
pub struct PrimarySession {
    recorder: Arc<Recorder>,
    image: Arc<dyn Image>,
    number: u64,
}

impl PrimarySession {
    /// Begins one.
    #[must_use]
    pub(super) fn new(recorder: Arc<Recorder>, image: Arc<dyn Image>) -> Self {
        let number = recorder.update(|state| state.begin_source());
        Self { recorder, image, number }
    }

    /// Ends it.
    pub fn end(&self) {
        self.recorder.update(|state| state.end_source(self.number));
    }

    /// The image's record as it should be now; a new one when none is kept.
    #[must_use]
    pub fn record(&self) -> Record {
        self.recorder.update(|state| state.record())
    }

    /// From here on the standby may take over. Blocks until that is on stable storage. Whether it is: not
    /// when the session has ended.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn protected(&self) -> Result<bool, RecordWriteError> {
        let ticket = self.recorder.update(|state| state.protected(self.number));
        ticket.map_or(Ok(false), |ticket| self.recorder.wait(ticket).map(|()| true))
    }

    /// Whether the peer should be asked what it has on stable storage, so that marks can be removed.
    #[must_use]
    pub fn settle_is_due(&self) -> bool {
        self.recorder.update(|state| state.settle_is_due(Instant::now()))
    }

    /// The peer has everything up to and including `epoch` on stable storage, and calls what it has `base`;
    /// writes to `busy` are not in this image yet. Blocks until this image is on stable storage too and has
    /// that name; whether it has.
    #[must_use]
    pub fn settle(&self, epoch: Epoch, base: Base, busy: &[Range]) -> bool {
        let settled = self.recorder.update(|state| state.settled(self.number, epoch, busy));
        let Some(settled) = settled else { return false };
        if let Err(e) = self.image.sync() {
            warn!("cannot sync the image, its marks stay: {e}");
            return false;
        }
        let ticket = self.recorder.update(|state| state.settle(self.number, epoch, base, settled));
        ticket.is_some_and(|ticket| self.recorder.wait(ticket).is_ok())
    }
}

impl Drop for PrimarySession {
    fn drop(&mut self) {
        self.end();
    }
}
