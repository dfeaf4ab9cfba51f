//! Which pages will be written anyway: to watch them would cost more than to send them unasked.
//!
//! Watching a page means to write-protect it, and costs the guest a fault at its next write. Not watching it
//! means that it is taken for dirty in each harvest. If it was not written then, that is in vain: a copy, and
//! a comparison with its last version, or with a digest of that, which then is sent again. What these cost on
//! this host, in parts of a fault, are the [`Prices`].
//!
//! Each page has an account of what it would have saved had it not been watched: a fault for each time that
//! it was written, less the price of each harvest in between. It goes unwatched when it has [`OPEN_AT`] in
//! its account, and is watched again when that is used up. Meanwhile what is seen of it when it is sent says
//! what it saves or costs. So what is done in vain for a page, before that is noticed, costs [`MOST`] at the
//! most; and a page that is always written is never watched again.
//!
//! One page tells little: written in every second or third epoch, it may stay near nothing for ever. So pages
//! are also judged together with all others that were written again after as many harvests, in a [`Pool`]. Of
//! those some are not watched for a trial, and if that pays, none is. This finds, too, what no page shows by
//! itself: that epochs end in the middle of what the guest does for a request only because of its faults,
//! without which all of its pages would be written in each.

use std::time::Duration;

/// What a fault costs: the unit of all prices is a part of it.
const FAULT: u16 = 64;
/// In the account of a page that goes unwatched from then on. Less would be chance too often: of a page that
/// is written in a quarter of all epochs, the fourth time in a row is one of 64.
const OPEN_AT: u16 = 2 * FAULT + FAULT / 2;
/// In an account at most.
const MOST: u16 = 4 * FAULT;
/// What is seen comes late, since so many epochs are under way: it is of a time when the page was still
/// watched.
const LATE: u16 = 2;
/// One page in 64 of a pool goes unwatched for a trial; one in 1,024 where trials have not paid so far.
const TRIALS: [u64; 2] = [64, 1024];
/// What the pages of a pool that went unwatched must have saved before the others do; as much as that in the
/// negative, and trials become rare.
const TRUSTED: i32 = 64 * FAULT as i32;
/// What is remembered of that at most, in the negative and in the positive.
const REMEMBERED: [i32; 2] = [-2 * TRUSTED, 16 * TRUSTED];
/// Pools, by the harvests from one write of a page to the next: 1, 2, up to 4, up to 8...
const POOLS: usize = 7;

/// What it costs on this host to take a page for dirty that is not, in 64ths of a fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prices {
    /// If a comparison shows that it need not be sent.
    pub compared: u16,
    /// If it is sent.
    pub sent: u16,
}

impl Prices {
    /// Of a host where a fault costs `fault`, and the other two what they say.
    pub fn new(fault: Duration, compared: Duration, sent: Duration) -> Self {
        let price = |cost: Duration| {
            let parts = cost.as_nanos() * u128::from(FAULT) / fault.as_nanos().max(1);
            u16::try_from(parts).unwrap_or(MOST).clamp(1, MOST)
        };
        Self { compared: price(compared), sent: price(sent) }
    }

    fn of(self, cheap: bool) -> u16 {
        if cheap { self.compared } else { self.sent }
    }
}

/// What the pages of one kind have saved while they went unwatched, less what they have cost: those that have
/// to be sent, and those that need not be.
type Pool = [i32; 2];

/// What is known of each page.
#[derive(Default)]
pub struct Foresight {
    pages: Vec<Page>,
    pools: [Pool; POOLS],
    prices: Prices,
    harvest: u16,
}

/// Of a page: the last harvest in which it was dirty, or taken for dirty; its account; [`WATCHED`],
/// [`CLOSING`], or [`OPEN`] and one more for each time that it is seen and that does not count; whether the
/// standby's version was at hand when it was last sent, and the pool that it was opened for. An array of
/// numbers, because the kernel has zeroes of them for nothing. Harvests wrap: what is foreseen wrongly once
/// in a while is only sent in vain.
type Page = [u16; 5];

/// It faults when it is written.
const WATCHED: u16 = 0;
/// It does not fault yet, and will from the next harvest on.
const CLOSING: u16 = 1;
/// It does not fault.
const OPEN: u16 = 2;

