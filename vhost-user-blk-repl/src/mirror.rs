//! Primary end of the mirror stream: queues frames for the sending thread, counts what is uncommitted.
//!
//! In: guest writes as they are started, epoch ends, releases, and what `feedback` hears from the peer. Out: the stream, reports, and a wake-up for
//! the worker when there is room again. Never blocks its caller, never holds up the local disk after the stream broke.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, IoSlice, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use ft_proto::Epoch;
use ft_proto::device_ctl::Report;
use nix::sys::socket::{setsockopt, sockopt::TcpNoDelay};
use tracing::warn;
use vmm_sys_util::eventfd::EventFd;

use crate::buffer::Buffer;
use crate::control::Session;
use crate::copy::Copier;
use crate::epoch_log::{CHANGE_OVERHEAD, Uncommitted};
use crate::image::Image;
use crate::lock;
use crate::mirror_wire::{Digest, Frame, Greeting, Kind, Name, encode, encode_fields};
use crate::range::Range;
use crate::record::Base;
use crate::record_file::new_id;
use crate::resync::Plan;
use crate::tracker::Tracker;

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

/// Whether a write may be taken from the ring now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Room {
    /// It may.
    Yes,
    /// The link is behind; the worker is woken when it has caught up.
    Busy,
    /// Too much is uncommitted; only a release makes room.
    Full,
}

pub(crate) enum Body {
    None,
    Bytes(Vec<u8>),
    Part(Arc<Buffer>, Range),
}

impl Body {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::None => &[],
            Self::Bytes(bytes) => bytes,
            Self::Part(buffer, part) => buffer.get(part.offset as usize..part.end() as usize).unwrap_or_default(),
        }
    }
}

/// What the threads of one stream share, under one mutex.
pub(crate) struct State {
    queue: VecDeque<(Frame, Body)>,
    queued: u64,
    /// The worker waits for room in the queue.
    starved: bool,
    pub(crate) open: bool,
    lost: bool,
    uncommitted: Uncommitted,
    /// The epoch that writes belong to now.
    pub(crate) epoch: Epoch,
    /// Whether something of it is in the stream.
    touched: bool,
    pub(crate) synced: bool,
    /// Writes that were taken before the stream began: the copy must not look at the image before they are done.
    pub(crate) before: HashSet<u64>,
    /// Writes that are in the stream and not yet in the image.
    writes: HashMap<u64, Vec<Range>>,
    /// What the background copy reads now, and the parts of it that have been written since it began to.
    pub(crate) reading: Option<(Range, Vec<Range>)>,
    /// How the images are made equal, as soon as that is known: nothing but the greeting is sent before.
    pub(crate) plan: Option<Plan>,
    /// Answers to hashes: where, and which blocks differ.
    pub(crate) differ: VecDeque<(u64, u64)>,
    /// The name that the standby is to give to what it has, until it says that it has done so.
    pub(crate) naming: Option<Base>,
}

pub(crate) struct Shared {
    pub(crate) stream: UnixStream,
    state: Mutex<State>,
    pub(crate) changed: Condvar,
    pub(crate) session: Session,
    pub(crate) tracker: Tracker,
    /// This stream's number to the tracker.
    pub(crate) number: u64,
    wake: Arc<EventFd>,
    limit: u64,
}

/// One stream. Dropping it closes the stream.
pub struct Mirror {
    shared: Arc<Shared>,
}

