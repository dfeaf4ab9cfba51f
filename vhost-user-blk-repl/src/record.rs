//! What an image's record says: whose copy it is, what it was last used for, and where it may differ from its peer. Pure.
//!
//! On disk it is two slots of equal size; each is a header, a bitmap of regions, perhaps a term, and padding. The slots are written in
//! turn, so one of them is whole at any moment. A slot with a wrong checksum may be a write that a crash cut short, or
//! damage: nothing that depends on the other slot being the newest is taken from it then.

use ft_proto::Term;
use ft_proto::wire::hash_of_parts;
use zerocopy::little_endian::{I64, U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::regions::Regions;

/// Version of the format.
pub const VERSION: u16 = 1;

const MAGIC: [u8; 8] = *b"PLXDISK\0";
const HEADER_LEN: usize = size_of::<Raw>();
const ALIGN: usize = 4096;

/// What an image was last used for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// The VM ran from it, and no other copy can be newer.
    Alone,
    /// The VM ran from it with a standby in sync, which may have taken over.
    Protected,
    /// A standby's, of which not all had arrived: no VM can run from it.
    Syncing,
    /// A standby's: the VM ran elsewhere, and may have gone on.
    Standby,
}

const ROLES: [(Role, u16); 4] = [(Role::Alone, 1), (Role::Protected, 2), (Role::Syncing, 3), (Role::Standby, 4)];

/// Names a state of the data that two images had in common.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Base(pub u128);

/// The record.
///
/// Two images with the same base differ at most in the regions that are marked in one of their records.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Record {
    /// Names the disk, whichever copy of it.
    pub disk: u128,
    /// What `marks` refer to; `None`: nothing is known about any peer.
    pub base: Option<Base>,
    /// Counts the times that somebody began to run the VM from a copy.
    pub generation: u64,
    /// Last use.
    pub role: Role,
    /// After an orderly end: when the image was last written, seconds and nanoseconds. Another time now means that
    /// somebody else wrote it.
    pub closed: Option<(i64, u32)>,
    /// The term in which the VM was shut down in good order from this image, the last time; 0: never, or it has been a
    /// standby's since. Who may start the VM is judged by it.
    pub ended: Term,
    /// Regions that may differ from the base.
    pub marks: Regions,
}

impl Record {
    /// Of an image of `size` bytes that has never had one.
    #[must_use]
    pub fn new(disk: u128, size: u64) -> Self {
        Self {
            disk,
            base: None,
            generation: 0,
            role: Role::Alone,
            closed: None,
            ended: Term(0),
            marks: Regions::new(size),
        }
    }
}

/// A file that holds no usable record.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RecordFault {
    /// Neither slot is whole.
    #[error("it is damaged")]
    Damaged,
    /// Another version wrote it.
    #[error("it is of version {0}, this program knows {VERSION}")]
    Version(u16),
}

#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: U16,
    role: U16,
    /// 1: `base` counts. 2: `closed` counts. 4: a term follows the bitmap.
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

const HAS_BASE: u16 = 1;
const HAS_CLOSED: u16 = 2;
const HAS_ENDED: u16 = 4;
const TERM_LEN: usize = size_of::<U64>();

impl Raw {
    fn digest(&self, body: &[u8]) -> u64 {
        hash_of_parts(&[Self { checksum: U64::ZERO, ..*self }.as_bytes(), body])
    }

    fn has(&self, bit: u16) -> bool {
        self.flags.get() & bit != 0
    }
}

/// One slot: `record` as the `sequence`th that was written.
#[must_use]
pub fn encode(record: &Record, sequence: u64) -> Vec<u8> {
    let bitmap = record.marks.to_bytes();
    let role = ROLES.iter().find(|(role, _)| *role == record.role).map_or(0, |(_, code)| *code);
    let flag = |on, bit| if on { bit } else { 0 };
    let (closed_s, closed_ns) = record.closed.unwrap_or_default();
    let has_ended = record.ended > Term(0);
    let flags = flag(record.base.is_some(), HAS_BASE) | flag(record.closed.is_some(), HAS_CLOSED);
    let mut raw = Raw {
        magic: MAGIC,
        version: VERSION.into(),
        role: role.into(),
        flags: (flags | flag(has_ended, HAS_ENDED)).into(),
        reserved: U16::ZERO,
        sequence: sequence.into(),
        size: record.marks.image_size().into(),
        generation: record.generation.into(),
        disk: record.disk.into(),
        base: record.base.map_or(0, |Base(id)| id).into(),
        closed_s: closed_s.into(),
        closed_ns: closed_ns.into(),
        bitmap: u32::try_from(bitmap.len()).unwrap_or(u32::MAX).into(),
        checksum: U64::ZERO,
    };
    let ended = U64::from(record.ended.0);
    let body = [&bitmap[..], if has_ended { ended.as_bytes() } else { &[] }].concat();
    raw.checksum = raw.digest(&body).into();
    let mut slot = [raw.as_bytes(), &body].concat();
    slot.resize(slot.len().next_multiple_of(ALIGN), 0);
    slot
}