/// What was seen of a page when an epoch was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// It is not what it was when it was sent before.
    pub written: bool,
    /// If it is not, or will not be in the next epoch, it need not be sent.
    pub cheap: bool,
}

impl Foresight {
    /// For guest frame numbers below `pages`; nothing is known yet. Costs memory only for pages that are
    /// written.
    pub fn new(pages: usize, prices: Prices) -> Self {
        // So far that a page that was never seen has been idle for long.
        Self { pages: vec![[0; 5]; pages], prices, harvest: u16::MAX / 2, ..Self::default() }
    }

    /// The next harvest begins.
    pub fn next_harvest(&mut self) {
        self.harvest = self.harvest.wrapping_add(1);
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

    fn goes_unwatched(&mut self, gfn: u64) -> bool {
        let Some([last, account, state, cheap, pool]) = self.pages.get_mut(gfn as usize) else { return false };
        let passed = self.harvest.wrapping_sub(std::mem::replace(last, self.harvest));
        // An unwatched page is in every harvest, unless all were watched in between.
        if *state != WATCHED && passed == 1 {
            *state = if *state == CLOSING { WATCHED } else { *state };
            return *state != WATCHED;
        }
        let costs = passed.saturating_sub(1).saturating_mul(self.prices.of(*cheap == 1));
        *account = (*account + FAULT).saturating_sub(costs).min(MOST);
        *pool = passed.saturating_sub(1).checked_ilog2().map_or(0, |log| log as u16 + 1);
        let pays = self.pools.get(*pool as usize).is_some_and(|pool| {
            let saved = pool[*cheap as usize];
            saved > TRUSTED || is_trial(gfn, self.harvest, TRIALS[usize::from(saved < -TRUSTED)])
        });
        if *account >= OPEN_AT || pays {
            (*account, *state) = ((*account).max(OPEN_AT), OPEN + LATE);
        } else {
            *state = WATCHED;
        }
        *state != WATCHED
    }

    /// What was seen of a page of an epoch.
    pub fn seen(&mut self, gfn: u64, seen: Seen) {
        let Some([_, account, state, cheap, pool]) = self.pages.get_mut(gfn as usize) else { return };
        *cheap = u16::from(seen.cheap);
        if *state > OPEN {
            *state -= 1;
            return;
        }
        if *state < OPEN {
            return;
        }
        let price = self.prices.of(seen.cheap);
        *account = if seen.written { (*account + FAULT).min(MOST) } else { account.saturating_sub(price) };
        if *account == 0 {
            *state = CLOSING;
        }
        if let Some(pool) = self.pools.get_mut(*pool as usize) {
            let saved = if seen.written { i32::from(FAULT) } else { -i32::from(price) };
            let saved_so_far = &mut pool[*cheap as usize];
            *saved_so_far = (*saved_so_far + saved).clamp(REMEMBERED[0], REMEMBERED[1]);
        }
    }
}

/// Whether the page goes unwatched to see whether that pays.
fn is_trial(gfn: u64, harvest: u16, one_of: u64) -> bool {
    let scattered = (gfn ^ u64::from(harvest) << 48).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (scattered >> 32).is_multiple_of(one_of)
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
        /// In 64ths of a fault.
        fn total(&self, price: u16) -> u64 {
            self.faults * u64::from(FAULT) + self.vain * u64::from(price)
        }
    }

    /// How long epochs are at most.
    const EPOCH: Duration = Duration::from_millis(20);
    /// Prices of a page that is sent when it was not written.
    const PRICES: [u16; 6] = [1, 3, 6, 16, 32, 42];

    /// Feeds harvests in which a page is written or not, which is seen `delay` harvests later.
    fn feed_page(price: u16, delay: usize, written: impl Iterator<Item = bool>) -> Bill {
        let mut foresight = Foresight::new(64, Prices { compared: 1, sent: price });
        let (mut open, mut bill, mut under_way) = (0, Bill::default(), VecDeque::new());
        for written in written {
            foresight.next_harvest();
            bill.faults += u64::from(written && open == 0);
            bill.vain += u64::from(!written && open != 0);
            // An unwatched page stays in the log.
            let dirty = written || open != 0;
            open = foresight.unwatched(0, if dirty { 1 << 3 } else { 0 });
            under_way.push_back((dirty, written));
            let seen = if under_way.len() > delay { under_way.pop_front() } else { None };
            if let Some((true, written)) = seen {
                foresight.seen(3, Seen { written, cheap: false });
            }
        }
        bill
    }

