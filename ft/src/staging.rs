//! A checkpoint on the primary between capture and network: filled inside the pause, sent outside of it.

use std::io::Write;

use ft_proto::wire::{Digest, EpochEnd, Kind, PAGE, PAGES_PER_FRAME, ZERO_PAGE, encode_body};
use ft_proto::{Epoch, Term};

use crate::guest::{GuestError, Memory, Position};
use crate::transport::{Stamp, TransportError, write_frame};

/// Page numbers, their contents, and the state. Its buffers are kept and reused.
#[derive(Debug, Default)]
pub struct Staging {
    /// The epoch; 0 for pages of the first copy.
    pub epoch: Epoch,
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

    /// Sends the pages as frames of the first copy; returns the bytes sent.
    ///
    /// # Errors
    /// When the stream breaks.
    pub fn send_copy(&self, stream: &mut impl Write, term: Term) -> Result<u64, TransportError> {
        let mut bytes = 0;
        self.send_pages(stream, Stamp { kind: Kind::Copy, term, epoch: Epoch(0) }, |_, len| bytes += len)?;
        Ok(bytes)
    }

    /// Sends the checkpoint whole; returns the bytes sent.
    ///
    /// # Errors
    /// When the stream breaks.
    pub fn send_epoch(&self, stream: &mut impl Write, term: Term) -> Result<u64, TransportError> {
        let stamp = |kind| Stamp { kind, term, epoch: self.epoch };
        let (mut digest, mut frames, mut bytes) = (Digest::default(), 0, 0);
        let mut count = |hash, len| {
            digest.add(hash);
            frames += 1;
            bytes += len;
        };
        self.send_pages(stream, stamp(Kind::Pages), &mut count)?;
        let positions = encode_body(&self.positions);
        let positions_len = u64::try_from(positions.len()).unwrap_or(u64::MAX).to_le_bytes();
        let (hash, len) = write_frame(stream, stamp(Kind::State), &[&positions_len, &positions, &self.state])?;
        count(hash, len);
        let end = EpochEnd { pages: self.pages.len() as u64, frames, digest: digest.value() };
        write_frame(stream, stamp(Kind::End), &[&encode_body(&end)])?;
        Ok(bytes)
    }

    fn send_pages(
        &self,
        stream: &mut impl Write,
        stamp: Stamp,
        mut sent: impl FnMut(u64, u64),
    ) -> Result<(), TransportError> {
        let mut index = Vec::with_capacity(8 * (1 + PAGES_PER_FRAME.min(self.pages.len())));
        for (pages, data) in self.pages.chunks(PAGES_PER_FRAME).zip(self.data.chunks(PAGES_PER_FRAME * PAGE)) {
            index.clear();
            index.extend((pages.len() as u64).to_le_bytes());
            let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
            for (at, page) in pages.iter().enumerate() {
                let bytes = at * PAGE..(at + 1) * PAGE;
                if is_zero(&data[bytes.clone()]) {
                    index.extend((page | ZERO_PAGE).to_le_bytes());
                    continue;
                }
                index.extend(page.to_le_bytes());
                match runs.last_mut() {
                    Some(run) if run.end == bytes.start => run.end = bytes.end,
                    _ => runs.push(bytes),
                }
            }
            let mut parts = Vec::with_capacity(runs.len() + 1);
            parts.push(&index[..]);
            parts.extend(runs.into_iter().map(|run| &data[run]));
            let (hash, len) = write_frame(stream, stamp, &parts)?;
            sent(hash, len);
        }
        Ok(())
    }
}

/// Whether a page holds only zeroes.
fn is_zero(page: &[u8]) -> bool {
    // In blocks, so that the compiler uses wide registers and a page with content ends the scan early.
    page.chunks(64).all(|block| block.iter().fold(0, |or, byte| or | byte) == 0)
}

/// Splits the body of a `State` frame into positions and VM state.
pub fn split_state(body: &[u8]) -> Option<(Vec<Position>, &[u8])> {
    let (len, rest) = body.split_first_chunk::<8>()?;
    let (positions, state) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
    Some((postcard::from_bytes(positions).ok()?, state))
}
