//! Comparing images block by block: hashes on one side, a mask of the blocks that differ on the other. Pure.

use ft_wire::mirror::{BLOCK, BLOCKS, HASH_LEN};

use crate::image::range::Range;

/// The hashes of the blocks in `data`, one after the other.
///
/// BLAKE3, because "equal" must not be wrong even when a guest chooses the data: XXH3 is faster than any
/// disk, but finding two blocks with the same XXH3 is easy.
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
