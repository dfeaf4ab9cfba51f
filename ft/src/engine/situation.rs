//! What holds for the VM, in words for operators: not what was decided last, but whether the next failure is survived.

use ft_proto::State;

use crate::claims::Pending;
use crate::engine::Engine;
use crate::witness::Asker;

impl Engine {
    pub(crate) fn role_name(&self) -> &'static str {
        match self.node.state() {
            State::Solo => "solo",
            State::Syncing | State::Protected => "primary",
            State::StandbyEmpty | State::StandbySyncing | State::StandbyReady => "standby",
            State::Fenced => "none",
        }
    }

    pub(crate) fn state_name(&self) -> &'static str {
        match self.node.state() {
            State::Solo if self.is_suspended() => "suspended",
            State::Solo if self.takeover.is_some() || self.measured.epochs > 0 => "solo",
            State::Solo => "unprotected",
            State::Syncing => "syncing",
            // It is about to leave its standby, and may not let anything out before the witness says so.
            State::Protected if !self.node.has_a_successor() && self.open_claim().is_some() => "awaiting-witness",
            State::Protected if !self.node.has_a_successor() => "leaving",
            // Whichever host fails next, the other one would ask in vain: nobody answers, or there is no record that names it.
            State::Protected if self.witness_is_lost() || self.open_claim().is_some() => "degraded",
            State::Protected => "protected",
            State::StandbyEmpty => "standby-empty",
            State::StandbySyncing => "standby-syncing",
            State::StandbyReady if self.node.awaits_witness() && self.open_claim().is_some() => "awaiting-witness",
            State::StandbyReady => "standby-ready",
            State::Fenced => "fenced",
        }
    }

    pub(crate) fn replica_name(&self) -> &'static str {
        match self.node.state() {
            State::Syncing | State::StandbySyncing => "copying",
            State::Protected if self.node.has_a_successor() => "in-sync",
            State::StandbyReady => "in-sync",
            // One that is being left may be dead or behind.
            State::Protected | State::Solo | State::StandbyEmpty | State::Fenced => "none",
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
