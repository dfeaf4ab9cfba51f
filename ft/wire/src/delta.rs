//! What changed in a page since an earlier version of it: the coding of `Pages` and `Copy` frames for pages
//! that the standby has already.
//!
//! ```text
//! | blocks (1 byte): which of the 8 blocks of 512 bytes changed | for each of these:
//!     | words (8 bytes): which of its 64 words changed | these words, 8 bytes each |
//! ```
//!
//! A delta says what the bytes are, not how they differ, so it can be applied twice. Whether it is
//! well-formed depends on its own bytes only: what was split off without an error can always be applied.

use crate::page::{PAGE, Page};

/// Longer ones are not worth it: the page is sent whole.
pub const DELTA_MAX: usize = PAGE / 2;

const WORD: usize = 8;
const BLOCK: usize = 64 * WORD;
const BLOCKS: usize = PAGE / BLOCK;

/// Appends to `out` how `new` differs from `old`; false, and nothing is appended, if that takes more than
/// [`DELTA_MAX`].
#[must_use]
pub fn encode(old: &Page, new: &Page, out: &mut Vec<u8>) -> bool {
    let (old, new) = (old.as_chunks::<BLOCK>().0, new.as_chunks::<BLOCK>().0);
    let mut blocks = 0;
    let mut changed = [0; BLOCKS];
    let mut len = 1;
    for (at, (old, new)) in old.iter().zip(new).enumerate().filter(|(_, (old, new))| old != new) {
        blocks |= 1 << at;
        changed[at] = changed_words(old, new);
        len += 8 + WORD * changed[at].count_ones() as usize;
        if len > DELTA_MAX {
            return false;
        }
    }
    out.reserve(len);
    out.push(blocks);
    for (changed, new) in changed.into_iter().zip(new).filter(|(changed, _)| *changed != 0) {
        out.extend_from_slice(&changed.to_le_bytes());
        let words = new.as_chunks::<WORD>().0;
        bits(changed).for_each(|word| out.extend_from_slice(&words[word]));
    }
    true
}

/// A delta that is well-formed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Delta<'a> {
    blocks: u8,
    rest: &'a [u8],
}

impl<'a> Delta<'a> {
    /// Takes the delta that `data` begins with off it; `None` if it is cut off.
    #[must_use]
    pub fn split(data: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (blocks, all) = data.split_first()?;
        let mut rest = all;
        for _ in 0..blocks.count_ones() {
            let (changed, words) = rest.split_first_chunk::<8>()?;
            let count = u64::from_le_bytes(*changed).count_ones() as usize;
            rest = words.get(count * WORD..)?;
        }
        let (delta, _) = all.split_at(all.len() - rest.len());
        Some((Self { blocks: *blocks, rest: delta }, rest))
    }

    /// Changes the words of `page` that it names.
    pub fn apply(&self, page: &mut Page) {
        let mut rest = self.rest;
        for block in bits(self.blocks.into()) {
            let Some((changed, words)) = rest.split_first_chunk::<8>() else { return };
            let changed = u64::from_le_bytes(*changed);
            let into = page[block * BLOCK..][..BLOCK].as_chunks_mut::<WORD>().0;
            for (at, word) in bits(changed).zip(words.as_chunks::<WORD>().0) {
                into[at] = *word;
            }
            rest = &words[changed.count_ones() as usize * WORD..];
        }
    }
}

fn changed_words(old: &[u8; BLOCK], new: &[u8; BLOCK]) -> u64 {
    let words = |block: &[u8; BLOCK], at: usize| block.as_chunks::<WORD>().0[at];
    // A byte for each word first, which the compiler does with wide registers; then eight bytes become eight
    // bits at once.
    let flags: [u8; 64] = std::array::from_fn(|at| u8::from(words(old, at) != words(new, at)));
    let eight = |flags: &[u8; 8]| u64::from_le_bytes(*flags).wrapping_mul(0x0102_0408_1020_4080) >> 56;
    flags.as_chunks().0.iter().enumerate().fold(0, |changed, (at, flags)| changed | eight(flags) << (8 * at))
}

/// The numbers of the bits that are set, lowest first.
fn bits(mut set: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lowest = set.trailing_zeros() as usize;
        // Zero has no lowest bit.
        set &= set.checked_sub(1)?;
        Some(lowest)
    })
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const DELTA_LONGEST: usize = DELTA_MAX + 8 + BLOCK;

    /// A page, and bytes to write into it, each somewhere.
    fn writes() -> impl Strategy<Value = (u8, Vec<(usize, u8)>)> {
        (any::<u8>(), vec((0..PAGE, any::<u8>()), 0..300))
    }

    fn pages((fill, writes): (u8, Vec<(usize, u8)>)) -> (Page, Page) {
        let old = [fill; PAGE];
        let mut new = old;
        writes.into_iter().for_each(|(at, byte)| new[at] = byte);
        (old, new)
    }

    proptest! {
        #[test]
        fn the_new_page_comes_back(writes in writes(), rest in vec(any::<u8>(), 0..20)) {
            let (old, new) = pages(writes);
            let mut out = vec![1, 2];
            if encode(&old, &new, &mut out) {
                prop_assert!(out.len() - 2 <= DELTA_MAX);
                out.extend(&rest);
                let (delta, after) = Delta::split(&out[2..]).expect("what was encoded");
                prop_assert_eq!(after, &rest);
                let mut page = old;
                delta.apply(&mut page);
                prop_assert!(page == new);
                delta.apply(&mut page);
                prop_assert!(page == new, "twice");
            } else {
                prop_assert_eq!(&out, &[1, 2]);
                let changed = old.iter().zip(&new).filter(|(old, new)| old != new).count();
                prop_assert!(changed * (WORD + 8) > DELTA_MAX, "refused {changed} bytes");
            }
        }

        #[test]
        fn a_corrupt_delta_is_refused_or_stays_within_its_page(
            writes in writes(), wrong in vec((any::<prop::sample::Index>(), any::<u8>()), 1..5), cut in 0..20_usize,
        ) {
            let (old, new) = pages(writes);
            let mut out = Vec::new();
            prop_assume!(encode(&old, &new, &mut out));
            for (at, byte) in wrong {
                let at = at.index(out.len());
                out[at] = byte;
            }
            out.truncate(out.len().saturating_sub(cut));
            if let Some((delta, rest)) = Delta::split(&out) {
                prop_assert!(rest.len() < out.len());
                delta.apply(&mut [0; PAGE]);
            }
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in vec(any::<u8>(), 0..DELTA_LONGEST)) {
            if let Some((delta, _)) = Delta::split(&bytes) {
                delta.apply(&mut [0; PAGE]);
            }
        }
    }

    #[test]
    fn equal_pages_take_a_byte_and_different_ones_nothing() {
        let (old, mut out) = ([3; PAGE], Vec::new());
        assert!(encode(&old, &old, &mut out));
        assert_eq!(out, [0]);
        assert!(!encode(&old, &[4; PAGE], &mut out));
        assert_eq!(out, [0]);
    }
}
