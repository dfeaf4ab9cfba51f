//! The state of the vCPU rendezvous: who wants the vCPUs parked, what they do while they are, how far a
//! checkpoint is.
//!
//! In: what has happened. Out: what each thread does next. Never: a lock, a thread or KVM; `vcpu_sync` has
//! those.
//!
//! Two things change independently. Pauses nest, and the vCPUs are parked while there is one:
//!
//! ```text
//!           stop            last vCPU parks           resume            last vCPU leaves
//!  running ──────► stopping ───────────────► stopped ───────► resuming ─────────────────► running
//!                      ▲                                          │ stop
//!                      └──────────────────────────────────────────┘
//! ```
//!
//! Parked vCPUs do one round of work at a time, see [`Phase`]:
//!
//! ```text
//!        ┌─────────── Jobs ◄── run_jobs ──┐            call_off
//!        │ last done                      │ ┌───────────────────────────┐
//!        └──────────────────────────────► Idle ◄─ work done ─ Working   │
//!                                         │ ▲                    ▲      │
//!                          stop (capture) │ │ last captured      │ go_ahead
//!                                         ▼ │ without work       │      │
//!                                       Capturing ──────────► Captured ─┘
//!                                              last captured, with work
//! ```
//!
//! A checkpoint's work is done by the vCPU that was the last to capture itself, so that no thread has to be
//! woken for it while the guest is paused. `go_ahead` may come before that, too; then `Captured` lasts no
//! time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::worker_pool::Task;

/// What a parked vCPU's thread is told to do with it.
pub enum Order<J> {
    /// Capture the registers that no other vCPU can change.
    Capture,
    /// Capture the others. A vCPU that still runs may send this one an interrupt, which would be in the state
    /// of neither: so not before all are parked.
    CaptureRest,
    /// A job of its own.
    Job(J),
}

impl<J> Order<J> {
    /// What is left to do once this is done.
    pub fn rest(&self) -> Option<Self> {
        matches!(self, Self::Capture).then_some(Self::CaptureRest)
    }
}

/// What a pause is for.
pub enum Purpose<W> {
    /// Only to have the vCPUs parked.
    Stop,
    /// To have their registers captured.
    Capture,
    /// To have their registers captured, and then this work done.
    Checkpoint(W),
}

/// A checkpoint that is still to be taken.
pub struct Pending<W> {
    work: W,
    /// All else that the work needs is there.
    go: bool,
}

/// What the parked vCPUs are at.
pub enum Phase<W> {
    /// Nothing but being parked, or leaving.
    Idle,
    /// Jobs; `open` are not done yet.
    Jobs {
        /// How many.
        open: u32,
    },
    /// Captures; `open` vCPUs have not captured themselves yet.
    Capturing {
        /// How many.
        open: u32,
        /// What is to be done then.
        then: Option<Pending<W>>,
    },
    /// All have captured themselves; `by`, the last one, waits to be told to do the work.
    Captured {
        /// Which vCPU.
        by: u32,
        /// What it will do.
        pending: Pending<W>,
    },
    /// The work is being done.
    Working,
}

/// What a parked thread does next. It asks again when that is done.
pub enum Step<J, W> {
    /// Wake the other vCPUs' threads.
    WakeVcpus,
    /// Wake whoever waits for the vCPUs.
    WakeWaiters,
    /// Obey; [`Rendezvous::obeyed`] follows.
    Obey(Order<J>),
    /// Do the checkpoint's work; [`Rendezvous::work_done`] follows.
    Work(W),
    /// Do a part of another vCPU's work.
    Help(Task),
    /// Wait for a change.
    Wait,
    /// Go back to the guest; [`Rendezvous::leave`] follows.
    Leave,
    /// End.
    Exit,
}

/// One vCPU's stay: what its thread still has to tell others, and since when it is parked.
pub struct Stay {
    vcpu: u32,
    since: Instant,
    wake_vcpus: bool,
    wake_waiters: bool,
}

/// How long the last checkpoint has kept the vCPUs parked, by their own clocks.
#[derive(Default)]
struct PauseTime {
    /// Whether the vCPUs are parked for a checkpoint and nothing else.
    counts: bool,
    /// When the first one parked.
    began: Option<Instant>,
    /// The longest pause, so far as it is over.
    longest: Option<Duration>,
}

/// What all threads agree on. `J` is a job on a vCPU, `W` the work of a checkpoint, `E` what may fail on a
/// vCPU.
pub struct Rendezvous<J, W, E> {
    /// Pauses in force.
    pauses: u32,
    /// vCPUs that are parked.
    parked: u32,
    /// By vCPU.
    orders: Vec<Option<Order<J>>>,
    phase: Phase<W>,
    /// What others may help with. Outlives the work that it is part of: that does not wait for tasks under
    /// way.
    tasks: VecDeque<Task>,
    /// Whether whoever waits for the work helps with it too.
    waiter_helps: bool,
    /// The first failure of the round, and whose.
    failure: Option<(u32, E)>,
    exit: bool,
    time: PauseTime,
}