/// Makes a blocking, undelayed stream of a connected socket of any family.
///
/// # Errors
/// When the descriptor is not a socket.
pub fn connected(fd: OwnedFd) -> io::Result<UnixStream> {
    // Not a TCP socket in tests and on one host: nothing to set then.
    let _ = setsockopt(&fd, TcpNoDelay, &true);
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

impl Mirror {
    /// Greets the peer on the connected stream `fd` and makes its image equal to `image` in the background. `before` are the
    /// ids of writes that have been started but are not done. `wake` is written when the worker should look again.
    ///
    /// # Errors
    /// When the descriptor is not a socket or the kernel refuses a thread.
    pub fn new(
        fd: OwnedFd,
        settings: Settings,
        image: Arc<dyn Image>,
        before: HashSet<u64>,
        session: Session,
        (tracker, wake): (Tracker, Arc<EventFd>),
    ) -> io::Result<Self> {
        let number = tracker.begin_session();
        let hello = Frame { kind: Kind::Hello, epoch: settings.epoch, offset: 0, len: image.size() };
        let record = tracker.record();
        let greeting = Greeting { serial: settings.serial, vm: record.vm, term: record.term };
        let state = State {
            queue: VecDeque::from([(hello, Body::Bytes(encode_fields(&greeting)))]),
            queued: 0,
            starved: false,
            open: true,
            lost: false,
            uncommitted: Uncommitted::default(),
            epoch: settings.epoch,
            touched: true,
            synced: false,
            before,
            writes: HashMap::new(),
            reading: None,
            plan: None,
            differ: VecDeque::new(),
            naming: None,
        };
        let shared = Arc::new(Shared {
            stream: connected(fd)?,
            state: Mutex::new(state),
            changed: Condvar::new(),
            session,
            number,
            tracker,
            wake,
            limit: settings.max_uncommitted,
        });
        let mirror = Self { shared: shared.clone() };
        let (sender, reader) = (shared.clone(), shared.clone());
        host_kit::thread::spawn("blk_send", move || sender.send_all())?;
        host_kit::thread::spawn("blk_feedback", move || reader.listen())?;
        let copier = Copier::new(shared, image, settings.rate);
        host_kit::thread::spawn("blk_copy", move || copier.run())?;
        Ok(mirror)
    }

    /// Whether a write of `len` bytes may be taken now, with `waiting` bytes of writes taken that are not started.
    #[must_use]
    pub fn room(&self, len: u64, waiting: u64) -> Room {
        let mut state = lock(&self.shared.state);
        let uncommitted = state.uncommitted.total();
        let before = uncommitted + waiting;
        if before > 0 && before + len + CHANGE_OVERHEAD > self.shared.limit / 2 {
            // The worker looks again when those that wait are started.
            return if uncommitted > 0 { Room::Full } else { Room::Busy };
        }
        if state.queued > self.shared.limit {
            state.starved = true;
            return Room::Busy;
        }
        Room::Yes
    }

    /// A write with this id is started in `epoch`.
    pub fn write(&self, id: u64, epoch: Epoch, offset: u64, data: &Arc<Buffer>) {
        let range = Range::new(offset, data.len() as u64);
        let frame = Frame { kind: Kind::Write, epoch, offset, len: range.len };
        let body = Body::Part(data.clone(), Range::new(0, range.len));
        self.shared.guest_write(id, &[range], vec![(frame, body)]);
    }

    /// A discard or write-zeroes with this id is started in `epoch`.
    pub fn zero(&self, id: u64, epoch: Epoch, ranges: &[Range]) {
        let frame = |range: &Range| Frame { kind: Kind::Zeroes, epoch, offset: range.offset, len: range.len };
        self.shared.guest_write(id, ranges, ranges.iter().map(|range| (frame(range), Body::None)).collect());
    }

    /// The write with this id is in the local image (or failed). Other ids are ignored.
    pub fn completed(&self, id: u64) {
        let mut state = lock(&self.shared.state);
        state.writes.remove(&id);
        if state.before.remove(&id) && state.before.is_empty() {
            self.shared.changed.notify_all();
        }
    }

    /// `epoch` is over: everything of it is in the queue, and `next` follows. Tells whether the epoch is idle: then there was
    /// nothing, and the standby's disk does not hear of it. A stream that has broken cannot know, and is never idle.
    pub fn end(&self, epoch: Epoch, next: Epoch) -> bool {
        let mut state = lock(&self.shared.state);
        state.epoch = next;
        let idle = state.open && !std::mem::take(&mut state.touched);
        if !idle {
            self.shared.push(&mut state, Frame { kind: Kind::End, epoch, offset: 0, len: 0 }, Body::None);
        }
        idle
    }

    /// Writes belong to `epoch` from now on.
    pub fn set_epoch(&self, epoch: Epoch) {
        lock(&self.shared.state).epoch = epoch;
    }

    /// The standby holds everything up to and including `epoch`.
    pub fn release(&self, epoch: Epoch) {
        lock(&self.shared.state).uncommitted.release(epoch);
    }

    /// Asks the standby what it has on stable storage, if it is in sync and has answered before.
    pub fn persist(&self) {
        let mut state = lock(&self.shared.state);
        if state.synced && state.naming.is_none() {
            let base = new_id();
            state.naming = Some(Base(base));
            let frame = Frame { kind: Kind::Persist, epoch: state.epoch, offset: 0, len: 0 };
            self.shared.push(&mut state, frame, Body::Bytes(encode_fields(&Name { base })));
        }
    }

    /// Bytes that the standby has not committed.
    #[must_use]
    pub fn uncommitted(&self) -> u64 {
        lock(&self.shared.state).uncommitted.total()
    }

    /// Whether the stream has broken.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        lock(&self.shared.state).lost
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.shared.session.close();
        self.shared.tracker.end_session();
        lock(&self.shared.state).open = false;
        self.shared.changed.notify_all();
        // May be closed already.
        let _ = self.shared.stream.shutdown(Shutdown::Both);
    }
}

