//! Which jobs are to be done, and whose turn it is.
//!
//! Pure: a set with a cursor, so that no queue can keep the others waiting.

/// One kind of work, done a chunk at a time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Job {
    /// Released frames to the tap.
    Drain,
    /// The guest's control queue.
    Control,
    /// Frames of the guest, by queue pair.
    Output(usize),
    /// Frames for the guest, by tap queue.
    Input(usize),
}

/// The jobs that are to be done.
#[derive(Debug)]
pub struct Work {
    pairs: usize,
    /// Bit 0 drain, bit 1 control, then output and input by pair.
    pending: u64,
    cursor: usize,
}

impl Work {
    /// Nothing to do for `pairs` queue pairs, 31 at most.
    #[must_use]
    pub fn new(pairs: usize) -> Self {
        debug_assert!(pairs <= 31);
        Self { pairs, pending: 0, cursor: 0 }
    }

    fn bit(&self, job: Job) -> u64 {
        1 << match job {
            Job::Drain => 0,
            Job::Control => 1,
            Job::Output(pair) => 2 + pair,
            Job::Input(pair) => 2 + self.pairs + pair,
        }
    }

    fn job(&self, index: usize) -> Job {
        match index {
            0 => Job::Drain,
            1 => Job::Control,
            _ if index < 2 + self.pairs => Job::Output(index - 2),
            _ => Job::Input(index - 2 - self.pairs),
        }
    }

    /// `job` is to be done.
    pub fn add(&mut self, job: Job) {
        self.pending |= self.bit(job);
    }

    /// Every input job is to be done.
    pub fn add_all_input(&mut self) {
        (0..self.pairs).for_each(|pair| self.add(Job::Input(pair)));
    }

    /// Every queue is to be looked at.
    pub fn add_all_queues(&mut self) {
        self.add(Job::Control);
        (0..self.pairs).for_each(|pair| self.add(Job::Output(pair)));
        self.add_all_input();
    }

    /// `job` is done.
    pub fn remove(&mut self, job: Job) {
        self.pending &= !self.bit(job);
    }

    /// The next job, in turn, that `may_run`.
    pub fn next(&mut self, may_run: impl Fn(Job) -> bool) -> Option<Job> {
        let jobs = 2 + 2 * self.pairs;
        for step in 0..jobs {
            let index = (self.cursor + step) % jobs;
            let job = self.job(index);
            if self.pending & (1 << index) != 0 && may_run(job) {
                self.cursor = (index + 1) % jobs;
                return Some(job);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_has_a_turn() {
        let mut work = Work::new(2);
        assert_eq!(work.next(|_| true), None);
        work.add_all_queues();
        work.add(Job::Drain);
        let round: Vec<_> = (0..6).filter_map(|_| work.next(|_| true)).collect();
        assert_eq!(round, [Job::Drain, Job::Control, Job::Output(0), Job::Output(1), Job::Input(0), Job::Input(1)]);
        work.remove(Job::Input(0));
        assert_eq!(work.next(|job| matches!(job, Job::Input(_))), Some(Job::Input(1)));
        assert_eq!(work.next(|job| job == Job::Input(0)), None);
    }
}
