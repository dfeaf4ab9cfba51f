//! The witness: what it makes of claims, when they take effect, and how its record is read.

use ft_proto::witness::{Claim, Record, Replicas, Verdict, judge};
use ft_proto::{Input, NodeId, State, WitnessAnswer};

use crate::state::{Flaw, LateClaims, Sys};

impl Sys {
    /// What the witness makes of a claim, with its flaw.
    pub(crate) fn judged(&self, claim: Claim) -> Verdict {
        match (self.flaw, claim, self.record) {
            (Some(Flaw::GrantsAll), claim, _) => Verdict::Granted(ft_proto::witness::grant_unchecked(claim)),
            (Some(Flaw::StartsOnAbsence), Claim::Start { node, .. }, None) => {
                let term = claim.term().next();
                Verdict::Granted(Record::Solo { owner: node, term, since: term })
            }
            (_, claim, record) => judge(record, claim),
        }
    }

    /// The witness judges.
    pub(crate) fn rule(&mut self, claim: Claim) -> Verdict {
        let verdict = self.judged(claim);
        if let Verdict::Granted(record) = verdict {
            let written = self.record != Some(record) || self.flaw != Some(Flaw::UnwrittenGrants);
            if written && self.late_claims == LateClaims::Compared {
                self.late.clear();
            }
            self.restored |= self.record.is_none() && matches!(claim, Claim::Restore { .. });
            self.record = Some(record);
        }
        verdict
    }

    pub(crate) fn judge(&mut self, at: usize, mute: bool) {
        let (node, claim) = self.asks.remove(at);
        let verdict = self.rule(claim);
        if mute {
            self.unanswered(node, claim);
        } else {
            self.answers.push((node, WitnessAnswer::Judged(claim, verdict)));
        }
    }

    pub(crate) fn unanswered(&mut self, node: NodeId, claim: Claim) {
        self.left.losses -= 1;
        self.answers.push((node, WitnessAnswer::Unreachable(claim, String::new())));
    }

    /// What the witness has on record is on its way to a host that runs the VM.
    pub(crate) fn look(&mut self, at: usize) {
        let Some(node) = &self.hosts[at].node else { return };
        self.left.looks -= 1;
        self.reads.push((node.id(), self.record));
    }

    /// It arrives.
    pub(crate) fn read(&mut self, at: usize) {
        let (id, record) = self.reads.remove(at);
        let Some(host) = self.host_of(id) else { return };
        let node = self.hosts[host].node.as_ref();
        if self.flaw == Some(Flaw::RestoresAtOnce)
            && record.is_none()
            && let Some(node) = node.filter(|node| node.state() == State::Protected)
            && let Some(standby) = node.peer()
        {
            self.asks.push((id, Claim::Restore { primary: id, in_sync: Replicas::one(standby), term: node.term() }));
        }
        self.input(host, Input::RecordRead { record });
    }
}
