//! The thread that writes to the local image what arrived on the mirror stream, strictly in order.
//!
//! One applier serves all streams of a process's life, so a new stream cannot overtake what an old one
//! released.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex};

use host_kit::sandbox::Needs;
use host_kit::sync::lock;

use crate::image::OpError;
use crate::image::buffer::Buffer;
use crate::receive::epoch_log::Change;
use crate::receive::flusher::Flusher;
use crate::tracker::Tracker;

/// Called with `true` if everything before it was applied, `false` if the image failed, also on the way from
/// there to stable storage.
pub type Callback = Box<dyn FnOnce(bool) + Send>;

enum Job {
    Apply(Change),
    Callback(u64, Callback),
}

#[derive(Default)]
struct Jobs {
    queue: VecDeque<Job>,
    cost: u64,
    closed: bool,
}

struct Shared {
    jobs: Mutex<Jobs>,
    changed: Condvar,
}

/// The queue in front of the thread.
pub struct Applier {
    shared: Arc<Shared>,
}

impl Applier {
    /// Starts the thread, and the one that syncs what it has written; `on_error` is called once, with the
    /// first write that fails. Nothing is applied after it.
    ///
    /// # Errors
    /// When the kernel refuses a thread.
    pub fn new(tracker: Tracker, on_error: Box<dyn FnOnce(OpError) + Send>) -> io::Result<Self> {
        let shared = Arc::new(Shared { jobs: Mutex::default(), changed: Condvar::new() });
        let (theirs, flusher) = (shared.clone(), Flusher::new(tracker.image().clone())?);
        host_kit::thread::spawn("blk_apply", Needs::STORAGE | Needs::MESSAGES | Needs::THREADS, move || {
            run(&theirs, &tracker, &flusher, on_error)
        })?;
        Ok(Self { shared })
    }

    /// Queues a change. Does not block.
    pub fn apply(&self, change: Change) {
        let mut jobs = lock(&self.shared.jobs);
        jobs.cost += change.cost();
        jobs.queue.push_back(Job::Apply(change));
        self.shared.changed.notify_all();
    }

    /// Calls `then`, which holds `cost` bytes, on the applier's thread when everything queued so far is
    /// applied.
    pub fn then(&self, cost: u64, then: Callback) {
        let mut jobs = lock(&self.shared.jobs);
        jobs.cost += cost;
        jobs.queue.push_back(Job::Callback(cost, then));
        self.shared.changed.notify_all();
    }

    /// Blocks until everything queued so far is applied; whether the image took it.
    #[must_use]
    pub fn drain(&self) -> bool {
        let (tx, rx) = crossbeam_channel::bounded(1);
        self.then(
            0,
            Box::new(move |ok| {
                let _ = tx.send(ok);
            }),
        );
        rx.recv().unwrap_or(false)
    }

    /// Blocks while more than `limit` bytes wait to be applied.
    pub fn wait_below(&self, limit: u64) {
        let jobs = lock(&self.shared.jobs);
        drop(self.shared.changed.wait_while(jobs, |jobs| jobs.cost > limit && !jobs.closed));
    }
}

impl Drop for Applier {
    fn drop(&mut self) {
        lock(&self.shared.jobs).closed = true;
        self.shared.changed.notify_all();
    }
}

fn run(shared: &Shared, tracker: &Tracker, flusher: &Flusher, on_error: Box<dyn FnOnce(OpError) + Send>) {
    let mut on_error = Some(on_error);
    loop {
        let jobs = lock(&shared.jobs);
        let waiting = shared.changed.wait_while(jobs, |jobs| jobs.queue.is_empty() && !jobs.closed);
        let mut jobs = waiting.unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(job) = jobs.queue.pop_front() else { return };
        drop(jobs);
        match job {
            Job::Callback(cost, then) => {
                then(on_error.is_some() && tracker.image_failure().is_none());
                shared.done(cost);
            }
            Job::Apply(change) => {
                let cost = change.cost();
                if on_error.is_some()
                    && let Err(e) = apply(tracker, &change)
                    && let Some(on_error) = on_error.take()
                {
                    on_error(e);
                }
                flusher.wrote(cost);
                drop(change);
                shared.done(cost);
            }
        }
    }
}

impl Shared {
    fn done(&self, cost: u64) {
        lock(&self.jobs).cost -= cost;
        self.changed.notify_all();
    }
}

fn apply(tracker: &Tracker, change: &Change) -> Result<(), OpError> {
    let what = if change.data.is_some() { "write" } else { "zeroing" };
    write(tracker, change).map_err(|source| OpError {
        what,
        offset: change.range.offset,
        len: change.range.len,
        source,
    })
}

fn write(tracker: &Tracker, change: &Change) -> io::Result<()> {
    let (range, image) = (change.range, tracker.image());
    tracker.mark_and_wait(range).map_err(io::Error::other)?;
    if let Some(data) = &change.data {
        // Direct I/O asks for alignment.
        let mut aligned = Buffer::zeroed(data.len());
        aligned.copy_from_slice(data);
        return image.write_at(range.offset, &aligned);
    }
    // Holes in the peer's image are mostly holes here too: do not make the file system work for them.
    match image.hole_end(range.offset) {
        Some(end) if end >= range.end() => Ok(()),
        _ => image.zero(range.offset, range.len, true),
    }
}
