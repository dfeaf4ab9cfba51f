//! Keeps the image's record true: a region is marked on stable storage before a write to it reaches the image or the
//! peer, and stays marked until both hosts have the write on stable storage.
//!
//! In: regions about to be written, sessions, roles, what the peer has made durable. Out: an eventfd when new marks are
//! durable. One thread writes the record; several marks that are asked for at once cost one write. Marks are kept on
//! after they could go, [`KEPT`] of them, so that a guest that writes the same places again causes no write at all.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ft_proto::{Epoch, Term};
use tracing::{error, warn};
use vmm_sys_util::eventfd::EventFd;

use crate::image::Image;
use crate::lock;
use crate::mirror_wire::{Begin, ResyncKind};
use crate::range::Range;
use crate::record::{Base, Record, Role};
use crate::record_file::{Opened, Purpose, RecordFile, new_id};
use crate::regions::Regions;

/// Marks that may stay although they could go: a resynchronisation compares their contents, which is cheap.
const KEPT: usize = 1024;
/// Regions that are marked together with one that is written in sequence.
const AHEAD: usize = 4;
/// How often the peer is asked for what would let marks go.
const SETTLE_EVERY: Duration = Duration::from_secs(1);
/// Pause before a record that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(1);

struct State {
    /// `None` for a disk that was never protected.
    record: Option<Record>,
    /// Marks on stable storage.
    durable: Regions,
    /// Counts changes of `record`, and those that are on stable storage.
    changed: u64,
    written: u64,
    /// Session that marks may be settled in; 0 when there is none.
    session: u64,
    sessions: u64,
    /// Stream whose copy the image is becoming; 0 when there is none.
    receiving: u64,
    /// Epoch of the last write to each region in the session.
    stamps: Vec<Epoch>,
    settle_at: Instant,
    trouble: Option<String>,
    /// Whether there is a file to keep it in.
    kept: bool,
    closing: bool,
    ended: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    wake: Arc<EventFd>,
}

/// Ends the writing thread with the last tracker of the image.
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        lock(&self.0.state).ended = true;
        self.0.changed.notify_all();
    }
}

/// The record of one image.
#[derive(Clone)]
pub struct Tracker {
    shared: Arc<Owner>,
    image: Arc<dyn Image>,
}

/// The record cannot be kept.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot write the record of the image: {0}")]
pub struct RecordLost(String);

impl State {
    fn tracks(&self) -> bool {
        self.session != 0 || self.record.as_ref().is_some_and(|record| record.base.is_some())
    }

    fn change(&mut self) -> u64 {
        self.changed += 1;
        self.changed
    }
}

