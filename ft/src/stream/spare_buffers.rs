//! Page buffers that a standby has applied and will soon need again.
//!
//! A fresh buffer costs a page fault for each page that it gets, which takes longer than receiving the page.
//! So what the last epochs needed is kept, and goes back to the host when no epoch has needed it for a while.

use ft_wire::pages::PAGE;

/// So many buffers are taken until those that were spare all the time are given up: several large epochs, or
/// some seconds of small ones.
const WINDOW: u32 = 1024;
/// A buffer that is larger than an honest primary's frames make it is not kept.
const BUFFER_MAX: usize = 2 * 128 * (PAGE + 8);

/// The buffers.
#[derive(Debug, Default)]
pub(super) struct SpareBuffers {
    kept: Vec<Vec<u8>>,
    /// The fewest that there were since the window began.
    fewest: usize,
    taken: u32,
}

impl SpareBuffers {
    /// One of them, if there is one.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        let buffer = self.kept.pop();
        self.fewest = self.fewest.min(self.kept.len());
        self.taken += 1;
        if self.taken == WINDOW {
            self.kept.drain(..self.fewest);
            self.taken = 0;
            self.fewest = self.kept.len();
        }
        buffer
    }

    /// Keeps it for later.
    pub fn keep(&mut self, buffer: Vec<u8>) {
        if buffer.capacity() <= BUFFER_MAX {
            self.kept.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `count` buffers, as for an epoch, and returns them.
    fn epoch(spares: &mut SpareBuffers, count: usize) {
        let used: Vec<_> = (0..count).map(|_| spares.take().unwrap_or_else(|| vec![0; PAGE])).collect();
        used.into_iter().for_each(|buffer| spares.keep(buffer));
    }

    #[test]
    fn what_large_epochs_need_is_kept_between_them() {
        let mut spares = SpareBuffers::default();
        for _ in 0..100 {
            epoch(&mut spares, 80);
            assert_eq!(spares.kept.len(), 80);
            epoch(&mut spares, 1);
        }
    }

    #[test]
    fn what_a_single_large_epoch_needed_is_given_up() {
        let mut spares = SpareBuffers::default();
        epoch(&mut spares, 80);
        (0..2 * WINDOW).for_each(|_| epoch(&mut spares, 1));
        assert_eq!(spares.kept.len(), 1);
    }

    #[test]
    fn buffers_that_a_peer_has_blown_up_are_not_kept() {
        let mut spares = SpareBuffers::default();
        spares.keep(Vec::with_capacity(BUFFER_MAX));
        spares.keep(Vec::with_capacity(BUFFER_MAX + 1));
        assert_eq!(spares.kept.len(), 1);
    }
}
