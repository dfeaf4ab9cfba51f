//! What holds for the VM, in words for operators: not what was decided last, but whether the next failure is
//! survived.

use ft_proto::{LinkId, State, Time};
use ft_transport::heartbeats::Heartbeats;
use pollux_api::status::{
    self as api, CompressionStatus, LinkStatus, Peer, Replica, Role, SearchStatus, Status, WitnessStatus,
};

use super::Context;
use crate::claims::Pending;
use crate::clock::millis;
use crate::platform::Platform;
use crate::status::{link_name, link_state};

/// What a status shows that others know.
#[derive(Debug)]
pub(crate) struct Shown {
    /// Of the session that is open.
    pub(crate) peer: Option<Peer>,
    pub(crate) compression: Option<CompressionStatus>,
    pub(crate) search: Option<SearchStatus>,
    /// Whether an operator has suspended protection.
    pub(crate) suspended: bool,
}

impl<P: Platform> Context<P> {
    /// Makes the status on the board current.
    pub(crate) fn publish(&mut self, shown: Shown) {
        let now = self.now();
        let Shown { peer, compression, search, suspended } = shown;
        let memory_sync = self.reporter.memory_sync().filter(|_| peer.is_some());
        let links = match &peer {
            None => Vec::new(),
            Some(_) => LinkId::ALL.iter().map(|link| self.link_status(*link, now)).collect(),
        };
        let policy = self.node.settings().on_partition.map(|policy| {
            let name = format!("none: {policy:?} continues").to_lowercase();
            WitnessStatus { name, answered: None, error: None, record: None }
        });
        let status = Status {
            role: self.role_name(),
            state: self.state_name(suspended),
            replica: self.replica_name(),
            term: self.node.term().0,
            epoch: self.node.epoch().0,
            vm: self.identity.vm().map(|vm| vm.to_string()),
            node: self.node.id().to_string(),
            peer,
            links,
            witness: self.witness.status().or(policy),
            claim: self.open_claim().map(|claim| claim.status(now)),
            ignored_beats: self.beats.ignored().sum(),
            compression,
            search,
            memory_sync,
            disks: self.machine.devices().copies(),
            ..Status::default()
        };
        self.reporter.publish(status, now);
    }

    fn link_status(&self, link: LinkId, now: Time) -> LinkStatus {
        let (light, silence) = self.node.link(link, now);
        LinkStatus { name: link_name(link), state: link_state(light), silence_ms: millis(silence) }
    }

    fn role_name(&self) -> Role {
        match self.node.state() {
            State::Solo => Role::Solo,
            State::Syncing | State::Protected => Role::Primary,
            State::StandbyEmpty | State::StandbySyncing | State::StandbyReady => Role::Standby,
            State::Fenced => Role::None,
        }
    }

    /// `suspended`: by an operator, for a while.
    pub(crate) fn state_name(&mut self, suspended: bool) -> api::State {
        let has_been_more = self.reporter.has_taken_over() || self.reporter.measured().epochs() > 0;
        match self.node.state() {
            State::Solo if suspended => api::State::Suspended,
            State::Solo if has_been_more => api::State::Solo,
            State::Solo => api::State::Unprotected,
            State::Syncing => api::State::Syncing,
            // It is about to leave its standby, and may not let anything out before the witness says so.
            State::Protected if !self.node.can_fail_over() && self.open_claim().is_some() => {
                api::State::AwaitingWitness
            }
            State::Protected if !self.node.can_fail_over() => api::State::Leaving,
            // Whichever host fails next, the other one would ask in vain: nobody answers, or there is no
            // record that names it.
            State::Protected if self.witness.is_lost() || self.open_claim().is_some() => api::State::Degraded,
            State::Protected => api::State::Protected,
            State::StandbyEmpty => api::State::StandbyEmpty,
            State::StandbySyncing => api::State::StandbySyncing,
            State::StandbyReady if self.node.awaits_witness() && self.open_claim().is_some() => {
                api::State::AwaitingWitness
            }
            State::StandbyReady => api::State::StandbyReady,
            State::Fenced => api::State::Fenced,
        }
    }

    fn replica_name(&self) -> Replica {
        match self.node.state() {
            State::Syncing | State::StandbySyncing => Replica::Copying,
            State::Protected if self.node.can_fail_over() => Replica::InSync,
            State::StandbyReady => Replica::InSync,
            // One that is being left may be dead or behind.
            State::Protected | State::Solo | State::StandbyEmpty | State::Fenced => Replica::None,
        }
    }

    /// The claim that the node still waits for.
    fn open_claim(&self) -> Option<&Pending> {
        let in_session = matches!(self.node.state(), State::Syncing | State::Protected | State::StandbyReady);
        self.witness.claim().filter(|_| in_session)
    }
}