    /// Written for `on` of each `on + off` harvests.
    fn rhythm(on: u64, off: u64) -> impl Iterator<Item = bool> {
        (0..10_000).map(move |harvest| harvest % (on + off) < on)
    }

    /// Written in one of so many harvests, by chance.
    fn by_chance(one_of: u64) -> impl Iterator<Item = bool> {
        let mut state = 7_u64;
        (0..10_000).map(move |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33).is_multiple_of(one_of)
        })
    }

    /// Every kind of load, price and delay, with the load's name.
    fn every_case(mut check: impl FnMut(&str, u16, &Bill, [u64; 2])) {
        let rhythms = [
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
        for (delay, price) in [0, 2, 4].into_iter().flat_map(|delay| PRICES.map(|price| (delay, price))) {
            let mut feed = |name: &str, written: Vec<bool>| {
                let bill = feed_page(price, delay, written.iter().copied());
                let writes = written.iter().filter(|written| **written).count() as u64;
                let fixed = [writes * u64::from(FAULT), (10_000 - writes) * u64::from(price)];
                check(&format!("{name} at {price}, {delay} late: {bill:?} for {fixed:?}"), price, &bill, fixed);
            };
            for (on, off) in rhythms {
                feed(&format!("{on} on, {off} off"), rhythm(on, off).collect());
            }
            for one_of in [2, 3, 4, 6, 10, 30, 100] {
                feed(&format!("one of {one_of} by chance"), by_chance(one_of).collect());
            }
        }
    }

    #[test]
    fn it_costs_little_more_than_the_better_of_watching_a_page_always_or_never() {
        let (mut ratios, mut sum) = (Vec::new(), [0, 0]);
        every_case(|case, price, bill, fixed| {
            let (cost, best) = (bill.total(price), fixed[0].min(fixed[1]));
            println!("{case}: {cost} for {best}");
            // Of a page that is always written the first faults remain.
            if best == 0 {
                assert!(bill.faults <= 4, "{case}");
            } else {
                ratios.push((cost as f64 / best as f64, case.to_owned()));
                sum = [sum[0] + cost, sum[1] + best];
            }
        });
        ratios.sort_by(|one, other| one.0.total_cmp(&other.0));
        let (median, worst) = (ratios[ratios.len() / 2].0, &ratios[ratios.len() - 1]);
        let all = sum[0] as f64 / sum[1] as f64;
        println!("times the best: {median:.2} at the median, {all:.2} over all, {:.2} at worst: {}", worst.0, worst.1);
        assert!(median < 1.02 && all < 1.0 && worst.0 < 2.0, "{median} {all} {worst:?}");
    }

    #[test]
    fn a_page_that_is_found_unchanged_is_watched_again() {
        // Always written for long, then never again.
        for price in PRICES {
            let bill = feed_page(price, 2, (0..1000).map(|harvest| harvest < 500));
            assert!(bill.faults <= 4 && bill.vain <= u64::from(MOST.div_ceil(price) + LATE + 2), "{bill:?} at {price}");
        }
    }

    #[test]
    fn pages_in_rotation_go_unwatched_where_faults_are_dear_only() {
        let bill = feed_page(3, 2, rhythm(1, 7));
        assert!(bill.faults < 10, "{bill:?}");
        let bill = feed_page(42, 2, rhythm(1, 7));
        assert!(bill.faults > 1200 && bill.vain < 200, "{bill:?}");
    }

    #[test]
    fn after_a_harvest_that_watched_all_pages_a_page_is_watched() {
        let mut foresight = Foresight::new(64, Prices { compared: 1, sent: 1 });
        for _ in 0..3 {
            foresight.next_harvest();
            foresight.unwatched(0, 1);
        }
        foresight.next_harvest();
        assert_eq!(foresight.unwatched(0, 1), 1);
        foresight.next_harvest();
        foresight.next_harvest();
        assert_eq!(foresight.unwatched(0, 0), 0);
    }

    /// A guest that writes to the same pages for each request, and answers; a request that takes longer than
    /// [`EPOCH`] is cut. The next one comes 8 ms after the answer, and what is sent is seen at once. Returns
    /// the epochs of the median request, once there have been some.
    fn epochs_of_a_request(pages: u64, fault: Duration) -> u32 {
        let prices = Prices::new(fault, Duration::from_nanos(500), Duration::from_nanos(1500));
        let mut foresight = Foresight::new(pages as usize, prices);
        let mut open = vec![0_u64; (pages / 64) as usize];
        let mut requests = Vec::new();
        for _ in 0..60 {
            let mut spent = Duration::from_millis(8);
            let (mut page, mut epochs) = (0, 0);
            while page < pages {
                let first = page;
                while page < pages && spent < EPOCH {
                    let is_open = open[(page / 64) as usize] & 1 << (page % 64) != 0;
                    spent += if is_open { Duration::from_nanos(200) } else { fault };
                    page += 1;
                }
                foresight.next_harvest();
                spent = Duration::ZERO;
                let written = |gfn: u64| (first..page).contains(&gfn);
                let dirty = |gfn: &u64| written(*gfn) || open[(gfn / 64) as usize] & 1 << (gfn % 64) != 0;
                let sent: Vec<_> = (0..pages).filter(dirty).collect();
                for (word, open) in open.iter_mut().enumerate() {
                    let new =
                        (0..64).filter(|bit| written(word as u64 * 64 + bit)).fold(0, |bits, bit| bits | 1 << bit);
                    *open = foresight.unwatched(word as u64 * 64, *open | new);
                }
                sent.iter().for_each(|gfn| foresight.seen(*gfn, Seen { written: written(*gfn), cheap: false }));
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
        for (pages, fault_ns) in [(1024, 30_000), (9984, 2_500), (9984, 4_500), (9984, 30_000)] {
            let epochs = epochs_of_a_request(pages, Duration::from_nanos(fault_ns));
            assert_eq!(epochs, 1, "{pages} pages, faults of {fault_ns} ns");
        }
    }

    /// A guest that does nothing but write to so many pages in turn: its faults, and what is sent in vain.
    fn rotation(pages: u64, per_epoch: u64, prices: Prices) -> (u64, u64) {
        let mut foresight = Foresight::new(pages as usize, prices);
        let (mut open, mut faults, mut vain) = (vec![false; pages as usize], 0, 0);
        let mut next = 0;
        for _ in 0..2000 {
            let written: Vec<_> = (0..per_epoch).map(|at| (next + at) % pages).collect();
            next += per_epoch;
            foresight.next_harvest();
            let mut dirty = vec![0_u64; (pages / 64) as usize];
            written.iter().for_each(|gfn| dirty[(gfn / 64) as usize] |= 1 << (gfn % 64));
            faults += written.iter().filter(|gfn| !open[**gfn as usize]).count() as u64;
            vain += open.iter().filter(|open| **open).count() as u64;
            vain -= written.iter().filter(|gfn| open[**gfn as usize]).count() as u64;
            let is_written = |gfn: u64| dirty[(gfn / 64) as usize] & 1 << (gfn % 64) != 0;
            let sent: Vec<_> = (0..pages).filter(|gfn| is_written(*gfn) || open[*gfn as usize]).collect();
            for word in 0..pages / 64 {
                let all = (0..64).filter(|bit| open[(word * 64 + bit) as usize]).fold(0, |bits, bit| bits | 1 << bit);
                let new = foresight.unwatched(word * 64, dirty[word as usize] | all);
                (0..64).for_each(|bit| open[(word * 64 + bit) as usize] = new & 1 << bit != 0);
            }
            sent.iter().for_each(|gfn| foresight.seen(*gfn, Seen { written: is_written(*gfn), cheap: false }));
        }
        (faults, vain)
    }

    #[test]
    fn pages_in_rotation_are_not_sent_in_vain_for_long() {
        let prices = Prices::new(Duration::from_nanos(2200), Duration::from_nanos(450), Duration::from_nanos(1450));
        let (faults, vain) = rotation(640, 128, prices);
        let writes = 2000 * 128;
        println!("{faults} faults and {vain} sent in vain for {writes} writes");
        let cost = faults + vain * u64::from(prices.sent) / u64::from(FAULT);
        assert!(cost < writes + writes / 5, "{cost}");
    }
}
