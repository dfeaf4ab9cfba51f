//! A machine whose vCPUs are loom's threads, and whose guest only runs. It checks what must never happen.

#![allow(clippy::unwrap_used)] // Helpers of tests panic as tests do.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread::{JoinHandle, spawn};

use crate::rendezvous::{Order, Purpose};
use crate::vcpu_sync::{Parked, ParkedVcpu, VcpuSync, Work};
use crate::worker_pool::{PausedWork, Task, WorkerPool};

/// A job on a vCPU: counts itself.
type Job = std::sync::Arc<AtomicU32>;

/// A capture that was made to fail.
#[derive(Debug)]
pub struct Failed;

/// What is true of the vCPUs, whatever their threads believe. No part of what loom tries the orders of.
#[derive(Default)]
struct Truth {
    in_guest: Vec<AtomicBool>,
    /// Halves of captures since the last work.
    captures: AtomicU32,
    /// The vCPU whose captures fail, plus one.
    failing: AtomicU32,
    /// The guest has ended its run: no vCPU will enter it again.
    shut_down: AtomicBool,
}

impl Truth {
    fn assert_stopped(&self) {
        let running = self.in_guest.iter().any(|vcpu| vcpu.load(Ordering::SeqCst));
        assert!(!running, "a vCPU is in the guest");
    }
}

/// The way into the guest and out of it, as KVM has it with `immediate_exit` and a signal.
#[derive(Default)]
struct Guest {
    exit_wanted: Mutex<bool>,
    leaves: Condvar,
    entered: Condvar,
}

impl Guest {
    fn want_exit(&self, wanted: bool) {
        *self.exit_wanted.lock().unwrap() = wanted;
        if wanted {
            self.leaves.notify_one();
        }
    }

    /// Until an exit is wanted; `inside` changes under the lock.
    fn run(&self, inside: &AtomicBool) {
        let mut exit_wanted = self.exit_wanted.lock().unwrap();
        inside.store(true, Ordering::SeqCst);
        self.entered.notify_one();
        while !*exit_wanted {
            exit_wanted = self.leaves.wait(exit_wanted).unwrap();
        }
        inside.store(false, Ordering::SeqCst);
    }

    fn wait_until(&self, inside: &AtomicBool) {
        let mut exit_wanted = self.exit_wanted.lock().unwrap();
        while !inside.load(Ordering::SeqCst) {
            exit_wanted = self.entered.wait(exit_wanted).unwrap();
        }
    }
}

struct Vcpu {
    index: u32,
    guest: Arc<Guest>,
    truth: std::sync::Arc<Truth>,
}

impl Vcpu {
    fn run(mut self, sync: &VcpuSync<Job, Failed>) {
        loop {
            if sync.is_paused() && sync.park(self.index, &mut self) == Parked::Exit {
                return;
            }
            if self.truth.shut_down.load(Ordering::SeqCst) {
                sync.wait_for_pause();
            } else {
                self.guest.run(&self.truth.in_guest[self.index as usize]);
            }
        }
    }
}

impl ParkedVcpu for Vcpu {
    type Job = Job;
    type Error = Failed;

    fn obey(&mut self, order: Order<Job>) -> Result<(), Failed> {
        match order {
            Order::Capture => {
                if self.truth.failing.load(Ordering::SeqCst) == self.index + 1 {
                    return Err(Failed);
                }
            }
            Order::CaptureRest => self.truth.assert_stopped(),
            Order::Job(job) => {
                self.truth.assert_stopped();
                job.fetch_add(1, Ordering::SeqCst);
                return Ok(());
            }
        }
        self.truth.captures.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn let_run(&self) {
        self.guest.want_exit(false);
    }
}

/// The work of checkpoints; counts them.
pub struct Checkpoint {
    truth: std::sync::Arc<Truth>,
    done: std::sync::Arc<AtomicU32>,
    tasks: std::sync::Arc<AtomicU32>,
    goes_on: bool,
    shares: bool,
}

impl PausedWork for Checkpoint {
    fn run(&mut self, pool: &WorkerPool<'_>) -> bool {
        self.truth.assert_stopped();
        let captures = self.truth.captures.swap(0, Ordering::SeqCst);
        assert_eq!(captures as usize, 2 * self.truth.in_guest.len(), "each vCPU has captured both halves once");
        if self.shares {
            pool.share((0..pool.size()).map(|_| -> Task {
                let tasks = self.tasks.clone();
                Box::new(move || _ = tasks.fetch_add(1, Ordering::SeqCst))
            }));
        }
        self.done.fetch_add(1, Ordering::SeqCst);
        self.goes_on
    }
}

/// How vCPUs and whoever waits for a checkpoint wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// They sleep at once.
    Sleep,
    /// They spin first.
    Spin,
}

