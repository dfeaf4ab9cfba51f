//! A checkpoint between capture and network: filled inside the pause, then immutable, sent outside of it.

use ft_proto::Epoch;
use ft_wire::pages::{PAGE, Page};
use ft_wire::state::Position;

use crate::guest::memory::{GuestError, Memory};

/// Pages that are copied by one thread, and go out in one frame.
pub const PORTION_PAGES: usize = 128;

/// Page numbers, their contents, and the state. Its buffers are kept and reused.
#[derive(Debug, Default)]
pub struct Staging {
    /// The epoch; 0 for pages of the first copy.
    pub epoch: Epoch,
    /// Page numbers.
    pub pages: Vec<u64>,
    /// Their contents, and buffers for more.
    portions: Vec<Portion>,
    /// Where the devices stand.
    pub positions: Vec<Position>,
    /// vCPU and device state.
    pub state: Vec<u8>,
}

/// At most [`PORTION_PAGES`] of the pages, to be copied by whoever has time.
#[derive(Debug, Default)]
pub struct Portion {
    pages: Vec<u64>,
    data: Vec<u8>,
}

impl Portion {
    /// Copies the pages out of guest memory.
    ///
    /// # Errors
    /// When one of them is not RAM.
    pub fn copy(&mut self, memory: &dyn Memory) -> Result<(), GuestError> {
        let len = self.pages.len() * PAGE;
        if self.data.len() < len {
            self.data.resize(len, 0);
        }
        let into = self.data.chunks_exact_mut(PAGE);
        self.pages.iter().zip(into).try_for_each(|(page, into)| memory.copy_out(*page, into))
    }
}

impl Staging {
    /// Empties it, keeping its buffers.
    pub fn clear(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        self.pages.clear();
        self.positions.clear();
        self.state.clear();
    }

    /// Copies all of `pages` out of guest memory.
    ///
    /// # Errors
    /// When one of them is not RAM.
    pub fn copy_pages(&mut self, memory: &dyn Memory) -> Result<(), GuestError> {
        self.split();
        let count = self.portion_count();
        self.portions[..count].iter_mut().try_for_each(|portion| portion.copy(memory))
    }

    /// Takes the portions of `pages` out, to be copied and put back by [`Staging::put_portion`] under the
    /// same number.
    pub fn take_portions(&mut self) -> Vec<(usize, Portion)> {
        self.split();
        let count = self.portion_count();
        self.portions[..count].iter_mut().map(std::mem::take).enumerate().collect()
    }

    /// Puts a portion back.
    pub fn put_portion(&mut self, number: usize, portion: Portion) {
        if let Some(place) = self.portions.get_mut(number) {
            *place = portion;
        }
    }

    /// Page numbers and contents, [`PORTION_PAGES`] of them at a time.
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = (&[u64], &[Page])> {
        self.pages.chunks(PORTION_PAGES).zip(&self.portions).map(|(pages, portion)| {
            let contents = portion.data.as_chunks().0;
            (pages, &contents[..pages.len()])
        })
    }

    fn portion_count(&self) -> usize {
        self.pages.len().div_ceil(PORTION_PAGES)
    }

    fn split(&mut self) {
        let count = self.portion_count();
        if self.portions.len() < count {
            self.portions.resize_with(count, Portion::default);
        }
        for (portion, pages) in self.portions.iter_mut().zip(self.pages.chunks(PORTION_PAGES)) {
            portion.pages.clear();
            portion.pages.extend_from_slice(pages);
        }
    }
}
