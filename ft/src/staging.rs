//! A checkpoint on the primary between capture and network: filled inside the pause, sent outside of it.

use ft_proto::Epoch;
use ft_proto::pages::{PAGE, Page};

use crate::guest::{GuestError, Memory, Position};

/// Page numbers, their contents, and the state. Its buffers are kept and reused.
#[derive(Debug, Default)]
pub struct Staging {
    /// The epoch; 0 for pages of the first copy.
    pub epoch: Epoch,
    /// Whether it is worth packing.
    pub pack: bool,
    /// Page numbers.
    pub pages: Vec<u64>,
    data: Vec<u8>,
    /// Where the devices stand.
    pub positions: Vec<Position>,
    /// vCPU and device state.
    pub state: Vec<u8>,
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
        let len = self.pages.len() * PAGE;
        if self.data.len() < len {
            self.data.resize(len, 0);
        }
        for (page, into) in self.pages.iter().zip(self.data.chunks_exact_mut(PAGE)) {
            memory.copy_out(*page, into)?;
        }
        Ok(())
    }

    /// Page numbers and contents, at most `len` of them at a time.
    pub fn chunks(&self, len: usize) -> impl ExactSizeIterator<Item = (&[u64], &[Page])> {
        let contents = &self.data.as_chunks().0[..self.pages.len()];
        self.pages.chunks(len).zip(contents.chunks(len))
    }
}

/// Splits the body of a `State` frame into positions and VM state.
pub fn split_state(body: &[u8]) -> Option<(Vec<Position>, &[u8])> {
    let (len, rest) = body.split_first_chunk::<8>()?;
    let (positions, state) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
    Some((postcard::from_bytes(positions).ok()?, state))
}
