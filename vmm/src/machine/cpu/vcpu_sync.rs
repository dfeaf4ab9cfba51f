//! The vCPU rendezvous between threads: its state behind a lock, and what the threads of vCPUs and those who
//! stop them do to it.
//!
//! In: calls of `CpuManager`, and of each vCPU's thread. Out: orders obeyed, work done, everybody woken who
//! waits for it. Never: KVM; a decision, which is `rendezvous`'s. `tests/loom` runs this file through its
//! interleavings.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::rendezvous::{Order, Purpose, Rendezvous, Step};
use super::spin_condvar::SpinCondvar;
use super::sync::{Deadline, Mutex, MutexGuard};
use super::worker_pool::{PausedWork, Task, WorkerPool, Workers};

/// For so long whoever waits for a checkpoint's next step spins. The step takes tens of microseconds unless
/// much is to be copied.
pub(super) const SPIN: Duration = Duration::from_micros(100);
/// A vCPU that waits to go on spins for longer: its processor would be the guest's anyway, and a thousand
/// pages are copied meanwhile.
const VCPU_SPIN: Duration = Duration::from_micros(500);

/// The work of a checkpoint.
pub(super) type Work = Arc<std::sync::Mutex<dyn PausedWork>>;

/// A vCPU, on its own thread, which has left the guest.
pub(super) trait ParkedVcpu {
    /// A job on it.
    type Job;
    /// What may fail.
    type Error;
    /// Does what is ordered.
    fn obey(&mut self, order: Order<Self::Job>) -> Result<(), Self::Error>;
    /// It may enter the guest again: takes back what has made it leave.
    fn let_run(&self);
}

/// How a vCPU's stay ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parked {
    /// It runs.
    Run,
    /// Its thread is to end.
    Exit,
}

/// What failed, and on which vCPU.
pub(super) type Failure<E> = Option<(u32, E)>;

/// What all threads share.
pub(super) struct VcpuSync<J, E> {
    state: Mutex<Rendezvous<J, Work, E>>,
    /// For the threads of vCPUs: an order, or an end of the pause.
    changed: SpinCondvar,
    /// For whoever waits for them: all parked, all orders done.
    settled: SpinCondvar,
    /// Whether this machine has processors to spin on.
    may_spin: bool,
}

