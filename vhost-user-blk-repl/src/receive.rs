//! Standby end of the mirror stream: takes frames in, holds writes by epoch, applies them on release.
//!
//! In: the stream, and `Release`, `Discard` from the VMM. Out: changes for the [`Applier`], reports, `reply`s to the primary. Never applies a
//! write of an epoch that is not released (once the copy is complete), nor anything from a stream it has refused.

use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use ft_proto::Epoch;
use ft_proto::device_ctl::Report;
use tracing::{info, warn};

use crate::applier::Applier;
use crate::buffer::Buffer;
use crate::control::Session;
use crate::epoch_log::{CHANGE_OVERHEAD, Change, EpochLog, OverLimit};
use crate::image::Image;
use crate::intake::{Intake, Step, Violation};
use crate::lock;
use crate::mirror::connected;
use crate::mirror_wire::{Begin, Frame, Greeting, HEADER_LEN, Kind, MAX_BODY, Name, WireError, decode, decode_fields};
use crate::range::Range;
use crate::record::Base;
use crate::reply::Replies;
use crate::resync::differing;
use crate::tracker::{NotOurs, NotReceived, Tracker};

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
    NotOurs(#[from] NotOurs),
    #[error(transparent)]
    NotReceived(#[from] NotReceived),
}

/// Why a request of the VMM cannot be met; the disk must not be used to run the VM then.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum StateError {
    /// Not everything of the epoch is here.
    #[error("epoch {wanted} has not completely arrived at this disk, the last one is {complete:?}")]
    Incomplete {
        /// What the VMM asks for.
        wanted: Epoch,
        /// What there is.
        complete: Option<Epoch>,
    },
    /// The background copy was not complete.
    #[error("the copy of the disk is not complete, the image is not usable")]
    NotCopied,
    /// The image already has writes that are newer than the checkpoint.
    #[error("the copy of the disk was complete only in epoch {synced}, epoch {wanted} is before that")]
    CopiedLater {
        /// What the VMM asks for.
        wanted: Epoch,
        /// When the image became a copy.
        synced: Epoch,
    },
    /// Writes that count were never released.
    #[error("epoch {0} counts but was never released")]
    Unreleased(Epoch),
}

struct State {
    intake: Intake,
    log: EpochLog,
    /// The last epoch that was released.
    released: Epoch,
    /// Whose disk the primary has.
    greeting: Option<Greeting>,
    /// What the primary began the stream with, and the stream's number to the tracker.
    begun: Option<(u64, Begin)>,
    /// What is here gets a new name on stable storage, and that has not been answered.
    naming: bool,
    /// No frame counts any more, not even one that has been received.
    closed: bool,
}

struct Shared {
    replies: Replies,
    image: Arc<dyn Image>,
    tracker: Tracker,
    state: Mutex<State>,
    session: Session,
    applier: Arc<Applier>,
    serial: String,
    limit: u64,
}

/// One stream. Dropping it closes the stream; held writes that were not released are gone then.
pub struct Receiver {
    shared: Arc<Shared>,
}

impl Receiver {
    /// Starts to serve the connected stream `fd` for `image` and its record; holds at most `limit` bytes.
    ///
    /// # Errors
    /// When the descriptor is not a socket or the kernel refuses a thread.
    pub fn new(
        fd: OwnedFd,
        (image, tracker): (Arc<dyn Image>, Tracker),
        serial: String,
        limit: u64,
        session: Session,
        applier: Arc<Applier>,
    ) -> io::Result<Self> {
        // A primary may exceed its own bound, half of this, by one request.
        let limit = limit.max(3 * MAX_BODY as u64);
        let state = State {
            intake: Intake::new(image.size()),
            log: EpochLog::new(limit),
            released: Epoch(0),
            greeting: None,
            begun: None,
            naming: false,
            closed: false,
        };
        let replies = Replies::new(connected(fd)?);
        let state = Mutex::new(state);
        let shared = Arc::new(Shared { replies, image, tracker, state, session, applier, serial, limit });
        let theirs = shared.clone();
        host_kit::thread::spawn("blk_recv", move || theirs.run())?;
        Ok(Self { shared })
    }

