//! What must hold in every state, and what must be possible, so that the rest proves something.

use ft_proto::State;
use ft_proto::witness::{Claim, Record};
use stateright::Property;

use crate::state::{LateClaims, Sys, System};

/// What must be possible.
#[derive(Clone, Copy, Debug)]
pub struct Possible;

impl Possible {
    /// A standby takes over.
    pub const TAKEOVER: &str = "a standby takes over";
    /// A protected primary goes on alone.
    pub const ALONE: &str = "a protected primary goes on alone";
    /// A pair is protected again after a takeover.
    pub const AGAIN: &str = "a pair is protected again after a takeover";
    /// A standby commits epochs while it does not know whether it was given the VM.
    pub const WITHDRAWING: &str = "a standby withdraws a claim";
    /// A primary is fenced.
    pub const FENCED: &str = "a primary is fenced";
    /// The host that ran the VM last starts it again.
    pub const STARTED: &str = "the host that ran the VM last starts it again";
    /// A standby's starts it, having waited for the other one.
    pub const WAITED: &str = "a standby's host starts the VM, having waited for the other one";
    /// A lost record is written again.
    pub const RESTORED: &str = "a lost record is written again";
}

/// All properties.
pub(crate) fn all() -> Vec<Property<System>> {
    vec![
        Property::always("nothing was let out that a takeover does not know", |_, sys: &Sys| {
            sys.told.iter().all(|told| told.taken.is_none_or(|taken| told.released <= taken))
        }),
        Property::always("one node at most runs in a term", |_, sys: &Sys| {
            let terms =
                sys.hosts.each_ref().map(|host| host.node.as_ref().filter(|node| node.runs()).map(|n| n.term()));
            terms[0].is_none() || terms[0] != terms[1]
        }),
        Property::always("one node at most lets output out by itself", |_, sys: &Sys| {
            sys.hosts.iter().filter(|host| !host.holds && host.node.as_ref().is_some_and(|node| node.runs())).count()
                < 2
        }),
        Property::always("whom the witness gave the VM runs it, or is about to", |_, sys: &Sys| match sys.record {
            Some(Record::Solo { owner, .. }) => state(sys, owner)
                .is_none_or(|state| !matches!(state, State::Fenced | State::StandbyEmpty | State::StandbySyncing)),
            _ => true,
        }),
        Property::always("a standby that was given the VM asks until it knows", |_, sys: &Sys| match sys.record {
            Some(Record::Solo { owner, .. }) if sys.late_claims == LateClaims::Compared => {
                let node = sys.host_of(owner).and_then(|at| sys.hosts[at].node.as_ref());
                node.is_none_or(|node| node.runs() || node.state() == State::Fenced || node.awaits_witness())
            }
            _ => true,
        }),
        Property::always("a standby on record has its copy while its primary is gone", |_, sys: &Sys| {
            match sys.record {
                Some(Record::Protected { primary, in_sync, .. }) if sys.host_of(primary).is_none() => {
                    in_sync.iter().all(|standby| state(sys, standby).is_none_or(|state| state == State::StandbyReady))
                }
                _ => true,
            }
        }),
        Property::always("no host starts the VM by itself that another one has run since", |_, sys: &Sys| {
            !sys.started.stale
        }),
        Property::sometimes(Possible::STARTED, |_, sys: &Sys| sys.started.last),
        Property::sometimes(Possible::WAITED, |_, sys: &Sys| sys.started.waited),
        Property::sometimes(Possible::RESTORED, |_, sys: &Sys| sys.restored),
        Property::sometimes(Possible::TAKEOVER, |_, sys: &Sys| sys.told.iter().any(|told| told.taken.is_some())),
        Property::sometimes(Possible::ALONE, |_, sys: &Sys| {
            sys.told.iter().any(|told| told.protected && told.released == u64::MAX)
        }),
        Property::sometimes(Possible::AGAIN, |_, sys: &Sys| {
            let mut told = sys.told.iter();
            told.any(|told| told.taken.is_some()) && told.any(|told| told.protected)
        }),
        Property::sometimes(Possible::WITHDRAWING, |_, sys: &Sys| {
            sys.asks.iter().any(|(_, claim)| matches!(claim, Claim::Withdraw { .. }))
        }),
        Property::sometimes(Possible::FENCED, |_, sys: &Sys| {
            sys.hosts.iter().any(|host| host.node.as_ref().is_some_and(|node| node.state() == State::Fenced))
        }),
    ]
}

fn state(sys: &Sys, id: ft_proto::NodeId) -> Option<State> {
    sys.hosts[sys.host_of(id)?].node.as_ref().map(|node| node.state())
}
