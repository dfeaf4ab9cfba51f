//! Keeps the image's record true: a region is marked on stable storage before a write to it reaches the image or the
//! peer, and stays marked until both hosts have the write on stable storage and call what they have by a new name.
//!
//! In: regions about to be written, sessions, roles, what the peer has made durable. Out: an eventfd when new marks are
//! durable. `recorder` writes the record; several marks that are asked for at once cost one write. Marks are kept on
//! after they could go, [`KEPT`] of them, so that a guest that writes the same places again causes no write at all.

use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ft_proto::{Epoch, Term, VmId};
use tracing::warn;
use vmm_sys_util::eventfd::EventFd;

use crate::image::Image;
use crate::lock;
use crate::mirror_wire::{Answer, Begin, Greeting, ResyncKind};
use crate::range::Range;
use crate::record::{Base, Record, Role};
use crate::record_file::{Opened, Purpose, Refuse, new_id};
use crate::recorder::{self, Shared, State};
use crate::regions::Regions;
use crate::watch::{Watch, Watched};

/// Marks that may stay although they could go: a resynchronisation compares their contents, which is cheap.
const KEPT: usize = 1024;
/// Regions that are marked together with one that is written in sequence.
const AHEAD: usize = 4;
/// How often the peer is asked for what would let marks go.
const SETTLE_EVERY: Duration = Duration::from_secs(1);

/// Ends the writing thread with the last tracker of the image.
struct Owner {
    shared: Arc<Shared>,
    thread: std::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Owner {
    fn end(&self) {
        lock(&self.shared.state).ended = true;
        self.shared.changed.notify_all();
        if let Some(Err(_)) = lock(&self.thread).take().map(JoinHandle::join) {
            warn!("the thread that writes the image's record has failed");
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.end();
    }
}

/// The record of one image.
#[derive(Clone)]
pub struct Tracker {
    owner: Arc<Owner>,
    image: Arc<dyn Image>,
}

/// The record cannot be kept.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot write the record of the image: {0}")]
pub struct RecordLost(pub(crate) String);

/// An image that must not be used for a VM.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotOurs {
    /// It is another one's.
    #[error(
        "this image is of VM {image}, by its record, not of VM {vm}: give the VM its own image, or remove the record"
    )]
    Vm {
        /// By the record.
        image: VmId,
        /// Who asks.
        vm: VmId,
    },
    /// It has been used in a later term.
    #[error("this image was last used in term {image}, by its record, so term {term} is over")]
    Term {
        /// By the record.
        image: Term,
        /// Who asks.
        term: Term,
    },
    /// It cannot be noted.
    #[error(transparent)]
    Record(#[from] RecordLost),
}

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

impl Tracker {
    /// For an image with what [`crate::record_file::RecordFile::open`] found; `None` for one that keeps no record. `wake` is
    /// written when a write that had to wait may be tried again. From here on the image is to be used as [`Tracker::image`].
    ///
    /// # Errors
    /// When the kernel refuses memory or a thread.
    pub fn new(file: Option<Opened>, image: Arc<dyn Image>, wake: Arc<EventFd>) -> io::Result<Self> {
        let (file, record, purpose) = match file {
            Some(Opened { file, record, purpose }) => (Some(file), record, purpose),
            None => (None, None, Purpose::StandBy),
        };
        let mut state = State::new(record, image.size(), file.is_some());
        let mut forced = false;
        if let (Some(record), Purpose::Serve(refuse)) = (&mut state.record, purpose) {
            let stays = record.role == Role::Alone;
            // Whoever was elected is told its term.
            state.unowned = !stays && refuse == Refuse::Half;
            forced = !stays && !state.unowned;
            if forced {
                run_from(record);
                record.term = Term(0);
            }
        }
        if state.record.is_some() {
            // Whose process has the image now.
            state.change();
        }
        state.forced = matches!(purpose, Purpose::Serve(Refuse::Nothing));
        let kept = file.is_some();
        let watch = Watch::new(image.clone(), new_id(), kept)?;
        let image = if kept { Arc::new(Watched(watch.clone())) } else { image };
        let (shared, thread) = recorder::start(state, file, watch, wake)?;
        let owner = Owner { shared, thread: std::sync::Mutex::new(thread) };
        let tracker = Self { owner: Arc::new(owner), image };
        if forced {
            // The copy to go on with, whatever happens next.
            tracker.change(|_| {}).map_err(io::Error::other)?;
        }
        Ok(tracker)
    }

