//! The thread that reads the mirror stream and processes each frame.
//!
//! The lock around [`Incoming`] is held while a frame is accepted and takes effect, so that none takes effect
//! after the stream is closed. It is never held during an access to storage or a socket, because a takeover
//! waits for it.

use std::io;
use std::net::Shutdown;
use std::sync::{Arc, Mutex};

use ft_proto::Epoch;
use ft_transport::mirror::ReadError;
use ft_wire::device_ctl::Report;
use ft_wire::mirror::{Begin, CHANGE_OVERHEAD, Frame, Greeting, Kind, Name, WireError, decode_fields};
use host_kit::sync::lock;
use tracing::{info, warn};

use crate::blocks::differing;
use crate::image::Image;
use crate::image::buffer::Buffer;
use crate::image::range::Range;
use crate::receive::applier::Applier;
use crate::receive::epoch_log::{Change, OverLimit};
use crate::receive::incoming::Incoming;
use crate::receive::naming::{Busy, Naming};
use crate::receive::protocol::{Step, Violation};
use crate::receive::reply::Replies;
use crate::record::Base;
use crate::session::Session;
use crate::tracker::{PlanRejected, StandbyStream, Tracker, WrongImage};

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("the peer closed the mirror stream")]
    Closed,
    #[error("the mirror stream ends in the middle of a frame")]
    Truncated,
    #[error("cannot read the mirror stream: {0}")]
    Read(io::Error),
    #[error("corrupt mirror stream: {0}")]
    Wire(#[from] WireError),
    #[error("the peer misbehaves: {0}")]
    Violation(#[from] Violation),
    #[error("the peer misbehaves: {0}")]
    OverLimit(#[from] OverLimit),
    #[error("the peer's disk has serial \"{theirs}\", this one has \"{ours}\": give both the same --serial")]
    Serial { theirs: String, ours: String },
    #[error("the peer misbehaves: it asks what is on stable storage before it had the last answer")]
    Impatient,
    #[error(transparent)]
    WrongImage(#[from] WrongImage),
    #[error(transparent)]
    PlanRejected(#[from] PlanRejected),
}

impl From<ReadError> for StreamError {
    fn from(e: ReadError) -> Self {
        match e {
            ReadError::Closed => Self::Closed,
            ReadError::Truncated => Self::Truncated,
            ReadError::Io(e) => Self::Read(e),
            ReadError::Wire(e) => Self::Wire(e),
        }
    }
}

impl From<Busy> for StreamError {
    fn from(_: Busy) -> Self {
        Self::Impatient
    }
}

/// What is known of the primary.
enum Peer {
    Unknown,
    Greeted(Greeting),
    /// The image is becoming its copy, to be given this name first.
    Begun(StandbyStream, Base),
}

/// What remains to be done for a frame without the lock.
enum Rest {
    Nothing,
    /// Send the record to the primary.
    Answer,
    /// Wait until the record says that the image is a standby's.
    Begin(StandbyStream),
    /// Report to the VMM that an epoch is complete.
    Complete(Epoch),
}

/// The local disk.
pub struct Disk {
    /// The image.
    pub image: Arc<dyn Image>,
    /// Its record.
    pub tracker: Tracker,
    /// Its serial.
    pub serial: String,
    /// Writes to the image.
    pub applier: Arc<Applier>,
}

/// The thread's state.
pub struct Reader {
    disk: Disk,
    incoming: Arc<Mutex<Incoming>>,
    replies: Arc<Replies>,
    reports: Session,
    naming: Arc<Naming>,
    peer: Peer,
    /// The stream waits while more bytes than this wait to be applied.
    limit: u64,
}

impl Reader {
    /// Of the stream that `replies` go to.
    #[must_use]
    pub fn new(
        disk: Disk,
        incoming: Arc<Mutex<Incoming>>,
        replies: Arc<Replies>,
        reports: Session,
        limit: u64,
    ) -> Self {
        let naming = Naming::new(disk.image.clone(), replies.clone());
        Self { disk, incoming, replies, reports, naming, peer: Peer::Unknown, limit }
    }

    /// Reads until the stream ends.
    pub fn run(mut self) {
        let reason = loop {
            // Back-pressure through the stream when this host's disk is the slow one.
            self.disk.applier.wait_below(self.limit);
            if let Err(e) = self.next_frame() {
                break e;
            }
        };
        {
            let mut incoming = lock(&self.incoming);
            if incoming.is_closed() {
                return;
            }
            incoming.discard_incomplete();
        }
        warn!("mirror stream: {reason}");
        self.reports.finish(&Report::MirrorLost { reason: reason.to_string() });
        if !matches!(reason, StreamError::Closed | StreamError::Truncated | StreamError::Read(_)) {
            self.replies.refuse(&reason.to_string());
        }
        self.replies.socket().shutdown(Shutdown::Both);
    }

    fn next_frame(&mut self) -> Result<(), StreamError> {
        let (frame, body, checksum) = self.replies.socket().read()?;
        let incoming = self.incoming.clone();
        let rest = {
            let mut incoming = lock(&incoming);
            if incoming.is_closed() {
                return Err(StreamError::Closed);
            }
            let step = incoming.accept(&frame, checksum)?;
            self.take(&mut incoming, step, &frame, body)?
        };
        match rest {
            Rest::Nothing => {}
            Rest::Answer => self.replies.answer(&self.disk.tracker.answer()),
            Rest::Begin(stream) => stream.wait_begun()?,
            Rest::Complete(epoch) => {
                self.reports.report(&Report::Complete { epoch });
                host_kit::sched::set_realtime(true);
            }
        }
        Ok(())
    }

    /// The effects of a frame, while the stream is known to be open. Does not block.
    fn take(&mut self, incoming: &mut Incoming, step: Step, frame: &Frame, body: Vec<u8>) -> Result<Rest, StreamError> {
        match step {
            Step::Greeted => {
                let greeting: Greeting = decode_fields(frame.kind, &body)?;
                self.check(&greeting)?;
                self.peer = Peer::Greeted(greeting);
                return Ok(Rest::Answer);
            }
            Step::Begun => {
                let begin: Begin = decode_fields(frame.kind, &body)?;
                let Peer::Greeted(greeting) = &self.peer else { return Err(WireError::Fields(Kind::Hello).into()) };
                let stream = self.disk.tracker.receive(greeting, &begin)?;
                info!("{} resynchronisation of this image begins", begin.kind.name());
                self.peer = Peer::Begun(stream.clone(), Base(begin.base));
                return Ok(Rest::Begin(stream));
            }
            Step::Compare => self.compare(range_of(frame), body),
            Step::Persist => {
                let Name { base } = decode_fields(frame.kind, &body)?;
                self.name(incoming.released(), Base(base))?;
            }
            Step::Renamed => {
                if let Peer::Begun(stream, _) = &self.peer {
                    stream.renamed();
                }
            }
            Step::Apply => self.disk.applier.apply(change(frame, body)),
            Step::Hold => incoming.hold(frame.epoch, change(frame, body))?,
            Step::Synced => {
                info!("copy of the disk is complete in epoch {}", frame.epoch);
                if let Peer::Begun(_, base) = &self.peer {
                    self.name(Epoch(0), *base)?;
                }
            }
            Step::Complete(epoch) => return Ok(Rest::Complete(epoch)),
        }
        Ok(Rest::Nothing)
    }

    fn check(&self, greeting: &Greeting) -> Result<(), StreamError> {
        let Greeting { serial, term, .. } = greeting;
        if *serial != self.disk.serial {
            return Err(StreamError::Serial { theirs: serial.clone(), ours: self.disk.serial.clone() });
        }
        if !term.is_plausible() {
            return Err(WireError::Fields(Kind::Hello).into());
        }
        Ok(self.disk.tracker.check(greeting)?)
    }

    /// Fields which blocks differ, once everything before is in the image.
    fn compare(&self, range: Range, theirs: Vec<u8>) {
        let (image, replies) = (self.disk.image.clone(), self.replies.clone());
        let cost = CHANGE_OVERHEAD + theirs.len() as u64;
        self.disk.applier.then(
            cost,
            Box::new(move |_| {
                let mut ours = Buffer::zeroed(range.len as usize);
                // Blocks that cannot be read are overwritten.
                let read = image.read_at(range.offset, &mut ours);
                let mask = if read.is_ok() { differing(&ours, &theirs) } else { u64::MAX };
                replies.differ(range.offset, mask);
            }),
        );
    }

    fn name(&self, epoch: Epoch, base: Base) -> Result<(), StreamError> {
        if let Peer::Begun(stream, _) = &self.peer {
            self.naming.begin(&self.disk.applier, stream.clone(), epoch, base)?;
        }
        Ok(())
    }
}

/// The part of the image that a frame is about.
fn range_of(frame: &Frame) -> Range {
    Range::new(frame.offset, frame.len)
}

fn change(frame: &Frame, body: Vec<u8>) -> Change {
    let data = matches!(frame.kind, Kind::Copy | Kind::Write).then_some(body);
    Change { range: range_of(frame), data }
}