impl<J, W, E> Rendezvous<J, W, E> {
    /// Of `vcpus` vCPUs, none of which is parked yet; one pause is in force.
    pub fn new(vcpus: u32) -> Self {
        Self {
            pauses: 1,
            parked: 0,
            orders: (0..vcpus).map(|_| None).collect(),
            phase: Phase::Idle,
            tasks: VecDeque::new(),
            waiter_helps: false,
            failure: None,
            exit: false,
            time: PauseTime::default(),
        }
    }

    /// Number of vCPUs.
    pub fn vcpus(&self) -> u32 {
        self.orders.len() as u32
    }

    /// Whether some pause is in force.
    pub fn is_paused(&self) -> bool {
        self.pauses > 0
    }

    /// How many vCPUs are parked.
    pub fn parked(&self) -> u32 {
        self.parked
    }

    /// Whether every vCPU is parked.
    pub fn is_stopped(&self) -> bool {
        self.parked == self.vcpus()
    }

    /// Whether no vCPU has an order. The work of a checkpoint may be to come, or under way.
    pub fn orders_done(&self) -> bool {
        !matches!(self.phase, Phase::Jobs { .. } | Phase::Capturing { .. })
    }

    /// Whether nothing is to be done, nor under way.
    pub fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    /// Whether every vCPU is parked and no vCPU has an order.
    pub fn is_settled(&self) -> bool {
        self.is_stopped() && self.orders_done()
    }

    /// How long the last checkpoint paused the vCPUs. `None` if another pause was in force.
    pub fn last_pause(&self) -> Option<Duration> {
        self.time.longest
    }

    /// The first failure of the last round.
    pub fn take_failure(&mut self) -> Option<(u32, E)> {
        self.failure.take()
    }

    /// One more pause is wanted. No vCPU has an order. Tells whether the vCPUs are to be got out of the
    /// guest.
    pub fn stop(&mut self, purpose: Purpose<W>) -> bool {
        assert!(self.orders_done(), "a pause while vCPUs have orders");
        self.pauses += 1;
        self.time.counts = matches!(purpose, Purpose::Checkpoint(_)) && self.pauses == 1;
        match purpose {
            Purpose::Stop => {}
            Purpose::Capture => self.capture(None),
            Purpose::Checkpoint(work) => self.capture(Some(Pending { work, go: false })),
        }
        self.pauses == 1
    }

    fn capture(&mut self, then: Option<Pending<W>>) {
        assert!(self.is_idle(), "a capture in the middle of a checkpoint");
        (self.failure, self.time.began, self.time.longest) = (None, None, None);
        self.orders.fill_with(|| Some(Order::Capture));
        self.phase = Phase::Capturing { open: self.vcpus(), then };
    }

    /// Gives parked vCPUs jobs, by vCPU.
    pub fn run_jobs(&mut self, jobs: impl Iterator<Item = Option<J>>) {
        assert!(self.is_paused() && self.is_stopped(), "a vCPU job while the vCPUs run");
        assert!(self.is_idle(), "a vCPU job in the middle of a checkpoint");
        let mut open = 0;
        for (order, job) in self.orders.iter_mut().zip(jobs) {
            open += u32::from(job.is_some());
            *order = job.map(Order::Job);
        }
        if open > 0 {
            self.phase = Phase::Jobs { open };
        }
    }

    /// All else that the checkpoint's work needs is there: the last vCPU to have captured itself does it. The
    /// caller waits for that, and may be asked to help.
    pub fn go_ahead(&mut self, helps: bool) {
        self.waiter_helps = helps;
        match &mut self.phase {
            Phase::Capturing { then: Some(pending), .. } | Phase::Captured { pending, .. } => pending.go = true,
            phase => unreachable_phase(phase, "is told to go ahead"),
        }
    }

    /// The checkpoint's work is not to be done after all. Its pause is still in force, and captures may be
    /// under way.
    pub fn call_off(&mut self) {
        match &mut self.phase {
            Phase::Capturing { then, .. } => *then = None,
            phase @ Phase::Captured { .. } => *phase = Phase::Idle,
            phase => unreachable_phase(phase, "is called off"),
        }
    }

    /// One pause less is wanted. Tells whether it was the last one.
    pub fn resume(&mut self) -> bool {
        assert!(self.is_paused(), "resume without pause");
        self.pauses -= 1;
        self.pauses == 0
    }

    /// Every thread is to end. This is a pause that is never over.
    pub fn exit(&mut self) {
        self.exit = true;
        self.pauses += 1;
    }

    /// The thread of `vcpu` has left the guest.
    pub fn park(&mut self, vcpu: u32, since: Instant) -> Stay {
        assert!(!self.is_stopped(), "vCPU {vcpu} parks twice");
        self.parked += 1;
        self.time.began = self.time.began.min(Some(since)).or(Some(since));
        let last = self.is_stopped();
        // For the last one the others have waited with the rest of their captures.
        let wake_vcpus = last && !self.orders_done() && self.vcpus() > 1;
        Stay { vcpu, since, wake_vcpus, wake_waiters: last && self.orders_done() }
    }

