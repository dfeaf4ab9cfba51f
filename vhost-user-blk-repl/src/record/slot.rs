//! One slot of a record's file, as this version writes it. Pure: bytes in, a record out.

use ft_proto::{Term, VmId};
use ft_wire::hash::hash_of_parts;
use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::image::regions::Regions;
use crate::record::contents::{Base, Record, RecordFault, Role, VERSION};
use crate::record::proof::Proof;

/// What a slot of any version begins with.
pub(super) const MAGIC: [u8; 8] = *b"PLXDISK\0";
const HEADER_LEN: usize = size_of::<Header>();
/// Most bytes of a record without its marks.
const FIELDS_MAX: usize = 320;
const ALIGN: usize = 4096;

/// The same in all versions from 2 on.
#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U16,
    reserved: U16,
    /// Bytes that follow, without padding.
    body: U32,
    sequence: U64,
    checksum: U64,
}

/// What follows.
#[derive(Deserialize, Serialize)]
struct Fields<'a> {
    disk: u128,
    vm: Option<VmId>,
    base: Option<Base>,
    former: Option<Base>,
    generation: u64,
    role: Role,
    term: Term,
    ended: Term,
    altered: bool,
    proof: Option<Proof>,
    size: u64,
    #[serde(borrow)]
    marks: &'a [u8],
}

impl Header {
    fn digest(&self, body: &[u8]) -> u64 {
        hash_of_parts(&[Self { checksum: U64::ZERO, ..*self }.as_bytes(), body])
    }
}

/// Encodes one slot: `record`, as the `sequence`th that was written.
#[must_use]
pub fn encode(record: &Record, sequence: u64) -> Vec<u8> {
    let marks = record.marks.to_bytes();
    let fields = Fields {
        disk: record.disk,
        vm: record.vm,
        base: record.base,
        former: record.former,
        generation: record.generation,
        role: record.role,
        term: record.term,
        ended: record.ended,
        altered: record.altered,
        proof: record.proof,
        size: record.marks.image_size(),
        marks: &marks,
    };
    // Fails only for types whose size is not known beforehand; there are none here.
    let body = postcard::to_allocvec(&fields).unwrap_or_default();
    let mut header = Header {
        magic: MAGIC,
        version: VERSION.into(),
        reserved: U16::ZERO,
        body: u32::try_from(body.len()).unwrap_or(u32::MAX).into(),
        sequence: sequence.into(),
        checksum: U64::ZERO,
    };
    header.checksum = header.digest(&body).into();
    let mut slot = [header.as_bytes(), &body].concat();
    slot.resize(slot_len(record.marks.image_size()), 0);
    slot
}

/// Sequence number and record of a slot.
///
/// # Errors
/// When it is not whole, or of another version.
pub(super) fn decode_slot(slot: &[u8]) -> Result<(u64, Record), RecordFault> {
    let (header, rest) = Header::read_from_prefix(slot).map_err(|_| RecordFault::Damaged)?;
    let body = rest.get(..header.body.get() as usize).ok_or(RecordFault::Damaged)?;
    if header.magic != MAGIC || header.digest(body) != header.checksum.get() {
        return Err(RecordFault::Damaged);
    }
    if header.version != VERSION {
        return Err(RecordFault::Version(header.version.get()));
    }
    let fields: Fields<'_> = postcard::from_bytes(body).map_err(|_| RecordFault::Damaged)?;
    let record = Record {
        disk: fields.disk,
        vm: fields.vm,
        base: fields.base,
        former: fields.former,
        generation: fields.generation,
        role: fields.role,
        term: fields.term,
        ended: fields.ended,
        altered: fields.altered,
        proof: fields.proof,
        marks: Regions::from_bytes(fields.size, fields.marks).ok_or(RecordFault::Damaged)?,
    };
    if !record.term.is_plausible() || !record.ended.is_plausible() {
        return Err(RecordFault::Damaged);
    }
    Ok((header.sequence.get(), record))
}

