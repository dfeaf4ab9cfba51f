//! Page lists: the body of `Pages` and `Copy` frames.
//!
//! ```text
//! | count (8 bytes) | count entries (8 bytes): page number and form | what the entries say, one after the other |
//! ```
//!
//! The top bits of an entry say in which form its page comes: [`ZERO_PAGE`], no bytes; [`DELTA_PAGE`], the
//! [delta](crate::delta) to what the frames before this one made of the page; none of them, its 4096 bytes.

use std::ops::Range;

use crate::delta::Delta;
pub use crate::page::{PAGE, Page};
use crate::session::{Kind, WireError};

/// The most pages in one frame.
pub const PAGES_PER_FRAME: usize = 4096;
/// Set in a page's entry: it is all zeroes.
pub const ZERO_PAGE: u64 = 1 << 63;
/// Set in a page's entry: what follows is what changed in it.
pub const DELTA_PAGE: u64 = 1 << 62;

/// What becomes of a page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Content<'a> {
    /// All zeroes.
    Zero,
    /// These bytes.
    Whole(&'a Page),
    /// What it was, changed by this.
    Changed(Delta<'a>),
}

/// A page list that is well-formed: whatever its entries say can be done.
#[derive(Clone, Copy, Debug)]
pub struct PageList<'a> {
    entries: &'a [[u8; 8]],
    data: &'a [u8],
}

impl<'a> PageList<'a> {
    /// Reads the body of a frame, all of it.
    ///
    /// # Errors
    /// When entries and data do not add up.
    pub fn parse(kind: Kind, body: &'a [u8]) -> Result<Self, WireError> {
        let malformed = |what| WireError::Malformed { kind, what };
        let (count, rest) = body.split_first_chunk::<8>().ok_or(malformed("no entry count"))?;
        let count = usize::try_from(u64::from_le_bytes(*count)).unwrap_or(usize::MAX);
        if !(1..=PAGES_PER_FRAME).contains(&count) {
            return Err(malformed("no pages, or too many"));
        }
        let (entries, data) = rest.split_at_checked(count * 8).ok_or(malformed("the entries are cut off"))?;
        let list = Self { entries: entries.as_chunks().0, data };
        let end = list.entries.iter().try_fold(data, |data, entry| Some(take(*entry, data)?.1));
        match end {
            Some([]) => Ok(list),
            Some(_) => Err(malformed("more data than its entries speak of")),
            None => Err(malformed("the data is cut off or in no known form")),
        }
    }

    /// How many pages it names.
    #[must_use]
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Page numbers, in order.
    pub fn numbers(&self) -> impl Iterator<Item = u64> + use<'a> {
        self.entries.iter().map(|entry| number(*entry))
    }

    /// Page numbers and what becomes of the pages, in order.
    pub fn pages(&self) -> impl Iterator<Item = (u64, Content<'a>)> + use<'a> {
        let mut data = self.data;
        self.entries.iter().map_while(move |entry| {
            let (content, rest) = take(*entry, data)?;
            data = rest;
            Some((number(*entry), content))
        })
    }
}

/// Writes a page list. Its buffers are kept and reused.
#[derive(Debug, Default)]
pub struct ListWriter {
    /// The count and the entries.
    index: Vec<u8>,
    deltas: Vec<u8>,
    /// What follows the entries, in order.
    pieces: Vec<Piece>,
    count: u64,
}

/// Where bytes are.
#[derive(Debug)]
enum Piece {
    /// In the pages that were staged.
    Staged(Range<usize>),
    /// In the deltas.
    Delta(Range<usize>),
}

impl ListWriter {
    /// Begins an empty list.
    pub fn clear(&mut self) {
        self.index.clear();
        self.index.extend([0; 8]);
        self.deltas.clear();
        self.pieces.clear();
        self.count = 0;
    }

    /// A page that is all zeroes.
    pub fn zero(&mut self, page: u64) {
        self.enter(page | ZERO_PAGE);
    }

    /// A page as it is: the one at `at` of those that [`Self::parts`] will be given.
    pub fn whole(&mut self, page: u64, at: usize) {
        self.follow(Piece::Staged(at * PAGE..(at + 1) * PAGE));
        self.enter(page);
    }

    /// A page that has changed by a [delta](crate::delta) that `append` appends, if it does; tells what that
    /// tells.
    pub fn changed<T>(&mut self, page: u64, append: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let start = self.deltas.len();
        let told = append(&mut self.deltas);
        if self.deltas.len() > start {
            self.follow(Piece::Delta(start..self.deltas.len()));
            self.enter(page | DELTA_PAGE);
        }
        told
    }

    /// How many pages it names.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The body, part by part; `staged` are the pages that [`Self::whole`] has counted.
    #[must_use]
    pub fn parts<'a>(&'a self, staged: &'a [Page]) -> Vec<&'a [u8]> {
        let piece = |piece: &Piece| match piece {
            Piece::Staged(range) => &staged.as_flattened()[range.clone()],
            Piece::Delta(range) => &self.deltas[range.clone()],
        };
        std::iter::once(&self.index[..]).chain(self.pieces.iter().map(piece)).collect()
    }

