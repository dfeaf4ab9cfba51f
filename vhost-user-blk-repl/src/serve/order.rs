//! Which writes must wait for which: those that share a byte are performed in the order they were taken.
//! Pure.
//!
//! In: writes as they are taken and as they finish. Out: which may start. The work for a write grows with its
//! ranges (and the logarithm of all), not with the number of writes in progress: for each byte only its last
//! write is known, and the next one waits for that, which waits for the one before.

use std::collections::{BTreeMap, HashMap};

use crate::image::range::Range;

/// Pieces of finished writes that are kept before they are looked for.
const STALE_MAX: usize = 1024;

#[derive(Default)]
struct Write {
    /// Unfinished writes that it waits for.
    before: usize,
    /// Writes that wait for it.
    after: Vec<u64>,
}

/// The unfinished writes.
#[derive(Default)]
pub struct WriteOrder {
    writes: HashMap<u64, Write>,
    /// The last write of each byte, as disjoint pieces: first byte -> (end, id). Those of finished writes
    /// mean nothing.
    last: BTreeMap<u64, (u64, u64)>,
    /// Pieces there were when those of finished writes were last removed.
    swept: usize,
}

impl WriteOrder {
    /// A new write to `ranges` comes after all others. Ids are never used twice.
    pub fn begin(&mut self, id: u64, ranges: &[Range]) {
        let mut before = Vec::new();
        for range in ranges.iter().filter(|range| range.len > 0) {
            self.cover(*range, id, &mut before);
        }
        before.sort_unstable();
        before.dedup();
        before.retain(|other| *other != id && self.writes.contains_key(other));
        for other in &before {
            if let Some(other) = self.writes.get_mut(other) {
                other.after.push(id);
            }
        }
        self.writes.insert(id, Write { before: before.len(), after: Vec::new() });
        if self.last.len() > 2 * self.swept + STALE_MAX {
            self.last.retain(|_, (_, id)| self.writes.contains_key(id));
            self.swept = self.last.len();
        }
    }

    /// Whether a write waits for no other.
    #[must_use]
    pub fn is_free(&self, id: u64) -> bool {
        self.writes.get(&id).is_none_or(|write| write.before == 0)
    }

    /// A write is finished, or will never be done. Those that waited for it alone are returned: they are free
    /// now.
    pub fn finish(&mut self, id: u64) -> Vec<u64> {
        let Some(write) = self.writes.remove(&id) else { return Vec::new() };
        let mut free = Vec::new();
        for other in write.after {
            if let Some(waiting) = self.writes.get_mut(&other) {
                waiting.before -= 1;
                if waiting.before == 0 {
                    free.push(other);
                }
            }
        }
        if self.writes.is_empty() {
            self.last.clear();
            self.swept = 0;
        }
        free
    }

    /// Makes `id` the last write of `range`, and adds those that were to `before`.
    fn cover(&mut self, range: Range, id: u64, before: &mut Vec<u64>) {
        let (start, end) = (range.offset, range.end());
        // The piece that begins before the range and reaches into it, or beyond.
        if let Some((_, piece)) = self.last.range_mut(..start).next_back()
            && piece.0 > start
        {
            let (piece_end, owner) = *piece;
            piece.0 = start;
            before.push(owner);
            if piece_end > end {
                self.last.insert(end, (piece_end, owner));
            }
        }
        while let Some((&at, &(piece_end, owner))) = self.last.range(start..end).next() {
            self.last.remove(&at);
            before.push(owner);
            if piece_end > end {
                self.last.insert(end, (piece_end, owner));
            }
        }
        self.last.insert(start, (end, id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule itself: a write waits for all earlier unfinished ones that share a byte with it.
    #[derive(Default)]
    struct Pairs(BTreeMap<u64, Vec<Range>>);

    impl Pairs {
        fn is_free(&self, id: u64) -> bool {
            let overlaps = |other: &[Range]| other.iter().any(|a| self.0[&id].iter().any(|b| a.overlaps(b)));
            !self.0.range(..id).any(|(_, other)| overlaps(other))
        }
    }

    fn random(state: &mut u64, below: u64) -> u64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) % below
    }

    #[test]
    fn it_is_the_order_of_all_pairs() {
        for seed in 0..200 {
            let (mut state, mut order, mut pairs) = (seed, WriteOrder::default(), Pairs::default());
            for id in 0..120 {
                let count = 1 + random(&mut state, 4);
                let ranges: Vec<_> =
                    (0..count).map(|_| Range::new(random(&mut state, 64), random(&mut state, 20))).collect();
                order.begin(id, &ranges);
                pairs.0.insert(id, ranges);
                if random(&mut state, 3) > 0 {
                    let free: Vec<_> = pairs.0.keys().copied().filter(|id| pairs.is_free(*id)).collect();
                    let done = free[random(&mut state, free.len() as u64) as usize];
                    let blocked: Vec<_> = pairs.0.keys().copied().filter(|id| !pairs.is_free(*id)).collect();
                    pairs.0.remove(&done);
                    let mut freed = order.finish(done);
                    freed.sort_unstable();
                    let expected: Vec<_> = blocked.into_iter().filter(|id| pairs.is_free(*id)).collect();
                    assert_eq!(freed, expected, "seed {seed}");
                }
                for id in pairs.0.keys() {
                    assert_eq!(order.is_free(*id), pairs.is_free(*id), "seed {seed}, write {id}");
                }
            }
        }
    }

    #[test]
    fn what_is_remembered_is_bounded_by_what_is_unfinished() {
        let (mut order, mut state) = (WriteOrder::default(), 7);
        order.begin(0, &[Range::new(0, 1)]);
        for id in 1..100_000 {
            order.begin(id, &[Range::new(1 + 2 * random(&mut state, 1 << 40), 1)]);
            order.finish(id);
        }
        assert!(order.last.len() <= 2 * STALE_MAX, "{}", order.last.len());
        order.finish(0);
        assert!(order.last.is_empty());
    }

    #[test]
    fn a_long_chain_of_discards_is_linear() {
        // 2,048 requests of 32 ranges that all overlap. All pairs would be two thousand million comparisons.
        let mut order = WriteOrder::default();
        let ranges: Vec<_> = (0..32).map(|at| Range::new(at << 20, 1 << 20)).collect();
        for id in 0..2048 {
            order.begin(id, &ranges);
            assert_eq!(order.last.len(), 32);
        }
        for id in 0..2047 {
            assert!(order.is_free(id));
            assert_eq!(order.finish(id), [id + 1]);
        }
    }
}