/// The machine. Its vCPUs are paused at first.
pub struct Machine {
    sync: Arc<VcpuSync<Job, Failed>>,
    vcpus: Vec<(Arc<Guest>, JoinHandle<()>)>,
    truth: std::sync::Arc<Truth>,
    done: std::sync::Arc<AtomicU32>,
    tasks: std::sync::Arc<AtomicU32>,
}

impl Machine {
    /// Of so many vCPUs.
    #[must_use]
    pub fn new(vcpus: u32, wait: Wait) -> Self {
        let truth = Truth { in_guest: (0..vcpus).map(|_| AtomicBool::default()).collect(), ..Truth::default() };
        let (sync, truth) = (Arc::new(VcpuSync::new(vcpus, wait == Wait::Spin)), std::sync::Arc::new(truth));
        let vcpus = (0..vcpus).map(|index| {
            let (guest, sync) = (Arc::new(Guest::default()), sync.clone());
            let vcpu = Vcpu { index, guest: guest.clone(), truth: truth.clone() };
            (guest, spawn(move || vcpu.run(&sync)))
        });
        let vcpus = vcpus.collect();
        Self { sync, vcpus, truth, done: Job::default(), tasks: Job::default() }
    }

    fn work(&self, goes_on: bool, shares: bool) -> Work {
        let (truth, done, tasks) = (self.truth.clone(), self.done.clone(), self.tasks.clone());
        std::sync::Arc::new(std::sync::Mutex::new(Checkpoint { truth, done, tasks, goes_on, shares }))
    }

    fn kick(&self) {
        for (guest, _) in &self.vcpus {
            guest.want_exit(true);
        }
    }

    /// Begins a checkpoint.
    pub fn stop_for(&self, goes_on: bool, shares: bool) {
        self.truth.captures.store(0, Ordering::SeqCst);
        self.sync.stop(Purpose::Checkpoint(self.work(goes_on, shares)), || self.kick());
    }

    /// Ends one, and tells whether it was taken.
    #[must_use]
    pub fn go_ahead(&self) -> bool {
        let before = self.done();
        let failure = self.sync.go_ahead(true);
        let taken = self.done() - before;
        assert_eq!(taken, u32::from(failure.is_none()), "taken once unless a capture has failed");
        taken == 1
    }

    /// The other end of one.
    pub fn call_off(&self) {
        self.sync.call_off();
    }

    /// A pause by somebody else, while which nothing runs.
    pub fn pause(&self) {
        self.sync.stop(Purpose::Stop, || self.kick());
        self.sync.settle();
        self.truth.assert_stopped();
    }

    /// A pause in which registers are captured; does not wait for that.
    pub fn begin_capture(&self) {
        self.sync.stop(Purpose::Capture, || self.kick());
    }

    /// Waits until the vCPUs are parked and captured, and tells how often each was since this was last asked.
    ///
    /// # Panics
    /// When some were captured more often than others.
    #[must_use]
    pub fn captures(&self) -> u32 {
        assert!(self.sync.settle().is_none());
        self.truth.assert_stopped();
        let halves = self.truth.captures.swap(0, Ordering::SeqCst) as usize;
        assert!(halves.is_multiple_of(2 * self.vcpus.len()), "{halves} halves of captures");
        (halves / (2 * self.vcpus.len())) as u32
    }

    /// From now on no vCPU enters the guest, which has ended its run.
    pub fn shut_down(&self) {
        self.truth.shut_down.store(true, Ordering::SeqCst);
    }

    /// The end of a pause.
    pub fn resume(&self) {
        self.sync.resume();
    }

    /// Jobs on all vCPUs, which are paused; tells how many were done.
    #[must_use]
    pub fn run_jobs(&self) -> u32 {
        let done = Job::default();
        let failure = self.sync.run_jobs(self.vcpus.iter().map(|_| Some(done.clone())));
        assert!(failure.is_none());
        done.load(Ordering::SeqCst)
    }

    /// From now on captures of this vCPU fail.
    pub fn fail(&self, vcpu: u32) {
        self.truth.failing.store(vcpu + 1, Ordering::SeqCst);
    }

    /// Waits until every vCPU is in the guest.
    pub fn wait_until_running(&self) {
        for ((guest, _), inside) in self.vcpus.iter().zip(&self.truth.in_guest) {
            guest.wait_until(inside);
        }
    }

    /// Whether some pause is in force.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.sync.is_paused()
    }

    /// Checkpoints taken.
    #[must_use]
    pub fn done(&self) -> u32 {
        self.done.load(Ordering::SeqCst)
    }

    /// Ends all threads, and tells how many tasks they have done.
    ///
    /// # Panics
    /// When one of them has.
    pub fn end(mut self) -> u32 {
        self.sync.exit(|| self.kick());
        for (_, thread) in self.vcpus.drain(..) {
            thread.join().expect("a vCPU's thread");
        }
        self.tasks.load(Ordering::SeqCst)
    }
}
