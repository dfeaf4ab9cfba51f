//! Zstandard over the bodies of frames, where that makes them shorter.

use std::io;

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::compress_bound;

use crate::session::{BODY_MAX, Header, WireError};

/// Of a long body so much is tried before all of it is packed.
const TRIED: usize = 16 << 10;
/// The fastest of the ordinary levels.
const LEVEL: i32 = 1;

/// Packs bodies; keeps its buffers.
#[derive(Default)]
pub struct Packer {
    /// Made when it is needed first.
    compressor: Option<Compressor<'static>>,
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
        self.pack_first(self.gathered.len())?;
        Some(Packed { parts: [&self.packed], raw })
    }

    /// Packs so much of what was gathered, if that is worth it.
    fn pack_first(&mut self, len: usize) -> Option<()> {
        if self.compressor.is_none() {
            self.compressor = Compressor::new(LEVEL).ok();
        }
        self.packed.clear();
        self.packed.reserve(compress_bound(len));
        let packed = self.compressor.as_mut()?.compress_to_buffer(&self.gathered[..len], &mut self.packed).ok()?;
        (packed < len - len / 8).then_some(())
    }
}

/// Unpacks bodies; keeps its buffers.
pub struct Unpacker {
    decompressor: Decompressor<'static>,
    packed: Vec<u8>,
}

impl Unpacker {
    /// With nothing to unpack.
    ///
    /// # Errors
    /// When the library cannot be set up.
    pub fn new() -> io::Result<Self> {
        Ok(Self { decompressor: Decompressor::new()?, packed: Vec::new() })
    }

    /// Where the packed body belongs.
    pub fn packed(&mut self) -> &mut Vec<u8> {
        &mut self.packed
    }

    /// Unpacks the body that `header` announces into `body`, which is overwritten and keeps its capacity.
    ///
    /// # Errors
    /// When it does not become exactly as long as announced. No more than that is ever written.
    pub fn unpack(&mut self, header: &Header, body: &mut Vec<u8>) -> Result<(), WireError> {
        // Bounded by `Header::decode`.
        body.resize(usize::try_from(header.raw).unwrap_or(usize::MAX), 0);
        match self.decompressor.decompress_to_buffer(&self.packed, &mut body[..]) {
            Ok(len) if len == body.len() => Ok(()),
            _ => Err(WireError::Malformed { kind: header.kind, what: "it does not unpack to the announced length" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use ft_proto::{Epoch, Term};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::session::Kind;

    fn unpack(packed: &[u8], raw: u32, body: &mut Vec<u8>) -> Result<(), WireError> {
        let len = u32::try_from(packed.len()).unwrap();
        let header = Header { kind: Kind::Pages, term: Term(1), epoch: Epoch(1), len, raw, body_hash: 0 };
        let mut unpacker = Unpacker::new().unwrap();
        unpacker.packed().extend_from_slice(packed);
        unpacker.unpack(&header, body)
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
                unpack(packed, raw, &mut body).unwrap();
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
            // Whatever it says: it neither panics nor grows, nor writes beyond what was announced.
            let _ = unpack(&packed, announced, &mut body);
            let announced = announced as usize;
            prop_assert_eq!(body.len(), announced);
            let mut room = vec![7; announced + 4096];
            let _ = Decompressor::new().unwrap().decompress_to_buffer(&packed, &mut room[..announced]);
            prop_assert!(room[announced..].iter().all(|byte| *byte == 7));
        }
    }

    #[test]
    fn a_length_that_was_not_announced_is_refused() {
        let bytes = [0; 5000];
        let mut packer = Packer::default();
        let Packed { parts: [packed], raw } = packer.pack(&[&bytes]).unwrap();
        assert!(packed.len() < 100);
        for announced in [raw - 1, raw + 1, 0, BODY_MAX] {
            assert!(unpack(packed, announced, &mut Vec::new()).is_err(), "{announced}");
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
