//! The frames of a session's stream: a fixed header, checked, and a hash of what follows it.
//!
//! ```text
//! 0      4         6      8      16      24    28    32          40          48
//! | PLXF | version | kind | term | epoch | len | raw | body hash | head hash | body (len bytes)
//! ```
//!
//! All little-endian. The head hash covers the 40 bytes before it, the body hash the body (both XXH3, 64
//! bits). Where `raw` is not `len`, the body is packed (a Zstandard frame), and becomes exactly `raw` bytes,
//! which the limit of bodies holds for. An epoch is any number of `Pages` frames, one `State` frame and one
//! `End` frame, whose digest chains the body hashes of all of them in order: a frame that is missing,
//! changed, or of another epoch makes the whole epoch invalid. Decoding never panics and never allocates more
//! than the header's checked length.

use ft_proto::{Epoch, Term};
use twox_hash::XxHash3_64;

/// Version of this format; peers of another version are refused with both numbers.
pub const VERSION: u16 = 7;
/// Length of a header in bytes.
pub const HEADER_LEN: usize = 48;
/// No body is longer: 4,096 pages with their index, rounded up.
pub const BODY_MAX: u32 = 32 << 20;
/// Nor is one that carries neither pages nor state: greetings, reasons, counts.
pub const MESSAGE_MAX: u32 = 64 << 10;

const MAGIC: [u8; 4] = *b"PLXF";

/// What a frame carries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u16)]
pub enum Kind {
    /// Opens every connection: a [`Hello`](super::Hello).
    Hello = 1,
    /// The standby accepts: a [`Welcome`](super::Welcome).
    Welcome = 2,
    /// The standby refuses: a [`Refusal`](super::Refusal).
    Refuse = 3,
    /// Pages of the first copy, written to memory as they come.
    Copy = 4,
    /// Pages of an epoch: a [page list](crate::pages), as in `Copy`.
    Pages = 5,
    /// vCPU and device state of an epoch, and where its queues stand: opaque to the standby until takeover.
    State = 6,
    /// Closes an epoch: an [`EpochEnd`](super::EpochEnd).
    End = 7,
    /// The standby holds everything of the epoch in the header.
    Ack = 8,
    /// The primary has stopped for good; the standby shall take over: a [`Yielding`](super::Yielding).
    Yield = 9,
    /// The sender leaves the session in good order: a [`Refusal`](super::Refusal) with the reason.
    Bye = 10,
    /// How far the first copy is: a [`CopyProgress`](super::CopyProgress).
    Progress = 12,
    /// Answers [`Purpose::Ask`](super::Purpose::Ask): a [`Standing`](super::Standing).
    Standing = 13,
}

/// A frame's header, checked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Header {
    /// What the body is.
    pub kind: Kind,
    /// The sender's term.
    pub term: Term,
    /// The epoch it belongs to; 0 outside epochs.
    pub epoch: Epoch,
    /// Length of the body in bytes, as it crosses the network.
    pub len: u32,
    /// Its length before it was packed; `len` if it was not.
    pub raw: u32,
    /// XXH3 of the body.
    pub body_hash: u64,
}

/// The peer sent something that this version of the protocol does not allow.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WireError {
    /// Not our protocol at all.
    #[error("the peer does not speak the Pollux protocol")]
    Magic,
    /// Another version of it.
    #[error(
        "the peer speaks version {peer} of the protocol, this build speaks {ours}: install the same release on both hosts"
    )]
    Version {
        /// Theirs.
        peer: u16,
        /// Ours.
        ours: u16,
    },
    /// Header bytes were changed on the way.
    #[error("a frame header is corrupt")]
    HeaderCorrupt,
    /// Body bytes were changed on the way.
    #[error("the body of a frame is corrupt (epoch {0})")]
    BodyCorrupt(Epoch),
    /// A body that its kind does not allow.
    #[error("malformed {kind:?} frame: {what}")]
    Malformed {
        /// Of the frame.
        kind: Kind,
        /// What is wrong.
        what: &'static str,
    },
    /// The end of an epoch does not match what came before it.
    #[error("epoch {epoch} is not whole: {what}")]
    EpochNotWhole {
        /// The epoch.
        epoch: Epoch,
        /// What differs.
        what: &'static str,
    },
    /// A frame that may not come now.
    #[error("got a {got:?} frame, expected {expected}")]
    Unexpected {
        /// What came.
        got: Kind,
        /// What may come.
        expected: &'static str,
    },
}

impl Kind {
    /// The longest body that it may have, packed or not; checked before anything is allocated for it.
    #[must_use]
    pub fn body_max(self) -> u32 {
        match self {
            Self::Copy | Self::Pages | Self::State => BODY_MAX,
            Self::Hello | Self::Welcome | Self::Refuse | Self::End => MESSAGE_MAX,
            Self::Yield | Self::Bye | Self::Progress | Self::Standing => MESSAGE_MAX,
            Self::Ack => 0,
        }
    }

    fn from_u16(raw: u16) -> Option<Self> {
        use Kind::{Ack, Bye, Copy, End, Hello, Pages, Progress, Refuse, Standing, State, Welcome, Yield};
        [Hello, Welcome, Refuse, Copy, Pages, State, End, Ack, Yield, Bye, Progress, Standing]
            .into_iter()
            .find(|kind| *kind as u16 == raw)
    }
}

