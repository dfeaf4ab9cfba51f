//! Frames of the mirror stream between the disk processes of two hosts. Pure: bytes in, bytes out, decode
//! never panics.
//!
//! A frame is a 48-byte header and a body. All numbers are little-endian. The checksum is xxh3 (64 bits) over
//! the header with the checksum field zero, followed by the body.
//!
//! ```text
//!   0 magic "PXMR"  |  4 version u16     |  6 kind u16  |  8 epoch     | 16 offset
//!  24 len           | 32 body length u32 | 36 zero      | 40 checksum
//! ```
//!
//! | kind | epoch | offset, len | body |
//! |---|---|---|---|
//! | Hello | first epoch of the stream | 0, size of the image | [`Greeting`]: whose disk it is |
//! | Answer (from the standby) | – | – | [`Answer`]: its record |
//! | Begin | epoch now | – | [`Begin`]: how the images are made equal |
//! | Hashes | epoch now | range, at most 64 blocks | a hash for each block of 4 KiB |
//! | Differ (from the standby) | – | start of the range, a bit for each block that differs | – |
//! | Copy | epoch now | range | its bytes: background copy |
//! | CopyZero | epoch now | range | – |
//! | Write | of the write | range | its bytes |
//! | Zeroes | of the write | range | – |
//! | SyncDone | epoch now | 0, 0 | – |
//! | End | that ended | number of Write and Zeroes frames in it, their [`Digest`] | – |
//! | Persist | epoch now | – | [`Name`]: what is durable at your side? Call it this |
//! | Durable (from the standby) | everything up to it is on stable storage, under that name | – | – |
//! | Renamed | epoch now | – | – : so it is here |
//! | Refused (from the standby) | – | – | reason |

use ft_proto::{Epoch, Term, VmId};
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use crate::device_ctl::ResyncKind;
use crate::hash::hash_of_parts;

/// Version of the frames; a peer of another version is refused.
pub const VERSION: u16 = 3;
/// Bytes of an encoded header.
pub const HEADER_LEN: usize = size_of::<Raw>();
/// No body is longer: what the longest request of a driver that heeds a disk's limits carries.
pub const MAX_BODY: usize = 126 * (64 << 10);
/// Unit of comparison in bytes: a page of the guest's file system, mostly.
pub const BLOCK: u64 = 4096;
/// Most blocks that are compared at once.
pub const BLOCKS: u64 = 64;
/// Bytes of a block's hash.
pub const HASH_LEN: usize = 16;

/// What a change counts for besides its data, in bytes, so that bounds on bytes also bound the number of
/// empty changes.
pub const CHANGE_OVERHEAD: u64 = 128;

const MAGIC: [u8; 4] = *b"PXMR";
/// Longest serial and longest reason.
const MAX_TEXT: usize = 1024;
/// Longest [`Answer`] and longest [`Begin`].
const MAX_ANSWER: usize = 64 * 1024;

/// What a frame is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// First frame.
    Hello,
    /// Background copy of data.
    Copy,
    /// Background copy of a hole or of zeroes.
    CopyZero,
    /// A guest's write.
    Write,
    /// A guest's discard or write-zeroes.
    Zeroes,
    /// The background copy is complete.
    SyncDone,
    /// An epoch is complete.
    End,
    /// The standby does not take the stream.
    Refused,
    /// The standby's record.
    Answer,
    /// The resynchronisation begins.
    Begin,
    /// Hashes of blocks of the primary's image.
    Hashes,
    /// Which of them are not those of the standby's image.
    Differ,
    /// The primary wants to know what is durable at the standby.
    Persist,
    /// It is this much.
    Durable,
    /// The primary has the new name on stable storage, too.
    Renamed,
}

/// A primary's description of its disk.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Greeting {
    /// Serial number.
    pub serial: String,
    /// The VM whose disk it is.
    pub vm: Option<VmId>,
    /// The term of the session.
    pub term: Term,
}

/// The new name of what both images have in common.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Name {
    /// It.
    pub base: u128,
}

/// A standby's record.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Answer {
    /// Name of the disk.
    pub disk: u128,
    /// The VM whose disk it is.
    pub vm: Option<VmId>,
    /// State that `marks` refer to.
    pub base: Option<u128>,
    /// Another one, that the primary may still know the image by.
    pub former: Option<u128>,
    /// Generation.
    pub generation: u64,
    /// Regions that may differ from the base, as the disks encode them.
    pub marks: Vec<u8>,
    /// The image is one hole.
    pub empty: bool,
}