/// Length of each slot of an image of `size` bytes.
#[must_use]
pub fn slot_len(size: u64) -> usize {
    (HEADER_LEN + FIELDS_MAX + Regions::new(size).to_bytes().len()).next_multiple_of(ALIGN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::stamp::{FileId, Moment, Stamp};
    use crate::record::format::{FILE_MAX, decode};

    const ROLES: [Role; 4] = [Role::Alone, Role::Protected, Role::Syncing, Role::Standby];

    fn record(marked: &[usize]) -> Record {
        let mut record = Record::new(7, 100 << 20);
        for index in marked {
            record.marks.insert(*index);
        }
        record.base = Some(Base(9));
        record
    }

    fn without_base() -> Record {
        Record { base: None, marks: Regions::new(100 << 20), ..record(&[]) }
    }

    fn file(slots: [Vec<u8>; 2]) -> Vec<u8> {
        slots.concat()
    }

    #[test]
    fn every_field_comes_back_from_the_newest_slot() {
        let stamp = Stamp { file: FileId { system: 1, inode: 2, generation: 3, born: Moment(-4) }, ..Stamp::default() };
        let open =
            Proof::Open { file: stamp.file, boot: 5, run: u128::MAX, since: Moment(i64::MIN), until: Moment(i64::MAX) };
        for (role, proof) in ROLES.iter().zip([None, Some(Proof::Closed(stamp)), Some(open), None]) {
            let newest = Record {
                generation: u64::MAX,
                role: *role,
                vm: Some(VmId(u128::MAX)),
                former: Some(Base(u128::MAX)),
                term: Term(12),
                ended: Term(11),
                altered: proof.is_none(),
                proof,
                ..record(&[1, 99])
            };
            for slots in [[encode(&newest, 8), encode(&record(&[]), 7)], [encode(&record(&[]), 7), encode(&newest, 8)]]
            {
                assert!(slots.iter().all(|slot| slot.len() == slot_len(100 << 20)));
                assert_eq!(decode(&file(slots)), Ok((8, newest.clone())));
            }
        }
    }

    #[test]
    fn the_largest_record_fits_its_slot_and_its_file() {
        let file = FileId { system: u128::MAX, inode: u64::MAX, generation: u64::MAX, born: Moment(i64::MIN) };
        let (since, until) = (Moment(i64::MIN), Moment(i64::MIN));
        for size in [512, 1 << 20, 1 << 38, 1 << 62] {
            let largest = Record {
                vm: Some(VmId(u128::MAX)),
                base: Some(Base(u128::MAX)),
                former: Some(Base(u128::MAX)),
                generation: u64::MAX,
                term: Term::MAX,
                ended: Term::MAX,
                proof: Some(Proof::Open { file, boot: u128::MAX, run: u128::MAX, since, until }),
                ..Record::new(u128::MAX, size)
            };
            let slot = encode(&largest, u64::MAX);
            assert_eq!(decode_slot(&slot), Ok((u64::MAX, largest)), "{size}");
            assert!(2 * slot.len() <= FILE_MAX);
        }
    }

    #[test]
    fn absurd_terms_are_damage() {
        for record in [Record { term: Term(u64::MAX), ..record(&[]) }, Record { ended: Term(1 << 60), ..record(&[]) }] {
            let slot = encode(&record, 1);
            assert_eq!(decode(&file([slot.clone(), slot])), Err(RecordFault::Damaged));
        }
    }

    #[test]
    fn a_damaged_slot_costs_the_base_and_two_cost_the_record() {
        let (old, new) = (encode(&record(&[1]), 1), encode(&record(&[1, 2]), 2));
        let len = HEADER_LEN + Header::read_from_prefix(&new).unwrap().0.body.get() as usize;
        for byte in 0..len {
            let mut bad = new.clone();
            bad[byte] ^= 4;
            let (sequence, found) = decode(&file([old.clone(), bad.clone()])).unwrap();
            assert_eq!((sequence, found), (1, without_base()), "byte {byte}");
            assert_eq!(decode(&file([bad.clone(), bad])), Err(RecordFault::Damaged));
        }
        for len in [0, 1, 5, 100, 4096, 8191] {
            assert!(decode(&vec![0; len]).is_err());
            let cut = decode(&file([old.clone(), new.clone()])[..len]);
            assert!(cut.is_ok_and(|(_, record)| record.base.is_none()) || len < 4096, "{len}");
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut slot = encode(&record(&[]), 1);
        let (mut header, rest) = Header::read_from_prefix(&slot).unwrap();
        header.version = 3.into();
        header.checksum = header.digest(&rest[..header.body.get() as usize]).into();
        slot[..HEADER_LEN].copy_from_slice(header.as_bytes());
        assert_eq!(decode(&file([slot, encode(&record(&[]), 0)])), Err(RecordFault::Version(3)));
    }
}
