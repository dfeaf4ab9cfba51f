//! What an image's record says: which VM's it is and whose copy, what it was last used for, which file it is about, and where that
//! may differ from its peer. Pure.
//!
//! On disk it is two slots of equal size; each is a header, the record, and padding. The slots are written in
//! turn, so one of them is whole at any moment. A slot with a wrong checksum may be a write that a crash cut short, or
//! damage: nothing that depends on the other slot being the newest is taken from it then.

use ft_proto::wire::hash_of_parts;
use ft_proto::{Term, VmId};
use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::proof::Proof;
use crate::record_v1;
use crate::regions::Regions;

/// Version of the format.
pub const VERSION: u16 = 2;
/// No file with a record is longer.
pub const FILE_MAX: usize = 128 * 1024;

pub(crate) const MAGIC: [u8; 8] = *b"PLXDISK\0";
const HEADER_LEN: usize = size_of::<Header>();
/// Most bytes of a record without its marks.
const FIELDS_MAX: usize = 320;
const ALIGN: usize = 4096;

/// What an image was last used for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
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

/// Names a state of the data that two images had in common.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Base(pub u128);

/// The record.
///
/// An image differs from the state that its base names at most in the regions that are marked here. That is true of the two
/// together whatever happens elsewhere, so it is true of a backup of both, too.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Record {
    /// Names the disk, whichever copy of it.
    pub disk: u128,
    /// The VM whose disk it is, once it is known.
    pub vm: Option<VmId>,
    /// What `marks` refer to; `None`: nothing is known about any peer.
    pub base: Option<Base>,
    /// Another state that `marks` refer to as well, until the peer is known to have `base`.
    pub former: Option<Base>,
    /// Counts the times that somebody began to run the VM from a copy.
    pub generation: u64,
    /// Last use.
    pub role: Role,
    /// The term of the last use: that the VM ran in from it, or that of the session that it is a copy of.
    pub term: Term,
    /// The term in which the VM was shut down in good order from this image; 0: somebody has owned it since, or never did. Who
    /// may start the VM is judged by it.
    pub ended: Term,
    /// Somebody else has changed the image since that last use.
    pub altered: bool,
    /// What shows that an image is the one that this is about.
    pub proof: Option<Proof>,
    /// Regions that may differ from the base.
    pub marks: Regions,
}

impl Record {
    /// Of an image of `size` bytes that has never had one.
    #[must_use]
    pub fn new(disk: u128, size: u64) -> Self {
        Self {
            disk,
            vm: None,
            base: None,
            former: None,
            generation: 0,
            role: Role::Alone,
            term: Term(0),
            ended: Term(0),
            altered: false,
            proof: None,
            marks: Regions::new(size),
        }
    }

    /// Nothing is known about any peer any more.
    pub fn forget_base(&mut self) {
        (self.base, self.former) = (None, None);
        self.marks = Regions::new(self.marks.image_size());
    }
}

/// A file that holds no usable record.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RecordFault {
    /// Neither slot is whole.
    #[error("it is damaged")]
    Damaged,
    /// Another version wrote it.
    #[error("it is of version {0}, this program knows 1 to {VERSION}")]
    Version(u16),
}

/// The same in all versions from 2 on.
#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U16,
    reserved: U16,
    /// Bytes that follow and count.
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

/// One slot: `record` as the `sequence`th that was written.
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
    // Only a size that cannot be known beforehand fails, and there is none.
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

fn decode_slot(slot: &[u8]) -> Result<(u64, Record), RecordFault> {
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

/// The newest record in `file`, and its sequence number.
///
/// # Errors
/// When neither slot is whole, or the newest is of another version.
pub fn decode(file: &[u8]) -> Result<(u64, Record), RecordFault> {
    match decode_with(file, decode_slot) {
        Err(RecordFault::Damaged) => decode_with(file, record_v1::decode_slot),
        decoded => decoded,
    }
}

/// Whether `file` can be written on in place.
#[must_use]
pub fn is_of_this_version(file: &[u8]) -> bool {
    decode_with(file, decode_slot).is_ok()
}

type Decoded = Result<(u64, Record), RecordFault>;

fn decode_with(file: &[u8], slot: impl Fn(&[u8]) -> Decoded) -> Decoded {
    let (first, second) = file.split_at(file.len() / 2);
    match (slot(first), slot(second)) {
        (Ok(a), Ok(b)) => Ok(if a.0 > b.0 { a } else { b }),
        (Err(RecordFault::Version(other)), _) | (_, Err(RecordFault::Version(other))) => {
            Err(RecordFault::Version(other))
        }
        // The other slot may have been the newest: its marks are missing here.
        (Ok((sequence, mut record)), Err(_)) | (Err(_), Ok((sequence, mut record))) => {
            record.forget_base();
            Ok((sequence, record))
        }
        (Err(fault), Err(_)) => Err(fault),
    }
}

/// Length of each slot of an image of `size` bytes.
#[must_use]
pub fn slot_len(size: u64) -> usize {
    (HEADER_LEN + FIELDS_MAX + Regions::new(size).to_bytes().len()).next_multiple_of(ALIGN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proof::{FileId, Moment, Stamp};

    const ROLES: [Role; 4] = [Role::Alone, Role::Protected, Role::Syncing, Role::Standby];

    fn record(marked: &[usize]) -> Record {
        let mut record = Record::new(7, 100 << 20);
        for index in marked {
            record.marks.add(*index);
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
