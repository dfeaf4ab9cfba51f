//! LZ4 over the bodies of frames, where that makes them shorter.

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

use crate::wire::{BODY_MAX, Header, WireError};

/// Of a long body so much is tried before all of it is packed.
const TRIED: usize = 16 << 10;

/// Packs bodies; keeps its buffers.
pub struct Packer {
    table: CompressTable,
    gathered: Vec<u8>,
    packed: Vec<u8>,
}

/// A body that was packed.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    /// What crosses the network, as the only part of a body.
    pub parts: [&'a [u8]; 1],
    /// The length that it has again when it is unpacked.
    pub raw: u32,
}

impl Packer {
    /// Packs a body made of `parts`, unless that saves less than an eighth.
    pub fn pack(&mut self, parts: &[&[u8]]) -> Option<Packed<'_>> {
        self.gathered.clear();
        parts.iter().for_each(|part| self.gathered.extend_from_slice(part));
        let raw = u32::try_from(self.gathered.len()).ok().filter(|raw| *raw <= BODY_MAX)?;
        if self.gathered.len() > 2 * TRIED {
            self.pack_first(TRIED)?;
        }
        let len = self.pack_first(self.gathered.len())?;
        Some(Packed { parts: [&self.packed[..len]], raw })
    }

    /// Packs so much of what was gathered; how long it has become if that is worth it.
    fn pack_first(&mut self, len: usize) -> Option<usize> {
        let room = get_maximum_output_size(len);
        if self.packed.len() < room {
            self.packed.resize(room, 0);
        }
        let packed = compress_into_with_table(&self.gathered[..len], &mut self.packed, &mut self.table).ok()?;
        (packed < len - len / 8).then_some(packed)
    }
}

impl Default for Packer {
    fn default() -> Self {
        Self { table: CompressTable::large(), gathered: Vec::new(), packed: Vec::new() }
    }
}

/// Unpacks the body that `header` announces into `body`, which is overwritten and keeps its capacity.
///
/// # Errors
/// When it does not become exactly as long as announced. No more than that is ever written.
pub fn unpack(header: &Header, packed: &[u8], body: &mut Vec<u8>) -> Result<(), WireError> {
    // Bounded by `Header::decode`.
    body.resize(usize::try_from(header.raw).unwrap_or(usize::MAX), 0);
    match decompress_into(packed, body) {
        Ok(len) if len == body.len() => Ok(()),
        _ => Err(WireError::Malformed { kind: header.kind, what: "it does not unpack to the announced length" }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::wire::Kind;
    use crate::{Epoch, Term};

    fn header(len: usize, raw: u32) -> Header {
        let len = u32::try_from(len).unwrap();
        Header { kind: Kind::Pages, term: Term(1), epoch: Epoch(1), len, raw, body_hash: 0 }
    }

    /// Bytes that repeat themselves, as memory does.
    fn memory() -> impl Strategy<Value = Vec<u8>> {
        vec((vec(any::<u8>(), 1..40), 1..400_usize), 0..40)
            .prop_map(|runs| runs.into_iter().flat_map(|(run, times)| run.repeat(times)).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_packed_comes_back(bytes in memory()) {
            let mut packer = Packer::default();
            // Twice: nothing of the first time is left over.
            for _ in 0..2 {
                let (first, second) = bytes.split_at(bytes.len() / 3);
                let Some(packed) = packer.pack(&[first, second]) else { continue };
                let mut body = vec![7; 3];
                let Packed { parts: [packed], raw } = packed;
                unpack(&header(packed.len(), raw), packed, &mut body).unwrap();
                prop_assert!(body == bytes);
            }
        }

        #[test]
        fn corrupt_bytes_never_become_more_than_announced(
            bytes in memory(), wrong in vec((any::<prop::sample::Index>(), any::<u8>()), 1..5), less in 0..9_u32,
        ) {
            let mut packer = Packer::default();
            let packed = packer.pack(&[&bytes]);
            prop_assume!(packed.is_some());
            let Packed { parts: [packed], raw } = packed.unwrap();
            let mut packed = packed.to_vec();
            for (at, byte) in wrong {
                let at = at.index(packed.len());
                packed[at] = byte;
            }
            let announced = raw - less.min(raw);
            let mut body = Vec::new();
            // Whatever it says: it neither panics nor grows.
            let _ = unpack(&header(packed.len(), announced), &packed, &mut body);
            prop_assert_eq!(body.len(), announced as usize);
        }
    }

    #[test]
    fn a_length_that_was_not_announced_is_refused() {
        let bytes = [0; 5000];
        let mut packer = Packer::default();
        let Packed { parts: [packed], raw } = packer.pack(&[&bytes]).unwrap();
        assert!(packed.len() < 100);
        for announced in [raw - 1, raw + 1, 0, BODY_MAX] {
            assert!(unpack(&header(packed.len(), announced), packed, &mut Vec::new()).is_err(), "{announced}");
        }
    }

    #[test]
    fn noise_is_left_as_it_is() {
        let mut state = 1_u64;
        let noise: Vec<u8> = (0..100_000)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        assert!(Packer::default().pack(&[&noise]).is_none());
    }
}
