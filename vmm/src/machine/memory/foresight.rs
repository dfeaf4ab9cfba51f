//! Which pages will be written anyway: a page that was written in each of the last harvests need not be
//! watched in the next.
//!
//! Watching a page means to write-protect it, and costs the guest a fault at its first write: more than it
//! costs to send the page. So a page is left writable, and taken for dirty, for as many harvests as it has
//! just been found written in a row (at most some [`LONGEST`]); then it is watched for one harvest again. So
//! no more than half of what is sent can be sent in vain, and a page that is always written costs a fault for
//! one harvest of many.

/// Harvests that a page goes unwatched at most, about.
const LONGEST: u16 = 24;
/// Pages that became hot together are not all watched again in the same harvest.
const SPREAD: u64 = 16;

/// What is known of each page.
#[derive(Default)]
pub struct Foresight {
    pages: Vec<History>,
    harvest: u16,
}

/// Of a page: the last harvest in which it was dirty, or taken for dirty; how often in a row it was found
/// written when it was watched; how many harvests it goes unwatched yet. An array of numbers, because the
/// kernel has zeroes of them for nothing. Harvests wrap: what is foreseen wrongly once in a while is only
/// sent in vain.
type History = [u16; 3];

impl Foresight {
    /// For guest frame numbers below `pages`; nothing is known yet. Costs memory only for pages that are
    /// written.
    pub fn new(pages: usize) -> Self {
        Self { pages: vec![[0; 3]; pages], harvest: 1 }
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
            if let Some(page) = self.pages.get_mut(gfn as usize)
                && goes_unwatched(page, gfn, self.harvest)
            {
                open |= bit;
            }
        }
        open
    }
}

fn goes_unwatched([last, row, unwatched]: &mut History, gfn: u64, harvest: u16) -> bool {
    let before = std::mem::replace(last, harvest);
    if *unwatched > 0 {
        *unwatched -= 1;
        return *unwatched > 0;
    }
    *row = if before.wrapping_add(1) == harvest { row.saturating_add(1) } else { 0 };
    // One in a row may be chance.
    let wanted = if *row == 0 { 0 } else { 1 << (*row - 1).min(8) };
    *unwatched = wanted.min(LONGEST + (gfn % SPREAD) as u16);
    *unwatched > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds harvests in which page 3 is written or not; returns in which it costs a fault and in which it is
    /// sent.
    fn feed(written: impl Iterator<Item = bool>) -> Vec<(bool, bool)> {
        let (mut foresight, mut open) = (Foresight::new(64), 0);
        let harvest = |written| {
            foresight.next_harvest();
            let faults = written && open == 0;
            // An unwatched page stays in the log.
            let dirty = if written { 1 << 3 } else { open };
            open = foresight.unwatched(0, dirty);
            (faults, dirty != 0)
        };
        written.map(harvest).collect()
    }

    #[test]
    fn a_page_that_is_always_written_rarely_faults() {
        let harvests = feed((0..1000).map(|_| true));
        assert!(harvests.iter().all(|(_, sent)| *sent));
        let faults = harvests.iter().filter(|(fault, _)| *fault).count();
        assert!(faults < 50, "{faults} faults");
    }

    #[test]
    fn at_most_half_of_what_is_sent_is_in_vain() {
        for (on, off) in [(1, 1), (2, 1), (3, 10), (50, 1000), (5, 5)] {
            let pattern = || (0..10_000).map(move |harvest| harvest % (on + off) < on);
            let harvests = feed(pattern());
            let sent = harvests.iter().filter(|(_, sent)| *sent).count();
            let written = pattern().filter(|written| *written).count();
            assert!(pattern().zip(&harvests).all(|(written, (_, sent))| *sent || !written), "a write is lost");
            assert!(sent <= 2 * written, "{on} on, {off} off: {sent} sent, {written} written");
        }
    }

    #[test]
    fn pages_that_are_written_now_and_then_are_always_watched() {
        let harvests = feed((0..1000).map(|harvest| harvest % 3 == 0));
        assert_eq!(harvests.iter().filter(|(_, sent)| *sent).count(), 334);
    }
}
