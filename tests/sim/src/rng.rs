//! The one source of chance of a run: everything that is drawn is drawn from its seed, in the order of the
//! run.

use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng as _, SeedableRng as _};

/// A seeded generator whose sequence is fixed by its algorithm.
#[derive(Debug)]
pub(crate) struct Rng(Xoshiro256PlusPlus);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    pub(crate) fn word(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Below `bound`, which is not zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.word()) * u128::from(bound)) >> 64) as u64
    }

    /// An index into something of this length.
    pub(crate) fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// Between the two, both included.
    pub(crate) fn range(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// True so many times in a million.
    pub(crate) fn chance(&mut self, per_million: u64) -> bool {
        self.below(1_000_000) < per_million
    }

    /// A span between so many microseconds.
    pub(crate) fn micros(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_nanos(self.range(from * 1000, to * 1000))
    }

    /// A span between so many milliseconds; short ones and long ones are equally likely.
    pub(crate) fn spread_millis(&mut self, from: u64, to: u64) -> Duration {
        let octaves = u64::from((to / from).max(1).ilog2());
        let low = from << self.range(0, octaves);
        self.micros(low * 1000, (2 * low).min(to).max(low) * 1000)
    }
}
