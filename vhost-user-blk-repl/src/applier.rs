//! The thread that writes what came through the mirror stream to the local image, strictly in order.
//!
//! One applier serves all streams of a process's life, so a new stream cannot overtake what an old one released.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use crate::disk::OpError;
use crate::epoch_log::Change;
use crate::image::Image;
use crate::lock;

/// Called with `true` if everything before it was applied, `false` if the image failed.
pub type Then = Box<dyn FnOnce(bool) + Send>;

enum Job {
    Apply(Change),
    Then(Then),
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
    /// Starts the thread; `on_error` is called once, with the first failure of the image. Nothing is applied after it.
    ///
    /// # Errors
    /// When the kernel refuses a thread.
    pub fn new(image: Arc<dyn Image>, on_error: Box<dyn FnOnce(OpError) + Send>) -> io::Result<Self> {
        let shared = Arc::new(Shared { jobs: Mutex::default(), changed: Condvar::new() });
        let theirs = shared.clone();
        thread::Builder::new().name("blk_apply".to_owned()).spawn(move || run(&theirs, &*image, on_error))?;
        Ok(Self { shared })
    }

    /// Queues a change. Does not block.
    pub fn apply(&self, change: Change) {
        let mut jobs = lock(&self.shared.jobs);
        jobs.cost += change.cost();
        jobs.queue.push_back(Job::Apply(change));
        self.shared.changed.notify_all();
    }

    /// Calls `then` on the applier's thread when everything queued so far is applied.
    pub fn then(&self, then: Then) {
        lock(&self.shared.jobs).queue.push_back(Job::Then(then));
        self.shared.changed.notify_all();
    }

    /// Blocks until everything queued so far is applied; whether the image took it.
    #[must_use]
    pub fn drain(&self) -> bool {
        let (tx, rx) = crossbeam_channel::bounded(1);
        self.then(Box::new(move |ok| {
            let _ = tx.send(ok);
        }));
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

fn run(shared: &Shared, image: &dyn Image, on_error: Box<dyn FnOnce(OpError) + Send>) {
    let mut on_error = Some(on_error);
    loop {
        let jobs = lock(&shared.jobs);
        let waiting = shared.changed.wait_while(jobs, |jobs| jobs.queue.is_empty() && !jobs.closed);
        let mut jobs = waiting.unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(job) = jobs.queue.pop_front() else { return };
        drop(jobs);
        match job {
            Job::Then(then) => then(on_error.is_some()),
            Job::Apply(change) => {
                let cost = change.cost();
                if on_error.is_some()
                    && let Err(e) = apply(image, &change)
                    && let Some(on_error) = on_error.take()
                {
                    on_error(e);
                }
                drop(change);
                lock(&shared.jobs).cost -= cost;
                shared.changed.notify_all();
            }
        }
    }
}

fn apply(image: &dyn Image, change: &Change) -> Result<(), OpError> {
    let what = if change.data.is_some() { "write" } else { "zeroing" };
    write(image, change).map_err(|source| OpError { what, offset: change.range.offset, len: change.range.len, source })
}

fn write(image: &dyn Image, change: &Change) -> io::Result<()> {
    let range = change.range;
    if let Some(data) = &change.data {
        return image.write_at(range.offset, data);
    }
    // Holes in the peer's image are mostly holes here too: do not make the file system work for them.
    match image.hole_end(range.offset) {
        Some(end) if end >= range.end() => Ok(()),
        _ => image.zero(range.offset, range.len, true),
    }
}
