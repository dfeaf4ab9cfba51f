//! Makes states equal that can never be told apart again: what is on its way to somebody who would not listen
//! is forgotten, and what may arrive in any order has none.

use std::hash::{DefaultHasher, Hash, Hasher};

use ft_proto::witness::{Claim, DiskState};
use ft_proto::{NodeId, State, Term, WitnessAnswer};

use crate::state::{LateClaims, Msg, Sys};

impl Sys {
    /// The representative of all states that are the same but for what nobody will ever see.
    pub(crate) fn reduced(mut self) -> Self {
        let answers = std::mem::take(&mut self.answers);
        self.answers = answers.into_iter().filter(|(id, answer)| self.listens(*id, answer)).collect();
        if self.late_claims == LateClaims::Judged {
            // It changes nothing, so all that counts is its answer.
            let asks = std::mem::take(&mut self.asks);
            let counts = |(id, claim): &(NodeId, Claim)| {
                !matches!(claim, Claim::Withdraw { .. }) || self.may_wait_for(*id, *claim) || self.flaw.is_some()
            };
            self.asks = asks.into_iter().filter(counts).collect();
            if self.flaw.is_none() {
                self.late.retain(|claim| !matches!(claim, Claim::Withdraw { .. }));
            }
            self.asks.sort_by_cached_key(digest);
            self.answers.sort_by_cached_key(digest);
        } else {
            self.asks.sort_by_key(|(id, _)| *id);
            self.answers.sort_by_key(|(id, _)| *id);
        }
        if self.record.is_none() {
            // Nothing is granted, and everything is asked for again: one question of a kind is as good as
            // many.
            self.asks.dedup();
            self.answers.dedup();
        }
        self.late.sort_by_cached_key(digest);
        let reads = std::mem::take(&mut self.reads);
        self.reads = reads.into_iter().filter(|(id, _)| self.host_of(*id).is_some()).collect();
        self.forget_stream();
        if self.left.starts == 0 && self.starts_under_way().next().is_none() {
            self.hosts.iter_mut().for_each(|host| host.disk = DiskState::None);
            self.runner = 0;
        }
        self
    }

    fn listens(&self, id: NodeId, answer: &WitnessAnswer) -> bool {
        match answer.claim() {
            Claim::Own { .. } | Claim::Start { .. } => self.host_of(id).is_some(),
            claim => self.may_wait_for(id, claim),
        }
    }

    /// Whether a node waits, or could come to wait, for the answer to a claim of a session.
    fn may_wait_for(&self, id: NodeId, claim: Claim) -> bool {
        let node = self.host_of(id).and_then(|at| self.hosts[at].node.as_ref());
        node.is_some_and(|node| match node.state() {
            State::Solo | State::StandbyEmpty | State::Fenced => false,
            // A claim of an earlier session names an earlier term.
            State::StandbySyncing | State::StandbyReady => claim.term() >= node.term(),
            State::Syncing | State::Protected => claim.term() == node.term(),
        })
    }

    /// The ends of a stream that are not read any more have nothing in them.
    fn forget_stream(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        let node = |at: usize, id: NodeId| self.hosts[at].node.as_ref().filter(|node| node.id() == id);
        let (at, id) = stream.primary;
        let primary = node(at, id).is_some_and(|node| match node.state() {
            State::Solo => stream.up.first() == Some(&Msg::Welcome),
            state => matches!(state, State::Syncing | State::Protected) && node.term() == stream.term,
        });
        let standby = node(1 - at, stream.standby).is_some_and(|node| {
            matches!(node.state(), State::StandbySyncing | State::StandbyReady) && node.term() == stream.term
        });
        if !primary {
            (stream.up_open, stream.up) = (false, Vec::new());
        }
        if !standby {
            (stream.down_open, stream.down) = (false, Vec::new());
        }
        if !primary && !standby {
            self.stream = None;
        }
    }

    /// Terms that a forged beat could name to a node: its own, the next one, and one that is far off.
    pub(crate) fn forged_terms(term: Term) -> [Term; 4] {
        [Term(term.0.saturating_sub(1)), term, term.next(), Term(term.0 + 1000)]
    }
}

fn digest<T: Hash>(value: &T) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
