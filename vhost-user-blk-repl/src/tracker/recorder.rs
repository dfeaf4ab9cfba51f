//! The thread that writes an image's record, and the lock around the state that it shares with the trackers
//! of that image.
//!
//! In: changes of the record. Out: the record on stable storage, with the proof that belongs to it (see
//! `lease`), after the image where the record says so much of it. The lock is never held during a disk
//! access, because a guest's write may wait for it.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use host_kit::sandbox::Needs;
use host_kit::sync::lock;
use tracing::{error, warn};
use vmm_sys_util::eventfd::EventFd;

use crate::image::Image;
use crate::record::{Record, RecordFile};
use crate::tracker::journal::{Job, RecordWriteError, Ticket};
use crate::tracker::lease::{CLOSED, UNLIMITED, WriteLease};
use crate::tracker::state::State;

/// Pause before a record that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(1);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    lease: Arc<WriteLease>,
    image: Arc<dyn Image>,
    /// Signalled when a change is on stable storage, or cannot be written.
    wake: Arc<EventFd>,
}

/// The state of one image, and the thread; it ends when this is dropped.
pub struct Recorder {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Recorder {
    /// Starts the thread, if there is a `file` to write for `image`.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn new(
        state: State,
        file: Option<RecordFile>,
        lease: Arc<WriteLease>,
        image: Arc<dyn Image>,
        wake: Arc<EventFd>,
    ) -> io::Result<Self> {
        if state.journal().record().is_none() {
            lease.extend(UNLIMITED, Duration::ZERO);
        }
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), lease, image, wake });
        let Some(file) = file else { return Ok(Self { shared, thread: Mutex::default() }) };
        let asked = Arc::downgrade(&shared);
        shared.lease.on_renewal(Box::new(move || {
            if let Some(shared) = asked.upgrade() {
                shared.update(|state| state.journal_mut().rewrite());
            }
        }));
        let theirs = shared.clone();
        let thread =
            host_kit::thread::spawn("blk_record", Needs::STORAGE | Needs::FILES, move || theirs.write_all(file))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Reads or changes the state. Changes of the record are written soon.
    pub fn update<R>(&self, how: impl FnOnce(&mut State) -> R) -> R {
        self.shared.update(how)
    }

    /// Blocks until a change is on stable storage.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn wait(&self, ticket: Ticket) -> Result<(), RecordWriteError> {
        let mut state = lock(&self.shared.state);
        loop {
            if let Some(outcome) = state.journal().outcome(ticket) {
                return outcome;
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Closes the image: no write begins any more. Records that, and ends the thread.
    pub fn close(&self) {
        self.shared.lease.close();
        let ticket = self.update(|state| state.journal_mut().close());
        // Without that the next resynchronisation compares everything, unless there is other evidence.
        if let Some(Err(e)) = ticket.map(|ticket| self.wait(ticket)) {
            warn!("{e}");
        }
        self.end();
    }

    fn end(&self) {
        lock(&self.shared.state).journal_mut().end();
        self.shared.changed.notify_all();
        if let Some(Err(_)) = lock(&self.thread).take().map(JoinHandle::join) {
            warn!("the thread that writes the image's record has failed");
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn update<R>(&self, how: impl FnOnce(&mut State) -> R) -> R {
        let mut state = lock(&self.state);
        let before = state.journal().newest();
        let result = how(&mut state);
        let news = state.journal().newest() != before;
        drop(state);
        if news {
            self.changed.notify_all();
        }
        result
    }

    /// Writes the record whenever it has changed.
    fn write_all(&self, mut file: RecordFile) {
        loop {
            match self.next_job() {
                Job::Write { sync: true, .. } if !self.sync() => self.pause(),
                Job::Write { record, ticket, last, .. } => self.write(&mut file, *record, ticket, last),
                Job::Without => {
                    self.lease.note_record(file.sequence() + 1);
                    self.lease.extend(UNLIMITED, Duration::ZERO);
                    self.changed.notify_all();
                }
                Job::End { complete } => {
                    // The page is evidence that a record which is not closed lacks.
                    if complete {
                        self.lease.remove_page();
                    }
                    return;
                }
            }
        }
    }

    fn next_job(&self) -> Job {
        let mut state = lock(&self.state);
        loop {
            if let Some(job) = state.journal_mut().next_job() {
                return job;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Puts the image on stable storage; whether it is. If not, what the record would say is not true, and
    /// the record that there is stays.
    fn sync(&self) -> bool {
        let Err(e) = self.image.sync() else { return true };
        lock(&self.state).journal_mut().set_trouble(&e.to_string());
        self.tell_all();
        false
    }

    fn write(&self, file: &mut RecordFile, mut record: Record, ticket: Ticket, last: bool) {
        let (proof, until) = if last { (self.lease.last_proof(), CLOSED) } else { self.lease.proof() };
        record.proof = proof;
        let begun = Instant::now();
        match file.write(&record) {
            Ok(()) => {
                self.lease.note_record(file.sequence());
                self.lease.extend(until, begun.elapsed());
                lock(&self.state).journal_mut().set_written(ticket, record.marks);
                self.tell_all();
            }
            Err(e) => self.failed(file, &e),
        }
    }

    /// Writes wait until the record can be written, unless it can be done without.
    fn failed(&self, file: &mut RecordFile, e: &io::Error) {
        let trouble = format!("{}: {e}", file.path().display());
        error!("cannot write the record of the image: {trouble}");
        self.lease.cannot_extend(&trouble);
        let dispensable = lock(&self.state).can_do_without_record();
        let removed = dispensable && file.remove().is_ok();
        if removed {
            self.lease.note_record(file.sequence() + 1);
        }
        let given_up = {
            let mut state = lock(&self.state);
            // A session that has begun since needs a record.
            let given_up = removed && state.can_do_without_record();
            match (given_up, removed) {
                (true, _) => state.journal_mut().give_up(&trouble),
                (false, true) => state.journal_mut().forget_durable(),
                (false, false) => {}
            }
            state.journal_mut().set_trouble(&trouble);
            given_up
        };
        if given_up {
            self.lease.extend(UNLIMITED, Duration::ZERO);
        }
        self.tell_all();
        if !given_up {
            self.pause();
        }
    }

    /// Waits before the next attempt.
    fn pause(&self) {
        let state = lock(&self.state);
        drop(self.changed.wait_timeout_while(state, RETRY, |state| !state.journal().is_ended()));
    }

    fn tell_all(&self) {
        self.changed.notify_all();
        // Fails only when the counter is at its end, and then it is readable already.
        let _ = self.wake.write(1);
    }
}