fn decode_slot(slot: &[u8]) -> Result<(u64, Record), RecordFault> {
    let (raw, rest) = Raw::read_from_prefix(slot).map_err(|_| RecordFault::Damaged)?;
    let tail = if raw.has(HAS_ENDED) { TERM_LEN } else { 0 };
    let body = rest.get(..raw.bitmap.get() as usize + tail).ok_or(RecordFault::Damaged)?;
    let (bitmap, ended) = body.split_at(body.len() - tail);
    if raw.magic != MAGIC || raw.digest(body) != raw.checksum.get() {
        return Err(RecordFault::Damaged);
    }
    if raw.version != VERSION {
        return Err(RecordFault::Version(raw.version.get()));
    }
    let role = ROLES.iter().find(|(_, code)| raw.role == *code).map(|(role, _)| *role);
    let marks = Regions::from_bytes(raw.size.get(), bitmap);
    let (Some(role), Some(marks)) = (role, marks) else { return Err(RecordFault::Damaged) };
    let record = Record {
        disk: raw.disk.get(),
        base: raw.has(HAS_BASE).then_some(Base(raw.base.get())),
        generation: raw.generation.get(),
        role,
        closed: raw.has(HAS_CLOSED).then_some((raw.closed_s.get(), raw.closed_ns.get())),
        ended: U64::read_from_bytes(ended).map_or(Term(0), |term| Term(term.get())),
        marks,
    };
    Ok((raw.sequence.get(), record))
}

/// The newest record in `file`, and its sequence number.
///
/// # Errors
/// When neither slot is whole, or the newest is of another version.
pub fn decode(file: &[u8]) -> Result<(u64, Record), RecordFault> {
    let (first, second) = file.split_at(file.len() / 2);
    match (decode_slot(first), decode_slot(second)) {
        (Ok(a), Ok(b)) => Ok(if a.0 > b.0 { a } else { b }),
        (Err(RecordFault::Version(other)), _) | (_, Err(RecordFault::Version(other))) => {
            Err(RecordFault::Version(other))
        }
        // The other slot may have been the newest: its marks are missing here.
        (Ok((sequence, record)), Err(_)) | (Err(_), Ok((sequence, record))) => {
            Ok((sequence, Record { base: None, ..record }))
        }
        (Err(fault), Err(_)) => Err(fault),
    }
}

/// Length of each slot of an image of `size` bytes.
#[must_use]
pub fn slot_len(size: u64) -> usize {
    (HEADER_LEN + Regions::new(size).to_bytes().len() + TERM_LEN).next_multiple_of(ALIGN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(marked: &[usize]) -> Record {
        let mut record = Record::new(7, 100 << 20);
        for index in marked {
            record.marks.add(*index);
        }
        record.base = Some(Base(9));
        record
    }

    fn file(slots: [Vec<u8>; 2]) -> Vec<u8> {
        slots.concat()
    }

    #[test]
    fn every_field_comes_back_from_the_newest_slot() {
        for (role, _) in ROLES {
            let newest = Record { generation: 3, role, closed: Some((-5, 6)), ended: Term(11), ..record(&[1, 99]) };
            for slots in [[encode(&newest, 8), encode(&record(&[]), 7)], [encode(&record(&[]), 7), encode(&newest, 8)]]
            {
                assert!(slots.iter().all(|slot| slot.len() == slot_len(100 << 20)));
                assert_eq!(decode(&file(slots)), Ok((8, newest.clone())));
            }
        }
    }

    #[test]
    fn a_term_is_written_only_where_there_is_one() {
        let never = encode(&record(&[1]), 1);
        assert_eq!(Raw::read_from_prefix(&never).unwrap().0.flags.get() & HAS_ENDED, 0, "as before there were terms");
        assert_eq!(decode(&file([never.clone(), never])).unwrap().1.ended, Term(0));
        let mut bad = encode(&Record { ended: Term(7), ..record(&[1]) }, 1);
        assert_eq!(decode_slot(&bad).unwrap().1.ended, Term(7));
        bad[HEADER_LEN + 16] ^= 1;
        assert!(decode_slot(&bad).is_err(), "it is under the checksum");
    }

    #[test]
    fn a_damaged_slot_costs_the_base_and_two_cost_the_record() {
        let (old, new) = (encode(&record(&[1]), 1), encode(&record(&[1, 2]), 2));
        for byte in 0..HEADER_LEN + 16 {
            let mut bad = new.clone();
            bad[byte] ^= 4;
            let (sequence, found) = decode(&file([old.clone(), bad.clone()])).unwrap();
            assert_eq!((sequence, found), (1, Record { base: None, ..record(&[1]) }), "byte {byte}");
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
        let (mut raw, _) = Raw::read_from_prefix(&slot).unwrap();
        raw.version = 2.into();
        raw.checksum = raw.digest(&slot[HEADER_LEN..HEADER_LEN + 16]).into();
        slot[..HEADER_LEN].copy_from_slice(raw.as_bytes());
        assert_eq!(decode(&file([slot, encode(&record(&[]), 0)])), Err(RecordFault::Version(2)));
    }
}
