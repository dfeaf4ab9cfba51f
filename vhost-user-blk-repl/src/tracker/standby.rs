//! Handle on a standby's stream, for the image's record.

use std::sync::Arc;

use ft_wire::mirror::{Begin, Greeting};

use crate::record::Base;
use crate::tracker::journal::{RecordWriteError, Ticket};
use crate::tracker::recorder::Recorder;

/// A peer whose plan does not fit this image.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PlanRejected {
    /// It refers to this image by a name that is not on record.
    #[error("the peer misbehaves: it refers to a state of this image that is not on record")]
    Base,
    /// It cannot be noted.
    #[error(transparent)]
    Record(#[from] RecordWriteError),
}

/// The stream whose copy the image is becoming. Calls have no effect once another stream has begun, or the VM
/// runs here.
#[derive(Clone)]
pub struct StandbyStream {
    recorder: Arc<Recorder>,
    number: u64,
    begun: Ticket,
}

impl StandbyStream {
    /// The image is a standby's from here on. Does not block.
    pub(super) fn new(recorder: Arc<Recorder>, greeting: &Greeting, begin: &Begin) -> Result<Self, PlanRejected> {
        let begun = recorder.update(|state| state.begin_replica(greeting, begin));
        let (number, begun) = begun.ok_or(PlanRejected::Base)?;
        Ok(Self { recorder, number, begun })
    }

    /// Blocks until it is on stable storage that the image is a standby's: nothing may be written to it
    /// before.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn wait_begun(&self) -> Result<(), PlanRejected> {
        Ok(self.recorder.wait(self.begun)?)
    }

    /// Between two writes: the image's state at this point gets a new name. Later writes are marked relative
    /// to it.
    pub fn begin_renaming(&self) {
        self.recorder.update(|state| state.begin_renaming(self.number));
    }

    /// All that was in the image at [`StandbyStream::begin_renaming`] is on stable storage, and its name is
    /// `base`; the whole copy, if it is the first of the stream. Blocks until that is on stable storage too.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn rename(&self, base: Base) -> Result<(), RecordWriteError> {
        let ticket = self.recorder.update(|state| state.rename(self.number, base));
        self.recorder.wait(ticket)
    }

    /// The primary has the new name on stable storage, too: earlier writes need no marks any more.
    pub fn renamed(&self) {
        self.recorder.update(|state| state.renamed(self.number));
    }
}
