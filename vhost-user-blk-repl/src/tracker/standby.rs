//! A standby's stream, as far as the image's record has to do with it.

use std::sync::Arc;

use crate::mirror_wire::{Begin, Greeting};
use crate::record::Base;
use crate::tracker::journal::{RecordLost, Ticket};
use crate::tracker::recorder::Recorder;

/// A peer whose plan does not fit this image.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotReceived {
    /// It calls this image by a name that it does not have.
    #[error("the peer misbehaves: it takes this image for what it is not on record to be")]
    Base,
    /// It cannot be noted.
    #[error(transparent)]
    Record(#[from] RecordLost),
}

/// The stream whose copy the image is becoming. Nothing happens once the image has become something else.
#[derive(Clone)]
pub struct StandbyStream {
    recorder: Arc<Recorder>,
    number: u64,
    begun: Ticket,
}

impl StandbyStream {
    /// The image is a standby's from here on. Does not block.
    pub(super) fn new(recorder: Arc<Recorder>, greeting: &Greeting, begin: &Begin) -> Result<Self, NotReceived> {
        let begun = recorder.update(|state| state.begin_replica(greeting, begin));
        let (number, begun) = begun.ok_or(NotReceived::Base)?;
        Ok(Self { recorder, number, begun })
    }

    /// Blocks until it is on stable storage that the image is a standby's: nothing may be written to it before.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn wait_begun(&self) -> Result<(), NotReceived> {
        Ok(self.recorder.wait(self.begun)?)
    }

    /// Between two writes: the state of the image now gets a new name. What is written from here on is marked by it.
    pub fn begin_renaming(&self) {
        self.recorder.update(|state| state.begin_renaming(self.number));
    }

    /// All that was in the image at [`StandbyStream::begin_renaming`] is on stable storage, and its name is `base`; the whole
    /// copy, if it is the first of the stream. Blocks until that is on stable storage too.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn rename(&self, base: Base) -> Result<(), RecordLost> {
        let ticket = self.recorder.update(|state| state.rename(self.number, base));
        self.recorder.wait(ticket)
    }

    /// The primary has the new name on stable storage. What was written before it is not marked any more.
    pub fn renamed(&self) {
        self.recorder.update(|state| state.renamed(self.number));
    }
}
