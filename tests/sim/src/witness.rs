//! The model witness: the real judgement, behind a network that is slow, loses questions, and loses answers
//! after the claim has taken effect.

use std::time::Duration;

use ft_proto::witness::{Claim, Record, Verdict, grant_unchecked, judge};
use ft_proto::{State, Term};

use crate::body::{Question, Said};
use crate::mutation::Mutation;
use crate::plan::Fault;
use crate::process::{Address, Asker, Asks};
use crate::witness_record::Witness;
use crate::world::{Event, World};

/// After this time a question counts as unanswered.
const PATIENCE: Duration = Duration::from_millis(250);

impl World {
    /// Queues a question with a thread that asks one after the other.
    pub(crate) fn ask_witness(&mut self, from: Address, question: Question, asks: Asks) {
        let starter = matches!(asks, Asks::Starter);
        let Some(thread) = self.asker(from, starter) else { return };
        thread.questions.push_back((question, asks));
        if thread.questions.len() == 1 {
            self.ask_next(from, starter);
        }
    }

    fn asker(&mut self, of: Address, starter: bool) -> Option<&mut Asker> {
        let process = self.process(of)?;
        Some(if starter { &mut process.starter } else { &mut process.asker })
    }

    pub(crate) fn witness_reachable(&self, host: usize) -> bool {
        self.witness.down_until <= self.now && self.hosts[host].witness_cut_until <= self.now
    }

    fn ask_next(&mut self, from: Address, starter: bool) {
        let Some(Asker { questions, token }) = self.asker(from, starter) else { return };
        let Some(&(question, _)) = questions.front() else { return };
        *token += 1;
        let token = *token;
        self.after(PATIENCE, Event::WitnessAnswers { to: from, starter, token, said: None });
        let (low, high) = self.plan.witness_delay_us;
        let mut delay = self.rng.micros(low, high);
        if !self.witness_reachable(from.0) || self.rng.chance(self.plan.witness_loses) {
            // Most of what is lost stays lost; some of it arrives when nobody waits for it any more.
            if !self.rng.chance(200_000) {
                return;
            }
            delay += self.rng.micros(100_000, 900_000);
        }
        self.after(delay, Event::WitnessJudges { from, starter, token, question });
    }

    /// What the witness makes of a claim.
    pub(crate) fn judged(&self, claim: Claim) -> Verdict {
        let record = self.witness.record;
        let granted = |owner, term: Term| Verdict::Granted(Record::Solo { owner, term, since: term });
        match (self.mutation, claim, record) {
            (Some(Mutation::WitnessGrantsAll), claim, _) => Verdict::Granted(grant_unchecked(claim)),
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
        let Witness { record, last, .. } = self.witness;
        match claim {
            Claim::Start { node, .. } => self.process(from).is_none_or(|process| process.starting != Some(node)),
            Claim::Own { first: true, .. } => {
                matches!((record, last), (None, Some(_)) | (Some(Record::Stopped { .. }), _))
            }
            // Of somebody who has ended, and of a record that was written since and is lost again.
            Claim::Restore { term, .. } => last.is_some_and(|last| last.term() > term) && self.process(from).is_none(),
            _ => false,
        }
    }

    /// A host that runs the VM looks at the record now and then.
    pub(crate) fn watch(&mut self, host: usize) {
        let again = self.rng.micros(20_000, 100_000);
        self.after(again, Event::Watch(host));
        let address = self.address(host);
        let Some(process) = self.process(address) else { return };
        let concerned = matches!(process.state(), State::Solo | State::Protected);
        if concerned && self.policy().is_none() && self.witness_reachable(host) {
            let (low, high) = self.plan.witness_delay_us;
            let delay = self.rng.micros(low, high);
            self.after(delay, Event::Record(address, self.witness.record));
        }
    }

    /// The claim takes effect, whether its sender still lives or not.
    pub(crate) fn witness_judges(&mut self, from: Address, starter: bool, token: u64, question: Question) {
        if self.witness.down_until > self.now {
            let later = self.witness.down_until;
            return self.at(later, Event::WitnessJudges { from, starter, token, question });
        }
        let Question::Claim(claim) = question else {
            return self.witness_says(from, starter, token, Said::Record(self.witness.record));
        };
        if self.is_outdated(from, claim) {
            return;
        }
        let verdict = self.judged(claim);
        if let Verdict::Granted(record) = verdict {
            self.restores += u64::from(self.witness.record.is_none() && matches!(claim, Claim::Restore { .. }));
            self.witness.write(record);
        }
        self.trace.line(self.now, || format!("W {claim:?} -> {verdict:?}"));
        self.witness_says(from, starter, token, Said::Verdict(verdict));
        // A record is never missed more than just after it has changed hands.
        let taken = matches!((claim, verdict), (Claim::TakeOver { .. }, Verdict::Granted(_)));
        let loses = self.healed_at.is_none() && self.plan.faults.contains(&Fault::LoseRecord);
        if taken && loses && self.rng.chance(800_000) {
            self.lose_record();
        }
    }

    fn witness_says(&mut self, to: Address, starter: bool, token: u64, said: Said) {
        if self.witness_reachable(to.0) && !self.rng.chance(self.plan.witness_loses) {
            let (low, high) = self.plan.witness_delay_us;
            let delay = self.rng.micros(low, high);
            self.after(delay, Event::WitnessAnswers { to, starter, token, said: Some(said) });
        }
    }

    /// The answer, or the end of patience.
    pub(crate) fn witness_answers(&mut self, to: Address, starter: bool, token: u64, said: Option<Said>) {
        let forget = self.mutation == Some(Mutation::ForgetClaims) && said.is_none();
        let Some(thread) = self.asker(to, starter).filter(|thread| thread.token == token) else { return };
        let Some((question, asks)) = thread.questions.pop_front() else { return };
        thread.token += 1;
        let told = said.ok_or_else(|| "no answer".to_owned());
        let ask_next = !forget || !matches!(question, Question::Claim(_));
        match asks {
            _ if !ask_next => {}
            Asks::Starter => {
                if let Question::Claim(claim) = question {
                    self.may_start(to, Said::to(claim, told));
                }
            }
            Asks::Engine(answer) => {
                self.with_body(to, |body| body.answered = Some(told.is_ok()));
                answer(told);
                self.go_on_opening(to);
                self.work(to);
            }
        }
        self.ask_next(to, starter);
    }
}
