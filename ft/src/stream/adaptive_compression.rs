//! Whether packing pays: found out by measurement, since neither the link nor either host's spare time is
//! known.
//!
//! What counts is how much guest memory is acknowledged per time, with packing, link, and unpacking in it.
//! For each size of epoch the better way is used; after a while the other one is tried for a few epochs, and
//! after each trial that changed nothing the while is twice as long. A link with room to spare is left alone:
//! there packing only takes time.

use std::time::Duration;

use pollux_api::options::Compression;

/// Epochs of a trial, and as many of the way in use are remembered to compare it with.
const TRIAL: usize = 8;
/// Epochs of a size until the first trial.
const FIRST: u32 = 64;
/// Jobs of the first copy until then: there are few, and they are large.
const FIRST_OF_COPY: u32 = TRIAL as u32;
/// The longest while between two trials.
const LONGEST: u32 = 4096;
/// Epochs with no more pages than this are of one size, those with more than the last of another.
const SIZES: [usize; 3] = [16, 128, 1024];

/// Decides, and learns from what became of it.
#[derive(Debug)]
pub struct Selector {
    fixed: Option<bool>,
    copy: Trial,
    epochs: [Trial; SIZES.len() + 1],
}

/// Two ways, sent plain and packed, compared.
#[derive(Clone, Debug)]
struct Trial {
    /// What costs less as far as is known: packed?
    best: bool,
    /// The other one is being tried.
    trial: bool,
    /// Until the trial begins or ends.
    left: u32,
    /// How long the next while is.
    pause: u32,
    /// Latest costs of either way, in nanoseconds per MiB.
    costs: [Vec<u64>; 2],
}

impl Selector {
    /// A selector who follows a setting, if that leaves a choice.
    pub fn new(compression: Compression) -> Self {
        let fixed = match compression {
            Compression::Auto => None,
            Compression::Off | Compression::Delta => Some(false),
            Compression::DeltaZstd => Some(true),
        };
        Self { fixed, copy: Trial::new(FIRST_OF_COPY), epochs: std::array::from_fn(|_| Trial::new(FIRST)) }
    }

    /// Whether to pack the next pages of the first copy.
    pub fn pack_copy(&self) -> bool {
        self.fixed.unwrap_or_else(|| self.copy.packs())
    }

    /// Whether to pack an epoch of so many pages.
    pub fn pack(&self, pages: usize) -> bool {
        self.fixed.unwrap_or_else(|| self.epochs[size(pages)].packs())
    }

    /// Pages of the first copy have left.
    pub fn copied(&mut self, packed: bool, bytes: u64, took: Duration) {
        self.copy.observe(packed, bytes, took);
    }

    /// An epoch was acknowledged so long after it was handed to the sender.
    pub fn acknowledged(&mut self, pages: usize, packed: bool, took: Duration) {
        self.epochs[size(pages)].observe(packed, pages as u64 * 4096, took);
    }
}

fn size(pages: usize) -> usize {
    SIZES.iter().position(|most| pages <= *most).unwrap_or(SIZES.len())
}

impl Trial {
    fn new(pause: u32) -> Self {
        let costs = std::array::from_fn(|_| Vec::with_capacity(TRIAL));
        Self { best: false, trial: false, left: pause, pause, costs }
    }

    fn packs(&self) -> bool {
        self.best != self.trial
    }

    fn observe(&mut self, packed: bool, bytes: u64, took: Duration) {
        if bytes == 0 || packed != self.packs() {
            // It was on its way when the trial began or ended.
            return;
        }
        let costs = &mut self.costs[usize::from(packed)];
        if costs.len() == TRIAL {
            costs.remove(0);
        }
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        costs.push(nanos.saturating_mul(1 << 20) / bytes);
        self.left = self.left.saturating_sub(1);
        if self.left > 0 {
            return;
        }
        if !self.trial {
            self.costs[usize::from(!self.best)].clear();
            (self.trial, self.left) = (true, TRIAL as u32);
            return;
        }
        let [best, other] = [self.best, !self.best].map(|way| u128::from(self.median(way)));
        // By an eighth at least: what makes no difference is not changed back and forth.
        if other * 8 < best * 7 {
            self.best = !self.best;
            self.pause = FIRST;
        } else {
            self.pause = (self.pause * 2).min(LONGEST);
        }
        (self.trial, self.left) = (false, self.pause);
    }

    fn median(&self, packed: bool) -> u64 {
        let mut costs = self.costs[usize::from(packed)].clone();
        costs.sort_unstable();
        costs.get(costs.len() / 2).copied().unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: usize = 100;

    /// Runs epochs that cost this many microseconds each way; how many of them were packed.
    fn run(selector: &mut Selector, epochs: usize, plain: u64, packed: u64) -> usize {
        (0..epochs)
            .filter(|at| {
                let pack = selector.pack(PAGES);
                // Now and then the scheduler takes its time.
                let noise = if at % 7 == 0 { 5000 } else { 0 };
                let took = if pack { packed } else { plain } + noise;
                selector.acknowledged(PAGES, pack, Duration::from_micros(took));
                pack
            })
            .count()
    }

    #[test]
    fn a_fast_link_is_left_alone_but_for_ever_rarer_trials() {
        let mut selector = Selector::new(Compression::Auto);
        assert_eq!(run(&mut selector, FIRST as usize, 200, 300), 0);
        let packed = run(&mut selector, 50_000, 200, 300);
        assert!((TRIAL..200).contains(&packed), "{packed} of 50000 were packed");
    }

    #[test]
    fn a_slow_link_is_noticed_and_so_is_its_end() {
        let mut selector = Selector::new(Compression::Auto);
        run(&mut selector, 2 * FIRST as usize, 4000, 1500);
        assert!(run(&mut selector, 1000, 4000, 1500) > 900);
        run(&mut selector, LONGEST as usize, 200, 300);
        assert!(run(&mut selector, 1000, 200, 300) < 100);
    }

    #[test]
    fn each_size_is_selectord_by_itself() {
        let mut selector = Selector::new(Compression::Auto);
        run(&mut selector, 1000, 4000, 1500);
        assert!(selector.pack(PAGES) && !selector.pack(1) && !selector.pack_copy());
    }

    #[test]
    fn a_setting_is_obeyed() {
        for (setting, packs) in [(Compression::Off, 0), (Compression::Delta, 0), (Compression::DeltaZstd, 500)] {
            assert_eq!(run(&mut Selector::new(setting), 500, 4000, 1500), packs);
        }
    }
}
