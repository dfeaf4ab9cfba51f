//! Heartbeats: only one of the peer's in the session counts, and it says what the peer said.
//!
//! Input: a datagram; or a term and changes to the beat that says it.

use ft_proto::{LinkId, Term, VmId};
use ft_wire::beat::{BeatFilter, BeatKey, encode};
use ft_wire::nonce::Nonce;

use crate::bytes::Bytes;

/// What seeds are sent on, and which number they have.
pub(crate) const LINK: LinkId = LinkId::Heartbeat;
pub(crate) const NUMBER: u64 = 5;

/// The session that this end is in.
pub(crate) fn key() -> BeatKey {
    let (me, peer) = ("b/0000000000000002".parse().unwrap(), "a/0000000000000001".parse().unwrap());
    BeatKey { vm: VmId(7), session: 9, nonce: Nonce::new(11), me, peer }
}

/// The same session at the other end.
pub(crate) fn theirs() -> BeatKey {
    let BeatKey { me, peer, .. } = key();
    BeatKey { me: peer, peer: me, ..key() }
}

/// Receives the datagram.
pub fn run(input: &[u8]) {
    assert!(BeatFilter::default().pass(input, LINK).is_err(), "a beat without a session");
    let mut filter = BeatFilter::default();
    filter.set_key(Some(key()));
    // Nothing made of noise has the right tag, unless it is a seed.
    if let Ok(beat) = filter.clone().pass(input, LINK) {
        assert_eq!(encode(&theirs(), LINK, NUMBER, beat.term, beat.runs), input, "a beat that the peer cannot have sent");
    }
    let mut bytes = Bytes::new(input);
    let (runs, term) = (bytes.u8() & 1 == 1, Term(bytes.u64()));
    let sent = encode(&theirs(), LINK, NUMBER, term, runs);
    let beat = filter.clone().pass(&sent, LINK).ok();
    assert_eq!(beat.map(|beat| (beat.term, beat.runs)), term.is_plausible().then_some((term, runs)));
    let mut changed = sent;
    while !bytes.is_empty() {
        let at = usize::from(bytes.u8()) % changed.len();
        changed[at] = bytes.u8();
    }
    if changed != sent {
        assert!(filter.pass(&changed, LINK).is_err(), "a beat that was changed on the way");
    }
}
