//! Standby end of the mirror stream: takes frames in, holds writes by epoch, applies them on release.
//!
//! ```text
//!   primary ════ ft_wire ════► reader ──► incoming ──release──► applier ──► image
//!      ║                         │           protocol: in which order          │
//!      ║                         ▼           epoch_log: held until released    │
//!      ╚══════════════════════ reply ◄────── naming: on stable storage ◄───────┤
//!                                            flusher: the same, unasked ◄──────┘
//! ```
//! In: the stream, and `Release`, `Discard` from the VMM. Out: changes of the image, reports, replies to the
//! primary. Never applies a write of an epoch that is not released (once the copy is complete), nor anything
//! from a stream it has refused.

mod applier;
mod epoch_log;
mod flusher;
mod incoming;
mod naming;
mod protocol;
mod reader;
mod reply;

pub use applier::Applier;
#[cfg(feature = "fuzzing")]
pub use epoch_log::Change;
pub use incoming::{Incoming, StateError};
#[cfg(feature = "fuzzing")]
pub use protocol::Step;
pub use reader::Disk;

use std::io;
use std::net::Shutdown;
use std::sync::{Arc, Mutex};

use ft_proto::Epoch;
use ft_transport::mirror::{FrameSocket, MirrorStream};
use ft_wire::mirror::MAX_BODY;
use host_kit::sandbox::Needs;
use host_kit::sync::lock;

use crate::session::Session;
use crate::tracker::Tracker;
use reader::Reader;
use reply::Replies;

/// One stream. Dropping it closes the stream; held writes that were not released are gone then.
pub struct Receiver {
    incoming: Arc<Mutex<Incoming>>,
    replies: Arc<Replies>,
    reports: Session,
    tracker: Tracker,
    applier: Arc<Applier>,
}

impl Receiver {
    /// Starts to serve `stream` for `disk`; holds at most `limit` bytes.
    ///
    /// # Errors
    /// When the descriptor is not a socket or the kernel refuses a thread.
    pub fn new(stream: MirrorStream, disk: Disk, limit: u64, reports: Session) -> io::Result<Self> {
        // A primary may exceed its own bound, half of this, by one request.
        let limit = limit.max(3 * MAX_BODY as u64);
        let incoming = Arc::new(Mutex::new(Incoming::new(disk.image.size(), limit)));
        let replies = Arc::new(Replies::new(FrameSocket::new(stream)?));
        let (tracker, applier) = (disk.tracker.clone(), disk.applier.clone());
        let reader = Reader::new(disk, incoming.clone(), replies.clone(), reports.clone(), limit);
        host_kit::thread::spawn("blk_recv", Needs::MESSAGES | Needs::SCHEDULE, move || reader.run())?;
        Ok(Self { incoming, replies, reports, tracker, applier })
    }

    /// Applies the writes of all epochs up to and including `epoch`, in order. Does not block.
    ///
    /// # Errors
    /// When they are not all here.
    pub fn release(&self, epoch: Epoch) -> Result<(), StateError> {
        let mut incoming = lock(&self.incoming);
        // Under the lock: the reading thread must not queue anything in between.
        let changes = incoming.release(epoch)?;
        self.tracker.mark_ahead(changes.iter().map(|change| change.range));
        changes.into_iter().for_each(|change| self.applier.apply(change));
        Ok(())
    }

    /// Drops the writes of all epochs after `epoch` and takes no more frames.
    ///
    /// # Errors
    /// When the image does not, or will not, hold exactly what it held at the end of `epoch`.
    pub fn discard_after(&self, epoch: Epoch) -> Result<(), StateError> {
        self.close();
        lock(&self.incoming).discard_after(epoch)
    }

    /// Bytes of writes that are held.
    #[must_use]
    pub fn held(&self) -> u64 {
        lock(&self.incoming).held()
    }

    fn close(&self) {
        self.reports.close();
        lock(&self.incoming).close();
        self.replies.socket().shutdown(Shutdown::Both);
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.close();
    }
}