impl<J, E> VcpuSync<J, E> {
    /// Of `vcpus` vCPUs, none of which is parked yet; one pause is in force.
    pub(super) fn new(vcpus: u32, may_spin: bool) -> Self {
        Self {
            state: Mutex::new(Rendezvous::new(vcpus)),
            changed: SpinCondvar::default(),
            settled: SpinCondvar::default(),
            may_spin,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Rendezvous<J, Work, E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spin_for(&self, time: Duration) -> Option<Deadline> {
        self.may_spin.then(|| Deadline::after(time))
    }

    /// One more pause, and what it is for. Calls `kick` if the vCPUs may be in the guest: it gets all of them
    /// out. Returns before they are parked.
    pub(super) fn stop(&self, purpose: Purpose<Work>, kick: impl FnOnce()) {
        // A capture that nobody waited for may not be over.
        let mut state = self.wait_until(self.lock(), None, Rendezvous::orders_done);
        let in_guest = state.stop(purpose);
        // For parked threads with an order, and for one whose guest has ended its run.
        self.changed.notify_all();
        // Under the lock, as `let_run` is: of the two the later one counts.
        if in_guest {
            kick();
        }
    }

    /// Waits until all vCPUs are parked and have done what they were told to.
    pub(super) fn settle(&self) -> Failure<E> {
        self.wait_until(self.lock(), None, Rendezvous::is_settled).take_failure()
    }

    /// How many vCPUs are parked.
    pub(super) fn parked(&self) -> u32 {
        self.lock().parked()
    }

    /// Has the work of a checkpoint done, and ends its pause unless the work says that the guest stays. A
    /// caller that is `aside`, on no vCPU's processor, spins for the work and helps with it.
    pub(super) fn go_ahead(&self, aside: bool) -> Failure<E> {
        self.lock().go_ahead(aside);
        let spin = if aside { self.spin_for(SPIN) } else { None };
        self.changed.notify_all();
        let mut state = self.lock();
        loop {
            state = self.wait_until(state, spin.as_ref(), |state| state.is_idle() || state.wants_help());
            let Some(task) = state.take_help() else { return state.take_failure() };
            state = self.unlocked(state, task);
        }
    }

    /// Instead of [`VcpuSync::go_ahead`]: the work is not done, and the vCPUs go on.
    pub(super) fn call_off(&self) {
        self.lock().call_off();
        // They are on their way to a stop.
        drop(self.wait_until(self.lock(), None, Rendezvous::orders_done));
        self.resume();
    }

    /// Ends one pause.
    pub(super) fn resume(&self) {
        if self.lock().resume() {
            self.changed.notify_all();
        }
    }

    /// Gives parked vCPUs jobs, by vCPU, and waits until they are done.
    pub(super) fn run_jobs(&self, jobs: impl Iterator<Item = Option<J>>) -> Failure<E> {
        self.lock().run_jobs(jobs);
        self.changed.notify_all();
        self.settle()
    }

    /// Ends all threads; `kick` gets the vCPUs out of the guest.
    pub(super) fn exit(&self, kick: impl FnOnce()) {
        let mut state = self.lock();
        state.exit();
        self.changed.notify_all();
        kick();
        drop(state);
    }

    /// Whether some pause is in force.
    pub(super) fn is_paused(&self) -> bool {
        self.lock().is_paused()
    }

    /// How long the last checkpoint paused the vCPUs. `None` if another pause was in force.
    pub(super) fn last_pause(&self) -> Option<Duration> {
        self.lock().last_pause()
    }

    /// For the thread of a vCPU that will not run on by itself.
    pub(super) fn wait_for_pause(&self) {
        drop(self.changed.wait_while(&self.state, self.lock(), None, |state| !state.is_paused()));
    }

    /// The thread of `vcpu` is parked until nobody wants a pause any more; it obeys orders meanwhile.
    pub(super) fn park(&self, vcpu: u32, thread: &mut impl ParkedVcpu<Job = J, Error = E>) -> Parked {
        let since = Instant::now();
        // The guest is to go on the moment that its checkpoint is complete.
        let mut spin = None;
        let mut state = self.lock();
        let mut stay = state.park(vcpu, since);
        loop {
            match state.next(&mut stay) {
                // Whoever waits is told without the lock, which it needs at once; it may well preempt this
                // thread.
                Step::WakeVcpus => state = self.unlocked(state, || self.changed.notify_all()),
                Step::WakeWaiters => state = self.unlocked(state, || self.settled.notify_all()),
                Step::Help(task) => state = self.unlocked(state, task),
                Step::Obey(order) => {
                    drop(state);
                    if matches!(order, Order::Capture) {
                        spin = self.spin_for(VCPU_SPIN);
                    }
                    let rest = order.rest();
                    let result = thread.obey(order);
                    state = self.lock();
                    if state.obeyed(&mut stay, rest, result) {
                        spin = self.spin_for(VCPU_SPIN);
                    }
                }
                Step::Work(work) => {
                    let mut goes_on = true;
                    if state.captures_are_complete() {
                        drop(state);
                        goes_on = work.lock().unwrap_or_else(PoisonError::into_inner).run(&WorkerPool::new(self));
                        state = self.lock();
                    }
                    state.work_done(&mut stay, goes_on, Instant::now());
                }
                Step::Wait => state = self.changed.wait(&self.state, state, spin.as_ref()),
                Step::Exit => return Parked::Exit,
                Step::Leave => {
                    state.leave(&stay, Instant::now());
                    // Under the lock, so that a stop that comes right now is not taken back.
                    thread.let_run();
                    return Parked::Run;
                }
            }
        }
    }

    fn unlocked<'a>(
        &'a self,
        state: MutexGuard<'a, Rendezvous<J, Work, E>>,
        act: impl FnOnce(),
    ) -> MutexGuard<'a, Rendezvous<J, Work, E>> {
        drop(state);
        act();
        self.lock()
    }

    fn wait_until<'a>(
        &'a self,
        state: MutexGuard<'a, Rendezvous<J, Work, E>>,
        spin: Option<&Deadline>,
        wanted: impl Fn(&Rendezvous<J, Work, E>) -> bool,
    ) -> MutexGuard<'a, Rendezvous<J, Work, E>> {
        self.settled.wait_while(&self.state, state, spin, |state| !wanted(state))
    }
}

impl<J, E> Workers for VcpuSync<J, E> {
    fn count(&self) -> usize {
        self.lock().workers()
    }

    fn hand_out(&self, tasks: &mut dyn Iterator<Item = Task>) {
        self.lock().add_tasks(tasks);
        self.changed.notify_all();
        self.settled.notify_all();
    }

    fn take(&self) -> Option<Task> {
        self.lock().take_task()
    }
}
