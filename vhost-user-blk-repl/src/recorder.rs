//! The thread that writes an image's record, and what it shares with the trackers of that image.
//!
//! In: a record that has changed. Out: the record on stable storage, with the proof that belongs to it (see `watch`). What was
//! changed several times meanwhile is written once.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ft_proto::Epoch;
use tracing::error;
use vmm_sys_util::eventfd::EventFd;

use crate::lock;
use crate::proof::Moment;
use crate::record::{Record, Role};
use crate::record_file::{RecordFile, new_id};
use crate::regions::Regions;
use crate::watch::Watch;

/// Pause before a record that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What is wanted, and what there is.
pub(crate) struct State {
    /// `None` for a disk that was never protected.
    pub(crate) record: Option<Record>,
    /// Marks on stable storage.
    pub(crate) durable: Regions,
    /// Counts changes of `record`, and those that are on stable storage.
    pub(crate) changed: u64,
    pub(crate) written: u64,
    /// The last change that there is no record of any more, since it could not be written; and why.
    pub(crate) lost: Option<(u64, String)>,
    /// The change that guests' writes wait for.
    pub(crate) gate: u64,
    /// Session that marks may be settled in; 0 when there is none.
    pub(crate) session: u64,
    pub(crate) sessions: u64,
    /// Stream whose copy the image is becoming; 0 when there is none.
    pub(crate) receiving: u64,
    /// Epoch of the last write to each region in the session.
    pub(crate) stamps: Vec<Epoch>,
    /// Standby: regions written since the image was last given a name.
    pub(crate) fresh: Regions,
    pub(crate) settle_at: Instant,
    pub(crate) trouble: Option<String>,
    /// Whether there is a file to keep it in.
    pub(crate) kept: bool,
    /// The VM is to run here, but in which term has not been said.
    pub(crate) unowned: bool,
    /// An operator says that this is the copy to go on with.
    pub(crate) forced: bool,
    pub(crate) closing: bool,
    pub(crate) ended: bool,
}

impl State {
    pub(crate) fn new(record: Option<Record>, size: u64, kept: bool) -> Self {
        let none = Regions::new(size);
        Self {
            durable: record.as_ref().map_or_else(|| none.clone(), |record| record.marks.clone()),
            record,
            changed: 0,
            written: 0,
            lost: None,
            gate: 0,
            session: 0,
            sessions: 0,
            receiving: 0,
            stamps: vec![Epoch(0); none.of_image()],
            fresh: none,
            settle_at: Instant::now(),
            trouble: None,
            kept,
            unowned: false,
            forced: false,
            closing: false,
            ended: false,
        }
    }

    pub(crate) fn tracks(&self) -> bool {
        self.session != 0 || self.record.as_ref().is_some_and(|record| record.base.is_some())
    }

    pub(crate) fn change(&mut self) -> u64 {
        self.changed += 1;
        self.changed
    }

    /// There is a record from here on, if there is a file for it; whether it is new.
    pub(crate) fn make_record(&mut self, size: u64) -> bool {
        let new = self.record.is_none() && self.kept;
        if new {
            self.record = Some(Record::new(new_id(), size));
        }
        new
    }
}

pub(crate) struct Shared {
    pub(crate) state: Mutex<State>,
    pub(crate) changed: Condvar,
    pub(crate) watch: Arc<Watch>,
    wake: Arc<EventFd>,
}

/// Starts the thread, if there is a `file` to write.
///
/// # Errors
/// When the kernel refuses it.
pub(crate) fn start(
    state: State,
    file: Option<RecordFile>,
    watch: Arc<Watch>,
    wake: Arc<EventFd>,
) -> io::Result<(Arc<Shared>, Option<JoinHandle<()>>)> {
    if state.record.is_none() {
        watch.allow(Moment(i64::MAX), Duration::ZERO);
    }
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), watch, wake });
    let Some(file) = file else { return Ok((shared, None)) };
    let asked = Arc::downgrade(&shared);
    shared.watch.asks(Box::new(move || {
        if let Some(shared) = asked.upgrade() {
            let mut state = lock(&shared.state);
            if state.changed == state.written {
                state.change();
                shared.changed.notify_all();
            }
        }
    }));
    let theirs = shared.clone();
    let thread = host_kit::thread::spawn("blk_record", move || theirs.write_all(file))?;
    Ok((shared, Some(thread)))
}

impl Shared {
    /// Writes the record whenever it has changed.
    fn write_all(&self, mut file: RecordFile) {
        loop {
            let state = lock(&self.state);
            let idle = |state: &mut State| state.changed == state.written && !state.ended;
            let mut state = self.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
            if state.ended {
                // Of a record that is not closed the page tells what the record cannot.
                let told = state.record.is_none() || state.closing && state.changed == state.written;
                drop(state);
                if told {
                    self.watch.forget();
                }
                return;
            }
            let changed = state.changed;
            let Some(mut record) = state.record.clone() else {
                state.written = changed;
                drop(state);
                self.allow(Moment(i64::MAX), Duration::ZERO);
                continue;
            };
            // What is being taken back on stable storage does not count any more.
            state.durable.intersect(&record.marks);
            let closing = state.closing;
            drop(state);
            let (proof, until) = if closing { (self.watch.close(), Moment(i64::MIN)) } else { self.watch.proof() };
            record.proof = proof;
            let begun = Instant::now();
            match file.write(&record) {
                Ok(()) => {
                    self.watch.allow(until, begun.elapsed());
                    self.written(lock(&self.state), changed, record.marks);
                }
                Err(e) => self.failed(&mut file, &e),
            }
        }
    }

    fn allow(&self, until: Moment, took: Duration) {
        self.watch.allow(until, took);
        self.changed.notify_all();
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
    fn failed(&self, file: &mut RecordFile, e: &io::Error) {
        let trouble = format!("{}: {e}", file.path().display());
        error!("cannot write the record of the image: {trouble}");
        self.watch.trouble(&trouble);
        let mut state = lock(&self.state);
        let needed = state.session != 0 || state.record.as_ref().is_some_and(|record| record.role != Role::Alone);
        if !needed && file.remove().is_ok() {
            state.record = None;
            state.written = state.changed;
            state.lost = Some((state.changed, trouble.clone()));
        }
        state.trouble = Some(trouble);
        let gone = state.record.is_none();
        drop(state);
        if gone {
            self.watch.allow(Moment(i64::MAX), Duration::ZERO);
        }
        self.changed.notify_all();
        let _ = self.wake.write(1);
        if !gone {
            let state = lock(&self.state);
            drop(self.changed.wait_timeout_while(state, RETRY, |state| !state.ended));
        }
    }
}
