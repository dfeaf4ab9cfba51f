//! A heartbeat: one datagram of fixed form, which counts only within a session.
//!
//! Anybody can send one. So a beat must name the VM, the session, the session's secret number (which crosses
//! the network in its greeting only) and the peer that this node has the session with.

use ft_proto::{Beat, HostId, NodeId, Term, VmId};
use twox_hash::XxHash3_64;
use zerocopy::little_endian::{U16, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a beat.
pub const LEN: usize = size_of::<Datagram>();

const MAGIC: [u8; 4] = *b"PLXB";
const VERSION: u16 = 2;

/// What the beats of a session carry, and those of its peer must.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BeatKey {
    /// The VM that it protects.
    pub vm: VmId,
    /// The session.
    pub session: u64,
    /// Drawn for it at random, and told to the peer only.
    pub nonce: u128,
    /// This node.
    pub me: NodeId,
    /// The other one.
    pub peer: NodeId,
}

/// Why a datagram is not a beat of the peer's in this session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cause {
    /// Not a beat of this version: another length, magic, version or hash.
    Malformed,
    /// There is no session.
    Unexpected,
    /// It is of another VM.
    OtherVm,
    /// It is of another session, or made up.
    OtherSession,
    /// It is of another node than the peer.
    OtherNode,
}

impl Cause {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Malformed, Self::Unexpected, Self::OtherVm, Self::OtherSession, Self::OtherNode];

    /// What is wrong with such a datagram, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unexpected => "without a session",
            Self::OtherVm => "of another VM",
            Self::OtherSession => "of another session",
            Self::OtherNode => "of another node",
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
    /// 0.
    reserved: u8,
    vm: U128,
    session: U64,
    nonce: U128,
    /// Who sends it.
    host: [u8; HostId::LEN],
    incarnation: U64,
    term: U64,
    /// XXH3 of what comes before it.
    hash: U64,
}

/// Bytes before the hash.
const HASHED: usize = LEN - size_of::<U64>();

fn host_bytes(host: HostId) -> [u8; HostId::LEN] {
    let mut bytes = [0; HostId::LEN];
    let name = host.as_str().as_bytes();
    bytes[..name.len()].copy_from_slice(name);
    bytes
}

/// The beat of `key`'s own node.
#[must_use]
pub fn encode(key: &BeatKey, term: Term, runs: bool) -> [u8; LEN] {
    let mut datagram = Datagram {
        magic: MAGIC,
        version: VERSION.into(),
        runs: runs.into(),
        reserved: 0,
        vm: key.vm.0.into(),
        session: key.session.into(),
        nonce: key.nonce.into(),
        host: host_bytes(key.me.host),
        incarnation: key.me.incarnation.into(),
        term: term.0.into(),
        hash: U64::ZERO,
    };
    datagram.hash = XxHash3_64::oneshot(&datagram.as_bytes()[..HASHED]).into();
    zerocopy::transmute!(datagram)
}

/// The beat of a datagram that is the peer's in this session.
///
/// # Errors
/// When it is not.
pub fn decode(bytes: &[u8], key: Option<&BeatKey>) -> Result<Beat, Cause> {
    // The cheap questions first: a flood must not cost a hash each.
    let datagram = Datagram::ref_from_bytes(bytes).map_err(|_| Cause::Malformed)?;
    if datagram.magic != MAGIC || datagram.version != VERSION {
        return Err(Cause::Malformed);
    }
    let key = key.ok_or(Cause::Unexpected)?;
    if datagram.vm != key.vm.0 {
        return Err(Cause::OtherVm);
    }
    if datagram.session != key.session || datagram.nonce != key.nonce {
        return Err(Cause::OtherSession);
    }
    if datagram.host != host_bytes(key.peer.host) || datagram.incarnation != key.peer.incarnation {
        return Err(Cause::OtherNode);
    }
    let term = Term(datagram.term.get());
    let whole = datagram.hash == XxHash3_64::oneshot(&bytes[..HASHED]);
    if !whole || datagram.runs > 1 || datagram.reserved != 0 || !term.is_plausible() {
        return Err(Cause::Malformed);
    }
    Ok(Beat { from: key.peer, term, runs: datagram.runs == 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId::numbered(1, 11);
    const PEER: NodeId = NodeId::numbered(2, 22);

    #[test]
    fn beats_come_back_and_noise_does_not() {
        let key = BeatKey { vm: VmId(7), session: 8, nonce: 1 << 100, me: ME, peer: PEER };
        let bytes = encode(&BeatKey { me: PEER, peer: ME, ..key }, Term(3), true);
        assert_eq!(decode(&bytes, Some(&key)), Ok(Beat { from: PEER, term: Term(3), runs: true }));
        assert_eq!(decode(&bytes, None), Err(Cause::Unexpected));
        for at in 0..bytes.len() {
            let mut wrong = bytes;
            wrong[at] ^= 1;
            assert!(decode(&wrong, Some(&key)).is_err(), "byte {at}");
            assert_eq!(decode(&bytes[..at], Some(&key)), Err(Cause::Malformed));
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(decode(&longer, Some(&key)), Err(Cause::Malformed));
    }
}
