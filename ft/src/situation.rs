//! What holds for the VM, in words for operators: not what was decided last, but whether the next failure is survived.

use ft_proto::State;
use pollux_api::status::{self as api, Replica, Role};

use crate::claims::Pending;
use crate::engine::Engine;
use crate::witness::Asker;

impl Engine {
    pub(crate) fn role_name(&self) -> Role {
        match self.node.state() {
            State::Solo => Role::Solo,
            State::Syncing | State::Protected => Role::Primary,
            State::StandbyEmpty | State::StandbySyncing | State::StandbyReady => Role::Standby,
            State::Fenced => Role::None,
        }
    }

    pub(crate) fn state_name(&self) -> api::State {
        match self.node.state() {
            State::Solo if self.is_suspended() => api::State::Suspended,
            State::Solo if self.takeover.is_some() || self.measured.epochs > 0 => api::State::Solo,
            State::Solo => api::State::Unprotected,
            State::Syncing => api::State::Syncing,
            // It is about to leave its standby, and may not let anything out before the witness says so.
            State::Protected if !self.node.has_a_successor() && self.open_claim().is_some() => {
                api::State::AwaitingWitness
            }
            State::Protected if !self.node.has_a_successor() => api::State::Leaving,
            // Whichever host fails next, the other one would ask in vain: nobody answers, or there is no record that names it.
            State::Protected if self.witness_is_lost() || self.open_claim().is_some() => api::State::Degraded,
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

    pub(crate) fn replica_name(&self) -> Replica {
        match self.node.state() {
            State::Syncing | State::StandbySyncing => Replica::Copying,
            State::Protected if self.node.has_a_successor() => Replica::InSync,
            State::StandbyReady => Replica::InSync,
            // One that is being left may be dead or behind.
            State::Protected | State::Solo | State::StandbyEmpty | State::Fenced => Replica::None,
        }
    }

    /// The claim that the node still waits for.
    pub(crate) fn open_claim(&self) -> Option<&Pending> {
        let in_session = matches!(self.node.state(), State::Syncing | State::Protected | State::StandbyReady);
        self.claim.as_ref().filter(|_| in_session)
    }

    fn witness_is_lost(&self) -> bool {
        let silent = |witness: &Asker| witness.status().answered == Some(false);
        self.identity.record_lost || self.witness.as_ref().is_some_and(silent)
    }
}
