//! A checkpoint on the standby between network and memory: it is applied whole or not at all.

use std::ops::Range;
use std::sync::Arc;

use ft_proto::Epoch;
use ft_wire::pages::{Content, PAGE, PageList};
use ft_wire::session::{Digest, EpochEnd, Header, Kind, WireError, decode_body};
use ft_wire::state::{Position, split_state};

use crate::guest::{GuestError, Memory};

/// The received frames of one epoch. Only [`Image::close`] makes it a [`WholeImage`].
#[derive(Debug)]
pub struct Image {
    epoch: Epoch,
    ram: Arc<[Range<u64>]>,
    pages: Vec<Vec<u8>>,
    state: Vec<u8>,
    digest: Digest,
    frames: u64,
    /// Pages that the frames name.
    count: u64,
}

/// An epoch whose counts and checksum are right.
#[derive(Debug)]
pub struct WholeImage {
    epoch: Epoch,
    /// Where the devices stood.
    positions: Vec<Position>,
    /// Bodies of `Pages` frames, checked.
    pages: Vec<Vec<u8>>,
    /// Pages that they name.
    count: usize,
    /// Body of the `State` frame.
    state: Vec<u8>,
    /// Where the VM's part of `state` begins.
    state_at: usize,
}

impl Image {
    /// Begins `epoch` for a memory that has pages at `ram`.
    #[must_use]
    pub fn new(epoch: Epoch, ram: Arc<[Range<u64>]>) -> Self {
        Self { epoch, ram, pages: Vec::new(), state: Vec::new(), digest: Digest::default(), frames: 0, count: 0 }
    }

    /// Adds a `Pages` or `State` frame.
    ///
    /// # Errors
    /// When it belongs to another epoch, is malformed, or comes out of order.
    pub fn add(&mut self, header: &Header, body: Vec<u8>) -> Result<(), WireError> {
        self.check_epoch(header)?;
        match header.kind {
            Kind::Pages if self.state.is_empty() => {
                // Checked before the epoch is acknowledged: applying it afterwards must not fail half way.
                let list = PageList::parse(header.kind, &body)?;
                let malformed = |what| Err(WireError::Malformed { kind: header.kind, what });
                if !list.numbers().all(|page| self.ram.iter().any(|range| range.contains(&page))) {
                    return malformed("a page outside of guest memory");
                }
                self.count += list.count() as u64;
                // What is staged is bounded by this.
                if self.count > self.ram.iter().map(|range| range.end - range.start).sum() {
                    return malformed("more pages than the guest has");
                }
                self.pages.push(body);
            }
            Kind::State if self.state.is_empty() && !body.is_empty() => self.state = body,
            got => return Err(WireError::Unexpected { got, expected: "pages, one state, then the end of the epoch" }),
        }
        self.digest.add(header.body_hash);
        self.frames += 1;
        Ok(())
    }

    /// Ends the epoch with the body of its `End` frame.
    ///
    /// # Errors
    /// When anything is missing, doubled or changed.
    pub fn close(self, header: &Header, body: &[u8]) -> Result<WholeImage, WireError> {
        self.check_epoch(header)?;
        let end: EpochEnd = decode_body(Kind::End, body)?;
        let broken = |what| WireError::EpochNotWhole { epoch: self.epoch, what };
        if end.frames != self.frames || end.digest != self.digest.value() {
            return Err(broken("frames are missing or changed"));
        }
        if end.pages != self.count {
            return Err(broken("pages are missing"));
        }
        let (positions, state) = split_state(&self.state).ok_or(broken("its state does not decode"))?;
        let state_at = self.state.len() - state.len();
        // There are no more than the guest has.
        let count = usize::try_from(self.count).unwrap_or(usize::MAX);
        Ok(WholeImage { epoch: self.epoch, positions, pages: self.pages, count, state: self.state, state_at })
    }

    fn check_epoch(&self, header: &Header) -> Result<(), WireError> {
        if header.epoch == self.epoch {
            return Ok(());
        }
        Err(WireError::EpochNotWhole { epoch: self.epoch, what: "another epoch begins before its end" })
    }
}

impl WholeImage {
    /// The epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Writes all of its pages to memory.
    ///
    /// # Errors
    /// When a page is not RAM here.
    pub fn apply(&self, memory: &dyn Memory) -> Result<(), GuestError> {
        self.pages.iter().try_for_each(|body| apply_pages(Kind::Pages, body, memory))
    }

    /// Pages that it brings.
    #[must_use]
    pub fn page_count(&self) -> usize {
        self.count
    }

    /// Where the device of this id stood.
    #[must_use]
    pub fn position(&self, id: &str) -> Option<&Position> {
        self.positions.iter().find(|position| position.id == id)
    }

    /// Whether the epoch has nothing of this device.
    #[must_use]
    pub fn is_idle(&self, id: &str) -> bool {
        self.position(id).is_some_and(|position| position.idle)
    }

    /// The VM's state.
    #[must_use]
    pub fn state(&self) -> &[u8] {
        &self.state[self.state_at..]
    }

    /// Bytes that it holds.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.pages.iter().map(Vec::capacity).sum::<usize>() + self.state.capacity()
    }

    /// Gives its page buffers back for reuse.
    pub fn recycle(&mut self) -> impl Iterator<Item = Vec<u8>> + '_ {
        self.pages.drain(..)
    }
}

/// Writes the pages of one `Pages` or `Copy` body to memory, which is what all frames before this one made of
/// it.
///
/// # Errors
/// When the body is malformed or a page is not RAM here.
pub fn apply_pages(kind: Kind, body: &[u8], memory: &dyn Memory) -> Result<(), GuestError> {
    let list = PageList::parse(kind, body).map_err(|error| GuestError::new("a page frame is malformed", error))?;
    let mut page = [0; PAGE];
    for (number, content) in list.pages() {
        match content {
            Content::Zero => memory.zero(number)?,
            Content::Whole(content) => memory.copy_in(number, content)?,
            Content::Changed(delta) => {
                memory.copy_out(number, &mut page)?;
                delta.apply(&mut page);
                memory.copy_in(number, &page)?;
            }
        }
    }
    Ok(())
}
