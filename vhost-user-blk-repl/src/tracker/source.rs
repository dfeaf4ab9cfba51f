//! The primary's side of a session, for the record: when each region was last written, so that its mark can
//! be removed once both hosts have that write on stable storage. Pure.

use std::time::{Duration, Instant};

use ft_proto::Epoch;

use crate::image::range::Range;
use crate::image::regions::Regions;
use crate::record::{Base, Record};
use crate::tracker::journal::Journal;

/// Marks that may stay although they could be removed: comparing their regions is cheap, and a guest that
/// writes to the same regions again causes no write of the record.
const KEPT: usize = 1024;
/// How often the peer is asked what it has on stable storage.
const SETTLE_EVERY: Duration = Duration::from_secs(1);

/// The image is the source of a standby's.
pub struct Source {
    number: u64,
    /// Epoch of the last write to each region in the session.
    stamps: Vec<Epoch>,
    settle_at: Instant,
}

impl Source {
    /// Session `number` of an image with so many `regions`.
    #[must_use]
    pub fn new(number: u64, regions: usize) -> Self {
        Self { number, stamps: vec![Epoch(0); regions], settle_at: Instant::now() }
    }

    /// Whether this is session `number`.
    #[must_use]
    pub fn is(&self, number: u64) -> bool {
        self.number == number
    }

    /// Regions are written in `epoch`.
    pub fn stamp(&mut self, touched: &[usize], epoch: Epoch) {
        touched.iter().for_each(|&index| self.stamps[index] = epoch);
    }

    /// Whether there are so many marks that some should be removed, and the peer was not asked recently.
    pub fn settle_is_due(&mut self, marks: usize, now: Instant) -> bool {
        let due = marks > KEPT && self.settle_at <= now;
        if due {
            self.settle_at = now + SETTLE_EVERY;
        }
        due
    }

    /// Marked regions that were not written after `epoch`, except where writes to `busy` have not reached the
    /// image yet.
    #[must_use]
    pub fn settled(&self, record: &Record, epoch: Epoch, busy: &[Range]) -> Vec<usize> {
        let mut open = Regions::new(record.marks.image_size());
        busy.iter().flat_map(|range| record.marks.overlapping(range)).for_each(|index| {
            open.insert(index);
        });
        record.marks.iter().filter(|index| !open.contains(*index) && self.stamps[*index] <= epoch).collect()
    }

    /// Both images, as they were at [`Source::settled`], are on stable storage and named `base`: removes
    /// surplus marks, those of the least recently written regions first.
    pub fn settle(&self, journal: &mut Journal, epoch: Epoch, base: Base, settled: Vec<usize>) {
        let Some(marks) = journal.record().map(|record| record.marks.count()) else { return };
        let mut idle: Vec<usize> = settled.into_iter().filter(|index| self.stamps[*index] <= epoch).collect();
        idle.sort_unstable_by_key(|index| self.stamps[*index]);
        journal.unmark(idle.into_iter().take(marks.saturating_sub(KEPT / 2)));
        journal.change(|record| (record.base, record.former) = (Some(base), None));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGIONS: usize = 4096;
    const SIZE: u64 = (REGIONS as u64) << 20;

    fn marked(count: usize) -> Journal {
        let mut journal = Journal::new(Some(Record::new(1, SIZE)), SIZE, true);
        journal.mark(&(0..count).map(|index| 2 * index).collect::<Vec<_>>());
        journal
    }

    #[test]
    fn the_longest_unwritten_marks_go_and_the_rest_stays() {
        let (mut journal, mut source) = (marked(1200), Source::new(1, REGIONS));
        (0..1200).for_each(|index| source.stamp(&[2 * index], Epoch(index as u64)));
        let settled = source.settled(journal.record().unwrap(), Epoch(1000), &[]);
        assert_eq!(settled.len(), 1001);
        source.settle(&mut journal, Epoch(1000), Base(5), settled);
        let record = journal.record().unwrap();
        assert_eq!((record.marks.count(), record.base), (KEPT / 2, Some(Base(5))));
        assert!(!record.marks.contains(0) && record.marks.contains(2 * 1199));
    }

    #[test]
    fn what_is_being_written_or_was_written_meanwhile_stays_marked() {
        let (mut journal, mut source) = (marked(1200), Source::new(1, REGIONS));
        let settled = source.settled(journal.record().unwrap(), Epoch(1), &[Range::new(0, 512)]);
        assert!(!settled.contains(&0) && settled.contains(&2));
        source.stamp(&[2], Epoch(2));
        source.settle(&mut journal, Epoch(1), Base(5), settled);
        let marks = &journal.record().unwrap().marks;
        assert!(marks.contains(0) && marks.contains(2) && !marks.contains(4));
    }

    #[test]
    fn few_marks_are_never_settled_and_many_once_a_second() {
        let now = Instant::now();
        let mut source = Source::new(1, REGIONS);
        assert!(!source.settle_is_due(KEPT, now + SETTLE_EVERY));
        assert!(source.settle_is_due(KEPT + 1, now + SETTLE_EVERY));
        assert!(!source.settle_is_due(KEPT + 1, now + SETTLE_EVERY));
        assert!(source.settle_is_due(KEPT + 1, now + 2 * SETTLE_EVERY));
    }
}