    /// The image; its writes are watched.
    #[must_use]
    pub fn image(&self) -> &Arc<dyn Image> {
        &self.image
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.owner.shared.state)
    }

    fn notify(&self) {
        self.owner.shared.changed.notify_all();
    }

    /// Whether a guest's write to `ranges` in `epoch` may go to the image and the peer now. If not, it may be tried again when
    /// the eventfd is written.
    #[must_use]
    pub fn admits(&self, ranges: &[Range], epoch: Epoch) -> bool {
        let mut guard = self.state();
        let state = &mut *guard;
        if state.unowned && state.session == 0 {
            // Nobody has said in which term: it cannot be a late one.
            state.run_alone(Some(Term(0)));
            self.notify();
        }
        if state.written < state.gate {
            return false;
        }
        let tracks = state.tracks();
        let Some(record) = state.record.as_mut().filter(|_| tracks) else { return true };
        let touched: Vec<usize> = ranges.iter().flat_map(|range| record.marks.touched(range)).collect();
        let new = mark(record, &touched);
        let ready = !new && touched.iter().all(|&index| state.durable.has(index));
        if ready {
            touched.iter().for_each(|&index| state.stamps[index] = epoch);
        } else if new {
            state.change();
            self.notify();
        }
        ready
    }

    /// Standby: writes to `ranges` are going to be asked for by [`Tracker::admit`]. Does not block.
    pub fn expect(&self, ranges: impl Iterator<Item = Range>) {
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(record) = state.record.as_mut().filter(|record| record.base.is_some()) else { return };
        let touched: Vec<usize> = ranges.flat_map(|range| record.marks.touched(&range)).collect();
        if mark(record, &touched) {
            state.change();
            self.notify();
        }
    }

    /// Standby: a write to `range` comes next. Blocks until its regions are marked.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn admit(&self, range: Range) -> Result<(), RecordLost> {
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(record) = &mut state.record else { return Ok(()) };
        let touched: Vec<usize> = record.marks.touched(&range).collect();
        touched.iter().for_each(|&index| {
            state.fresh.add(index);
        });
        if record.base.is_none() {
            return Ok(());
        }
        let new = mark(record, &touched);
        if !new && touched.iter().all(|&index| state.durable.has(index)) {
            return Ok(());
        }
        if new {
            state.change();
            self.notify();
        }
        self.wait(guard)
    }

    /// A mirror begins: its session's number.
    pub fn begin_session(&self) -> u64 {
        let mut state = self.state();
        state.sessions += 1;
        state.session = state.sessions;
        state.stamps.fill(Epoch(0));
        if state.make_record(self.image.size()) {
            state.change();
            self.notify();
        }
        state.session
    }

    /// The mirror is over; nothing is settled any more.
    pub fn end_session(&self) {
        self.state().session = 0;
    }

    /// The record as it is wanted now; a new one when none is kept.
    #[must_use]
    pub fn record(&self) -> Record {
        let kept = self.state().record.clone();
        kept.unwrap_or_else(|| Record::new(new_id(), self.image.size()))
    }

    /// What there is to say to a primary.
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

    /// From here on a standby may take over. Blocks until that is on stable storage.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn protected(&self) -> Result<(), RecordLost> {
        self.change(|record| record.role = Role::Protected)
    }

    /// The VM runs from this copy, and no other can be newer. Does not block, but the guest's next write waits for it.
    pub fn alone(&self) {
        let mut state = self.state();
        state.receiving = 0;
        state.run_alone(None);
        self.notify();
    }

    /// As [`Tracker::alone`]; the VM ran elsewhere, in the term before.
    pub fn take_over(&self) {
        let mut state = self.state();
        state.receiving = 0;
        let is_copy = |record: &&Record| matches!(record.role, Role::Standby | Role::Syncing);
        let copied = state.record.as_ref().filter(is_copy).map(|record| record.term.next());
        state.run_alone(copied);
        self.notify();
    }

    /// `vm` runs from this copy in `term`, and no other can be newer. Blocks until that is on stable storage.
    ///
    /// # Errors
    /// When the image is another VM's, or has been used later; when the record cannot be written.
    pub fn own(&self, vm: VmId, term: Term) -> Result<(), NotOurs> {
        let mut guard = self.state();
        guard.make_record(self.image.size());
        let forced = guard.forced;
        if let Some(record) = &mut guard.record {
            if let Some(image) = record.vm.filter(|image| *image != vm && !forced) {
                return Err(NotOurs::Vm { image, vm });
            }
            if term < record.term && !forced {
                return Err(NotOurs::Term { image: record.term, term });
            }
            let news = (record.vm, record.ended) != (Some(vm), Term(0));
            (record.vm, record.ended) = (Some(vm), Term(0));
            if news {
                guard.change();
            }
        }
        guard.forced = false;
        guard.receiving = 0;
        guard.run_alone(Some(term));
        self.notify();
        Ok(self.wait(guard)?)
    }

    /// Standby: whether a disk that is greeted so may become this one's content.
    ///
    /// # Errors
    /// When this image is of another VM.
    pub fn greeted(&self, greeting: &Greeting) -> Result<(), NotOurs> {
        match (self.record().vm, greeting.vm) {
            (Some(image), Some(vm)) if image != vm => Err(NotOurs::Vm { image, vm }),
            _ => Ok(()),
        }
    }

    /// The image is a standby's from here on: the number of its stream. Blocks until that is on stable storage.
    ///
    /// # Errors
    /// When the plan is not for this image, or the record cannot be written.
    pub fn receive(&self, greeting: &Greeting, begin: &Begin) -> Result<u64, NotReceived> {
        let size = self.image.size();
        let mut guard = self.state();
        let state = &mut *guard;
        if state.record.is_none() && state.kept {
            state.record = Some(Record::new(begin.disk, size));
        }
        state.sessions += 1;
        state.receiving = state.sessions;
        let stream = state.receiving;
        if let Some(record) = &mut state.record {
            let common = begin.common.map(Base).filter(|_| begin.kind == ResyncKind::Incremental);
            let theirs = common.and_then(|_| Regions::from_bytes(size, &begin.marks));
            match (common, theirs) {
                (Some(common), Some(marks)) if [record.base, record.former].contains(&Some(common)) => {
                    (record.base, record.former) = (Some(common), None);
                    record.marks.unite(&marks);
                }
                (None, None) if begin.kind != ResyncKind::Incremental => record.forget_base(),
                _ => return Err(NotReceived::Base),
            }
            (record.disk, record.generation, record.role) = (begin.disk, begin.generation, Role::Syncing);
            (record.vm, record.term, record.ended) = (greeting.vm.or(record.vm), greeting.term, Term(0));
            record.altered = false;
            state.change();
        }
        self.notify();
        self.wait(guard)?;
        Ok(stream)
    }

    /// Standby, between two writes: what is in the image now gets a new name. What is written from here on is marked by it.
    pub fn begin_renaming(&self) {
        let mut state = self.state();
        state.fresh = Regions::new(self.image.size());
    }

    /// Standby: all that was in the image at [`Tracker::begin_renaming`] is on stable storage, and its name is `base`; the
    /// whole copy, if it is the first of `stream`. Nothing happens if the image has become something else meanwhile. Blocks
    /// until that is on stable storage too.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn rename(&self, stream: u64, base: Base) -> Result<(), RecordLost> {
        let mut guard = self.state();
        let state = &mut *guard;
        if let Some(record) = state.record.as_mut().filter(|_| state.receiving == stream) {
            // The primary may die before it knows: then it still has the former name.
            record.former = record.base.replace(base);
            record.role = Role::Standby;
            record.marks.unite(&state.fresh);
            state.change();
        }
        self.notify();
        self.wait(guard)
    }

    /// Standby: the primary has the image's new name on stable storage. What was written before it is not marked any more.
    pub fn renamed(&self, stream: u64) {
        let mut guard = self.state();
        let state = &mut *guard;
        if let Some(record) = state.record.as_mut().filter(|_| state.receiving == stream) {
            record.former = None;
            record.marks.intersect(&state.fresh);
            state.durable.intersect(&state.fresh);
            state.change();
            self.notify();
        }
    }

    /// Whether the peer should be asked what it has made durable.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        let mut state = self.state();
        let many = state.session != 0 && state.record.as_ref().is_some_and(|record| record.marks.count() > KEPT);
        let due = many && state.settle_at <= Instant::now();
        if due {
            state.settle_at = Instant::now() + SETTLE_EVERY;
        }
        due
    }

    /// In `session` the peer has made everything up to and including `epoch` durable, and calls what it has `base`; writes to
    /// `busy` are not in this image yet. Blocks until this image is durable too and has that name; whether it has.
    #[must_use]
    pub fn settle(&self, session: u64, epoch: Epoch, base: Base, busy: &[Range]) -> bool {
        let candidates: Vec<usize> = {
            let state = self.state();
            let Some(record) = state.record.as_ref().filter(|_| state.session == session) else { return false };
            let mut open = Regions::new(record.marks.image_size());
            busy.iter().flat_map(|range| record.marks.touched(range)).for_each(|index| {
                open.add(index);
            });
            record.marks.iter().filter(|index| !open.has(*index) && state.stamps[*index] <= epoch).collect()
        };
        if let Err(e) = self.image.sync() {
            warn!("cannot sync the image, its marks stay: {e}");
            return false;
        }
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(record) = state.record.as_mut().filter(|_| state.session == session) else { return false };
        let mut idle: Vec<usize> = candidates.into_iter().filter(|index| state.stamps[*index] <= epoch).collect();
        idle.sort_unstable_by_key(|index| state.stamps[*index]);
        let surplus = record.marks.count().saturating_sub(KEPT / 2);
        for index in idle.into_iter().take(surplus) {
            record.marks.remove(index);
            state.durable.remove(index);
        }
        (record.base, record.former) = (Some(base), None);
        state.change();
        self.notify();
        self.wait(guard).is_ok()
    }

    /// The VM is shut down in `term`, and this is its newest image. Blocks until that is on stable storage.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn end(&self, term: Term) -> Result<(), RecordLost> {
        self.state().make_record(self.image.size());
        self.change(|record| (record.term, record.ended) = (record.term.max(term), term))
    }

    /// Why the record cannot be written, if that is so and has not been told.
    #[must_use]
    pub fn take_trouble(&self) -> Option<RecordLost> {
        self.state().trouble.take().map(RecordLost)
    }

    /// The image is not written any more; who tries gets an error. Notes that for good, and ends the thread that notes.
    pub fn close(&self) {
        self.owner.shared.watch.shut();
        self.state().closing = true;
        // An image that is not noted as closed is compared, if nothing else shows what it is.
        if let Err(e) = self.change(|_| {}) {
            warn!("{e}");
        }
        self.owner.end();
    }

    /// Changes the record, if there is one, and waits until it is written.
    fn change(&self, how: impl FnOnce(&mut Record)) -> Result<(), RecordLost> {
        let mut state = self.state();
        let Some(record) = &mut state.record else { return Ok(()) };
        how(record);
        state.change();
        self.notify();
        self.wait(state)
    }

    /// Blocks until the record as it is wanted now is on stable storage.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn written(&self) -> Result<(), RecordLost> {
        self.wait(self.state())
    }

    fn wait(&self, mut state: MutexGuard<'_, State>) -> Result<(), RecordLost> {
        let ticket = state.changed;
        state.trouble = None;
        let waiting = |state: &mut State| state.written < ticket && state.trouble.is_none() && !state.ended;
        let state = self.owner.shared.changed.wait_while(state, waiting).unwrap_or_else(PoisonError::into_inner);
        match (&state.trouble, &state.lost) {
            (_, Some((lost, why))) if ticket <= *lost => Err(RecordLost(why.clone())),
            (Some(trouble), _) if state.written < ticket => Err(RecordLost(trouble.clone())),
            _ => Ok(()),
        }
    }
}

/// Marks the regions, and some that will probably be written next; whether any of them is new.
fn mark(record: &mut Record, touched: &[usize]) -> bool {
    let mut new = false;
    for &index in touched {
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
    new
}

impl State {
    /// The VM runs from the image from now on, in `term` if it is known.
    fn run_alone(&mut self, term: Option<Term>) {
        self.unowned = false;
        let Some(record) = &mut self.record else { return };
        let before = (record.role, record.term);
        run_from(record);
        record.term = term.unwrap_or(record.term);
        let news = (record.role, record.term) != before;
        if news || self.written < self.changed {
            self.gate = self.change();
        }
    }
}

fn run_from(record: &mut Record) {
    if record.role != Role::Alone {
        (record.role, record.generation) = (Role::Alone, record.generation.saturating_add(1));
    }
    record.altered = false;
}
