//! Reads slots of version 1. They name no VM, no term and no file, so all that is taken from them is what the
//! image was last used for.

use ft_proto::Term;
use ft_wire::hash::hash_of_parts;
use zerocopy::little_endian::{I64, U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::image::regions::Regions;
use crate::record::contents::{Record, RecordFault, Role};
use crate::record::slot::MAGIC;

const VERSION: u16 = 1;
const ROLES: [(Role, u16); 4] = [(Role::Alone, 1), (Role::Protected, 2), (Role::Syncing, 3), (Role::Standby, 4)];
/// Flag: a term follows the bitmap.
const HAS_ENDED: u16 = 4;
const TERM_LEN: usize = size_of::<U64>();

#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: U16,
    role: U16,
    flags: U16,
    reserved: U16,
    sequence: U64,
    size: U64,
    generation: U64,
    disk: U128,
    base: U128,
    closed_s: I64,
    closed_ns: U32,
    bitmap: U32,
    checksum: U64,
}

impl Raw {
    fn digest(&self, body: &[u8]) -> u64 {
        hash_of_parts(&[Self { checksum: U64::ZERO, ..*self }.as_bytes(), body])
    }
}

/// Decodes a slot of that version. Its base is ignored: nothing shows that the image is the one it was
/// written for.
pub(super) fn decode_slot(slot: &[u8]) -> Result<(u64, Record), RecordFault> {
    let (raw, rest) = Raw::read_from_prefix(slot).map_err(|_| RecordFault::Damaged)?;
    let tail = if raw.flags.get() & HAS_ENDED != 0 { TERM_LEN } else { 0 };
    let body = rest.get(..raw.bitmap.get() as usize + tail).ok_or(RecordFault::Damaged)?;
    let (bitmap, ended) = body.split_at(body.len() - tail);
    if raw.magic != MAGIC || raw.version != VERSION || raw.digest(body) != raw.checksum.get() {
        return Err(RecordFault::Damaged);
    }
    let role = ROLES.iter().find(|(_, code)| raw.role == *code).map(|(role, _)| *role);
    let marks = Regions::from_bytes(raw.size.get(), bitmap);
    let (Some(role), Some(marks)) = (role, marks) else { return Err(RecordFault::Damaged) };
    let ended = U64::read_from_bytes(ended).map_or(Term(0), |term| Term(term.get()));
    if !ended.is_plausible() {
        return Err(RecordFault::Damaged);
    }
    let record =
        Record { generation: raw.generation.get(), role, ended, ..Record::new(raw.disk.get(), marks.image_size()) };
    Ok((raw.sequence.get(), record))
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;
    use crate::record::format::decode;

    const SIZE: u64 = 100 << 20;

    fn slot(sequence: u64, role: u16, ended: Option<u64>) -> Vec<u8> {
        let bitmap = Regions::new(SIZE).to_bytes();
        let mut raw = Raw::new_zeroed();
        (raw.magic, raw.version, raw.role) = (MAGIC, VERSION.into(), role.into());
        // It has a base, and was closed.
        raw.flags = (3 | if ended.is_some() { HAS_ENDED } else { 0 }).into();
        (raw.sequence, raw.size, raw.generation) = (sequence.into(), SIZE.into(), 5.into());
        (raw.disk, raw.base, raw.bitmap) = (7.into(), 9.into(), (bitmap.len() as u32).into());
        let ended = ended.map(U64::from);
        let body = [&bitmap[..], ended.as_ref().map_or(&[], |term| term.as_bytes())].concat();
        raw.checksum = raw.digest(&body).into();
        let mut slot = [raw.as_bytes(), &body].concat();
        slot.resize(slot.len().next_multiple_of(4096), 0);
        slot
    }

    #[test]
    fn what_it_was_used_for_is_kept_and_its_base_is_not() {
        for (role, code) in ROLES {
            let file = [slot(8, code, Some(11)), slot(7, 1, None)].concat();
            let expected = Record { generation: 5, role, ended: Term(11), ..Record::new(7, SIZE) };
            assert_eq!(decode(&file), Ok((8, expected)));
        }
        let file = [slot(8, 1, None), slot(7, 1, Some(3))].concat();
        assert_eq!(decode(&file).unwrap().1.ended, Term(0));
    }

    #[test]
    fn damage_is_seen() {
        let whole = slot(1, 1, Some(2));
        for byte in (0..120).filter(|byte| *byte < size_of::<Raw>() + 16 + TERM_LEN) {
            let mut bad = whole.clone();
            bad[byte] ^= 1;
            assert_eq!(decode(&[bad.clone(), bad].concat()), Err(RecordFault::Damaged), "byte {byte}");
        }
        let absurd = slot(1, 1, Some(u64::MAX));
        assert_eq!(decode(&[absurd.clone(), absurd].concat()), Err(RecordFault::Damaged));
    }
}
