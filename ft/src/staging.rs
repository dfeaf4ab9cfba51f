//! A checkpoint on the primary between capture and network: filled inside the pause, sent outside of it.

use std::io::Write;
use std::ops::Range;

use ft_proto::wire::{Digest, EpochEnd, Kind, PAGE, PAGES_PER_FRAME, ZERO_PAGE, encode_body};
use ft_proto::{Epoch, Term};

use crate::guest::{GuestError, Memory, Position};
use crate::transport::{Frame, Stamp, TransportError, write_frame, write_frames};

/// Pages that we put into one frame: hashing, sending, checking and staging go on at the same time on different frames.
const FRAME_PAGES: usize = 128;
const _: () = assert!(FRAME_PAGES <= PAGES_PER_FRAME);

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
        let (mut bytes, mut index) = (0, Vec::new());
        for chunk in 0..self.chunks() {
            let runs = self.list(chunk, &mut index);
            let parts = self.parts(&index, runs);
            bytes += write_frame(stream, Stamp { kind: Kind::Copy, term, epoch: Epoch(0) }, &parts)?.1;
        }
        Ok(bytes)
    }

    /// Sends the checkpoint whole; returns the bytes sent.
    ///
    /// # Errors
    /// When the stream breaks.
    pub fn send_epoch(&self, stream: &mut impl Write, term: Term) -> Result<u64, TransportError> {
        let stamp = |kind| Stamp { kind, term, epoch: self.epoch };
        let (mut digest, mut frames, mut bytes) = (Digest::default(), 0, 0);
        let mut count = |frame: &Frame<'_>| {
            digest.add(frame.hash);
            frames += 1;
            bytes += frame.len;
        };
        let mut index = Vec::new();
        let last = self.chunks().saturating_sub(1);
        for chunk in 0..last {
            let runs = self.list(chunk, &mut index);
            let parts = self.parts(&index, runs);
            let frame = Frame::new(stamp(Kind::Pages), &parts);
            count(&frame);
            write_frames(stream, &[frame])?;
        }
        // The rest goes out in one call: a small epoch wakes the standby once.
        let runs = self.list(last, &mut index);
        let parts = self.parts(&index, runs);
        let pages = (!self.pages.is_empty()).then(|| Frame::new(stamp(Kind::Pages), &parts));
        let positions = encode_body(&self.positions);
        let positions_len = u64::try_from(positions.len()).unwrap_or(u64::MAX).to_le_bytes();
        let parts = [&positions_len[..], &positions, &self.state];
        let state = Frame::new(stamp(Kind::State), &parts);
        pages.iter().chain([&state]).for_each(&mut count);
        let end = encode_body(&EpochEnd { pages: self.pages.len() as u64, frames, digest: digest.value() });
        let parts = [&end[..]];
        let end = Frame::new(stamp(Kind::End), &parts);
        let rest: Vec<_> = pages.into_iter().chain([state, end]).collect();
        write_frames(stream, &rest)?;
        Ok(bytes)
    }

    /// Frames that the pages fill.
    fn chunks(&self) -> usize {
        self.pages.len().div_ceil(FRAME_PAGES)
    }

    /// Fills `index` for the frame of a chunk of pages; returns which bytes of `data` it carries.
    fn list(&self, chunk: usize, index: &mut Vec<u8>) -> Vec<Range<usize>> {
        let first = chunk * FRAME_PAGES;
        let pages = &self.pages[first..self.pages.len().min(first + FRAME_PAGES)];
        index.clear();
        index.extend((pages.len() as u64).to_le_bytes());
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (at, page) in (first..).zip(pages) {
            let bytes = at * PAGE..(at + 1) * PAGE;
            if is_zero(&self.data[bytes.clone()]) {
                index.extend((page | ZERO_PAGE).to_le_bytes());
                continue;
            }
            index.extend(page.to_le_bytes());
            match runs.last_mut() {
                Some(run) if run.end == bytes.start => run.end = bytes.end,
                _ => runs.push(bytes),
            }
        }
        runs
    }

    fn parts<'a>(&'a self, index: &'a [u8], runs: Vec<Range<usize>>) -> Vec<&'a [u8]> {
        let data = runs.into_iter().map(|run| &self.data[run]);
        std::iter::once(index).chain(data).collect()
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
