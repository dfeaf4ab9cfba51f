//! Which pages will be written anyway: to watch them would cost more than to send them unasked.
//!
//! Watching a page means to write-protect it, and costs the guest a fault at its next write. Not watching it
//! means that it is taken for dirty. If it was not written then, that costs a copy, and a comparison with its
//! last version; where there is none to compare it with, it crosses the network in vain as well. For how many
//! epochs that is cheaper than a fault is the [`BreakEven`] of the host.
//!
//! A page that is written again within the break-even goes unwatched: for half of it at first, twice as long
//! each time that this is confirmed, at most [`LONGEST`] rounds; then it is watched until its next write. It
//! is watched at once when comparisons found it unchanged for the break-even (it may have been written all the
//! same, with what it held: that costs a fault now and then). So what is done in vain costs at most as much as
//! the faults of watching would have, and a page that is always written faults in one harvest of many.
//!
//! Time is counted in **rounds**. A round is one harvest, or several where faults took most of the time of an
//! epoch: what the guest does from one of its outputs to the next is then cut in the middle for no other
//! reason, and its pages would seem to be written in every other epoch.

use std::time::Duration;

/// Rounds that a page goes unwatched at most.
const LONGEST: u16 = 40;
/// Pages that became hot together are not all watched again in the same round, but some earlier, by their
/// numbers: so many groups, each by one round of [`LONGEST`].
const GROUPS: u64 = 16;
/// Rounds that a comparison is late, about: so many epochs are under way.
const LAG: u16 = 3;
/// Harvests of a round at most: 10,000 pages whose faults take 30 us, in epochs of 20 ms.
const ROUND_MAX: u16 = 16;

/// For how many epochs a page may be taken for dirty in vain until that has cost as much as a fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BreakEven {
    /// If comparing it with its last version shows that it is unchanged.
    pub compared: u16,
    /// If there is no such version, and it is sent.
    pub sent: u16,
    /// What a fault costs.
    pub fault: Duration,
}

/// What is known of each page.
#[derive(Default)]
pub struct Foresight {
    pages: Vec<History>,
    break_even: BreakEven,
    round: u16,
    /// Harvests of the round so far.
    harvests: u16,
    /// Faults of the last epoch.
    faults: u32,
    /// How long it was.
    epoch: Duration,
}

/// Of a page: the last round in which it was dirty, or taken for dirty; how often in a row it was written
/// again soon after it was watched; how many rounds it goes unwatched yet; the round of the last comparison
/// that it was part of, and how many in a row found it unchanged. An array of numbers, because the kernel has
/// zeroes of them for nothing. Numbers wrap: what is foreseen wrongly once in a while is only sent in vain.
type History = [u16; 5];

impl Foresight {
    /// For guest frame numbers below `pages`; nothing is known yet. Costs memory only for pages that are
    /// written.
    pub fn new(pages: usize, mut break_even: BreakEven) -> Self {
        for harvests in [&mut break_even.compared, &mut break_even.sent] {
            *harvests = (*harvests).clamp(1, LONGEST);
        }
        // So far that a page that was never seen has been idle for longer than any break-even.
        Self { pages: vec![[0; 5]; pages], break_even, round: 2 * LONGEST, ..Self::default() }
    }

    /// The harvest of an epoch of this length begins.
    pub fn next_harvest(&mut self, epoch: Duration) {
        let goes_on = self.break_even.fault * self.faults > self.epoch / 2 && self.harvests < ROUND_MAX;
        if goes_on {
            self.harvests += 1;
        } else {
            (self.round, self.harvests) = (self.round.wrapping_add(1), 1);
        }
        (self.faults, self.epoch) = (0, epoch);
    }

    /// Of the 64 pages from `first_gfn` on, `dirty` are in the log of the harvest: those that go unwatched in
    /// the next one.
    pub fn unwatched(&mut self, first_gfn: u64, dirty: u64) -> u64 {
        let (mut bits, mut open) = (dirty, 0);
        while bits != 0 {
            let bit = bits & bits.wrapping_neg();
            bits ^= bit;
            let gfn = first_gfn + u64::from(bit.trailing_zeros());
            if self.goes_unwatched(gfn) {
                open |= bit;
            }
        }
        open
    }