/// How the images are made equal.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Begin {
    /// How.
    pub kind: ResyncKind,
    /// Name of the disk.
    pub disk: u128,
    /// State that both images are known by, if they are; what follows is about it.
    pub common: Option<u128>,
    /// Regions in which the primary's image may differ from that.
    pub marks: Vec<u8>,
    /// State that the images have in common when they are equal.
    pub base: u128,
    /// The primary's generation.
    pub generation: u64,
}

/// A body with fields, as [`Answer`] and [`Begin`]; no answer is longer than fits.
#[must_use]
pub fn encode_fields<T: Serialize>(fields: &T) -> Vec<u8> {
    postcard::to_allocvec(fields).unwrap_or_default()
}

/// The fields in a body.
///
/// # Errors
/// When it does not have them.
pub fn decode_fields<'a, T: Deserialize<'a>>(kind: Kind, body: &'a [u8]) -> Result<T, WireError> {
    postcard::from_bytes(body).map_err(|_| WireError::Fields(kind))
}

const KINDS: [(Kind, u16); 15] = [
    (Kind::Hello, 1),
    (Kind::Copy, 2),
    (Kind::CopyZero, 3),
    (Kind::Write, 4),
    (Kind::Zeroes, 5),
    (Kind::SyncDone, 6),
    (Kind::End, 7),
    (Kind::Refused, 8),
    (Kind::Answer, 9),
    (Kind::Begin, 10),
    (Kind::Hashes, 11),
    (Kind::Differ, 12),
    (Kind::Persist, 13),
    (Kind::Durable, 14),
    (Kind::Renamed, 15),
];

/// A decoded header. What `offset` and `len` mean depends on the kind: see the module's table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Epoch.
    pub epoch: Epoch,
    /// Byte offset, or a count.
    pub offset: u64,
    /// Byte length, or a digest.
    pub len: u64,
}

/// A header whose body has not arrived yet.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    raw: Raw,
    frame: Frame,
}

/// Bytes that are not a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WireError {
    /// Not our protocol.
    #[error("not a mirror stream: bad magic")]
    Magic,
    /// Another version of it.
    #[error(
        "the peer speaks mirror stream version {0}, this disk speaks {VERSION}: run the same version on both hosts"
    )]
    Version(u16),
    /// A kind this version does not have.
    #[error("unknown frame kind {0}")]
    Kind(u16),
    /// The body's length does not fit the kind.
    #[error("{0:?} frame with a body of {1} bytes")]
    Body(Kind, u32),
    /// The body does not decode.
    #[error("malformed {0:?} frame")]
    Fields(Kind),
    /// The bytes were changed on the way.
    #[error("checksum of a {0:?} frame does not match")]
    Checksum(Kind),
}

#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 4],
    version: U16,
    kind: U16,
    epoch: U64,
    offset: U64,
    len: U64,
    body: U32,
    reserved: U32,
    checksum: U64,
}

impl Raw {
    fn digest(&self, body: &[u8]) -> u64 {
        hash_of_parts(&[Self { checksum: U64::ZERO, ..*self }.as_bytes(), body])
    }
}

/// Encodes the header of `frame` with `body`; the second result is the frame's checksum, for [`Digest`].
#[must_use]
pub fn encode(frame: &Frame, body: &[u8]) -> ([u8; HEADER_LEN], u64) {
    let kind = KINDS.iter().find(|(kind, _)| *kind == frame.kind).map_or(0, |(_, code)| *code);
    let mut raw = Raw {
        magic: MAGIC,
        version: VERSION.into(),
        kind: kind.into(),
        epoch: frame.epoch.0.into(),
        offset: frame.offset.into(),
        len: frame.len.into(),
        body: u32::try_from(body.len()).unwrap_or(u32::MAX).into(),
        reserved: U32::ZERO,
        checksum: U64::ZERO,
    };
    let checksum = raw.digest(body);
    raw.checksum = checksum.into();
    (zerocopy::transmute!(raw), checksum)
}

