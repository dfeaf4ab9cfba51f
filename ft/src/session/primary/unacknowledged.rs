//! The epochs that a standby was sent and may not have.

use std::collections::VecDeque;

use ft_proto::{Epoch, Time};

use crate::checkpoint::epoch_image::EpochImage;

/// One of them.
#[derive(Debug)]
pub(super) struct Sealed {
    epoch: Epoch,
    begun: Time,
    sent: Time,
    pages: Vec<u64>,
    packed: bool,
}

impl Sealed {
    /// When its capture began.
    pub(super) fn begun(&self) -> Time {
        self.begun
    }

    /// When it was handed to the sender.
    pub(super) fn sent(&self) -> Time {
        self.sent
    }

    pub(super) fn pages(&self) -> &[u64] {
        &self.pages
    }

    pub(super) fn is_packed(&self) -> bool {
        self.packed
    }
}

/// All of them, oldest first.
#[derive(Debug, Default)]
pub(super) struct Unacknowledged {
    sealed: VecDeque<Sealed>,
    /// Lists of pages that are not in use.
    spare: Vec<Vec<u64>>,
    /// Whether the standby has acknowledged a whole checkpoint.
    has_base: bool,
}

impl Unacknowledged {
    /// An epoch is handed to the sender.
    pub(super) fn push(&mut self, image: &EpochImage, begun: Time, sent: Time, packed: bool) {
        let mut pages = self.spare.pop().unwrap_or_default();
        pages.clone_from(&image.pages);
        self.sealed.push_back(Sealed { epoch: image.epoch, begun, sent, pages, packed });
    }

    /// The standby has everything up to this epoch.
    pub(super) fn acknowledged(&mut self, epoch: Epoch, mut each: impl FnMut(&Sealed)) {
        while let Some(sealed) = self.sealed.pop_front_if(|sealed| sealed.epoch <= epoch) {
            each(&sealed);
            self.spare.push(sealed.pages);
            self.has_base = true;
        }
    }

    pub(super) fn has_base(&self) -> bool {
        self.has_base
    }

    /// The pages of each.
    pub(super) fn pages(&self) -> impl Iterator<Item = &[u64]> {
        self.sealed.iter().map(Sealed::pages)
    }
}
