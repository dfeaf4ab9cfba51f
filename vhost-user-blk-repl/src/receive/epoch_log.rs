//! Writes by epoch: what a standby holds until release. Pure.
//!
//! In: changes tagged with their epoch, in order. Out: the changes of released epochs, in the same order.
//! Never grows beyond its bound.

use std::collections::VecDeque;

use ft_proto::Epoch;
use ft_wire::mirror::CHANGE_OVERHEAD;

use crate::image::range::Range;

/// Most epochs that may have changes and are not released: an honest peer has a few.
pub const OPEN_EPOCHS: usize = 1024;

/// One write or zeroing of the image.
pub struct Change {
    /// Where.
    pub range: Range,
    /// The bytes, as many as the range is long; `None` means zeroes.
    pub data: Option<Vec<u8>>,
}

impl Change {
    /// Bytes that holding it counts for.
    #[must_use]
    pub fn cost(&self) -> u64 {
        CHANGE_OVERHEAD + self.data.as_ref().map_or(0, |data| data.len() as u64)
    }
}

/// A bound on held writes would be exceeded.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OverLimit {
    /// In bytes.
    #[error("more than {0} bytes of uncommitted writes")]
    Bytes(u64),
    /// In epochs.
    #[error("uncommitted writes of more than {OPEN_EPOCHS} epochs")]
    Epochs,
}

struct Held {
    epoch: Epoch,
    changes: Vec<Change>,
    cost: u64,
}

/// Changes of epochs that are not released, oldest first.
pub struct EpochLog {
    limit: u64,
    cost: u64,
    epochs: VecDeque<Held>,
}

impl EpochLog {
    /// Holds at most `limit` bytes, in the sense of [`Change::cost`].
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { limit, cost: 0, epochs: VecDeque::new() }
    }

    /// Adds a change; epochs never go back between calls (the caller has checked).
    ///
    /// # Errors
    /// When it does not fit; nothing is added then.
    pub fn push(&mut self, epoch: Epoch, change: Change) -> Result<(), OverLimit> {
        let cost = change.cost();
        if self.cost + cost > self.limit {
            return Err(OverLimit::Bytes(self.limit));
        }
        let begins = self.epochs.back().is_none_or(|held| held.epoch != epoch);
        if begins && self.epochs.len() == OPEN_EPOCHS {
            return Err(OverLimit::Epochs);
        }
        self.cost += cost;
        match self.epochs.back_mut() {
            Some(held) if held.epoch == epoch => {
                held.changes.push(change);
                held.cost += cost;
            }
            _ => self.epochs.push_back(Held { epoch, changes: vec![change], cost }),
        }
        Ok(())
    }

    /// Takes out the changes of all epochs up to and including `epoch`, in order.
    pub fn release(&mut self, epoch: Epoch) -> Vec<Change> {
        let mut out = Vec::new();
        while self.epochs.front().is_some_and(|held| held.epoch <= epoch) {
            if let Some(held) = self.epochs.pop_front() {
                self.cost -= held.cost;
                out.extend(held.changes);
            }
        }
        out
    }

    /// Drops the changes of all epochs after `epoch`.
    pub fn discard_after(&mut self, epoch: Epoch) {
        while self.epochs.back().is_some_and(|held| held.epoch > epoch) {
            if let Some(held) = self.epochs.pop_back() {
                self.cost -= held.cost;
            }
        }
    }

    /// Bytes held.
    #[must_use]
    pub fn cost(&self) -> u64 {
        self.cost
    }

    /// The oldest epoch that has changes.
    #[must_use]
    pub fn oldest(&self) -> Option<Epoch> {
        self.epochs.front().map(|held| held.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(offset: u64) -> Change {
        Change { range: Range::new(offset, 512), data: Some(vec![0; 512]) }
    }

    fn offsets(changes: &[Change]) -> Vec<u64> {
        changes.iter().map(|change| change.range.offset).collect()
    }

    #[test]
    fn releases_whole_epochs_in_order() {
        let mut log = EpochLog::new(1 << 20);
        for (epoch, offset) in [(1, 10), (1, 11), (2, 20), (4, 40), (4, 41)] {
            log.push(Epoch(epoch), change(offset)).unwrap();
        }
        assert_eq!(log.oldest(), Some(Epoch(1)));
        assert_eq!(offsets(&log.release(Epoch(3))), [10, 11, 20]);
        assert!(log.release(Epoch(3)).is_empty());
        assert_eq!(offsets(&log.release(Epoch(9))), [40, 41]);
        assert_eq!(log.cost(), 0);
    }

    #[test]
    fn discards_what_is_newer() {
        let mut log = EpochLog::new(1 << 20);
        for epoch in 1..=4 {
            log.push(Epoch(epoch), change(epoch)).unwrap();
        }
        log.discard_after(Epoch(2));
        assert_eq!(offsets(&log.release(Epoch(u64::MAX))), [1, 2]);
        assert_eq!(log.cost(), 0);
        assert_eq!(log.oldest(), None);
    }

    #[test]
    fn bounded_in_data_and_in_number() {
        let mut log = EpochLog::new(2 * (512 + CHANGE_OVERHEAD));
        log.push(Epoch(1), change(0)).unwrap();
        log.push(Epoch(2), change(0)).unwrap();
        assert!(log.push(Epoch(2), Change { range: Range::new(0, 512), data: None }).is_err());
        drop(log.release(Epoch(1)));
        log.push(Epoch(2), change(0)).unwrap();
    }

    #[test]
    fn bounded_in_epochs() {
        let mut log = EpochLog::new(u64::MAX);
        for epoch in 1..=OPEN_EPOCHS as u64 {
            log.push(Epoch(epoch), change(0)).unwrap();
        }
        assert_eq!(log.push(Epoch(5000), change(0)), Err(OverLimit::Epochs));
        log.push(Epoch(OPEN_EPOCHS as u64), change(0)).unwrap();
        drop(log.release(Epoch(1)));
        log.push(Epoch(5000), change(0)).unwrap();
    }

    /// What holding a change takes is no more than it counts for.
    #[test]
    fn a_change_counts_for_what_it_takes() {
        for len in [512, 4096, 70_000] {
            let change = Change { range: Range::new(0, len), data: Some(vec![0; len as usize]) };
            let allocated = change.data.as_ref().map_or(0, Vec::capacity) + 2 * size_of::<Change>();
            assert!(allocated as u64 <= change.cost(), "{len}");
        }
    }
}
