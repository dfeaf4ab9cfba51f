//! Work that is done while every vCPU is parked, by the threads of the vCPUs, and by whoever waits for it if
//! that one has a processor of its own: they have nothing else to do.
//!
//! In: the work of a checkpoint, and tasks that it is cut into. Out: all of it done. Never: a thread of its
//! own.

/// What is to be done at a checkpoint when every vCPU is parked and has captured itself. The last of them
/// does it, so that no thread has to be woken for it while the guest waits.
pub trait PausedWork: Send {
    /// Does it, with the help of the others where that is worth it; tells whether the guest goes on.
    fn run(&mut self, pool: &WorkerPool<'_>) -> bool;
}

/// A part of such work that another thread may do.
pub type Task = Box<dyn FnOnce() + Send>;

/// What a pool needs of the threads behind it.
pub(super) trait Workers {
    /// Their number.
    fn count(&self) -> usize;
    /// Hands out tasks, and wakes those who are to do them.
    fn hand_out(&self, tasks: &mut dyn Iterator<Item = Task>);
    /// A task that nobody does yet.
    fn take(&self) -> Option<Task>;
}

/// The threads that do such work.
pub struct WorkerPool<'a>(&'a dyn Workers);

impl<'a> WorkerPool<'a> {
    pub(super) fn new(workers: &'a dyn Workers) -> Self {
        Self(workers)
    }

    /// Number of threads, the calling one among them.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.count()
    }

    /// Has all the tasks done by whoever comes first. When it returns they are done, or under way on another
    /// thread.
    pub fn share(&self, mut tasks: impl Iterator<Item = Task>) {
        self.0.hand_out(&mut tasks);
        while let Some(task) = self.0.take() {
            task();
        }
    }
}
