//! Heartbeats: only one of the peer's in the session counts, and it says what the peer said.
//!
//! Input: a datagram; or a term and changes to the beat that says it.

use ft_proto::{Term, VmId};
use ft_wire::beat::{BeatKey, decode, encode};

use crate::bytes::Bytes;

/// The session that this end is in.
pub(crate) fn key() -> BeatKey {
    let (me, peer) = ("b/0000000000000002".parse().unwrap(), "a/0000000000000001".parse().unwrap());
    BeatKey { vm: VmId(7), session: 9, nonce: 11, me, peer }
}

/// The same session at the other end.
pub(crate) fn theirs() -> BeatKey {
    let BeatKey { me, peer, .. } = key();
    BeatKey { me: peer, peer: me, ..key() }
}

/// Receives the datagram.
pub fn run(input: &[u8]) {
    assert!(decode(input, None).is_err(), "a beat without a session");
    if let Ok(beat) = decode(input, Some(&key())) {
        assert_eq!(encode(&theirs(), beat.term, beat.runs), input, "a beat that the peer cannot have sent");
    }
    let mut bytes = Bytes::new(input);
    let (runs, term) = (bytes.u8() & 1 == 1, Term(bytes.u64()));
    let sent = encode(&theirs(), term, runs);
    let beat = decode(&sent, Some(&key())).ok();
    assert_eq!(beat.map(|beat| (beat.term, beat.runs)), term.is_plausible().then_some((term, runs)));
    let mut changed = sent;
    while !bytes.is_empty() {
        let at = usize::from(bytes.u8()) % changed.len();
        changed[at] = bytes.u8();
    }
    if changed != sent {
        assert!(decode(&changed, Some(&key())).is_err(), "a beat that was changed on the way");
    }
}
