//! The first copy of guest memory, while the guest runs: all touched pages, then what was written meanwhile, until little
//! is left for the first checkpoint.
//!
//! Pages are read live. One that is written while it is read, or afterwards, is in the next harvest and is sent again.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use ft_proto::Time;
use ft_proto::wire::PAGE;

/// Pages per message to the sender.
const CHUNK: usize = 1024;
/// A round that leaves no more than this is small enough for a checkpoint.
const SMALL: usize = 2048;
/// A guest that writes faster than the link carries gets a long first checkpoint rather than none.
const ROUNDS_MAX: u32 = 16;
/// Between rounds that only keep up while the disks are still being copied.
const IDLE_ROUND: Duration = Duration::from_millis(100);

/// What to do next.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Step {
    /// Send the pages that were filled in.
    Send,
    /// Wait for the sender, the disks or the time.
    Wait,
    /// Harvest and call [`FirstCopy::round`].
    Harvest,
    /// Cut the first checkpoint.
    Done,
}

/// How far the copy has come.
#[derive(Debug)]
pub(crate) struct FirstCopy {
    ranges: VecDeque<Range<u64>>,
    dirty: VecDeque<u64>,
    done: u64,
    total: u64,
    rounds: u32,
    small: bool,
    next_round: Option<Time>,
}

impl FirstCopy {
    /// Copies `ranges` of pages first.
    pub(crate) fn new(ranges: Vec<Range<u64>>) -> Self {
        let total = ranges.iter().map(|range| range.end - range.start).sum();
        Self {
            ranges: ranges.into(),
            dirty: VecDeque::new(),
            done: 0,
            total,
            rounds: 0,
            small: false,
            next_round: None,
        }
    }

    /// Decides the next step and fills `pages` when it is to send. `sending`: chunks that are still with the sender.
    pub(crate) fn step(&mut self, pages: &mut Vec<u64>, sending: usize, disks_ready: bool, now: Time) -> Step {
        self.fill(pages);
        if !pages.is_empty() {
            return Step::Send;
        }
        if sending > 0 {
            return Step::Wait;
        }
        if disks_ready && (self.small || self.rounds >= ROUNDS_MAX) {
            return Step::Done;
        }
        if self.small && self.next_round.is_some_and(|at| now < at) { Step::Wait } else { Step::Harvest }
    }

    /// Begins a round with what was written since the last one.
    pub(crate) fn round(&mut self, dirty: &[u64], now: Time) {
        self.rounds += 1;
        self.small = dirty.len() <= SMALL;
        self.next_round = Some(now + IDLE_ROUND);
        self.total += dirty.len() as u64;
        self.dirty.extend(dirty);
    }

    /// When to look again if nothing happens.
    pub(crate) fn timeout(&self) -> Option<Time> {
        self.next_round.filter(|_| self.small)
    }

    /// Bytes copied and to copy.
    pub(crate) fn counted(&self) -> [u64; 2] {
        [self.done, self.total].map(|pages| pages * PAGE as u64)
    }

    fn fill(&mut self, pages: &mut Vec<u64>) {
        while pages.len() < CHUNK {
            let Some(range) = self.ranges.front_mut() else { break };
            match range.next() {
                Some(page) => pages.push(page),
                None => drop(self.ranges.pop_front()),
            }
        }
        let room = CHUNK - pages.len();
        pages.extend(self.dirty.drain(..room.min(self.dirty.len())));
        self.done += pages.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time(1 << 40);

    #[test]
    fn every_page_goes_out_once_then_what_was_written() {
        let mut copy = FirstCopy::new(vec![0..1500, 4000..4001]);
        let mut sent = Vec::new();
        loop {
            let mut pages = Vec::new();
            match copy.step(&mut pages, 0, true, NOW) {
                Step::Send => sent.extend(pages),
                Step::Harvest => copy.round(&[7, 8], NOW),
                Step::Done => break,
                Step::Wait => unreachable!("nothing to wait for"),
            }
        }
        assert_eq!(sent, (0..1500).chain([4000, 7, 8]).collect::<Vec<_>>());
    }

    #[test]
    fn waits_for_the_disks_without_spinning() {
        let mut copy = FirstCopy::new(Vec::new());
        let mut pages = Vec::new();
        assert_eq!(copy.step(&mut pages, 0, false, NOW), Step::Harvest);
        copy.round(&[], NOW);
        assert_eq!(copy.step(&mut pages, 0, false, NOW), Step::Wait);
        let later = copy.timeout().unwrap();
        assert_eq!(copy.step(&mut pages, 0, false, later), Step::Harvest);
        assert_eq!(copy.step(&mut pages, 0, true, NOW), Step::Done);
    }

    #[test]
    fn a_guest_that_writes_too_fast_is_cut_anyway() {
        let dirty: Vec<u64> = (0..SMALL as u64 + 1).collect();
        let mut copy = FirstCopy::new(Vec::new());
        for round in 0.. {
            let mut pages = Vec::new();
            match copy.step(&mut pages, 0, true, NOW) {
                Step::Harvest => copy.round(&dirty, NOW),
                Step::Done => return assert_eq!(copy.rounds, ROUNDS_MAX),
                _ => assert!(round < 1000, "never ends"),
            }
        }
    }
}
