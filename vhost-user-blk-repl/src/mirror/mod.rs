//! Primary end of the mirror stream: sends the guest's writes by epoch, makes the standby's image equal in
//! the background, and settles with it what both have on stable storage.
//!
//! ```text
//!   worker ──Mirror──► stream: state (outbox, copy_window) ──► sender ════ ft_wire ════► standby
//!                         ▲                   ▲                   ▲ Begin                   ║
//!                         │ Copy, Hashes      │ Renamed           │                         ║
//!                       copier ◄─Plan, Differ─┴──── feedback ◄══════════════════════════════╝
//! ```
//! In: guest writes as they start, epoch ends, releases, and the peer's answers. Out: the stream, reports,
//! and a wake-up for the worker when there is room again. Never blocks its caller, and never delays the local
//! disk after the stream broke.

mod copier;
mod copy_window;
mod feedback;
mod outbox;
mod plan;
mod sender;
mod state;
mod stream;
mod uncommitted;

pub use outbox::Room;

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use ft_proto::Epoch;
use ft_transport::mirror::MirrorStream;
use ft_wire::mirror::{Frame, Greeting, Kind};
use host_kit::sandbox::Needs;
use vmm_sys_util::eventfd::EventFd;

use crate::image::Image;
use crate::image::buffer::Buffer;
use crate::image::range::Range;
use crate::record::{Base, new_id};
use crate::session::Session;
use crate::tracker::{PrimarySession, Tracker};
use copier::Copier;
use feedback::Feedback;
use outbox::Body;
use sender::Sender;
use stream::Stream;

/// Settings of one stream.
pub struct Settings {
    /// First epoch of the stream.
    pub epoch: Epoch,
    /// The VMM's bound in bytes; half of it may be uncommitted here.
    pub max_uncommitted: u64,
    /// Limit of the background copy in bytes per second; 0 is none.
    pub rate: u64,
    /// Serial of the disk.
    pub serial: String,
}

/// One stream. Dropping it closes the stream.
pub struct Mirror {
    stream: Arc<Stream>,
    record: Arc<PrimarySession>,
}

impl Mirror {
    /// Greets the peer on `stream` and makes its image equal to `image` in the background.
    /// `earlier` are the ids of writes that have been started but are not done. `wake` is signalled when the
    /// worker should try again.
    ///
    /// # Errors
    /// When the descriptor is not a socket or the kernel refuses a thread.
    pub fn new(
        stream: MirrorStream,
        settings: Settings,
        image: Arc<dyn Image>,
        earlier: HashSet<u64>,
        reports: Session,
        (tracker, wake): (Tracker, Arc<EventFd>),
    ) -> io::Result<Self> {
        let Settings { epoch, max_uncommitted, rate, serial } = settings;
        let stream = Arc::new(Stream::new(stream, (epoch, max_uncommitted, earlier), reports, wake)?);
        let record = Arc::new(tracker.begin_session());
        let mirror = Self { stream: stream.clone(), record: record.clone() };
        let on_record = record.record();
        let greeting = Greeting { serial, vm: on_record.vm, term: on_record.term };
        let (feedback, begin, answers) = Feedback::new(stream.clone(), record.clone());
        let (sender, size) = (Sender::new(stream.clone()), image.size());
        host_kit::thread::spawn("blk_send", Needs::MESSAGES | Needs::SCHEDULE, move || {
            sender.run(epoch, size, &greeting, &begin)
        })?;
        host_kit::thread::spawn("blk_feedback", Needs::MESSAGES | Needs::STORAGE, move || feedback.run())?;
        let copier = Copier::new(stream, record, image, answers, rate);
        host_kit::thread::spawn("blk_copy", Needs::MESSAGES | Needs::STORAGE, move || copier.run())?;
        Ok(mirror)
    }

    /// Whether a write of `len` bytes may be taken now, with `waiting` bytes of writes taken that are not
    /// started.
    #[must_use]
    pub fn room(&self, len: u64, waiting: u64) -> Room {
        self.stream.with(|state| state.outbox_mut().room(len, waiting))
    }

    /// A write with this id is started in `epoch`.
    pub fn write(&self, id: u64, epoch: Epoch, offset: u64, data: &Arc<Buffer>) {
        let range = Range::new(offset, data.len() as u64);
        let frame = Frame { kind: Kind::Write, epoch, offset, len: range.len };
        self.stream.update(|state| state.guest_write(id, &[range], [(frame, Body::all(data))].into_iter()));
    }

    /// A discard or write-zeroes with this id is started in `epoch`.
    pub fn zero(&self, id: u64, epoch: Epoch, ranges: &[Range]) {
        let frame = |range: &Range| Frame { kind: Kind::Zeroes, epoch, offset: range.offset, len: range.len };
        let frames = ranges.iter().map(|range| (frame(range), Body::None));
        self.stream.update(|state| state.guest_write(id, ranges, frames));
    }

    /// The write with this id is in the local image (or failed). Other ids are ignored.
    pub fn completed(&self, id: u64) {
        if self.stream.with(|state| state.write_done(id)) {
            self.stream.notify();
        }
    }

    /// `epoch` is over: all of it is queued, and `next` follows. Whether the epoch is idle: then it has no
    /// frames, and the standby's disk is not told of it. On a broken stream no epoch is idle.
    pub fn end(&self, epoch: Epoch, next: Epoch) -> bool {
        let idle = self.stream.with(|state| state.end_epoch(epoch, next));
        if !idle {
            self.stream.notify();
        }
        idle
    }

    /// Writes belong to `epoch` from now on.
    pub fn set_epoch(&self, epoch: Epoch) {
        self.stream.with(|state| state.outbox_mut().set_epoch(epoch));
    }

    /// The standby holds everything up to and including `epoch`.
    pub fn release(&self, epoch: Epoch) {
        self.stream.with(|state| state.outbox_mut().release(epoch));
    }

    /// Asks the standby what it has on stable storage, if there are so many marks that some should be
    /// removed.
    pub fn settle_if_due(&self) {
        if self.record.settle_is_due() {
            self.stream.update(|state| state.persist(Base(new_id())));
        }
    }

    /// Bytes that the standby has not committed.
    #[must_use]
    pub fn uncommitted(&self) -> u64 {
        self.stream.with(|state| state.outbox().uncommitted())
    }

    /// Whether the stream has broken.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.stream.with(|state| state.is_lost())
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.record.end();
        self.stream.close();
    }
}
