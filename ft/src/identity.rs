//! Names that last: a host's, a VM's, a session's, and what is drawn at random where nobody may guess or
//! repeat it.

use std::fs;

use ft_proto::{HostId, NodeId, VmId};
use ft_wire::nonce::Nonce;
use ft_wire::session::TookOver;
use twox_hash::XxHash3_64;

use ft_wire::beat::BeatKey;

/// Where systemd, and D-Bus before it, keep what tells one machine from another.
const MACHINE_IDS: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];

/// What this node is to others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    /// The VM; `None`: a standby whose disks are of none, until a primary says.
    vm: Option<VmId>,
    /// The VM has never been on record at a witness.
    first: bool,
    /// The session that is open, or was the last one.
    session: Option<SessionKey>,
    /// How this node came to run the VM, for whoever becomes its standby.
    took_over: Option<TookOver>,
}

impl Identity {
    /// `first`: the VM has never been on record at a witness.
    pub(crate) fn new(vm: Option<VmId>, first: bool) -> Self {
        Self { vm, first, session: None, took_over: None }
    }

    /// The VM, if it is known.
    pub(crate) fn vm(&self) -> Option<VmId> {
        self.vm
    }

    /// Whether the VM has never been on record at a witness.
    pub(crate) fn is_first(&self) -> bool {
        self.first
    }

    /// The VM is on record.
    pub(crate) fn registered(&mut self) {
        self.first = false;
    }

    /// The session that is open, or was the last one.
    pub(crate) fn session(&self) -> Option<SessionKey> {
        self.session
    }

    /// A session begins.
    pub(crate) fn begin(&mut self, session: SessionKey) {
        self.session = Some(session);
    }

    /// A session begins, with the primary of this VM.
    pub(crate) fn join(&mut self, vm: Option<VmId>, session: SessionKey) {
        (self.vm, self.session) = (vm, Some(session));
    }

    /// How this node came to run the VM, if it took over.
    pub(crate) fn took_over(&self) -> Option<TookOver> {
        self.took_over
    }

    /// This node has taken over.
    pub(crate) fn takes_over(&mut self, how: TookOver) {
        self.took_over = Some(how);
    }

    /// What the beats of the session with `peer` carry.
    pub(crate) fn beats(&self, me: NodeId, peer: NodeId) -> Option<BeatKey> {
        let SessionKey { session, nonce } = self.session?;
        Some(BeatKey { vm: self.vm?, session, nonce, me, peer })
    }

    /// By what the other end of the last session knows this one.
    pub(crate) fn proof(&self) -> Nonce {
        self.session.map_or(Nonce::NONE, |key| key.nonce)
    }
}

/// What names a session, and proves that one belongs to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SessionKey {
    /// Its number.
    pub session: u64,
    /// Known to its two ends only.
    pub nonce: Nonce,
}

impl SessionKey {
    /// That of a session which begins.
    pub(crate) fn draw() -> Self {
        Self { session: random_u64(), nonce: Nonce::new(random_u128().max(1)) }
    }

    /// Whether it is the key of this session, with this secret.
    pub(crate) fn is(self, session: u64, nonce: Nonce) -> bool {
        (self.session, self.nonce) == (session, nonce)
    }
}

/// The name that this machine has as a host of a VM, if an operator gives it none: the same at every start.
/// `what` tells several VMs, and several hosts on one machine, apart: the paths of the VM's disks, or where
/// it listens.
#[must_use]
pub fn default_host(what: &str) -> HostId {
    let machine = MACHINE_IDS.iter().find_map(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    let hash = XxHash3_64::oneshot(format!("{}\0{what}", machine.trim()).as_bytes());
    format!("{hash:016x}").parse().unwrap_or(HostId::numbered(hash))
}

/// A host that nobody will have to recognise.
#[must_use]
pub(crate) fn unnamed_host() -> HostId {
    HostId::numbered(random_u64())
}

/// A VM that has just come into being.
#[must_use]
pub fn new_vm() -> VmId {
    VmId(random_u128())
}

/// A new incarnation of `host`, which no other process has, also not this one's next.
#[must_use]
pub fn incarnation_of(host: HostId) -> NodeId {
    NodeId { host, incarnation: random_u64() }
}

/// Nobody who has not been told guesses it.
pub(crate) fn random_u128() -> u128 {
    u128::from_le_bytes(random())
}

pub(crate) fn random_u64() -> u64 {
    u64::from_le_bytes(random())
}

fn random<const N: usize>() -> [u8; N] {
    host_kit::random::bytes().expect("Linux always has random numbers once it has booted")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_keeps_its_name_and_two_on_one_machine_have_two() {
        assert_eq!(default_host("/a.img"), default_host("/a.img"));
        assert_ne!(default_host("/a.img"), default_host("/b.img"));
        let host = default_host("/a.img");
        assert_ne!(incarnation_of(host), incarnation_of(host));
        assert_eq!(incarnation_of(host).host, host);
    }
}
