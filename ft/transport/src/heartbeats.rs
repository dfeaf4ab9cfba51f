//! Heartbeats as the engine's thread uses them: what they say, to whom, and of which session they are.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::time::Duration;

use ft_proto::{Beat, LinkId, Time};
use ft_wire::beat::BeatKey;

/// Datagrams that were dropped, by cause.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Ignored {
    /// Not a beat of this version.
    pub malformed: u64,
    /// While there was no session.
    pub unexpected: u64,
    /// Of another VM.
    pub other_vm: u64,
    /// Of another session.
    pub other_session: u64,
    /// Of another node than the peer.
    pub other_node: u64,
    /// By somebody who does not know the session's secret.
    pub forged: u64,
    /// Sent before.
    pub replayed: u64,
}

impl Ignored {
    /// All of them.
    #[must_use]
    pub fn sum(&self) -> u64 {
        let Self { malformed, unexpected, other_vm, other_session, other_node, forged, replayed } = self;
        malformed + unexpected + other_vm + other_session + other_node + forged + replayed
    }
}

/// Sends heartbeats, and has the executor told of those that arrive.
pub trait Heartbeats: Debug + Send {
    /// Where beats go out and come in; by default nowhere.
    type Sockets: Debug + Default + Send;

    /// A session begins: its beats count from now on, and no others. `None`: none do.
    fn key(&self, key: Option<BeatKey>);

    /// Beats through these sockets from now on; a link without a peer address only listens.
    fn route(&self, sockets: Self::Sockets, interval: Option<Duration>);

    /// Changes where the beats go to, and how often; the sockets stay.
    fn aim(&self, peers: [SocketAddr; LinkId::ALL.len()], interval: Option<Duration>);

    /// What the beats say from now on; also the engine's sign of life.
    fn say(&self, beat: Beat, now: Time);

    /// What was dropped so far.
    fn ignored(&self) -> Ignored;
}
