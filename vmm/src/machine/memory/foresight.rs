//! Which pages will be written anyway: to watch them would cost more than to send them unasked.
//!
//! Watching a page means to write-protect it, and costs the guest a fault at its next write. Not watching it
//! means that it is taken for dirty in each harvest. If it was not written then, that is in vain: a copy, and
//! a comparison with its last version, or with a digest of that, which then is sent again. What these cost on
//! this host, in parts of a fault, are the [`Prices`].
//!
//! Each page has an account of what it would have saved had it not been watched: a fault for each time that
//! it was written, less the price of each harvest in between. It goes unwatched when it has [`OPEN_AT`] in its
//! account, and is watched again when that is used up. Meanwhile comparisons say what it saves or costs. So
//! what is done in vain for a page, before that is noticed, costs [`MOST`] at the most; and a page
//! that is always written is never watched again.

/// What a fault costs: the unit of all prices is a part of it.
const FAULT: u16 = 64;
/// In the account of a page that goes unwatched from then on. Less would be chance too often: of a page that
/// is written in a quarter of all epochs, the fourth time in a row is one of 64.
const OPEN_AT: u16 = 2 * FAULT + FAULT / 2;
/// In an account at most.
const MOST: u16 = 4 * FAULT;
/// Comparisons that come late, since so many epochs are under way: they are of a time when the page was still
/// watched.
const LATE: u16 = 2;

/// What it costs on this host to take a page for dirty that is not, in 64ths of a fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prices {
    /// If a comparison shows that it need not be sent.
    pub compared: u16,
    /// If it is sent.
    pub sent: u16,
}

impl Prices {
    /// Of a host where a fault takes `fault`, and the other two take as long as they say; any unit of time.
    pub fn new(fault: u128, compared: u128, sent: u128) -> Self {
        let price = |cost: u128| u16::try_from(cost * u128::from(FAULT) / fault.max(1)).unwrap_or(MOST).clamp(1, MOST);
        Self { compared: price(compared), sent: price(sent) }
    }
}

/// What is known of each page.
#[derive(Default)]
pub struct Foresight {
    pages: Vec<Page>,
    prices: Prices,
    harvest: u16,
}

/// Of a page, in numbers, because the kernel has zeroes of them for nothing.
#[derive(Clone, Copy, Default)]
struct Page {
    /// The last harvest in which it was dirty, or taken for dirty. Wraps: what is foreseen wrongly once in a
    /// while is only sent in vain.
    last: u16,
    account: u16,
    /// [`WATCHED`], [`CLOSING`], or one more for each comparison that does not count yet.
    state: u16,
    /// Whether it was sent when it was last compared.
    is_sent: u16,
}

/// It faults when it is written.
const WATCHED: u16 = 0;
/// It does not fault yet, and will from the next harvest on.
const CLOSING: u16 = 1;
/// It does not fault.
const OPEN: u16 = 2;

/// What a comparison has shown of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// It was written.
    Changed,
    /// The standby had it, and it was not sent.
    Unchanged,
    /// The standby had it, and it was sent again.
    SentAgain,
}

impl Foresight {
    /// For guest frame numbers below `pages`; nothing is known yet. Costs memory only for pages that are
    /// written.
    pub fn new(pages: usize, prices: Prices) -> Self {
        // So far that a page that was never seen has been idle for long.
        Self { pages: vec![Page::default(); pages], prices, harvest: u16::MAX / 2 }
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
        let Some(page) = self.pages.get_mut(gfn as usize) else { return false };
        let passed = self.harvest.wrapping_sub(std::mem::replace(&mut page.last, self.harvest));
        // An unwatched page is in every harvest, unless all were watched in between.
        if page.state != WATCHED && passed == 1 {
            page.state = if page.state == CLOSING { WATCHED } else { page.state };
            return page.state != WATCHED;
        }
        let price = if page.is_sent != 0 { self.prices.sent } else { self.prices.compared };
        let costs = passed.saturating_sub(1).saturating_mul(price);
        page.account = (page.account + FAULT).saturating_sub(costs).min(MOST);
        page.state = if page.account >= OPEN_AT { OPEN + LATE } else { WATCHED };
        page.state != WATCHED
    }

