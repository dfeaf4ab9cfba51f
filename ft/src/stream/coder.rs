//! From a checkpoint to frames: pages as they are, as what changed in them, or not at all, and bodies packed
//! where that pays.

use std::io::Write;

use ft_proto::{Epoch, Term};
use ft_transport::frames::{Frame, Stamp, TransportError, write_frames};
use ft_wire::packing::{Packed, Packer};
use ft_wire::pages::{ListWriter, PAGE, PAGES_PER_FRAME, Page};
use ft_wire::session::{Digest, EpochEnd, Kind, encode_body};
use ft_wire::state::EncodedPositions;

use crate::guest::Form;
use crate::guest::staging::{PORTION_PAGES, Staging};
use crate::stream::history::History;

/// Pages that we put into one frame: coding, hashing, sending, checking and staging go on at the same time on
/// different frames.
const _: () = assert!(PORTION_PAGES <= PAGES_PER_FRAME);

/// Bytes of the frames of one job.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Volume {
    /// If every page that is not zero went out whole, and nothing was packed.
    pub raw: u64,
    /// As they went out.
    pub sent: u64,
}

/// Makes frames of what is staged. Its buffers are kept and reused.
pub struct Coder {
    lister: Lister,
    pages: Packer,
    state: Packer,
}

/// Puts pages into a list, each in the shortest form that the standby understands.
#[derive(Debug, Default)]
struct Lister {
    history: History,
    list: ListWriter,
    /// Bytes that the list would have with every page in it, whole unless it is zero.
    raw: u64,
    forms: Vec<(u64, Form)>,
}

impl Coder {
    /// A coder that sends what changed in the pages that `history` knows.
    #[must_use]
    pub fn new(history: History) -> Self {
        let lister = Lister { history, ..Lister::default() };
        Self { lister, pages: Packer::default(), state: Packer::default() }
    }

    /// How pages were sent since the last call.
    pub fn take_forms(&mut self) -> Vec<(u64, Form)> {
        let capacity = self.lister.forms.len();
        std::mem::replace(&mut self.lister.forms, Vec::with_capacity(capacity))
    }

    /// Sends the pages as frames of the first copy, packed if `pack` says so.
    ///
    /// # Errors
    /// When the stream breaks.
    pub fn send_copy(
        &mut self,
        staging: &Staging,
        pack: bool,
        stream: &mut impl Write,
        term: Term,
    ) -> Result<Volume, TransportError> {
        let stamp = Stamp { kind: Kind::Copy, term, epoch: Epoch(0) };
        let mut volume = Volume::default();
        for (numbers, contents) in staging.chunks() {
            self.lister.fill(numbers, contents);
            let list = &self.lister.list;
            volume.raw += self.lister.raw;
            if list.count() > 0 {
                let parts = list.parts(contents);
                let packed = pack.then(|| self.pages.pack(&parts)).flatten();
                let frame = frame(stamp, &parts, packed.as_ref());
                volume.sent += frame.len;
                write_frames(stream, &[frame])?;
            }
        }
        // Nobody can learn from those of the first copy.
        self.lister.forms.clear();
        Ok(volume)
    }

    /// Sends the checkpoint whole, packed if `pack` says so.
    ///
    /// # Errors
    /// When the stream breaks.
    pub fn send_epoch(
        &mut self,
        staging: &Staging,
        pack: bool,
        stream: &mut impl Write,
        term: Term,
    ) -> Result<Volume, TransportError> {
        let stamp = |kind| Stamp { kind, term, epoch: staging.epoch };
        let mut sum = Sum::default();
        let mut chunks = staging.chunks();
        while chunks.len() > 1 {
            let Some((numbers, contents)) = chunks.next() else { break };
            self.lister.fill(numbers, contents);
            let list = &self.lister.list;
            if list.count() > 0 {
                let parts = list.parts(contents);
                let packed = pack.then(|| self.pages.pack(&parts)).flatten();
                let frame = frame(stamp(Kind::Pages), &parts, packed.as_ref());
                sum.add(&frame, list.count());
                write_frames(stream, &[frame])?;
            }
            sum.volume.raw += self.lister.raw;
        }
        // The rest goes out in one call: a small epoch wakes the standby once.
        let (numbers, contents) = chunks.next().unwrap_or_default();
        self.lister.fill(numbers, contents);
        let list = &self.lister.list;
        let parts = list.parts(contents);
        let packed = pack.then(|| self.pages.pack(&parts)).flatten();
        let pages = (list.count() > 0).then(|| frame(stamp(Kind::Pages), &parts, packed.as_ref()));
        pages.iter().for_each(|frame| sum.add(frame, list.count()));
        let positions = EncodedPositions::new(&staging.positions);
        let parts = positions.parts_with(&staging.state);
        let packed = pack.then(|| self.state.pack(&parts)).flatten();
        let state = frame(stamp(Kind::State), &parts, packed.as_ref());
        sum.add(&state, 0);
        sum.volume.raw += self.lister.raw + state.raw;
        let end = encode_body(&sum.end());
        let parts = [&end[..]];
        let end = Frame::new(stamp(Kind::End), &parts);
        let rest: Vec<_> = pages.into_iter().chain([state, end]).collect();
        write_frames(stream, &rest)?;
        Ok(sum.volume)
    }
}

fn frame<'a>(stamp: Stamp, parts: &'a [&'a [u8]], packed: Option<&'a Packed<'_>>) -> Frame<'a> {
    packed.map_or_else(|| Frame::new(stamp, parts), |packed| Frame::packed(stamp, &packed.parts, packed.raw))
}

/// What the end of an epoch says of its frames.
#[derive(Default)]
struct Sum {
    digest: Digest,
    frames: u64,
    pages: u64,
    volume: Volume,
}

impl Sum {
    fn add(&mut self, frame: &Frame<'_>, pages: u64) {
        self.digest.add(frame.hash);
        self.frames += 1;
        self.pages += pages;
        self.volume.sent += frame.len;
    }

    fn end(&self) -> EpochEnd {
        EpochEnd { pages: self.pages, frames: self.frames, digest: self.digest.value() }
    }
}

impl Lister {
    /// Lists these pages, but for those that the standby has already.
    fn fill(&mut self, numbers: &[u64], contents: &[Page]) {
        self.list.clear();
        self.raw = 8;
        for (at, (number, content)) in numbers.iter().zip(contents).enumerate() {
            self.add(*number, at, content);
        }
    }

    fn add(&mut self, number: u64, at: usize, content: &Page) {
        self.raw += 8;
        if is_zero(content) {
            self.list.zero(number);
            let form = if self.history.zero(number) { Form::Same } else { Form::Delta };
            return self.forms.push((number, form));
        }
        self.raw += PAGE as u64;
        let form = self.list.changed(number, |out| self.history.form(number, content, out));
        if matches!(form, Form::Whole | Form::WholeAgain) {
            self.list.whole(number, at);
        }
        self.forms.push((number, form));
    }
}

/// Whether a page holds only zeroes.
fn is_zero(page: &Page) -> bool {
    // In blocks, so that the compiler uses wide registers and a page with content ends the scan early.
    page.chunks(64).all(|block| block.iter().fold(0, |or, byte| or | byte) == 0)
}

#[cfg(test)]
mod tests;
