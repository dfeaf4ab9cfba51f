//! How two images are made equal: which of their parts are looked at, and which travel. Pure.

use crate::mirror_wire::{Answer, Begin, ResyncKind};
use crate::range::Range;
use crate::record::{Base, Record};
use crate::regions::Regions;

/// Unit of comparison in bytes: a page of the guest's file system, mostly.
pub const BLOCK: u64 = 4096;
/// Most blocks that are compared at once.
pub const BLOCKS: u64 = 64;
/// Bytes of a block's hash.
pub const HASH_LEN: usize = 16;

/// What a primary does about its standby's image.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plan {
    /// What the standby is told.
    pub begin: Begin,
    /// What is looked at.
    pub ranges: Vec<Range>,
}

impl Plan {
    /// For a primary whose image has `ours`, and a standby that says `theirs`. `fresh` names the state they will have in
    /// common.
    #[must_use]
    pub fn new(ours: &Record, theirs: &Answer, fresh: Base) -> Self {
        let size = ours.marks.image_size();
        let begin = |kind, common, marks| {
            let (disk, generation) = (ours.disk, ours.generation);
            Begin { kind, disk, common, marks, base: fresh.0, generation }
        };
        let names = [ours.base, ours.former].into_iter().flatten().map(|base| base.0);
        let mut shared = names.filter(|base| [theirs.base, theirs.former].contains(&Some(*base)));
        let shared = shared.next().filter(|_| theirs.disk == ours.disk);
        if let (Some(base), Some(mut marks)) = (shared, Regions::from_bytes(size, &theirs.marks)) {
            marks.unite(&ours.marks);
            let begin = begin(ResyncKind::Incremental, Some(base), ours.marks.to_bytes());
            return Self { begin, ranges: marks.ranges() };
        }
        // Everything differs from an image without data, except holes, which cost nothing.
        let kind = if theirs.empty { ResyncKind::Full } else { ResyncKind::Compare };
        Self { begin: begin(kind, None, vec![]), ranges: vec![Range::new(0, size)] }
    }
}

/// The hashes of the blocks in `data`, one after the other.
///
/// BLAKE3, because "equal" must not be wrong even when a guest chooses the data: XXH3 is faster than any disk, but finding
/// two blocks with the same XXH3 is easy.
#[must_use]
pub fn hashes(data: &[u8]) -> Vec<u8> {
    data.chunks(BLOCK as usize).flat_map(hash).collect()
}

fn hash(block: &[u8]) -> [u8; HASH_LEN] {
    let whole = *blake3::hash(block).as_bytes();
    std::array::from_fn(|at| whole[at])
}

/// Which blocks of `data` do not have these hashes: a bit each.
#[must_use]
pub fn differing(data: &[u8], hashes: &[u8]) -> u64 {
    // What has no hash is not known to be equal.
    let theirs = hashes.chunks(HASH_LEN).chain(std::iter::repeat(&[][..]));
    let pairs = data.chunks(BLOCK as usize).zip(theirs).zip(0..BLOCKS);
    pairs.filter(|((block, theirs), _)| hash(block) != **theirs).fold(0, |mask, (_, bit)| mask | 1 << bit)
}

/// The parts of `range` that the bits of `mask` stand for, neighbours joined.
#[must_use]
pub fn parts(range: Range, mask: u64) -> Vec<Range> {
    let mut parts: Vec<Range> = Vec::new();
    for bit in (0..BLOCKS).filter(|bit| mask & 1 << bit != 0) {
        let offset = range.offset + bit * BLOCK;
        if offset >= range.end() {
            break;
        }
        let len = BLOCK.min(range.end() - offset);
        match parts.last_mut() {
            Some(last) if last.end() == offset => last.len += len,
            _ => parts.push(Range::new(offset, len)),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 8 << 20;

    fn ours(base: Option<u128>, marked: usize) -> Record {
        let mut record = Record { base: base.map(Base), generation: 4, ..Record::new(1, SIZE) };
        record.marks.add(marked);
        record
    }

    fn theirs(base: Option<u128>, marked: usize, empty: bool) -> Answer {
        let mut marks = Regions::new(SIZE);
        marks.add(marked);
        Answer { disk: 1, vm: None, base, former: None, generation: 3, marks: marks.to_bytes(), empty }
    }

    #[test]
    fn a_common_base_leaves_what_either_side_has_marked() {
        let marks = ours(None, 1).marks.to_bytes();
        for (ours_former, theirs_base, theirs_former, common) in
            [(None, 9, None, 9), (None, 8, Some(9), 9), (Some(7), 7, None, 7), (Some(7), 6, Some(7), 7)]
        {
            let ours = Record { former: ours_former.map(Base), ..ours(Some(9), 1) };
            let theirs = Answer { former: theirs_former, ..theirs(Some(theirs_base), 4, false) };
            let plan = Plan::new(&ours, &theirs, Base(5));
            let (kind, common, marks) = (ResyncKind::Incremental, Some(common), marks.clone());
            assert_eq!(plan.begin, Begin { kind, disk: 1, common, marks, base: 5, generation: 4 });
            assert_eq!(plan.ranges, [Range::new(1 << 20, 1 << 20), Range::new(4 << 20, 1 << 20)]);
        }
    }

    #[test]
    fn anything_else_is_compared_or_copied_as_a_whole() {
        let other_disk = Answer { disk: 2, ..theirs(Some(9), 1, false) };
        let short = Answer { marks: vec![], ..theirs(Some(9), 1, false) };
        for (ours, theirs, kind) in [
            (ours(Some(9), 1), theirs(Some(8), 1, false), ResyncKind::Compare),
            (ours(None, 1), theirs(None, 1, false), ResyncKind::Compare),
            (ours(Some(9), 1), theirs(None, 1, true), ResyncKind::Full),
            (ours(Some(9), 1), other_disk, ResyncKind::Compare),
            (ours(Some(9), 1), short, ResyncKind::Compare),
        ] {
            let plan = Plan::new(&ours, &theirs, Base(5));
            assert_eq!((plan.begin.kind, plan.begin.base, plan.begin.common), (kind, 5, None));
            assert_eq!(plan.ranges, [Range::new(0, SIZE)]);
        }
    }

    #[test]
    fn only_blocks_that_differ_are_named() {
        let mut data = vec![1; 10 * BLOCK as usize + 512];
        let hashes = hashes(&data);
        assert_eq!(hashes.len(), 11 * HASH_LEN);
        assert_eq!(differing(&data, &hashes), 0);
        assert_eq!(differing(&data, &hashes[..9 * HASH_LEN]), 0b110_0000_0000, "no hash is no proof");
        for at in [3 * BLOCK as usize, 5 * BLOCK as usize - 1, 10 * BLOCK as usize + 100] {
            data[at] ^= 1;
        }
        let range = Range::new(1 << 20, data.len() as u64);
        let parts = parts(range, differing(&data, &hashes));
        let at = |block: u64| (1 << 20) + block * BLOCK;
        assert_eq!(parts, [Range::new(at(3), 2 * BLOCK), Range::new(at(10), 512)]);
        assert_eq!(super::parts(Range::new(0, 512), u64::MAX), [Range::new(0, 512)]);
    }
}
