//! Which bytes the background copy must leave to the guest's own writes. Pure.
//!
//! A copy never overwrites a newer write on the standby: parts of a chunk that the guest writes while the
//! chunk is read are left out, because the write itself is in the stream before the chunk. The same holds for
//! a block that is found equal: whatever made it differ since is in the stream after its hash.

use std::collections::{HashMap, HashSet};

use crate::image::range::Range;

struct Chunk {
    range: Range,
    /// Parts of it that are in the stream as guest writes.
    written: Vec<Range>,
}

/// The writes under way, and the chunk that the copy reads.
pub struct CopyWindow {
    /// Writes that were started before the stream began: the copy must not read the image before they are
    /// done.
    earlier: HashSet<u64>,
    /// Writes that are in the stream and not yet in the image.
    writes: HashMap<u64, Vec<Range>>,
    chunk: Option<Chunk>,
}

impl CopyWindow {
    /// For a stream that begins while the writes with the ids `earlier` are under way.
    #[must_use]
    pub fn new(earlier: HashSet<u64>) -> Self {
        Self { earlier, writes: HashMap::new(), chunk: None }
    }

    /// Whether the copy may read the image.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.earlier.is_empty()
    }

    /// A write is in the stream and goes to the image next.
    pub fn write_started(&mut self, id: u64, ranges: &[Range]) {
        if let Some(chunk) = &mut self.chunk {
            chunk.written.extend(ranges.iter().filter(|range| range.overlaps(&chunk.range)));
        }
        self.writes.insert(id, ranges.to_vec());
    }

    /// A write has reached the image, or failed. Whether the copy may read the image from now on.
    pub fn write_done(&mut self, id: u64) -> bool {
        self.writes.remove(&id);
        self.earlier.remove(&id) && self.is_open()
    }

    /// Parts of the image that are being written.
    #[must_use]
    pub fn being_written(&self) -> Vec<Range> {
        self.writes.values().flatten().copied().collect()
    }

    /// The copy reads `range` next. Parts that are being written are in the stream already.
    pub fn begin_chunk(&mut self, range: Range) {
        let written = self.writes.values().flatten().filter(|write| write.overlaps(&range)).copied().collect();
        self.chunk = Some(Chunk { range, written });
    }

    /// The copy has read `part` of the chunk, or knows that it is a hole: what of it is to be sent.
    pub fn end_chunk(&mut self, part: Range) -> Vec<Range> {
        self.chunk.take().map(|chunk| part.without(&chunk.written)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(offset: u64, len: u64) -> Range {
        Range::new(offset, len)
    }

    #[test]
    fn earlier_writes_are_waited_for() {
        let mut window = CopyWindow::new(HashSet::from([1, 2]));
        assert!(!window.is_open() && !window.write_done(1) && !window.write_done(3));
        assert!(window.write_done(2) && window.is_open());
        assert!(!window.write_done(2), "true once");
    }

    #[test]
    fn what_the_guest_writes_around_the_reading_is_left_out() {
        let mut window = CopyWindow::new(HashSet::new());
        window.write_started(1, &[range(0, 10), range(50, 10)]);
        window.begin_chunk(range(0, 100));
        window.write_started(2, &[range(90, 20)]);
        assert!(!window.write_done(1) && !window.write_done(2));
        assert_eq!(window.end_chunk(range(0, 100)), [range(10, 40), range(60, 30)]);
        window.begin_chunk(range(0, 100));
        assert_eq!(window.end_chunk(range(0, 60)), [range(0, 60)], "those writes are in the image now");
    }

    #[test]
    fn a_chunk_is_sent_once() {
        let mut window = CopyWindow::new(HashSet::new());
        window.begin_chunk(range(0, 100));
        window.end_chunk(range(0, 100));
        assert_eq!(window.end_chunk(range(0, 100)), []);
        window.write_started(1, &[range(7, 1)]);
        assert_eq!(window.being_written(), [range(7, 1)]);
    }
}
