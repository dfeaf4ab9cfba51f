//! A primary's epochs between the guest and the standby: the one that runs, and those that are sealed and not
//! acknowledged.
//!
//! ```text
//!   released | sealed, at most `depth` | running
//!            ^ commit takes from here   ^ a cut ends this one
//! ```
//!
//! Sealed epochs follow each other without a gap, and the running one follows the last of them.

use std::collections::VecDeque;
use std::time::Duration;

use crate::events::{Action, CutKind, Settings};
use crate::pace::Pace;
use crate::session::Cx;
use crate::{Committed, Epoch, Time};

/// Epochs on their way.
#[cfg_attr(feature = "model", derive(Clone, Eq, Hash, PartialEq))]
#[derive(Debug)]
pub(crate) struct Pipeline {
    running: Epoch,
    /// When the guest began to run it.
    started: Time,
    /// Cut and not committed, oldest first.
    sealed: VecDeque<Sealed>,
    /// The running epoch is being cut.
    cutting: bool,
    /// Something waits for the running epoch to end.
    wanted: bool,
    pace: Pace,
}

/// An epoch that was cut.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Sealed {
    epoch: Epoch,
    since: Time,
    pages: u64,
}

impl Pipeline {
    pub(crate) fn new(now: Time) -> Self {
        Self {
            running: Epoch(1),
            started: now,
            sealed: VecDeque::new(),
            cutting: false,
            wanted: false,
            pace: Pace::new(),
        }
    }

    /// The epoch that the guest runs.
    pub(crate) fn running(&self) -> Epoch {
        self.running
    }

    /// Whether all that was cut is committed, and nothing is being cut.
    pub(crate) fn is_drained(&self) -> bool {
        self.sealed.is_empty() && !self.cutting
    }

    /// Since when the oldest sealed epoch waits for its acknowledgement.
    pub(crate) fn waits_since(&self) -> Option<Time> {
        self.sealed.front().map(|sealed| sealed.since)
    }

    /// Something waits for the running epoch to end: it ends as soon as the pace allows.
    pub(crate) fn want_cut(&mut self) {
        self.wanted = true;
    }

    /// Whether another epoch may be cut, whenever that is.
    pub(crate) fn has_room(&self, settings: &Settings) -> bool {
        !self.cutting && self.sealed.len() < settings.depth
    }

    /// When the running epoch ends by itself.
    pub(crate) fn cut_at(&self, settings: &Settings) -> Time {
        self.started + self.length(settings)
    }

    /// Whether the running epoch has been running for long enough.
    pub(crate) fn is_due(&self, settings: &Settings, now: Time) -> bool {
        now.since(self.started) >= self.length(settings)
    }

    fn length(&self, settings: &Settings) -> Duration {
        if self.wanted { self.pace.shortest(settings) } else { self.pace.longest(settings) }
    }

    /// Has the running epoch cut.
    pub(crate) fn cut(&mut self, kind: CutKind, cx: &mut Cx<'_>) {
        assert!(!self.cutting, "epoch {} is cut twice", self.running);
        // The base is cut whatever the depth is.
        assert!(kind == CutKind::Base || self.sealed.len() < cx.settings.depth, "more than the depth is sealed");
        assert!(kind != CutKind::Base || self.running == Epoch(1), "the base is epoch {}, not the first", self.running);
        self.cutting = true;
        self.wanted = false;
        cx.act(Action::Cut { epoch: self.running, kind });
    }

    /// The running epoch was cut.
    pub(crate) fn cut_done(&mut self, epoch: Epoch, paused: Duration, pages: u64, now: Time) {
        if !self.cutting || epoch != self.running {
            return;
        }
        self.cutting = false;
        self.sealed.push_back(Sealed { epoch, since: now, pages });
        self.running = epoch.next();
        self.pace.paused(paused);
        self.started = now;
        self.check();
    }

    /// The running epoch could not be cut and goes on. Returns whether it was being cut.
    pub(crate) fn cut_failed(&mut self, epoch: Epoch) -> bool {
        let cut = self.cutting && epoch == self.running;
        self.cutting &= !cut;
        cut
    }

    /// Whether an acknowledgement of `epoch` says anything: not if it was never sealed, or is committed
    /// already.
    pub(crate) fn awaits(&self, epoch: Epoch) -> bool {
        self.sealed.iter().any(|sealed| sealed.epoch == epoch)
    }

    /// Releases everything up to `epoch`. The only place on a primary where an epoch becomes committed.
    pub(crate) fn commit(&mut self, epoch: Epoch, cx: &mut Cx<'_>) {
        let oldest = self.sealed.front().map(|sealed| sealed.epoch);
        assert!(oldest.is_some_and(|oldest| oldest <= epoch), "epoch {epoch} is committed twice, or was never sealed");
        let mut last = None;
        while let Some(sealed) = self.sealed.pop_front_if(|sealed| sealed.epoch <= epoch) {
            last = Some(sealed);
        }
        let last = last.filter(|last| last.epoch == epoch).expect("the commit rule names a sealed epoch");
        self.pace.committed(last.pages, cx.now.since(last.since), cx.settings);
        cx.act(Action::Release(Committed::new(epoch)));
        self.check();
    }

    /// This process was stopped until `now`: the time before was not given to the standby.
    pub(crate) fn woke(&mut self, now: Time) {
        self.sealed.iter_mut().for_each(|sealed| sealed.since = now);
    }

    /// What holds between an epoch's commit and the next cut; `committed` is the last one that was.
    pub(crate) fn check_follows(&self, committed: Epoch) {
        let oldest = self.sealed.front().map_or(self.running, |sealed| sealed.epoch);
        assert_eq!(committed.next(), oldest, "epoch {committed} is committed, and {oldest} is next");
    }

    /// No gap: the running epoch follows the last sealed one, and that the one before.
    fn check(&self) {
        let (Some(first), Some(last)) = (self.sealed.front(), self.sealed.back()) else { return };
        assert_eq!(last.epoch.next(), self.running, "the running epoch does not follow the last sealed one");
        let count = self.running.0 - first.epoch.0;
        assert_eq!(count, self.sealed.len() as u64, "sealed epochs from {} to {} have a gap", first.epoch, last.epoch);
    }
}