/// Decodes a header as far as that is possible without the body.
///
/// # Errors
/// See [`WireError`].
pub fn decode(header: &[u8; HEADER_LEN]) -> Result<Pending, WireError> {
    let raw: Raw = zerocopy::transmute!(*header);
    if raw.magic != MAGIC {
        return Err(WireError::Magic);
    }
    if raw.version != VERSION {
        return Err(WireError::Version(raw.version.get()));
    }
    let code = raw.kind.get();
    let kind = KINDS.iter().find(|(_, c)| *c == code).map(|(kind, _)| *kind).ok_or(WireError::Kind(code))?;
    let body = raw.body.get();
    let fits = match kind {
        Kind::Copy | Kind::Write => body as usize <= MAX_BODY && u64::from(body) == raw.len.get(),
        Kind::Hello | Kind::Refused | Kind::Persist => body as usize <= MAX_TEXT,
        Kind::Answer | Kind::Begin => body as usize <= MAX_ANSWER,
        // One for each block, none less: what is not compared would count as equal.
        Kind::Hashes => {
            let blocks = raw.len.get().div_ceil(BLOCK);
            blocks <= BLOCKS && u64::from(body) == blocks * HASH_LEN as u64
        }
        Kind::CopyZero | Kind::Zeroes | Kind::SyncDone | Kind::End => body == 0,
        Kind::Differ | Kind::Durable | Kind::Renamed => body == 0,
    };
    if !fits {
        return Err(WireError::Body(kind, body));
    }
    let frame = Frame { kind, epoch: Epoch(raw.epoch.get()), offset: raw.offset.get(), len: raw.len.get() };
    Ok(Pending { raw, frame })
}

impl Pending {
    /// Bytes of the body that follows.
    #[must_use]
    pub fn body_len(&self) -> usize {
        self.raw.body.get() as usize
    }

    /// Checks the whole frame; the second result is its checksum, for [`Digest`].
    ///
    /// # Errors
    /// When the checksum does not match.
    pub fn finish(self, body: &[u8]) -> Result<(Frame, u64), WireError> {
        let checksum = self.raw.digest(body);
        if checksum != self.raw.checksum.get() || body.len() != self.body_len() {
            return Err(WireError::Checksum(self.frame.kind));
        }
        Ok((self.frame, checksum))
    }
}

/// Number and checksum of the Write and Zeroes frames of one epoch, as an End frame announces them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Digest {
    /// How many.
    pub count: u64,
    /// Hash over their checksums, in order.
    pub sum: u64,
}

impl Digest {
    /// Adds one frame.
    pub fn add(&mut self, checksum: u64) {
        self.count += 1;
        self.sum = XxHash3_64::oneshot_with_seed(self.sum, &checksum.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write() -> (Frame, Vec<u8>) {
        (Frame { kind: Kind::Write, epoch: Epoch(7), offset: 4096, len: 512 }, vec![0xa5; 512])
    }

    fn read(header: &[u8; HEADER_LEN], body: &[u8]) -> Result<(Frame, u64), WireError> {
        decode(header)?.finish(body)
    }

    #[test]
    fn round_trip_of_every_kind() {
        for (kind, _) in KINDS {
            let body = match kind {
                Kind::Copy | Kind::Write => vec![3; 512],
                Kind::Hello | Kind::Refused => b"text".to_vec(),
                Kind::Hashes => vec![3; HASH_LEN],
                _ => vec![],
            };
            let frame = Frame { kind, epoch: Epoch(9), offset: 1024, len: 512 };
            let (header, checksum) = encode(&frame, &body);
            assert_eq!(read(&header, &body), Ok((frame, checksum)));
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (frame, body) = write();
        let (header, _) = encode(&frame, &body);
        for bit in 0..HEADER_LEN * 8 {
            let mut bad = header;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bad, &body).is_err(), "bit {bit}");
        }
        for bit in 0..body.len() * 8 {
            let mut bad = body.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&header, &bad), Err(WireError::Checksum(Kind::Write)));
        }
    }

    #[test]
    fn another_version_is_named() {
        let (frame, body) = write();
        let (mut header, _) = encode(&frame, &body);
        header[4] = 2;
        assert_eq!(decode(&header).map(|_| ()), Err(WireError::Version(2)));
    }

    #[test]
    fn a_hash_for_each_block_and_none_less() {
        for (len, hashes, fits) in
            [(512, 1, true), (4097, 2, true), (1 << 18, 64, true), (512, 0, false), (8192, 1, false), (8192, 3, false)]
        {
            let frame = Frame { kind: Kind::Hashes, epoch: Epoch(1), offset: 0, len };
            let body = vec![0; hashes * HASH_LEN];
            let (header, _) = encode(&frame, &body);
            assert_eq!(decode(&header).is_ok(), fits, "{hashes} hashes for {len} bytes");
        }
        for len in [(1 << 18) + 1, u64::MAX] {
            let (header, _) = encode(&Frame { kind: Kind::Hashes, epoch: Epoch(1), offset: 0, len }, &[0; 1024]);
            assert!(decode(&header).is_err());
        }
    }

    #[test]
    fn huge_bodies_are_refused_before_they_are_read() {
        let frame = Frame { kind: Kind::Write, epoch: Epoch(1), offset: 0, len: u64::MAX };
        let (mut header, _) = encode(&frame, &[]);
        header[32..36].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(decode(&header), Err(WireError::Body(Kind::Write, u32::MAX))));
    }
}
