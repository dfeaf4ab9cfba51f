//! Keeps the image's record, which has a write-intent bitmap: a region is marked on stable storage before a
//! write to it reaches the image or the peer, and stays marked until both hosts have the write on stable
//! storage and have renamed their common state.
//!
//! ```text
//!   Tracker, PrimarySession, StandbyStream      handles for the guest's requests, the VMM and the streams
//!     ├─► lease       until when the image may be written
//!     └─► recorder    the lock, and the thread that writes the record
//!           └─► state     the image's part in replication
//!                 └─► source, replica     one session, one stream
//!                       └─► journal     the record, and how much of it is on stable storage
//! ```
//! Everything below `recorder` is pure. In: regions about to be written, sessions, roles, what the peer has
//! on stable storage. Out: an eventfd that is signalled when new marks are on stable storage.

mod journal;
mod lease;
mod primary;
mod recorder;
mod replica;
mod source;
mod standby;
mod state;

pub use journal::{RecordWriteError, Ticket};
pub use primary::PrimarySession;
pub use standby::{PlanRejected, StandbyStream};
pub use state::WrongImage;

use std::io;
use std::sync::Arc;

use ft_proto::{Epoch, Term, VmId};
use ft_wire::mirror::{Answer, Begin, Greeting};
use vmm_sys_util::eventfd::EventFd;

use crate::image::range::Range;
use crate::image::{Image, SyncedImage};
use crate::record::{Opened, Purpose, Record, new_id};
use lease::{LeasedImage, WriteLease};
use recorder::Recorder;
use state::State;

/// The record of one image.
#[derive(Clone)]
pub struct Tracker {
    recorder: Arc<Recorder>,
    synced: Arc<SyncedImage>,
    image: Arc<dyn Image>,
}

impl Tracker {
    /// For an image with what [`crate::record::RecordFile::open`] found; `None` for one that keeps no
    /// record. `wake` is written when a write that had to wait may be tried again, and when the image has
    /// failed. From here on the image is to be used as [`Tracker::image`].
    ///
    /// # Errors
    /// When the kernel refuses memory or a thread.
    pub fn new(opened: Option<Opened>, image: Arc<dyn Image>, wake: Arc<EventFd>) -> io::Result<Self> {
        let kept = opened.is_some();
        let (file, record, purpose) = match opened.map(Opened::into_parts) {
            Some((file, record, purpose)) => (Some(file), record, purpose),
            None => (None, None, Purpose::StandBy),
        };
        let (state, first) = State::new(record, purpose, image.size(), kept);
        let failed = wake.clone();
        // Fails only when the counter is at its end, and then it is readable already.
        let synced = Arc::new(SyncedImage::new(image, Box::new(move || drop(failed.write(1)))));
        let lease = WriteLease::new(synced.clone(), new_id(), kept)?;
        let image: Arc<dyn Image> = if kept { Arc::new(LeasedImage(lease.clone())) } else { synced.clone() };
        let recorder = Arc::new(Recorder::new(state, file, lease, synced.clone(), wake)?);
        if let Some(first) = first {
            // The operator's decision must survive a crash.
            recorder.wait(first).map_err(io::Error::other)?;
        }
        Ok(Self { recorder, synced, image })
    }

    /// The image, written under a lease, and synced in one place.
    #[must_use]
    pub fn image(&self) -> &Arc<dyn Image> {
        &self.image
    }

    /// What may be missing in the image, and why, if it could not be put on stable storage. That is for good.
    #[must_use]
    pub fn image_failure(&self) -> Option<String> {
        self.synced.failure()
    }

    /// The record as it should be now; a new one when none is kept.
    #[must_use]
    pub fn record(&self) -> Record {
        self.recorder.update(|state| state.record())
    }

    /// Whether a guest's write to `ranges` in `epoch` may go to the image and the peer now. If not, it may be
    /// tried again when the eventfd is written.
    #[must_use]
    pub fn may_write(&self, ranges: &[Range], epoch: Epoch) -> bool {
        self.recorder.update(|state| state.may_write(ranges, epoch))
    }