    /// Pages of an epoch were compared with what was sent of them before.
    pub fn compared(&mut self, unchanged: &[u64], changed: &[u64]) {
        for gfn in changed {
            let Some([.., compared, in_row]) = self.pages.get_mut(*gfn as usize) else { continue };
            (*compared, *in_row) = (self.round, 0);
        }
        for gfn in unchanged {
            let Some([_, _, unwatched, compared, in_row]) = self.pages.get_mut(*gfn as usize) else { continue };
            (*compared, *in_row) = (self.round, in_row.saturating_add(1));
            if *in_row >= self.break_even.compared {
                *unwatched = (*unwatched).min(1);
            }
        }
    }

    fn goes_unwatched(&mut self, gfn: u64) -> bool {
        let Some([last, soon, unwatched, compared, in_row]) = self.pages.get_mut(gfn as usize) else { return false };
        let before = std::mem::replace(last, self.round);
        let watched = self.round.wrapping_sub(before);
        // An unwatched page is in every harvest, unless all were watched in between.
        if *unwatched > 0 && watched <= 1 {
            *unwatched -= watched;
            return *unwatched > 0;
        }
        // It was watched, and written: since when had it not been?
        self.faults += 1;
        let is_compared = self.round.wrapping_sub(*compared) <= watched.saturating_add(LAG);
        let (idle, break_even) = match is_compared {
            true => (watched.saturating_add(std::mem::take(in_row)), self.break_even.compared),
            false => (watched, self.break_even.sent),
        };
        *soon = if idle <= break_even { soon.saturating_add(1) } else { 0 };
        let wanted = match soon.checked_sub(1) {
            // Once may be chance.
            None => 0,
            Some(confirmed) => ((break_even / 2).max(1) << confirmed.min(6)).min(LONGEST),
        };
        *unwatched = wanted - wanted * (gfn % GROUPS) as u16 / LONGEST;
        *unwatched > 0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// What a page has cost.
    #[derive(Debug, Default, PartialEq)]
    struct Bill {
        faults: u64,
        vain: u64,
    }

    impl Bill {
        /// In copies.
        fn total(&self, break_even: u16) -> u64 {
            self.faults * u64::from(break_even) + self.vain
        }
    }

    const EPOCH: Duration = Duration::from_millis(20);

    /// A host where a fault takes no time.
    fn host(break_even: u16) -> BreakEven {
        BreakEven { compared: break_even, sent: 1, fault: Duration::ZERO }
    }

    /// Feeds harvests in which a page is written or not. Of those that it is part of, a comparison says
    /// `delay` harvests later which; `None`: never.
    fn feed_page(gfn: u64, break_even: u16, delay: Option<usize>, written: impl Iterator<Item = bool>) -> Bill {
        let (mut foresight, mut open, mut bill) = (Foresight::new(64, host(break_even)), 0, Bill::default());
        let mut under_way = VecDeque::new();
        for written in written {
            foresight.next_harvest(EPOCH);
            bill.faults += u64::from(written && open == 0);
            bill.vain += u64::from(!written && open != 0);
            // An unwatched page stays in the log.
            let dirty = written || open != 0;
            open = foresight.unwatched(0, if dirty { 1 << gfn } else { 0 });
            under_way.push_back((dirty, written));
            if delay.is_some_and(|delay| under_way.len() > delay) {
                match under_way.pop_front() {
                    Some((true, true)) => foresight.compared(&[], &[gfn]),
                    Some((true, false)) => foresight.compared(&[gfn], &[]),
                    _ => foresight.compared(&[], &[]),
                }
            }
        }
        bill
    }

    fn feed(break_even: u16, compares: bool, written: impl Iterator<Item = bool>) -> Bill {
        feed_page(3, break_even, compares.then_some(2), written)
    }

    /// Written for `on` of each `on + off` harvests.
    fn rhythm(on: u64, off: u64) -> impl Iterator<Item = bool> {
        (0..10_000).map(move |harvest| harvest % (on + off) < on)
    }

    const RHYTHMS: [(u64, u64); 16] = [
        (1, 0),
        (1, 1),
        (2, 1),
        (1, 2),
        (1, 3),
        (3, 10),
        (5, 5),
        (1, 7),
        (1, 9),
        (1, 12),
        (1, 20),
        (1, 27),
        (1, 35),
        (1, 60),
        (50, 1000),
        (300, 300),
    ];

    #[test]
    fn a_page_that_is_always_written_rarely_faults() {
        for break_even in [1, 2, 10, 40, 1000] {
            let bill = feed(break_even, true, (0..1000).map(|_| true));
            assert!(bill.faults < 50, "{bill:?} at {break_even}");
        }
    }

    /// Every page, break-even, delay of comparisons and rhythm: with it what the page cost, and what it would
    /// have if it had always been watched, or never.
    fn every_case(mut check: impl FnMut(&str, u64, &Bill, [u64; 2])) {
        let pages = [(0, 0), (3, 2), (15, 5), (0, 5), (15, 0)];
        for ((gfn, delay), break_even) in pages.into_iter().flat_map(|page| [1, 2, 4, 10, 20, 40].map(|at| (page, at)))
        {
            for (on, off) in RHYTHMS {
                let bill = feed_page(gfn, break_even, Some(delay), rhythm(on, off));
                let written = rhythm(on, off).filter(|written| *written).count() as u64;
                let case = format!("{on} on, {off} off at {break_even}, page {gfn}, {delay} late: {bill:?}");
                check(&case, bill.total(break_even), &bill, [written * u64::from(break_even), 10_000 - written]);
            }
        }
    }

    #[test]
    fn it_costs_little_more_than_the_best_fixed_choice() {
        let mut ratios = Vec::new();
        every_case(|case, cost, bill, fixed| {
            let best = fixed[0].min(fixed[1]);
            println!("{case}: {cost} for {best}");
            // A page that is always written is watched now and then all the same.
            if best == 0 {
                assert!(bill.faults <= 10_000 / 25, "{case}");
            } else {
                ratios.push(cost as f64 / best as f64);
            }
        });
        ratios.sort_by(f64::total_cmp);
        let (median, worst) = (ratios[ratios.len() / 2], ratios[ratios.len() - 1]);
        println!("times the best: {median:.2} at the median, {worst:.2} at worst");
        assert!(median < 1.1 && worst < 6.0, "{median} {worst}");
    }

    #[test]
    fn what_is_copied_in_vain_costs_no_more_than_watching_would_have() {
        every_case(|case, _, bill, [watched, _]| assert!(bill.vain <= watched, "{case}"));
    }

    #[test]
    fn pages_in_rotation_go_unwatched_where_faults_are_dear_and_comparisons_cheap() {
        let bill = feed(40, true, rhythm(1, 7));
        assert!(bill.faults < 1250 / 3, "{bill:?}");
        for (break_even, compares) in [(2, true), (40, false)] {
            assert_eq!(feed(break_even, compares, rhythm(1, 7)), Bill { faults: 1250, vain: 0 });
        }
    }

    #[test]
    fn a_page_that_is_found_unchanged_is_watched_again() {
        // Always written for long, then never again.
        let pattern = || (0..1000).map(|harvest| harvest < 500);
        let (with, without) = (feed(4, true, pattern()), feed(4, false, pattern()));
        assert!(with.vain <= 4 + u64::from(LAG), "{with:?}");
        assert!(with.vain <= without.vain, "{with:?}, {without:?}");
    }

    /// A guest that writes to the same pages for each request, and answers; a request that takes longer than
    /// [`EPOCH`] is cut. Epochs of the median request, when there have been some.
    fn epochs_of_a_request(pages: u64, fault: Duration, sent: u16) -> u32 {
        let mut foresight = Foresight::new(pages as usize, BreakEven { compared: 40, sent, fault });
        let mut open = vec![0_u64; (pages / 64) as usize];
        let mut requests = Vec::new();
        for _ in 0..60 {
            let (mut page, mut epochs) = (0, 0);
            while page < pages {
                let (mut dirty, mut spent) = (open.clone(), Duration::ZERO);
                while page < pages && spent < EPOCH {
                    let (word, bit) = ((page / 64) as usize, 1 << (page % 64));
                    spent += if open[word] & bit == 0 { fault } else { Duration::from_nanos(200) };
                    dirty[word] |= bit;
                    page += 1;
                }
                foresight.next_harvest(spent);
                for (word, dirty) in dirty.into_iter().enumerate() {
                    open[word] = foresight.unwatched(word as u64 * 64, dirty);
                }
                epochs += 1;
            }
            requests.push(epochs);
        }
        let settled = &mut requests[20..];
        settled.sort_unstable();
        settled[settled.len() / 2]
    }

    #[test]
    fn a_request_that_takes_long_only_because_of_its_faults_is_not_cut_for_long() {
        for (pages, fault) in [(1024, 30), (9984, 3), (9984, 30)] {
            for sent in [1, 13] {
                assert_eq!(epochs_of_a_request(pages, Duration::from_micros(fault), sent), 1, "{pages} {fault} {sent}");
            }
        }
    }
}
