//! Which processor the threads of an epoch share. It is none on which a vCPU runs, and had little to do when the session began.

use std::time::{Duration, Instant};

use urgency::Busy;

/// More than this in an epoch, and its threads work side by side.
const PAGES_MAX: usize = 512;
const HELD_MAX: u64 = 256 << 10;

/// So long it takes until it is clear how busy the processors are.
const SETTLE: Duration = Duration::from_millis(50);
/// And it may have changed after this time.
const AGAIN: Duration = Duration::from_secs(5);

/// The choice of one session.
#[derive(Debug)]
pub(crate) struct Place {
    busy: Busy,
    since: Instant,
    /// Inside, `None`: every processor runs a vCPU.
    chosen: Option<Option<u16>>,
    /// Whether the last epoch was small.
    small: bool,
}

impl Place {
    /// Begins to look how busy the processors are: best when the first copy is over.
    pub(crate) fn begin() -> Self {
        Self { busy: Busy::since_now(), since: Instant::now(), chosen: None, small: true }
    }

    /// An epoch had so many pages and so many bytes of held output: the next one is likely to be alike.
    pub(crate) fn epoch(&mut self, pages: usize, held: u64) {
        self.small = pages <= PAGES_MAX && held <= HELD_MAX;
    }

    /// Where the next epoch is worked on; `taken` are the vCPUs' processors. `None`: anywhere.
    pub(crate) fn next(&mut self, taken: &[usize]) -> Option<u16> {
        let in_the_way = |cpu: &Option<u16>| cpu.is_some_and(|cpu| taken.contains(&cpu.into()));
        let age = self.since.elapsed();
        let better = match self.chosen {
            None if age < SETTLE => return None,
            Some(chosen) if !in_the_way(&chosen) && age < AGAIN => return chosen.filter(|_| self.small),
            Some(Some(cpu)) if !in_the_way(&Some(cpu)) => self.busy.better(cpu, taken).or(Some(cpu)),
            _ => self.busy.least(taken),
        };
        (self.chosen, self.since) = (Some(better), Instant::now());
        better.filter(|_| self.small)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_kept_until_a_vcpu_comes_there() {
        let mut place = Place::begin();
        assert_eq!(place.next(&[]), None, "nothing is known yet");
        std::thread::sleep(SETTLE);
        let Some(first) = place.next(&[]) else { return };
        assert_eq!(place.next(&[usize::from(first) + 1]), Some(first));
        assert_ne!(place.next(&[first.into()]), Some(first));
    }

    #[test]
    fn large_epochs_are_worked_on_anywhere() {
        let mut place = Place::begin();
        std::thread::sleep(SETTLE);
        let first = place.next(&[]);
        assert!(first.is_some());
        place.epoch(PAGES_MAX + 1, 0);
        assert_eq!(place.next(&[]), None);
        place.epoch(1, HELD_MAX + 1);
        assert_eq!(place.next(&[]), None);
        place.epoch(PAGES_MAX, HELD_MAX);
        assert_eq!(place.next(&[]), first);
    }
}