    /// Applies the writes of all epochs up to and including `epoch`, in order. Does not block.
    ///
    /// # Errors
    /// When they are not all here.
    pub fn release(&self, epoch: Epoch) -> Result<(), StateError> {
        let mut state = lock(&self.shared.state);
        state.intake.has(epoch)?;
        state.released = state.released.max(epoch);
        // Under the mutex: the reading thread must not queue anything in between.
        let changes = state.log.release(epoch);
        self.shared.tracker.expect(changes.iter().map(|change| change.range));
        changes.into_iter().for_each(|change| self.shared.applier.apply(change));
        Ok(())
    }

    /// Drops the writes of all epochs after `epoch` and takes no more frames.
    ///
    /// # Errors
    /// When the image does not, or will not, hold exactly what it held at the end of `epoch`.
    pub fn discard_after(&self, epoch: Epoch) -> Result<(), StateError> {
        self.close();
        let mut state = lock(&self.shared.state);
        state.log.discard_after(epoch);
        let synced = state.intake.synced().ok_or(StateError::NotCopied)?;
        if epoch < synced {
            return Err(StateError::CopiedLater { wanted: epoch, synced });
        }
        state.intake.has(epoch)?;
        state.log.oldest().map_or(Ok(()), |oldest| Err(StateError::Unreleased(oldest)))
    }

    /// Bytes of writes that are held.
    #[must_use]
    pub fn held(&self) -> u64 {
        lock(&self.shared.state).log.cost()
    }

    fn close(&self) {
        self.shared.session.close();
        lock(&self.shared.state).closed = true;
        // May be closed already.
        let _ = self.shared.replies.stream().shutdown(Shutdown::Both);
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.close();
    }
}

impl Intake {
    fn has(&self, wanted: Epoch) -> Result<(), StateError> {
        match self.complete() {
            _ if self.precedes_stream(wanted) => Ok(()),
            Some(complete) if wanted <= complete => Ok(()),
            complete => Err(StateError::Incomplete { wanted, complete }),
        }
    }
}

impl Shared {
    fn run(self: &Arc<Self>) {
        let reason = loop {
            // Back-pressure through the stream when this host's disk is the slow one.
            self.applier.wait_below(self.limit);
            if let Err(e) = self.next_frame() {
                break e;
            }
        };
        {
            let mut state = lock(&self.state);
            if state.closed {
                return;
            }
            let complete = state.intake.complete().unwrap_or_default();
            state.log.discard_after(complete);
        }
        warn!("mirror stream: {reason}");
        self.session.finish(&Report::MirrorLost { reason: reason.to_string() });
        if !matches!(reason, StreamError::Closed | StreamError::Truncated | StreamError::Read(_)) {
            self.replies.refuse(&reason.to_string());
        }
        let _ = self.replies.stream().shutdown(Shutdown::Both);
    }

    fn next_frame(self: &Arc<Self>) -> Result<(), StreamError> {
        let mut header = [0; HEADER_LEN];
        self.fill(&mut header, true)?;
        let pending = decode(&header)?;
        // No more than it says, since it may be held: it is aligned when it is written.
        let mut body = vec![0; pending.body_len()];
        self.fill(&mut body, false)?;
        let (frame, checksum) = pending.finish(&body)?;
        let mut state = lock(&self.state);
        if state.closed {
            return Err(StreamError::Closed);
        }
        match state.intake.step(&frame, checksum)? {
            Step::Greeted => {
                let greeting: Greeting = decode_fields(frame.kind, &body)?;
                self.check(&greeting)?;
                state.greeting = Some(greeting);
                self.replies.answer(&self.tracker.answer());
            }
            Step::Begun => {
                let begin: Begin = decode_fields(frame.kind, &body)?;
                let Some(greeting) = &state.greeting else { return Err(WireError::Fields(Kind::Hello).into()) };
                let number = self.tracker.receive(greeting, &begin)?;
                info!("{} resynchronisation of this image begins", begin.kind.name());
                state.begun = Some((number, begin));
            }
            Step::Compare => self.compare(frame.range(), body),
            Step::Persist => {
                let Name { base } = decode_fields(frame.kind, &body)?;
                let released = state.released;
                self.name(&mut state, released, Base(base))?;
            }
            Step::Renamed => {
                if let Some((number, _)) = state.begun {
                    self.tracker.renamed(number);
                }
            }
            Step::Apply => self.applier.apply(change(&frame, body)),
            Step::Hold => state.log.push(frame.epoch, change(&frame, body))?,
            Step::Synced => {
                info!("copy of the disk is complete in epoch {}", frame.epoch);
                if let Some(base) = state.begun.as_ref().map(|(_, begin)| Base(begin.base)) {
                    self.name(&mut state, Epoch(0), base)?;
                }
            }
            Step::Complete(epoch) => {
                self.session.report(&Report::Complete { epoch });
                host_kit::sched::set_realtime(true);
            }
        }
        Ok(())
    }

