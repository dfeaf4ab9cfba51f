//! CPU placement of the threads of an epoch: one CPU without a vCPU that was idle when the session began, if
//! there is one; otherwise anywhere, in parallel, and in competition with the vCPUs.

use std::time::{Duration, Instant};

use ft_proto::Epoch;
use host_kit::cpu_load::CpuLoad;

/// More pages than this in epochs that somebody waits for, and their threads work side by side.
const PAGES_MAX: usize = 512;
/// What takes longer to hand to another processor than to send.
const FEW_PAGES: usize = 32;

/// So long it takes until it is clear how busy the processors are.
const SETTLE: Duration = Duration::from_millis(50);
/// And it may have changed after this time.
const AGAIN: Duration = Duration::from_secs(5);

/// The choice of one session.
#[derive(Debug)]
pub(crate) struct CpuPlacement {
    /// `None`: they are all alike.
    load: Option<CpuLoad>,
    since: Instant,
    /// Inside, `None`: nothing is known of the processors.
    chosen: Option<Option<u16>>,
    /// Whether a vCPU runs there, as on all processors.
    crowded: bool,
    /// Of the last epoch.
    pages: usize,
    /// How many epochs in a row had output up to now.
    awaited: u32,
    /// The last epoch that is known to have console output.
    console: Option<Epoch>,
}

impl CpuPlacement {
    /// Begins to look how busy the processors are: best when the first copy is over. Without a `load`
    /// nothing is chosen.
    pub(crate) fn begin(load: Option<CpuLoad>) -> Self {
        Self { load, since: Instant::now(), chosen: None, crowded: false, pages: 0, awaited: 0, console: None }
    }

    /// Console output of an epoch is held, which somebody waits for as for a frame.
    pub(crate) fn console_output(&mut self, epoch: Epoch) {
        self.console = Some(epoch);
    }

    /// An epoch had so many pages, and frames that somebody waits for or none: the next one is likely to be
    /// alike.
    pub(crate) fn epoch(&mut self, epoch: Epoch, pages: usize, frames: bool) {
        let awaited = frames || self.console == Some(epoch);
        self.pages = pages;
        self.awaited = if awaited { self.awaited.saturating_add(1) } else { 0 };
    }

    /// Where the next epoch is worked on; `taken` are the vCPUs' processors. `None`: anywhere.
    pub(crate) fn next(&mut self, taken: &[usize]) -> Option<u16> {
        let load = self.load.as_mut()?;
        let in_the_way = |cpu: &Option<u16>| !self.crowded && cpu.is_some_and(|cpu| taken.contains(&cpu.into()));
        let age = self.since.elapsed();
        let better = match self.chosen {
            None if age < SETTLE => return None,
            Some(chosen) if !in_the_way(&chosen) && age < AGAIN => return chosen.filter(|_| self.together()),
            Some(Some(cpu)) if !in_the_way(&Some(cpu)) && !self.crowded => load.better_than(cpu, taken).or(Some(cpu)),
            _ => load.least_loaded(taken),
        };
        self.crowded = better.is_some_and(|cpu| taken.contains(&cpu.into()));
        (self.chosen, self.since) = (Some(better), Instant::now());
        better.filter(|_| self.together())
    }

    /// From where, and to where, an epoch like the last one is sent. `None`: anywhere.
    pub(crate) fn of_carriers(&self) -> Option<u16> {
        self.chosen.flatten().filter(|_| self.seldom_awaited() || self.pages <= FEW_PAGES)
    }

    fn together(&self) -> bool {
        self.seldom_awaited() || self.pages <= PAGES_MAX
    }

    /// Whether hardly anybody waits for the epochs: then they leave the vCPUs alone, however long it takes.
    fn seldom_awaited(&self) -> bool {
        self.awaited < 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A place that was chosen.
    fn chosen() -> (CpuPlacement, Option<u16>) {
        let mut place = CpuPlacement::begin(Some(CpuLoad::since_now()));
        std::thread::sleep(SETTLE);
        let first = place.next(&[]);
        assert!(first.is_some());
        (place, first)
    }

    #[test]
    fn a_place_is_kept_until_a_vcpu_comes_there() {
        assert_eq!(CpuPlacement::begin(Some(CpuLoad::since_now())).next(&[]), None, "nothing is known yet");
        let (mut place, first) = chosen();
        let Some(first) = first else { return };
        assert_eq!(place.next(&[usize::from(first) + 1]), Some(first));
        assert!(place.next(&[first.into()]) != Some(first) || place.crowded);
        let all: Vec<usize> = (0..1024).collect();
        assert!(place.next(&all).is_some() && place.crowded, "with vCPUs everywhere they share one of theirs");
    }

    #[test]
    fn console_output_is_awaited_as_a_frame_is() {
        let mut place = CpuPlacement::begin(None);
        for (console, epoch, seldom) in [(1, 1, true), (2, 2, false), (2, 3, true), (4, 4, true), (5, 5, false)] {
            place.console_output(Epoch(console));
            place.epoch(Epoch(epoch), PAGES_MAX + 1, false);
            assert_eq!(place.seldom_awaited(), seldom, "epoch {epoch}, console output in {console}");
        }
    }

    #[test]
    fn large_epochs_that_are_awaited_all_the_time_are_worked_on_anywhere() {
        let (mut place, first) = chosen();
        for (pages, awaited, there, sent_from) in [
            (PAGES_MAX + 1, true, first, first),
            (PAGES_MAX + 1, true, None, None),
            (PAGES_MAX, true, first, None),
            (FEW_PAGES, true, first, first),
            (PAGES_MAX + 1, false, first, first),
            (PAGES_MAX + 1, true, first, first),
        ] {
            place.epoch(Epoch(1), pages, awaited);
            assert_eq!((place.next(&[]), place.of_carriers()), (there, sent_from), "{pages} pages, awaited: {awaited}");
        }
    }
}
