//! A heartbeat: one datagram of fixed form, which counts only within a session.
//!
//! Anybody can send one. So a beat must name the VM, the session and the peer that this node has the session
//! with, carry a number that is higher than all before it on its link, and a tag that only the two ends can
//! make: a hash of all of it under a key from the session's secret number. That number crosses the network
//! once, in the greeting, which TLS protects.

use ft_proto::{Beat, HostId, LinkId, NodeId, Term, VmId};
use zerocopy::little_endian::{U16, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::nonce::Nonce;

/// Bytes of a beat.
pub const LEN: usize = size_of::<Datagram>();

const MAGIC: [u8; 4] = *b"PLXB";
const VERSION: u16 = 3;
/// What the keys of beats are for.
const CONTEXT: &str = "Pollux heartbeat 3, 2026-11-30";
const TAG_LEN: usize = 16;

/// What the beats of a session carry, and those of its peer must.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BeatKey {
    /// The VM that it protects.
    pub vm: VmId,
    /// The session.
    pub session: u64,
    /// Drawn for it at random, and told to the peer only.
    pub nonce: Nonce,
    /// This node.
    pub me: NodeId,
    /// The other one.
    pub peer: NodeId,
}

/// Why a datagram is not a beat of the peer's in this session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cause {
    /// Not a beat of this version: another length, magic or version, or what no node says.
    Malformed,
    /// There is no session.
    Unexpected,
    /// It is of another VM.
    OtherVm,
    /// It is of another session.
    OtherSession,
    /// It is of another node than the peer.
    OtherNode,
    /// Nobody who knows the session's secret has sent it.
    Forged,
    /// It is one that was sent before, on this link or the other one.
    Replayed,
}

impl Cause {
    /// All of them, in order.
    pub const ALL: [Self; 7] = [
        Self::Malformed,
        Self::Unexpected,
        Self::OtherVm,
        Self::OtherSession,
        Self::OtherNode,
        Self::Forged,
        Self::Replayed,
    ];

    /// What is wrong with such a datagram, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unexpected => "without a session",
            Self::OtherVm => "of another VM",
            Self::OtherSession => "of another session",
            Self::OtherNode => "of another node",
            Self::Forged => "forged",
            Self::Replayed => "replayed",
        }
    }
}

/// A beat as it crosses the network.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct Datagram {
    magic: [u8; 4],
    version: U16,
    /// 1: it runs the VM.
    runs: u8,
    /// The link that it is sent on: 0 replication, 1 heartbeat.
    link: u8,
    vm: U128,
    session: U64,
    /// Who sends it.
    host: [u8; HostId::LEN],
    incarnation: U64,
    term: U64,
    /// Higher than that of every beat before it.
    number: U64,
    /// Keyed BLAKE3 of what comes before it, its first half.
    tag: [u8; TAG_LEN],
}

/// Bytes before the tag.
const TAGGED: usize = LEN - TAG_LEN;

fn host_bytes(host: HostId) -> [u8; HostId::LEN] {
    let mut bytes = [0; HostId::LEN];
    let name = host.as_str().as_bytes();
    bytes[..name.len()].copy_from_slice(name);
    bytes
}

impl BeatKey {
    fn secret(&self) -> [u8; blake3::KEY_LEN] {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(&self.nonce.to_le_bytes());
        *hasher.finalize().as_bytes()
    }

    fn tag(&self, tagged: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.secret(), tagged)
    }
}

/// The beat of `key`'s own node on `link`. Each needs a higher `number` than the one before it.
#[must_use]
pub fn encode(key: &BeatKey, link: LinkId, number: u64, term: Term, runs: bool) -> [u8; LEN] {
    let mut datagram = Datagram {
        magic: MAGIC,
        version: VERSION.into(),
        runs: runs.into(),
        link: link as u8,
        vm: key.vm.0.into(),
        session: key.session.into(),
        host: host_bytes(key.me.host),
        incarnation: key.me.incarnation.into(),
        term: term.0.into(),
        number: number.into(),
        tag: [0; TAG_LEN],
    };
    let tag = key.tag(&datagram.as_bytes()[..TAGGED]);
    datagram.tag.copy_from_slice(&tag.as_bytes()[..TAG_LEN]);
    zerocopy::transmute!(datagram)
}

/// Tells the peer's beats from everything else that arrives.
#[derive(Clone, Debug, Default)]
pub struct BeatFilter {
    key: Option<BeatKey>,
    /// The highest number so far, by link.
    last: [Option<u64>; LinkId::ALL.len()],
}