impl Header {
    /// The bytes on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6..8].copy_from_slice(&(self.kind as u16).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.term.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.epoch.0.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.raw.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.body_hash.to_le_bytes());
        let hash = XxHash3_64::oneshot(&bytes[..40]);
        bytes[40..48].copy_from_slice(&hash.to_le_bytes());
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// When it is not one of this version, is corrupt, or announces a body that is too long.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, WireError> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| {
            let mut raw = [0; 8];
            raw.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(raw)
        };
        if bytes[0..4] != MAGIC {
            return Err(WireError::Magic);
        }
        if u16_at(4) != VERSION {
            return Err(WireError::Version { peer: u16_at(4), ours: VERSION });
        }
        if u64_at(40) != XxHash3_64::oneshot(&bytes[..40]) {
            return Err(WireError::HeaderCorrupt);
        }
        let kind = Kind::from_u16(u16_at(6)).ok_or(WireError::HeaderCorrupt)?;
        let (term, epoch) = (Term(u64_at(8)), Epoch(u64_at(16)));
        if !term.is_plausible() || !epoch.is_plausible() {
            return Err(WireError::Malformed { kind, what: "a term or an epoch that cannot be" });
        }
        let header = Self { kind, term, epoch, len: u32_at(24), raw: u32_at(28), body_hash: u64_at(32) };
        if header.len.max(header.raw) > kind.body_max() {
            return Err(WireError::Malformed { kind, what: "longer than a frame may be" });
        }
        let may_be_packed = matches!(kind, Kind::Copy | Kind::Pages | Kind::State) && header.len < header.raw;
        if header.is_packed() && !may_be_packed {
            return Err(WireError::Malformed { kind, what: "its two lengths do not go together" });
        }
        Ok(header)
    }

    /// Whether the body has to be unpacked.
    #[must_use]
    pub fn is_packed(&self) -> bool {
        self.len != self.raw
    }

    /// Checks a received body against the header.
    ///
    /// # Errors
    /// When the hash differs.
    pub fn check_body(&self, body: &[u8]) -> Result<(), WireError> {
        if XxHash3_64::oneshot(body) == self.body_hash { Ok(()) } else { Err(WireError::BodyCorrupt(self.epoch)) }
    }
}

/// Chains the body hashes of an epoch's frames.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Digest(u64);

impl Digest {
    /// Adds the next frame.
    pub fn add(&mut self, body_hash: u64) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.0.to_le_bytes());
        bytes[8..].copy_from_slice(&body_hash.to_le_bytes());
        self.0 = XxHash3_64::oneshot(&bytes);
    }

    /// The value for [`EpochEnd`](super::EpochEnd).
    #[must_use]
    pub fn value(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            kind: Kind::Pages,
            term: Term(3),
            epoch: Epoch(9),
            len: 5,
            raw: 5,
            body_hash: XxHash3_64::oneshot(b"pages"),
        }
    }

    #[test]
    fn headers_come_back_and_every_flipped_bit_is_seen() {
        let bytes = header().encode();
        assert_eq!(Header::decode(&bytes), Ok(header()));
        for bit in 0..HEADER_LEN * 8 {
            let mut wrong = bytes;
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&wrong).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_term_or_an_epoch_that_cannot_be_is_refused() {
        let absurd = [
            Header { term: Term(u64::MAX), ..header() },
            Header { term: Term::MAX.next(), ..header() },
            Header { epoch: Epoch(u64::MAX), ..header() },
        ];
        for header in absurd {
            assert!(matches!(Header::decode(&header.encode()), Err(WireError::Malformed { .. })), "{header:?}");
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = header().encode();
        bytes[4..6].copy_from_slice(&(VERSION + 1).to_le_bytes());
        let error = Header::decode(&bytes).unwrap_err();
        assert_eq!(error, WireError::Version { peer: VERSION + 1, ours: VERSION });
    }

    #[test]
    fn lengths_are_known_before_anything_is_unpacked() {
        let decoded = |kind, len, raw| Header::decode(&Header { kind, len, raw, ..header() }.encode());
        assert!(decoded(Kind::Pages, 5, BODY_MAX).is_ok_and(|header| header.is_packed()));
        let wrong = [
            (Kind::Pages, 5, BODY_MAX + 1),
            (Kind::Pages, BODY_MAX + 1, BODY_MAX + 1),
            (Kind::Pages, 5, 4),
            (Kind::Hello, 5, 6),
            (Kind::Hello, MESSAGE_MAX + 1, MESSAGE_MAX + 1),
            (Kind::Progress, MESSAGE_MAX + 1, MESSAGE_MAX + 1),
            (Kind::Ack, 1, 1),
        ];
        for (kind, len, raw) in wrong {
            assert!(matches!(decoded(kind, len, raw), Err(WireError::Malformed { .. })), "{kind:?} {len} {raw}");
        }
    }

    #[test]
    fn bodies_are_checked() {
        assert_eq!(header().check_body(b"pages"), Ok(()));
        assert_eq!(header().check_body(b"pagez"), Err(WireError::BodyCorrupt(Epoch(9))));
    }

    #[test]
    fn the_digest_knows_the_order() {
        let (mut ab, mut ba) = (Digest::default(), Digest::default());
        [1, 2].into_iter().for_each(|hash| ab.add(hash));
        [2, 1].into_iter().for_each(|hash| ba.add(hash));
        assert_ne!(ab, ba);
    }
}
