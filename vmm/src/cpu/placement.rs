//! Keeps the thread that makes checkpoints off the vCPUs' processors. There it would take the place of whom it waits for; elsewhere it
//! looks for the end of the pause and need not be woken.

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

const THIS_THREAD: Pid = Pid::from_raw(0);

/// Where the threads of this process may run.
pub(super) struct Placement {
    allowed: Option<CpuSet>,
}

impl Placement {
    /// As the calling thread may.
    pub(super) fn new() -> Self {
        Self { allowed: sched_getaffinity(THIS_THREAD).ok() }
    }

    /// Moves the calling thread to a processor that is none of `taken`; tells whether it is on one.
    pub(super) fn step_aside(&self, taken: impl Iterator<Item = usize> + Clone) -> bool {
        let Ok(here) = sched_getcpu() else { return false };
        if !taken.clone().any(|cpu| cpu == here) {
            return true;
        }
        let Some(mut free) = self.allowed else { return false };
        // What is not a number of a processor is not in the set.
        taken.for_each(|cpu| free.unset(cpu).unwrap_or_default());
        (0..CpuSet::count()).any(|cpu| free.is_set(cpu) == Ok(true)) && sched_setaffinity(THIS_THREAD, &free).is_ok()
    }

    /// The calling thread may run everywhere again, and so may the threads that it starts.
    pub(super) fn step_back(&self) {
        if let Some(allowed) = &self.allowed {
            // It may run where it does, at worst.
            let _ = sched_setaffinity(THIS_THREAD, allowed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_where_there_is_room_and_comes_back() {
        let allowed = sched_getaffinity(THIS_THREAD).unwrap();
        let cpus: Vec<usize> = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap()).collect();
        let placement = Placement::new();
        for taken in &cpus {
            // On a machine with one processor there is no room.
            assert_eq!(placement.step_aside([*taken, usize::MAX].into_iter()), cpus.len() > 1);
            assert!(cpus.len() == 1 || sched_getcpu().unwrap() != *taken);
        }
        assert!(!placement.step_aside(cpus.iter().copied()));
        placement.step_back();
        assert_eq!(sched_getaffinity(THIS_THREAD).unwrap(), allowed);
    }
}
