//! The model witness: the real judgement, behind a network that is slow, loses questions, and loses answers after the
//! claim has taken effect.

use std::time::Duration;

use ft_proto::witness::{Claim, Record, Verdict, judge, wish};
use ft_proto::{State, Term, WitnessAnswer};

use crate::mutation::Mutation;
use crate::plan::Fault;
use crate::process::{Address, Asker, Message};
use crate::world::{Event, World};

/// The connecting thread's place among the threads that ask.
pub(crate) const OPENER: u64 = 0;
/// The place of who asks whether the VM may start.
pub(crate) const STARTER: u64 = u64::MAX;
/// After this time a question counts as unanswered.
const PATIENCE: Duration = Duration::from_millis(250);

impl World {
    /// Queues a claim with a thread that asks one after the other.
    pub(crate) fn ask_witness(&mut self, from: Address, asker: u64, claim: Claim) {
        let Some(process) = self.process(from) else { return };
        let thread = process.askers.entry(asker).or_default();
        thread.claims.push_back(claim);
        if thread.claims.len() == 1 {
            self.ask_next(from, asker);
        }
    }

    pub(crate) fn witness_reachable(&self, host: usize) -> bool {
        self.witness.down_until <= self.now && self.hosts[host].witness_cut_until <= self.now
    }

    fn ask_next(&mut self, from: Address, asker: u64) {
        let Some(process) = self.process(from) else { return };
        let Some(Asker { claims, token }) = process.askers.get_mut(&asker) else { return };
        let Some(&claim) = claims.front() else { return };
        *token += 1;
        let token = *token;
        self.after(PATIENCE, Event::WitnessAnswers { to: from, asker, token, verdict: None });
        let (low, high) = self.plan.witness_delay_us;
        let mut delay = self.rng.micros(low, high);
        if !self.witness_reachable(from.0) || self.rng.chance(self.plan.witness_loses) {
            // Most of what is lost stays lost; some of it arrives when nobody waits for it any more.
            if !self.rng.chance(200_000) {
                return;
            }
            delay += self.rng.micros(100_000, 900_000);
        }
        self.after(delay, Event::WitnessJudges { from, asker, token, claim });
    }

    /// What the witness makes of a claim.
    pub(crate) fn judged(&self, claim: Claim) -> Verdict {
        let record = self.witness.record;
        let granted = |owner, term: Term| Verdict::Granted(Record::Solo { owner, term, since: term });
        match (self.mutation, claim, record) {
            (Some(Mutation::WitnessGrantsAll), claim, _) => Verdict::Granted(wish(claim)),
            (Some(Mutation::StartOnAbsence), Claim::Start { node, .. }, None) => granted(node, claim.term().next()),
            (
                Some(Mutation::HostNameOnly),
                Claim::Start { node, .. },
                Some(Record::Solo { owner: last, term, .. } | Record::Protected { primary: last, term, .. }),
            ) if node.host == last.host => granted(node, term.next()),
            (Some(Mutation::ForceForEver), Claim::Force { node, .. }, Some(record)) => {
                granted(node, record.term().next())
            }
            _ => judge(record, claim),
        }
    }

    /// Whether a claim was to follow a record, or none, that another one has followed since: keepers compare.
    fn is_outdated(&mut self, from: Address, claim: Claim) -> bool {
        match claim {
            Claim::Start { node, .. } => self.process(from).is_none_or(|process| process.starting != Some(node)),
            Claim::Own { first: true, .. } => self.witness.record.is_none() && self.witness.last.is_some(),
            _ => false,
        }
    }

    /// A host that runs the VM looks at the record now and then.
    pub(crate) fn watch(&mut self, host: usize) {
        let again = self.rng.micros(20_000, 100_000);
        self.after(again, Event::Watch(host));
        let address = self.address(host);
        let Some(process) = self.process(address) else { return };
        let concerned = matches!(process.node.state(), State::Solo | State::Protected);
        if concerned && self.witness_reachable(host) {
            let (low, high) = self.plan.witness_delay_us;
            let delay = self.rng.micros(low, high);
            self.after(delay, Event::Tell(address, Message::Record(self.witness.record)));
        }
    }

    /// The claim takes effect, whether its sender still lives or not.
    pub(crate) fn witness_judges(&mut self, from: Address, asker: u64, token: u64, claim: Claim) {
        if self.witness.down_until > self.now {
            let later = self.witness.down_until;
            return self.at(later, Event::WitnessJudges { from, asker, token, claim });
        }
        if self.is_outdated(from, claim) {
            return;
        }
        let verdict = self.judged(claim);
        if let Verdict::Granted(record) = verdict {
            self.restores += u64::from(self.witness.record.is_none() && matches!(claim, Claim::Restore { .. }));
            self.witness.write(record);
        }
        self.trace.line(self.now, || format!("W {claim:?} -> {verdict:?}"));
        if self.witness_reachable(from.0) && !self.rng.chance(self.plan.witness_loses) {
            let (low, high) = self.plan.witness_delay_us;
            let delay = self.rng.micros(low, high);
            self.after(delay, Event::WitnessAnswers { to: from, asker, token, verdict: Some(verdict) });
        }
        // A record is never missed more than just after it has changed hands.
        let taken = matches!((claim, verdict), (Claim::TakeOver { .. }, Verdict::Granted(_)));
        let loses = self.healed_at.is_none() && self.plan.faults.contains(&Fault::LoseRecord);
        if taken && loses && self.rng.chance(500_000) {
            self.lose_record();
        }
    }

    /// The answer, or the end of patience.
    pub(crate) fn witness_answers(&mut self, to: Address, asker: u64, token: u64, verdict: Option<Verdict>) {
        let forget = self.mutation == Some(Mutation::ForgetClaims) && verdict.is_none();
        let Some(process) = self.process(to) else { return };
        let Some(thread) = process.askers.get_mut(&asker).filter(|thread| thread.token == token) else { return };
        let Some(claim) = thread.claims.pop_front() else { return };
        thread.token += 1;
        let answer = match verdict {
            Some(verdict) => WitnessAnswer::Judged(claim, verdict),
            None => WitnessAnswer::Unreachable(claim, "no answer".to_owned()),
        };
        let message = match asker {
            OPENER => Message::Owned(answer),
            STARTER => Message::MayStart(answer),
            _ => Message::Witness(answer),
        };
        if !forget {
            self.tell(to, message);
        }
        self.ask_next(to, asker);
    }
}
