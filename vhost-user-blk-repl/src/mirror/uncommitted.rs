//! How much of which epochs the standby has not committed, as the primary counts. Pure.

use std::collections::VecDeque;

use ft_proto::Epoch;

/// Bytes of guest writes by epoch.
#[derive(Debug, Default)]
pub struct Uncommitted {
    total: u64,
    epochs: VecDeque<(Epoch, u64)>,
}

impl Uncommitted {
    /// Counts `cost` bytes for `epoch`, which is never older than in the call before.
    pub fn add(&mut self, epoch: Epoch, cost: u64) {
        self.total += cost;
        match self.epochs.back_mut() {
            Some((last, sum)) if *last == epoch => *sum += cost,
            _ => self.epochs.push_back((epoch, cost)),
        }
    }

    /// Forgets everything up to and including `epoch`.
    pub fn release(&mut self, epoch: Epoch) {
        while let Some(&(first, cost)) = self.epochs.front() {
            if first > epoch {
                break;
            }
            self.total -= cost;
            self.epochs.pop_front();
        }
    }

    /// Bytes over all epochs.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uncommitted_counts_per_epoch() {
        let mut sum = Uncommitted::default();
        for (epoch, cost) in [(1, 5), (1, 5), (2, 7), (5, 1)] {
            sum.add(Epoch(epoch), cost);
        }
        assert_eq!(sum.total(), 18);
        sum.release(Epoch(1));
        assert_eq!(sum.total(), 8);
        sum.release(Epoch(4));
        assert_eq!(sum.total(), 1);
        sum.release(Epoch(5));
        assert_eq!(sum.total(), 0);
    }
}
