//! Packed bodies: what is packed comes back; garbage never becomes more than was announced.
//!
//! Input: an announced length, then a body that is packed, and unpacked as if it were packed.

use ft_wire::packing::{Packed, Packer, Unpacker};
use ft_wire::session::{Header, Kind};
use ft_proto::{Epoch, Term};

use crate::bytes::Bytes;

/// No more is announced here; the limit of a body is far above.
const ANNOUNCED_MAX: u32 = 1 << 20;

/// Packs and unpacks.
pub fn run(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let (announced, times) = (bytes.u32() % ANNOUNCED_MAX, bytes.u8());
    unpack(bytes.rest(), announced);
    let mut packer = Packer::default();
    // Memory repeats itself; noise is not packed at all.
    let body = bytes.rest().repeat(usize::from(times % 16) + 1);
    let (first, second) = body.split_at(body.len() / 3);
    let Some(Packed { parts: [packed], raw }) = packer.pack(&[first, second]) else { return };
    assert_eq!(raw as usize, body.len());
    assert!(unpack(packed, raw).is_some_and(|unpacked| unpacked == body));
}

fn unpack(packed: &[u8], raw: u32) -> Option<Vec<u8>> {
    let len = u32::try_from(packed.len()).ok()?;
    let header = Header { kind: Kind::Pages, term: Term(1), epoch: Epoch(1), len, raw, body_hash: 0 };
    let mut unpacker = Unpacker::new().unwrap();
    unpacker.packed().extend_from_slice(packed);
    let mut body = Vec::new();
    let result = unpacker.unpack(&header, &mut body);
    assert!(body.len() <= raw as usize);
    result.ok().map(|()| body)
}
