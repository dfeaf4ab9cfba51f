//! What changed in a page: applied, it makes the old page the new one; garbage is refused or harmless.
//!
//! Input: the old page, then what differs in the new one; the rest once more as a delta that nobody encoded.

use ft_wire::delta::{DELTA_MAX, Delta, encode};
use ft_wire::pages::PAGE;

use crate::bytes::Bytes;

/// Encodes, and decodes what was encoded and what was not.
pub fn run(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let (fill, edits) = (bytes.u8(), bytes.u8());
    let old = [fill; PAGE];
    let mut new = old;
    for _ in 0..edits {
        let (at, len) = (usize::from(bytes.u16()) % PAGE, usize::from(bytes.u8()));
        let edit = bytes.take(len.min(PAGE - at));
        new[at..at + edit.len()].copy_from_slice(edit);
    }
    let mut out = vec![1, 2, 3];
    if encode(&old, &new, &mut out) {
        let (delta, rest) = Delta::split(&out[3..]).unwrap();
        assert!(rest.is_empty() && out.len() <= 3 + DELTA_MAX);
        let mut page = old;
        // Twice is the same as once.
        for _ in 0..2 {
            delta.apply(&mut page);
            assert!(page == new);
        }
    } else {
        assert_eq!(out, [1, 2, 3]);
    }
    let mut garbage = bytes.rest();
    while let Some((delta, rest)) = Delta::split(garbage) {
        assert!(rest.len() < garbage.len());
        delta.apply(&mut new);
        garbage = rest;
    }
}