impl Tracker {
    /// For an image with what [`RecordFile::open`] found; `None` for one that keeps no record. `wake` is written when a
    /// write that had to wait may be tried again.
    ///
    /// # Errors
    /// When the kernel refuses a thread.
    pub fn new(file: Option<Opened>, image: Arc<dyn Image>, wake: Arc<EventFd>) -> io::Result<Self> {
        let (file, record, purpose) = match file {
            Some(Opened { file, record, purpose }) => (Some(file), record, purpose),
            None => (None, None, Purpose::StandBy),
        };
        let none = Regions::new(image.size());
        let mut state = State {
            durable: record.as_ref().map_or_else(|| none.clone(), |record| record.marks.clone()),
            record,
            changed: 0,
            written: 0,
            session: 0,
            sessions: 0,
            receiving: 0,
            stamps: vec![Epoch(0); none.of_image()],
            settle_at: Instant::now(),
            trouble: None,
            kept: file.is_some(),
            closing: false,
            ended: false,
        };
        let mut forced = false;
        if let (Some(record), Purpose::Serve(_)) = (&mut state.record, purpose) {
            record.closed = None;
            forced = run_from(record);
            state.change();
        }
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), wake });
        if let Some(file) = file {
            let theirs = shared.clone();
            thread::Builder::new().name("blk_record".to_owned()).spawn(move || theirs.write_all(file))?;
        }
        let tracker = Self { shared: Arc::new(Owner(shared)), image };
        if forced {
            // The copy to go on with, whatever happens next.
            tracker.change(|_| {}).map_err(io::Error::other)?;
        }
        Ok(tracker)
    }

    /// Whether a write to `ranges` in `epoch` may go to the image and the peer now. If not, it may be tried again when the
    /// eventfd is written.
    #[must_use]
    pub fn admits(&self, ranges: &[Range], epoch: Epoch) -> bool {
        let mut guard = lock(&self.shared.0.state);
        let state = &mut *guard;
        let tracks = state.tracks();
        let Some(record) = state.record.as_mut().filter(|_| tracks) else { return true };
        let touched: Vec<usize> = ranges.iter().flat_map(|range| record.marks.touched(range)).collect();
        let mut new = false;
        for &index in &touched {
            if record.marks.add(index) {
                new = true;
                // Whoever writes on from the region before will soon be in the next ones.
                let goes_on = index > 0 && record.marks.has(index - 1);
                let ahead = if goes_on { index + 1..(index + 1 + AHEAD).min(record.marks.of_image()) } else { 0..0 };
                ahead.for_each(|index| {
                    record.marks.add(index);
                });
            }
        }
        let ready = !new && touched.iter().all(|&index| state.durable.has(index));
        if ready {
            touched.iter().for_each(|&index| state.stamps[index] = epoch);
        } else if new {
            state.change();
            self.shared.0.changed.notify_all();
        }
        ready
    }

    /// A mirror begins: its session's number.
    pub fn begin_session(&self) -> u64 {
        let mut state = lock(&self.shared.0.state);
        state.sessions += 1;
        state.session = state.sessions;
        state.stamps.fill(Epoch(0));
        if state.record.is_none() && state.kept {
            state.record = Some(Record::new(new_id(), self.image.size()));
            state.change();
            self.shared.0.changed.notify_all();
        }
        state.session
    }

    /// The mirror is over; nothing is settled any more.
    pub fn end_session(&self) {
        lock(&self.shared.0.state).session = 0;
    }

    /// The record as it is wanted now; a new one when none is kept.
    #[must_use]
    pub fn record(&self) -> Record {
        let kept = lock(&self.shared.0.state).record.clone();
        kept.unwrap_or_else(|| Record::new(new_id(), self.image.size()))
    }

    /// From here on a standby may take over. Blocks until that is on stable storage.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn protected(&self) -> Result<(), RecordLost> {
        self.change(|record| record.role = Role::Protected)
    }

    /// The VM runs from this copy, and no other can be newer. Does not block.
    pub fn alone(&self) {
        let mut state = lock(&self.shared.0.state);
        state.receiving = 0;
        if let Some(record) = &mut state.record
            && run_from(record)
        {
            state.change();
            self.shared.0.changed.notify_all();
        }
    }

    /// The image is a standby's from here on: the number of its stream. Blocks until that is on stable storage.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn receive(&self, begin: &Begin) -> Result<u64, RecordLost> {
        let size = self.image.size();
        let stream = {
            let mut state = lock(&self.shared.0.state);
            if state.record.is_none() && state.kept {
                state.record = Some(Record::new(begin.disk, size));
            }
            state.sessions += 1;
            state.receiving = state.sessions;
            state.receiving
        };
        self.change(|record| {
            if begin.kind != ResyncKind::Incremental {
                (record.base, record.marks) = (None, Regions::new(size));
            }
            (record.disk, record.generation, record.role, record.closed) =
                (begin.disk, begin.generation, Role::Syncing, None);
            record.ended = Term(0);
        })?;
        Ok(stream)
    }

    /// The whole copy is on stable storage, unless the image has become something else than that of `stream` meanwhile.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn received(&self, stream: u64, base: Base) -> Result<(), RecordLost> {
        let mut guard = lock(&self.shared.0.state);
        let state = &mut *guard;
        if let Some(record) = state.record.as_mut().filter(|_| state.receiving == stream) {
            (record.role, record.base) = (Role::Standby, Some(base));
            record.marks = Regions::new(record.marks.image_size());
        }
        drop(guard);
        self.change(|_| {})
    }

    /// Whether the peer should be asked what it has made durable.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        let mut state = lock(&self.shared.0.state);
        let many = state.session != 0 && state.record.as_ref().is_some_and(|record| record.marks.count() > KEPT);
        let due = many && state.settle_at <= Instant::now();
        if due {
            state.settle_at = Instant::now() + SETTLE_EVERY;
        }
        due
    }

    /// In `session` the peer has made everything up to and including `epoch` durable, and has the state `base` in common
    /// with this image; writes to `busy` are not in this image yet. Blocks until this image is durable too.
    pub fn settle(&self, session: u64, epoch: Epoch, base: Base, busy: &[Range]) {
        let candidates: Vec<usize> = {
            let state = lock(&self.shared.0.state);
            let Some(record) = state.record.as_ref().filter(|_| state.session == session) else { return };
            let mut open = Regions::new(record.marks.image_size());
            busy.iter().flat_map(|range| record.marks.touched(range)).for_each(|index| {
                open.add(index);
            });
            record.marks.iter().filter(|index| !open.has(*index) && state.stamps[*index] <= epoch).collect()
        };
        if let Err(e) = self.image.sync() {
            return warn!("cannot sync the image, its marks stay: {e}");
        }
        let mut guard = lock(&self.shared.0.state);
        let state = &mut *guard;
        let Some(record) = state.record.as_mut().filter(|_| state.session == session) else { return };
        let mut idle: Vec<usize> = candidates.into_iter().filter(|index| state.stamps[*index] <= epoch).collect();
        idle.sort_unstable_by_key(|index| state.stamps[*index]);
        let surplus = record.marks.count().saturating_sub(KEPT / 2);
        for index in idle.into_iter().take(surplus) {
            record.marks.remove(index);
            state.durable.remove(index);
        }
        record.base = Some(base);
        state.change();
        self.shared.0.changed.notify_all();
    }

    /// The VM is shut down in `term`, and this is its newest image. Blocks until that is on stable storage.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn end(&self, term: Term) -> Result<(), RecordLost> {
        let mut state = lock(&self.shared.0.state);
        if state.record.is_none() && state.kept {
            state.record = Some(Record::new(new_id(), self.image.size()));
        }
        drop(state);
        self.change(|record| record.ended = term)
    }

    /// Why the record cannot be written, if that is so and has not been told.
    #[must_use]
    pub fn take_trouble(&self) -> Option<RecordLost> {
        lock(&self.shared.0.state).trouble.take().map(RecordLost)
    }

    /// The image is not written any more: notes when it last was. Blocks until that is on stable storage.
    pub fn close(&self) {
        lock(&self.shared.0.state).closing = true;
        // An image that is not noted as closed is resynchronised all the same.
        let _ = self.change(|_| {});
    }

    /// Changes the record, if there is one, and waits until it is written.
    fn change(&self, how: impl FnOnce(&mut Record)) -> Result<(), RecordLost> {
        let mut state = lock(&self.shared.0.state);
        let Some(record) = &mut state.record else { return Ok(()) };
        how(record);
        state.change();
        self.shared.0.changed.notify_all();
        self.wait(state)
    }

    /// Blocks until the record as it is wanted now is on stable storage.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn written(&self) -> Result<(), RecordLost> {
        self.wait(lock(&self.shared.0.state))
    }

    fn wait(&self, mut state: MutexGuard<'_, State>) -> Result<(), RecordLost> {
        let ticket = state.changed;
        state.trouble = None;
        let waiting = |state: &mut State| state.written < ticket && state.trouble.is_none() && !state.ended;
        let state = self.shared.0.changed.wait_while(state, waiting).unwrap_or_else(PoisonError::into_inner);
        match &state.trouble {
            Some(trouble) if state.written < ticket => Err(RecordLost(trouble.clone())),
            _ => Ok(()),
        }
    }
}

