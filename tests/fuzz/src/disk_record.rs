//! The file with a disk image's record, of this version and the one before.
//!
//! Input: the file as it is, or two bodies of slots behind headers whose checksums are right.

use ft_wire::hash::hash_of_parts;
use vhost_user_blk_repl::record::{FILE_MAX, decode, encode};

use crate::bytes::Bytes;

/// Where a header of this version has its checksum, and ends.
const CHECKSUM: usize = 24;
const HEADER: usize = 32;
/// And one of version 1.
const CHECKSUM_1: usize = 88;
const HEADER_1: usize = 96;

/// Reads the file.
pub fn run(input: &[u8]) {
    let Some((how, rest)) = input.split_first() else { return };
    match how % 3 {
        0 => read(rest),
        1 => read(&slots(rest, CHECKSUM, HEADER)),
        _ => read(&slots(rest, CHECKSUM_1, HEADER_1)),
    }
}

fn read(file: &[u8]) {
    let file = &file[..file.len().min(FILE_MAX)];
    let Ok((sequence, record)) = decode(file) else { return };
    // It can be written, and is then what was read.
    let slot = encode(&record, sequence);
    assert_eq!(decode(&[&slot[..], &slot].concat()), Ok((sequence, record)));
}

/// Two slots of equal length from one input, each with the checksum that belongs to it.
fn slots(input: &[u8], checksum: usize, header: usize) -> Vec<u8> {
    let mut bytes = Bytes::new(input);
    let first = usize::from(bytes.u16());
    let (first, second) = (bytes.take(first), bytes.rest());
    let len = (first.len().max(second.len())).max(header).next_multiple_of(64);
    let slot = |body: &[u8]| {
        let mut slot = body.to_vec();
        slot.resize(len, 0);
        slot[checksum..checksum + 8].fill(0);
        let hash = hash_of_parts(&[&slot[..body_end(&slot, checksum, header)]]);
        slot[checksum..checksum + 8].copy_from_slice(&hash.to_le_bytes());
        slot
    };
    [slot(first), slot(second)].concat()
}

/// Where the part of a slot ends that its checksum covers.
fn body_end(slot: &[u8], checksum: usize, header: usize) -> usize {
    let u32_at = |at: usize| u32::from_le_bytes([slot[at], slot[at + 1], slot[at + 2], slot[at + 3]]) as usize;
    let (len, tail) = if checksum == CHECKSUM {
        (u32_at(12), 0)
    } else {
        // The length of the bitmap; a term follows it if a flag says so.
        (u32_at(84), if slot[12] & 4 != 0 { 8 } else { 0 })
    };
    header.saturating_add(len).saturating_add(tail).min(slot.len())
}
