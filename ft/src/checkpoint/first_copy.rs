//! The first copy of guest memory, while the guest runs: all touched pages, then what was written meanwhile,
//! until little is left for the first checkpoint.
//!
//! Pages are read live. One that is written while it is read, or afterwards, is in the next harvest and is
//! sent again.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use ft_proto::Time;
use ft_wire::pages::PAGE;

/// Pages per message to the sender.
const CHUNK: usize = 1024;
/// A round that leaves no more than this is small enough for a checkpoint.
const SMALL: usize = 2048;
/// A guest that writes faster than the link carries gets a long first checkpoint rather than none.
const ROUNDS_MAX: u32 = 16;
/// Rounds in a row that leave hardly less than the one before: more of them gain nothing.
const VAIN_MAX: u32 = 2;
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
    /// Pages of the last round.
    last: u64,
    vain: u32,
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
            last: total,
            vain: 0,
            small: false,
            next_round: None,
        }
    }

    /// Decides the next step and fills `pages` when it is to send. `sending`: chunks that are still with the
    /// sender.
    pub(crate) fn step(&mut self, pages: &mut Vec<u64>, sending: usize, disks_ready: bool, now: Time) -> Step {
        self.fill(pages);
        if !pages.is_empty() {
            return Step::Send;
        }
        if sending > 0 {
            return Step::Wait;
        }
        if disks_ready && self.is_over() {
            return Step::Done;
        }
        if self.is_over() && self.next_round.is_some_and(|at| now < at) { Step::Wait } else { Step::Harvest }
    }

    /// Begins a round with what was written since the last one.
    pub(crate) fn round(&mut self, dirty: &[u64], now: Time) {
        let pages = dirty.len() as u64;
        self.rounds += 1;
        self.small = dirty.len() <= SMALL;
        // The first round of an incremental copy has none before it.
        let vain = self.last > 0 && pages > self.last / 4 * 3;
        self.vain = if vain { self.vain + 1 } else { 0 };
        self.last = pages;
        self.next_round = Some(now + IDLE_ROUND);
        self.total += pages;
        self.dirty.extend(dirty);
    }

    /// When to look again if nothing happens. Of chunks that are still with the sender something is heard.
    pub(crate) fn timeout(&self, sending: usize) -> Option<Time> {
        self.next_round.filter(|_| sending == 0 && self.is_over())
    }

    /// Whether what is left is small enough, or does not get smaller.
    fn is_over(&self) -> bool {
        self.small || self.vain >= VAIN_MAX || self.rounds >= ROUNDS_MAX
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
        assert_eq!(copy.timeout(1), None, "the sender is waited for");
        let later = copy.timeout(0).unwrap();
        assert_eq!(copy.step(&mut pages, 0, false, later), Step::Harvest);
        assert_eq!(copy.step(&mut pages, 0, true, NOW), Step::Done);
    }

    /// Pages sent and rounds until the first checkpoint, when the guest leaves so many pages after each
    /// round.
    fn rounds(left: impl Fn(u32) -> usize) -> (u64, u32) {
        let mut copy = FirstCopy::new(std::iter::once(0..10_000).collect());
        for step in 0.. {
            let mut pages = Vec::new();
            match copy.step(&mut pages, 0, true, NOW) {
                Step::Harvest => copy.round(&vec![7; left(copy.rounds)], NOW),
                Step::Done => return (copy.done, copy.rounds),
                _ => assert!(step < 1000, "never ends"),
            }
        }
        unreachable!("the steps have no end")
    }

    #[test]
    fn a_guest_that_writes_too_fast_is_cut_anyway() {
        assert_eq!(rounds(|_| 10_000), (30_000, VAIN_MAX), "always everything");
        let slowly = |round: u32| 20_000 / (round as usize + 2);
        let (sent, count) = rounds(slowly);
        assert!(count <= ROUNDS_MAX && sent < 10_000 * u64::from(count), "{sent} {count}");
        assert_eq!(rounds(|round| if round % 2 == 0 { 9000 } else { 5000 }).1, ROUNDS_MAX, "up and down");
    }

    #[test]
    fn a_round_in_vain_is_forgiven_when_the_next_one_is_not() {
        assert_eq!(rounds(|round| [9000, 4000, 3900, 1000][round as usize]), (10_000 + 9000 + 4000 + 3900 + 1000, 4));
    }
}