    /// Whether a guest's flush may be performed now. If not, it may be tried again when the eventfd is
    /// written. One of an image that has failed fails at once.
    #[must_use]
    pub fn may_flush(&self) -> bool {
        self.recorder.update(|state| state.may_flush()) || self.synced.failure().is_some()
    }

    /// Standby: marks the regions of writes for which [`Tracker::mark_and_wait`] is going to be called. Does
    /// not block.
    pub fn mark_ahead(&self, ranges: impl Iterator<Item = Range>) {
        self.recorder.update(|state| state.mark_ahead(ranges));
    }

    /// Standby: blocks until the regions of `range`, which is written next, are marked.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn mark_and_wait(&self, range: Range) -> Result<(), RecordWriteError> {
        let ticket = self.recorder.update(|state| state.mark_for_write(range));
        ticket.map_or(Ok(()), |ticket| self.recorder.wait(ticket))
    }

    /// A primary's session begins.
    #[must_use]
    pub fn begin_session(&self) -> PrimarySession {
        PrimarySession::new(self.recorder.clone(), self.image.clone())
    }

    /// What a standby tells a primary of its record.
    #[must_use]
    pub fn answer(&self) -> Answer {
        let record = self.record();
        Answer {
            disk: record.disk,
            vm: record.vm,
            base: record.base.map(|base| base.0),
            former: record.former.map(|base| base.0),
            generation: record.generation,
            marks: record.marks.to_bytes(),
            empty: self.image.hole_end(0).is_some_and(|end| end >= self.image.size()),
        }
    }

    /// Standby: checks whether this image may become a copy of the greeting's disk.
    ///
    /// # Errors
    /// When this image is of another VM.
    pub fn check(&self, greeting: &Greeting) -> Result<(), WrongImage> {
        match (self.record().vm, greeting.vm) {
            (Some(image), Some(vm)) if image != vm => Err(WrongImage::Vm { image, vm }),
            _ => Ok(()),
        }
    }

    /// The image is a standby's from here on. Does not block: see [`StandbyStream::wait_begun`].
    ///
    /// # Errors
    /// When the plan is not for this image.
    pub fn receive(&self, greeting: &Greeting, begin: &Begin) -> Result<StandbyStream, PlanRejected> {
        StandbyStream::new(self.recorder.clone(), greeting, begin)
    }

    /// The VM runs from this copy, and no other can be newer. Does not block, but the guest's next write or
    /// flush waits for it.
    pub fn alone(&self) {
        self.recorder.update(|state| state.run_alone(None));
    }

    /// As [`Tracker::alone`]; the VM ran elsewhere, in the term before. The image is put on stable storage
    /// before that is on record.
    pub fn take_over(&self) {
        self.recorder.update(State::take_over);
    }

    /// `vm` runs from this copy in `term`, and no other can be newer. Does not block: [`Tracker::outcome`]
    /// says when that is on stable storage. The guest's next write waits for it.
    ///
    /// # Errors
    /// When the image is another VM's, or has been used later.
    pub fn own(&self, vm: VmId, term: Term) -> Result<Ticket, WrongImage> {
        self.recorder.update(|state| state.own(vm, term))
    }

    /// Whether a change is on stable storage; `None`: not yet.
    #[must_use]
    pub fn outcome(&self, ticket: Ticket) -> Option<Result<(), RecordWriteError>> {
        self.recorder.update(|state| state.journal().outcome(ticket))
    }

    /// The VM is shut down in `term`, and this is its newest image. Blocks until that is on stable storage.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn end(&self, term: Term) -> Result<(), RecordWriteError> {
        let ticket = self.recorder.update(|state| state.end(term));
        ticket.map_or(Ok(()), |ticket| self.recorder.wait(ticket))
    }

    /// Why the record cannot be written, if that was not reported before.
    #[must_use]
    pub fn take_trouble(&self) -> Option<RecordWriteError> {
        self.recorder.update(|state| state.journal_mut().take_trouble())
    }

    /// Blocks until the record as it should be now is on stable storage.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn written(&self) -> Result<(), RecordWriteError> {
        let ticket = self.recorder.update(|state| state.journal_mut().ticket());
        self.recorder.wait(ticket)
    }

    /// Closes the image, for good: later writes fail. Records that, and ends the recording thread.
    pub fn close(&self) {
        self.recorder.close();
    }
}
