//! The model serial console, as the VMM has it: output that no device process holds, by epoch.

use std::collections::VecDeque;

use ft::guest::HeldOutput;
use ft_proto::Epoch;

use crate::guest::Frame;

/// The console of one process.
#[derive(Debug, Default)]
pub(crate) struct Console {
    /// Output belongs to this epoch and is held; `None`: it leaves.
    epoch: Option<Epoch>,
    held: VecDeque<(Epoch, Frame)>,
    told: Option<Epoch>,
    /// Whoever wants to know of the first output of an epoch.
    watcher: Option<HeldOutput>,
}

impl Console {
    pub(crate) fn watch(&mut self, watcher: HeldOutput) {
        self.watcher = Some(watcher);
    }

    /// The guest prints: returned is what leaves now.
    pub(crate) fn print(&mut self, frame: Frame) -> Option<Frame> {
        let Some(epoch) = self.epoch else { return Some(frame) };
        self.held.push_back((epoch, frame));
        if self.told.replace(epoch) != Some(epoch)
            && let Some(watcher) = &self.watcher
        {
            watcher.held(epoch);
        }
        None
    }

    /// Output belongs to the next epoch. It is held after the `base`.
    pub(crate) fn cut(&mut self, next: Epoch, base: bool) {
        if base || self.epoch.is_some() {
            self.epoch = Some(next);
        }
    }

    /// What may leave.
    pub(crate) fn release(&mut self, until: Epoch) -> Vec<Frame> {
        let count = self.held.iter().take_while(|(epoch, _)| *epoch <= until).count();
        self.held.drain(..count).map(|(_, frame)| frame).collect()
    }

    /// Everything may leave, from now on, too.
    pub(crate) fn free(&mut self) -> Vec<Frame> {
        (self.epoch, self.told) = (None, None);
        self.release(Epoch(u64::MAX))
    }

    /// What is held is of no use.
    pub(crate) fn discard(&mut self) {
        self.held.clear();
    }

    pub(crate) fn holds(&self) -> bool {
        self.epoch.is_some()
    }
}