impl Shared {
    pub(crate) fn state(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn guest_write(&self, id: u64, ranges: &[Range], frames: Vec<(Frame, Body)>) {
        let mut state = lock(&self.state);
        if !state.open {
            return;
        }
        if let Some((reading, written)) = &mut state.reading {
            written.extend(ranges.iter().filter(|range| range.overlaps(reading)));
        }
        state.writes.insert(id, ranges.to_vec());
        for (frame, body) in frames {
            if state.synced {
                state.uncommitted.add(frame.epoch, CHANGE_OVERHEAD + body.bytes().len() as u64);
            }
            self.push(&mut state, frame, body);
        }
    }

    /// Declares what the copy reads next. Parts that are being written are in the stream already.
    pub(crate) fn begin_read(state: &mut State, range: Range) {
        let writing = state.writes.values().flatten().filter(|write| write.overlaps(&range)).copied().collect();
        state.reading = Some((range, writing));
    }

    /// The peer has answered: what comes after the greeting may be sent, and the copy begins.
    pub(crate) fn begin(&self, plan: Plan) {
        let mut state = lock(&self.state);
        let frame = Frame { kind: Kind::Begin, epoch: Epoch(0), offset: 0, len: 0 };
        state.queue.push_front((frame, Body::Bytes(encode_fields(&plan.begin))));
        state.naming = Some(Base(plan.begin.base));
        state.plan = Some(plan);
        self.changed.notify_all();
    }

    pub(crate) fn push(&self, state: &mut State, frame: Frame, body: Body) {
        if state.open {
            state.touched |= !matches!(frame.kind, Kind::End | Kind::Persist | Kind::Renamed);
            state.queued += CHANGE_OVERHEAD + body.bytes().len() as u64;
            state.queue.push_back((frame, body));
            self.changed.notify_all();
        }
    }

    /// Parts of the image that are being written.
    pub(crate) fn being_written(state: &State) -> Vec<Range> {
        state.writes.values().flatten().copied().collect()
    }

    /// Bytes that wait to be sent.
    pub(crate) fn queued(state: &State) -> u64 {
        state.queued
    }

    /// The stream is of no use any more; only the first reason counts.
    pub(crate) fn lose(&self, reason: &str) {
        {
            let mut state = lock(&self.state);
            if !state.open {
                return;
            }
            state.open = false;
            state.queue.clear();
        }
        warn!("mirror stream: {reason}");
        self.changed.notify_all();
        let _ = self.stream.shutdown(Shutdown::Both);
        self.session.finish(&Report::MirrorLost { reason: reason.to_owned() });
        // Only now: the worker drops a lost mirror whenever it wakes, and after that nothing is reported.
        lock(&self.state).lost = true;
        self.wake_worker();
    }

    fn wake_worker(&self) {
        // Fails only when the counter is at its end, and then it is readable already.
        let _ = self.wake.write(1);
    }

    fn send_all(&self) {
        let mut digest = Digest::default();
        while let Some((mut frame, body)) = self.next() {
            if frame.kind == Kind::End {
                host_kit::sched::set_realtime(true);
                (frame.offset, frame.len) = (digest.count, digest.sum);
                digest = Digest::default();
            }
            let (header, checksum) = encode(&frame, body.bytes());
            if matches!(frame.kind, Kind::Write | Kind::Zeroes) {
                digest.add(checksum);
            }
            if self.send(&header, body.bytes()).is_err() {
                // The watching thread sees the same and may know the reason: the peer's refusal.
                let _ = self.stream.shutdown(Shutdown::Write);
                return;
            }
        }
    }

    fn next(&self) -> Option<(Frame, Body)> {
        let state = lock(&self.state);
        let waits = |state: &mut State| {
            let greeting =
                state.queue.front().is_some_and(|(frame, _)| matches!(frame.kind, Kind::Hello | Kind::Begin));
            state.open && !greeting && (state.queue.is_empty() || state.plan.is_none())
        };
        let waited = self.changed.wait_while(state, waits);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        if !state.open {
            return None;
        }
        let (frame, body) = state.queue.pop_front()?;
        if !matches!(frame.kind, Kind::Hello | Kind::Begin) {
            state.queued -= CHANGE_OVERHEAD + body.bytes().len() as u64;
        }
        if state.starved && state.queued <= self.limit / 2 {
            state.starved = false;
            self.wake_worker();
        }
        if !state.synced {
            // The copy waits for room.
            self.changed.notify_all();
        }
        Some((frame, body))
    }

    fn send(&self, header: &[u8], body: &[u8]) -> io::Result<()> {
        let mut stream = &self.stream;
        let mut sent = loop {
            match stream.write_vectored(&[IoSlice::new(header), IoSlice::new(body)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => break n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        };
        if sent < header.len() {
            stream.write_all(&header[sent..])?;
            sent = header.len();
        }
        stream.write_all(&body[sent - header.len()..])
    }
}