    /// What the thread does next.
    pub fn next(&mut self, stay: &mut Stay) -> Step<J, W> {
        if std::mem::take(&mut stay.wake_vcpus) {
            Step::WakeVcpus
        } else if let Some(order) = self.take_order(stay.vcpu) {
            Step::Obey(order)
        } else if let Some(work) = self.take_work(stay.vcpu) {
            Step::Work(work)
        } else if let Some(task) = self.tasks.pop_front() {
            Step::Help(task)
        } else if std::mem::take(&mut stay.wake_waiters) {
            Step::WakeWaiters
        } else if self.exit {
            Step::Exit
        } else if self.is_paused() {
            Step::Wait
        } else {
            Step::Leave
        }
    }

    fn take_order(&mut self, vcpu: u32) -> Option<Order<J>> {
        let stopped = self.is_stopped();
        self.orders[vcpu as usize].take_if(|order| stopped || !matches!(order, Order::CaptureRest))
    }

    fn take_work(&mut self, vcpu: u32) -> Option<W> {
        let ready = matches!(&self.phase, Phase::Captured { by, pending } if *by == vcpu && pending.go);
        if !ready {
            return None;
        }
        match std::mem::replace(&mut self.phase, Phase::Working) {
            Phase::Captured { pending, .. } => Some(pending.work),
            _ => None,
        }
    }

    /// The thread has obeyed an order, of which `rest` is left. Tells whether a checkpoint's work is now up
    /// to this thread.
    pub fn obeyed(&mut self, stay: &mut Stay, rest: Option<Order<J>>, result: Result<(), E>) -> bool {
        if let (Some(rest), Ok(())) = (rest, &result) {
            self.orders[stay.vcpu as usize] = Some(rest);
            return false;
        }
        if let (Err(error), None) = (result, &self.failure) {
            self.failure = Some((stay.vcpu, error));
        }
        self.phase = match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Jobs { open } if open > 1 => Phase::Jobs { open: open - 1 },
            Phase::Capturing { open, then } if open > 1 => Phase::Capturing { open: open - 1, then },
            Phase::Jobs { .. } | Phase::Capturing { then: None, .. } => Phase::Idle,
            Phase::Capturing { then: Some(pending), .. } => Phase::Captured { by: stay.vcpu, pending },
            phase => unreachable_phase(&phase, "has an order"),
        };
        stay.wake_waiters |= self.orders_done();
        matches!(self.phase, Phase::Captured { .. })
    }

    /// Whether a checkpoint's work is worth doing: not when a vCPU could not be captured.
    pub fn captures_are_complete(&self) -> bool {
        self.failure.is_none()
    }

    /// The checkpoint's work is done, or was not worth doing. Ends its pause if the guest goes on.
    pub fn work_done(&mut self, stay: &mut Stay, goes_on: bool, now: Instant) {
        match self.phase {
            Phase::Working => self.phase = Phase::Idle,
            ref phase => unreachable_phase(phase, "has done its work"),
        }
        if goes_on {
            self.resume();
        }
        if self.time.counts {
            self.time.longest = self.time.began.map(|began| now.duration_since(began));
        }
        self.waiter_helps = false;
        (stay.wake_vcpus, stay.wake_waiters) = (true, true);
    }

    /// The thread goes back to the guest.
    pub fn leave(&mut self, stay: &Stay, now: Instant) {
        assert!(self.parked > 0 && !self.is_paused(), "vCPU {} leaves, and must not", stay.vcpu);
        self.parked -= 1;
        if self.time.counts {
            self.time.longest = self.time.longest.max(Some(now.duration_since(stay.since)));
        }
    }

    /// Threads that do parts of a work.
    pub fn workers(&self) -> usize {
        self.orders.len() + usize::from(self.waiter_helps)
    }

    /// Parts of a work that any of them may do.
    pub fn add_tasks(&mut self, tasks: impl Iterator<Item = Task>) {
        self.tasks.extend(tasks);
    }

    /// The next of them that nobody does yet.
    pub fn take_task(&mut self) -> Option<Task> {
        self.tasks.pop_front()
    }

    /// Whether whoever waits for the work has something to do: [`Rendezvous::take_help`].
    pub fn wants_help(&self) -> bool {
        self.waiter_helps && !self.tasks.is_empty()
    }

    /// The next part of the work, if whoever waits for that helps.
    pub fn take_help(&mut self) -> Option<Task> {
        if self.waiter_helps { self.take_task() } else { None }
    }
}

/// A bug of ours: no guest, peer or client can cause it.
fn unreachable_phase<W>(phase: &Phase<W>, what: &str) -> ! {
    let name = match phase {
        Phase::Idle => "idle",
        Phase::Jobs { .. } => "doing jobs",
        Phase::Capturing { .. } => "capturing",
        Phase::Captured { .. } => "captured",
        Phase::Working => "working",
    };
    panic!("the vCPU rendezvous is {name} and {what}")
}

#[cfg(test)]
// Said in full, as this file is part of `tests/loom` too.
#[path = "rendezvous/tests.rs"]
mod tests;
