//! The file with a record: two slots of equal size, each a header, the record, and padding. Pure.
//!
//! The slots are written in turn, so one of them is whole at any moment. A slot with a wrong checksum may be
//! a write that a crash cut short, or damage: nothing that depends on the other slot being the newest is
//! taken from it then.

use crate::record::contents::{Record, RecordFault};
use crate::record::{slot, slot_v1};

/// No file with a record is longer.
pub const FILE_MAX: usize = 128 * 1024;

/// The newest record in `file`, and its sequence number.
///
/// # Errors
/// When neither slot is whole, or the newest is of another version.
pub fn decode(file: &[u8]) -> Result<(u64, Record), RecordFault> {
    match decode_with(file, slot::decode_slot) {
        Err(RecordFault::Damaged) => decode_with(file, slot_v1::decode_slot),
        decoded => decoded,
    }
}

/// Whether `file` can be updated in place.
#[must_use]
pub fn is_of_this_version(file: &[u8]) -> bool {
    decode_with(file, slot::decode_slot).is_ok()
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