impl BeatFilter {
    /// Beats of this session count from now on, and no others.
    pub fn set_key(&mut self, key: Option<BeatKey>) {
        if self.key != key {
            *self = Self { key, last: Default::default() };
        }
    }

    /// The beat of a datagram that is the peer's in this session, and new.
    ///
    /// # Errors
    /// When it is not.
    pub fn pass(&mut self, bytes: &[u8], link: LinkId) -> Result<Beat, Cause> {
        let (beat, number) = decode(bytes, link, self.key.as_ref())?;
        let last = &mut self.last[link as usize];
        if last.is_some_and(|last| number <= last) {
            return Err(Cause::Replayed);
        }
        *last = Some(number);
        Ok(beat)
    }
}

/// The beat of a datagram that is the peer's in this session, and its number.
fn decode(bytes: &[u8], link: LinkId, key: Option<&BeatKey>) -> Result<(Beat, u64), Cause> {
    // The cheap questions first: a flood must not cost a hash each.
    let datagram = Datagram::ref_from_bytes(bytes).map_err(|_| Cause::Malformed)?;
    if datagram.magic != MAGIC || datagram.version != VERSION {
        return Err(Cause::Malformed);
    }
    let key = key.ok_or(Cause::Unexpected)?;
    if datagram.vm != key.vm.0 {
        return Err(Cause::OtherVm);
    }
    if datagram.session != key.session {
        return Err(Cause::OtherSession);
    }
    if datagram.host != host_bytes(key.peer.host) || datagram.incarnation != key.peer.incarnation {
        return Err(Cause::OtherNode);
    }
    // Hashes are compared in constant time.
    let tag = key.tag(&bytes[..TAGGED]);
    let mut claimed = *tag.as_bytes();
    claimed[..TAG_LEN].copy_from_slice(&datagram.tag);
    if tag != claimed {
        return Err(Cause::Forged);
    }
    let term = Term(datagram.term.get());
    if datagram.link != link as u8 {
        return Err(Cause::Replayed);
    }
    if datagram.runs > 1 || !term.is_plausible() {
        return Err(Cause::Malformed);
    }
    Ok((Beat { from: key.peer, term, runs: datagram.runs == 1 }, datagram.number.get()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId::numbered(1, 11);
    const PEER: NodeId = NodeId::numbered(2, 22);
    const LINK: LinkId = LinkId::Heartbeat;

    fn ends() -> (BeatKey, BeatFilter) {
        let key = BeatKey { vm: VmId(7), session: 8, nonce: Nonce::new(1 << 100), me: ME, peer: PEER };
        let mut filter = BeatFilter::default();
        filter.set_key(Some(key));
        (BeatKey { me: PEER, peer: ME, ..key }, filter)
    }

    #[test]
    fn beats_come_back_and_noise_does_not() {
        let (theirs, filter) = ends();
        let bytes = encode(&theirs, LINK, 1, Term(3), true);
        assert_eq!(filter.clone().pass(&bytes, LINK), Ok(Beat { from: PEER, term: Term(3), runs: true }));
        assert_eq!(BeatFilter::default().pass(&bytes, LINK), Err(Cause::Unexpected));
        for at in 0..bytes.len() {
            let mut wrong = bytes;
            wrong[at] ^= 1;
            assert!(filter.clone().pass(&wrong, LINK).is_err(), "byte {at}");
            assert_eq!(filter.clone().pass(&bytes[..at], LINK), Err(Cause::Malformed));
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(filter.clone().pass(&longer, LINK), Err(Cause::Malformed));
    }

    #[test]
    fn whoever_reads_the_link_can_neither_make_a_beat_nor_repeat_one() {
        let (theirs, mut filter) = ends();
        let forged = BeatKey { nonce: Nonce::NONE, ..theirs };
        assert_eq!(filter.pass(&encode(&forged, LINK, 9, Term(1 << 40), true), LINK), Err(Cause::Forged));
        let (first, second) = (encode(&theirs, LINK, 1, Term(3), true), encode(&theirs, LINK, 2, Term(3), true));
        assert!(filter.pass(&first, LINK).is_ok());
        assert_eq!(filter.pass(&first, LINK), Err(Cause::Replayed));
        assert_eq!(filter.pass(&second, LinkId::Replication), Err(Cause::Replayed), "it was sent on the other link");
        assert!(filter.pass(&second, LINK).is_ok());
        assert_eq!(filter.pass(&first, LINK), Err(Cause::Replayed), "late");
        let key = filter.key;
        filter.set_key(key);
        assert_eq!(filter.pass(&second, LINK), Err(Cause::Replayed), "the same session");
    }
}
