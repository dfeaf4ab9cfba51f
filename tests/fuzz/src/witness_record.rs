//! The witness's record, as a file or etcd has it, and claims on it.
//!
//! Input: a claim, then the text of the record.

use ft::sim::decode_stored;
use ft_wire::device_ctl as codec;
use ft_proto::witness::{Claim, Record, Verdict, judge};

use crate::bytes::Bytes;

/// Reads the record, and judges the claim on it.
pub fn run(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let len = usize::from(bytes.u8());
    let claim = codec::decode::<Claim>(bytes.take(len)).ok();
    let text = bytes.rest();
    if let Ok(record) = serde_json::from_slice::<Record>(text) {
        same(record);
    }
    let stored = decode_stored(text);
    if let Some(stored) = stored {
        assert!(stored.record.is_plausible());
        same(stored.record);
    }
    let Some(claim) = claim else { return };
    if let Verdict::Granted(next) = judge(stored.map(|stored| stored.record), claim) {
        assert!(next.is_plausible(), "{claim:?} made {next:?}");
        assert_eq!(judge(Some(next), claim), judge(Some(next), claim));
    }
}

fn same(record: Record) {
    let text = serde_json::to_vec(&record).unwrap();
    assert_eq!(serde_json::from_slice::<Record>(&text).unwrap(), record);
}