    /// Pages of an epoch were compared with what was sent of them before.
    pub fn compared(&mut self, gfns: &[u64], shown: Shown) {
        for gfn in gfns {
            let Some(page) = self.pages.get_mut(*gfn as usize) else { continue };
            match shown {
                Shown::Changed => {}
                Shown::Unchanged => page.is_sent = 0,
                Shown::SentAgain => page.is_sent = 1,
            }
            if page.state > OPEN {
                page.state -= 1;
            } else if page.state == OPEN {
                page.account = match shown {
                    Shown::Changed => (page.account + FAULT).min(MOST),
                    Shown::Unchanged => page.account.saturating_sub(self.prices.compared),
                    Shown::SentAgain => page.account.saturating_sub(self.prices.sent),
                };
                if page.account == 0 {
                    page.state = CLOSING;
                }
            }
        }
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
        /// In 64ths of a fault.
        fn total(&self, price: u16) -> u64 {
            self.faults * u64::from(FAULT) + self.vain * u64::from(price)
        }
    }

    /// Prices of a page that is sent when it was not written.
    const PRICES: [u16; 6] = [1, 3, 6, 16, 32, 42];

    /// Feeds harvests in which a page is written or not. Of those that it is part of, a comparison says
    /// `delay` harvests later which; `None`: never.
    fn feed_page(price: u16, delay: Option<usize>, written: impl Iterator<Item = bool>) -> Bill {
        let mut foresight = Foresight::new(64, Prices { compared: 1, sent: price });
        let (mut open, mut bill, mut under_way) = (0, Bill::default(), VecDeque::new());
        foresight.compared(&[3], Shown::SentAgain);
        for written in written {
            foresight.next_harvest();
            bill.faults += u64::from(written && open == 0);
            bill.vain += u64::from(!written && open != 0);
            // An unwatched page stays in the log.
            let dirty = written || open != 0;
            open = foresight.unwatched(0, if dirty { 1 << 3 } else { 0 });
            under_way.push_back((dirty, written));
            if delay.is_some_and(|delay| under_way.len() > delay) {
                match under_way.pop_front() {
                    Some((true, true)) => foresight.compared(&[3], Shown::Changed),
                    Some((true, false)) => foresight.compared(&[3], Shown::SentAgain),
                    _ => {}
                }
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

    /// Every kind of load, price and delay of comparisons, with the load's name.
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
                let bill = feed_page(price, Some(delay), written.iter().copied());
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
            let bill = feed_page(price, Some(2), (0..1000).map(|harvest| harvest < 500));
            assert!(bill.faults <= 4 && bill.vain <= u64::from(MOST.div_ceil(price) + LATE + 2), "{bill:?} at {price}");
        }
    }

    #[test]
    fn pages_in_rotation_go_unwatched_where_faults_are_dear_only() {
        let bill = feed_page(3, Some(2), rhythm(1, 7));
        assert!(bill.faults < 10, "{bill:?}");
        assert_eq!(feed_page(42, Some(2), rhythm(1, 7)), Bill { faults: 1250, vain: 0 });
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

    /// How long epochs are at most.
    const EPOCH_NS: u64 = 20_000_000;

    /// A guest that writes to the same pages for each request, and answers; a request that takes longer than
    /// [`EPOCH_NS`] is cut. Epochs of the median request, when there have been some. Comparisons come at once.
    fn epochs_of_a_request(pages: u64, fault_ns: u64) -> u32 {
        let prices = Prices::new(fault_ns.into(), 500, 1500);
        let mut foresight = Foresight::new(pages as usize, prices);
        let mut open = vec![0_u64; (pages / 64) as usize];
        let mut requests = Vec::new();
        for _ in 0..60 {
            let (mut page, mut epochs) = (0, 0);
            while page < pages {
                let (mut spent, first) = (0, page);
                while page < pages && spent < EPOCH_NS {
                    spent += if open[(page / 64) as usize] & 1 << (page % 64) == 0 { fault_ns } else { 200 };
                    page += 1;
                }
                foresight.next_harvest();
                let written = |gfn: u64| (first..page).contains(&gfn);
                let (changed, unchanged): (Vec<_>, Vec<_>) = (0..pages)
                    .filter(|gfn| written(*gfn) || open[(gfn / 64) as usize] & 1 << (gfn % 64) != 0)
                    .partition(|gfn| written(*gfn));
                for (word, open) in open.iter_mut().enumerate() {
                    let new =
                        (0..64).filter(|bit| written(word as u64 * 64 + bit)).fold(0, |bits, bit| bits | 1 << bit);
                    *open = foresight.unwatched(word as u64 * 64, *open | new);
                }
                foresight.compared(&changed, Shown::Changed);
                foresight.compared(&unchanged, Shown::SentAgain);
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
        for (pages, fault_ns) in [(1024, 30_000), (9984, 2_500), (9984, 30_000)] {
            assert_eq!(epochs_of_a_request(pages, fault_ns), 1, "{pages} pages, faults of {fault_ns} ns");
        }
    }
}