/// The VM runs from the image now; whether that is news.
fn run_from(record: &mut Record) -> bool {
    let news = record.role != Role::Alone;
    if news {
        (record.role, record.generation) = (Role::Alone, record.generation + 1);
    }
    news
}

impl Shared {
    /// Writes the record whenever it has changed.
    fn write_all(&self, mut file: RecordFile) {
        loop {
            let state = lock(&self.state);
            let idle = |state: &mut State| state.changed == state.written && !state.ended;
            let mut state = self.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
            if state.ended {
                return;
            }
            let changed = state.changed;
            let Some(mut record) = state.record.clone() else {
                state.written = changed;
                continue;
            };
            // What is being taken back on stable storage does not count any more.
            state.durable.intersect(&record.marks);
            let closing = state.closing;
            drop(state);
            if closing {
                record.closed = file.last_written();
            }
            let result = file.write(&record);
            let state = lock(&self.state);
            match result {
                Ok(()) => self.written(state, changed, record.marks),
                Err(e) => self.failed(state, &mut file, &e),
            }
        }
    }

    fn written(&self, mut state: MutexGuard<'_, State>, changed: u64, marks: Regions) {
        (state.written, state.durable, state.trouble) = (changed, marks, None);
        drop(state);
        self.changed.notify_all();
        // Fails only when the counter is at its end, and then it is readable already.
        let _ = self.wake.write(1);
    }

    /// Writes wait until the record can be written, unless it can be done without: when nobody else has a copy that could
    /// be taken for equal to this one by it.
    fn failed(&self, mut state: MutexGuard<'_, State>, file: &mut RecordFile, e: &io::Error) {
        let trouble = format!("{}: {e}", file.path().display());
        error!("cannot write the record of the image: {trouble}");
        state.trouble = Some(trouble);
        let needed = state.session != 0 || state.record.as_ref().is_some_and(|record| record.role != Role::Alone);
        if !needed && file.remove().is_ok() {
            state.record = None;
            state.written = state.changed;
        }
        self.changed.notify_all();
        let _ = self.wake.write(1);
        if state.record.is_some() {
            drop(self.changed.wait_timeout_while(state, RETRY, |state| !state.ended));
        }
    }
}