    fn check(&self, greeting: &Greeting) -> Result<(), StreamError> {
        let Greeting { serial, term, .. } = greeting;
        if *serial != self.serial {
            return Err(StreamError::Serial { theirs: serial.clone(), ours: self.serial.clone() });
        }
        if !term.is_plausible() {
            return Err(WireError::Fields(Kind::Hello).into());
        }
        Ok(self.tracker.greeted(greeting)?)
    }

    /// Fills `buf`; the end of the stream is an orderly one only before a frame.
    fn fill(&self, buf: &mut [u8], between_frames: bool) -> Result<(), StreamError> {
        let mut at = 0;
        while at < buf.len() {
            match self.replies.stream().read(&mut buf[at..]) {
                Ok(0) if at == 0 && between_frames => return Err(StreamError::Closed),
                Ok(0) => return Err(StreamError::Truncated),
                Ok(n) => at += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(StreamError::Read(e)),
            }
        }
        Ok(())
    }

    /// Says which blocks differ, once everything before is in the image.
    fn compare(self: &Arc<Self>, range: Range, theirs: Vec<u8>) {
        let shared = self.clone();
        let cost = CHANGE_OVERHEAD + theirs.len() as u64;
        self.applier.then(
            cost,
            Box::new(move |_| {
                let mut ours = Buffer::zeroed(range.len as usize);
                // What cannot be read is written anew.
                let read = shared.image.read_at(range.offset, &mut ours);
                let mask = if read.is_ok() { differing(&ours, &theirs) } else { u64::MAX };
                shared.replies.differ(range.offset, mask);
            }),
        );
    }

    /// Says that everything up to `epoch` is on stable storage when it is, and has the name `base` there, on a thread of its
    /// own: a takeover must not wait for it.
    fn name(self: &Arc<Self>, state: &mut State, epoch: Epoch, base: Base) -> Result<(), StreamError> {
        let Some((number, _)) = state.begun else { return Ok(()) };
        if std::mem::replace(&mut state.naming, true) {
            return Err(StreamError::Impatient);
        }
        let shared = self.clone();
        let name = move || {
            let synced = shared.image.sync().map_err(|e| e.to_string());
            let named = synced.and_then(|()| shared.tracker.rename(number, base).map_err(|e| e.to_string()));
            match named {
                Ok(()) => {
                    lock(&shared.state).naming = false;
                    shared.replies.durable(epoch);
                }
                Err(e) => warn!("this image is not known to be on stable storage: {e}"),
            }
        };
        let tracker = self.tracker.clone();
        self.applier.then(
            0,
            Box::new(move |applied| {
                tracker.begin_renaming();
                // The primary goes on without the answer.
                if applied && let Err(e) = host_kit::thread::spawn("blk_settle", name) {
                    warn!("cannot start a thread: {e}");
                }
            }),
        );
        Ok(())
    }
}

fn change(frame: &Frame, body: Vec<u8>) -> Change {
    let data = matches!(frame.kind, Kind::Copy | Kind::Write).then_some(body);
    Change { range: frame.range(), data }
}