    fn enter(&mut self, entry: u64) {
        self.count += 1;
        self.index.extend(entry.to_le_bytes());
        self.index[..8].copy_from_slice(&self.count.to_le_bytes());
    }

    /// Appends a piece, or makes the last one longer.
    fn follow(&mut self, piece: Piece) {
        match (self.pieces.last_mut(), &piece) {
            (Some(Piece::Staged(last)), Piece::Staged(next)) | (Some(Piece::Delta(last)), Piece::Delta(next))
                if last.end == next.start =>
            {
                last.end = next.end;
            }
            _ => self.pieces.push(piece),
        }
    }
}

fn number(entry: [u8; 8]) -> u64 {
    u64::from_le_bytes(entry) & !(ZERO_PAGE | DELTA_PAGE)
}

/// What an entry says, taken off `data`; `None` if it is not there.
fn take(entry: [u8; 8], data: &[u8]) -> Option<(Content<'_>, &[u8])> {
    let entry = u64::from_le_bytes(entry);
    match (entry & ZERO_PAGE != 0, entry & DELTA_PAGE != 0) {
        (false, false) => data.split_first_chunk().map(|(page, rest)| (Content::Whole(page), rest)),
        (true, false) => Some((Content::Zero, data)),
        (false, true) => Delta::split(data).map(|(delta, rest)| (Content::Changed(delta), rest)),
        (true, true) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(entries: &[u64], data: &[u8]) -> Vec<u8> {
        let mut body = (entries.len() as u64).to_le_bytes().to_vec();
        body.extend(entries.iter().flat_map(|entry| entry.to_le_bytes()));
        body.extend(data);
        body
    }

    #[test]
    fn pages_come_back_in_their_forms() {
        // One block, and in it one word.
        let delta = [&[1][..], &1_u64.to_le_bytes(), &[9; 8]].concat();
        let data = [&[7; PAGE][..], &delta].concat();
        let body = body(&[5 | ZERO_PAGE, 6, 7 | DELTA_PAGE], &data);
        let list = PageList::parse(Kind::Pages, &body).unwrap();
        assert_eq!((list.count(), list.numbers().collect::<Vec<_>>()), (3, vec![5, 6, 7]));
        let pages: Vec<_> = list.pages().collect();
        assert_eq!(pages[..2], [(5, Content::Zero), (6, Content::Whole(&[7; PAGE]))]);
        let (7, Content::Changed(delta)) = pages[2] else { panic!("{pages:?}") };
        let mut page = [1; PAGE];
        delta.apply(&mut page);
        assert_eq!((&page[..8], page[8]), (&[9; 8][..], 1));
        for len in 0..body.len() {
            assert!(PageList::parse(Kind::Pages, &body[..len]).is_err(), "accepted {len} bytes");
        }
        assert!(PageList::parse(Kind::Pages, &[&body[..], &[0]].concat()).is_err(), "accepted one byte more");
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let staged = [[1; PAGE], [2; PAGE], [3; PAGE]];
        let mut writer = ListWriter::default();
        // Twice: nothing of the first time is left over.
        for _ in 0..2 {
            writer.clear();
            writer.whole(10, 0);
            writer.whole(11, 1);
            writer.zero(12);
            // A delta that changes nothing is a delta, and one that is not appended is no entry.
            writer.changed(13, |out| out.push(0));
            writer.changed(14, |_| ());
            writer.whole(15, 2);
            let parts = writer.parts(&staged);
            assert_eq!(parts.len(), 4, "neighbours are one part");
            let body = parts.concat();
            let list = PageList::parse(Kind::Pages, &body).unwrap();
            assert_eq!(writer.count(), list.count() as u64);
            let pages: Vec<_> = list.pages().collect();
            let [whole @ .., (13, Content::Changed(_)), (15, Content::Whole(last))] = &pages[..] else {
                panic!("{pages:?}")
            };
            let expected = [(10, Content::Whole(&staged[0])), (11, Content::Whole(&staged[1])), (12, Content::Zero)];
            assert_eq!((whole, *last), (&expected[..], &staged[2]));
        }
    }

    #[test]
    fn what_no_sender_says_is_refused() {
        for wrong in [body(&[], &[]), body(&[ZERO_PAGE | DELTA_PAGE], &[]), u64::MAX.to_le_bytes().to_vec()] {
            assert!(PageList::parse(Kind::Pages, &wrong).is_err(), "{wrong:?}");
        }
        let many = vec![ZERO_PAGE; PAGES_PER_FRAME + 1];
        assert!(PageList::parse(Kind::Copy, &body(&many, &[])).is_err());
        assert!(PageList::parse(Kind::Copy, &body(&many[1..], &[])).is_ok());
    }
}
