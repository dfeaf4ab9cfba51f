//! The witness's record of who may run the VM, and the only transitions it allows.
//!
//! The record is compare-and-swapped by whatever keeps it (a locked file, etcd); [`judge`] is the comparison. A change of
//! who runs makes a new term. Every claim is idempotent: asked again by the node that already won, it is granted again, so
//! an answer that got lost can be asked for.

use serde::{Deserialize, Serialize};

use crate::{NodeId, Term, VmId};

/// Who may run the VM.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Record {
    /// `primary` runs the VM, and either of the two may claim to be the only one.
    Protected {
        /// Who runs.
        primary: NodeId,
        /// Who may take over.
        standby: NodeId,
        /// The term.
        term: Term,
    },
    /// `owner` runs the VM and nobody may take over.
    Solo {
        /// Who runs.
        owner: NodeId,
        /// The term.
        term: Term,
        /// The term in which the VM was last given to somebody: since then nobody else can have run it.
        #[serde(default)]
        since: Term,
    },
    /// The VM was shut down; who has its newest disks may start it.
    Stopped {
        /// The last term.
        term: Term,
        /// The term that the newest disks say the VM was shut down in; 0: any disks will do.
        #[serde(default)]
        disks: Term,
    },
}

/// What a host's disks say, by their own records, about the last run of the VM from them.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Disks {
    /// The VM that they are of; `None`: no disk has that on record.
    pub vm: Option<VmId>,
    /// What for, and when.
    pub state: DiskState,
}

/// What disks were last used for. Of several disks of one VM the one that proves least counts.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskState {
    /// There is no disk that the guest writes through us.
    #[default]
    None,
    /// There is no record, and there is content: a new image, or one that was never protected.
    Fresh,
    /// There is no record, and the image is one hole: perhaps a new image, perhaps the place for a copy.
    Hole,
    /// The VM ran from them, and no other copy could be newer, since this term or one before.
    Alone(Term),
    /// The VM was shut down in good order in this term.
    Ended(Term),
    /// The VM ran from them with a standby in sync, in this term.
    Protected(Term),
    /// They are a copy of the VM that ran elsewhere in this term, whole as of some epoch.
    Copy(Term),
    /// Nothing can be started from them: a copy that is not whole, a damaged record, or disks that contradict each other.
    Unusable,
}

impl DiskState {
    /// The term of a run that ended or broke off on these disks; 0: they have seen none. `None`: no VM starts from them by
    /// their own word.
    #[must_use]
    pub fn ran(self) -> Option<Term> {
        match self {
            Self::None | Self::Fresh => Some(Term(0)),
            Self::Alone(term) | Self::Ended(term) | Self::Protected(term) => Some(term),
            Self::Hole | Self::Copy(_) | Self::Unusable => None,
        }
    }

    /// The term on record, whatever for.
    #[must_use]
    pub fn term(self) -> Term {
        match self {
            Self::Copy(term) => term,
            other => other.ran().unwrap_or_default(),
        }
    }
}

/// A transition that a node asks the witness for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub enum Claim {
    /// `node` runs the VM, unprotected, and wants a term after `term` on record before it looks for a standby: each
    /// session has a term of its own, so that what a former standby still holds, or asks for, is plainly of the past.
    Own {
        /// Who asks.
        node: NodeId,
        /// Its term.
        term: Term,
        /// The VM has never been on record: it may be from now on. Otherwise a record that is missing is one that was lost.
        first: bool,
    },
    /// `node` has just come up and wants to boot the VM.
    Start {
        /// Who asks.
        node: NodeId,
        /// What its disks have on record.
        disks: DiskState,
        /// It has waited for the host that has the newest disks for as long as an operator wants it to.
        waited: bool,
    },
    /// `standby` holds a complete checkpoint: from now on it may take over.
    Register {
        /// Who asks.
        primary: NodeId,
        /// Who may take over.
        standby: NodeId,
        /// Their term.
        term: Term,
    },
    /// The record was lost while these two were in touch: the standby has acknowledged an epoch that was cut after that was
    /// noticed, so it had not taken over before, and cannot have since.
    Restore {
        /// Who asks.
        primary: NodeId,
        /// Who may take over.
        standby: NodeId,
        /// Their term.
        term: Term,
    },
    /// The primary goes on without its standby.
    GoAlone {
        /// Who asks.
        primary: NodeId,
        /// Who loses its right.
        standby: NodeId,
        /// Their term.
        term: Term,
    },
    /// The standby takes over.
    TakeOver {
        /// Who loses its right.
        primary: NodeId,
        /// Who asks.
        standby: NodeId,
        /// Their term.
        term: Term,
    },
    /// An operator says that every node of the record is gone for good, and that this one has the newest disks. Never asked
    /// for by a node on its own.
    Force {
        /// Who runs the VM from now on.
        node: NodeId,
        /// The term on record that the operator has seen: no later one is overridden, so the word is used up by its effect.
        term: Term,
    },
    /// The standby does not want to take over any more, and has no answer to its claim to. The record stays, but is written:
    /// a claim that was judged before and is still under way finds it changed.
    Withdraw {
        /// Who runs the VM.
        primary: NodeId,
        /// Who asks.
        standby: NodeId,
        /// Their term.
        term: Term,
    },
    /// The owner has shut the VM down, or could not start it.
    Stop {
        /// Who asks.
        node: NodeId,
        /// Its term.
        term: Term,
        /// The term that its disks have on record now.
        disks: Term,
    },
}

impl Claim {
    /// The term that it speaks of.
    #[must_use]
    pub fn term(&self) -> Term {
        match *self {
            Self::Own { term, .. }
            | Self::Register { term, .. }
            | Self::Restore { term, .. }
            | Self::GoAlone { term, .. }
            | Self::TakeOver { term, .. }
            | Self::Force { term, .. }
            | Self::Withdraw { term, .. } => term,
            Self::Start { disks, .. } => disks.term(),
            Self::Stop { term, disks, .. } => term.max(disks),
        }
    }
}

/// What the witness makes of a claim.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Verdict {
    /// The record is now this one.
    Granted(Record),
    /// The record stays what it is.
    Refused(Option<Record>),
}

impl Record {
    /// The term it speaks of.
    #[must_use]
    pub fn term(&self) -> Term {
        match *self {
            Self::Protected { term, .. } | Self::Solo { term, .. } | Self::Stopped { term, .. } => term,
        }
    }

    /// Whether it says that `node` runs the VM.
    #[must_use]
    pub fn is_of(&self, node: NodeId) -> bool {
        match *self {
            Self::Protected { primary: runner, .. } | Self::Solo { owner: runner, .. } => runner == node,
            Self::Stopped { .. } => false,
        }
    }

    /// Whether a record that comes from outside can be one: its terms can be counted on.
    #[must_use]
    pub fn is_plausible(&self) -> bool {
        let other = match *self {
            Self::Protected { term, .. } => term,
            Self::Solo { since, .. } => since,
            Self::Stopped { disks, .. } => disks,
        };
        self.term().is_plausible() && other.is_plausible()
    }
}

/// What a claim wants the record to be: what a witness that never refuses would write.
#[cfg(feature = "model")]
#[must_use]
pub fn wish(claim: Claim) -> Record {
    let solo = |owner, term| Record::Solo { owner, term, since: term };
    match claim {
        Claim::Start { node, disks, .. } => solo(node, disks.term().next()),
        Claim::Own { node, term, .. } | Claim::Force { node, term } => solo(node, term.next()),
        Claim::Register { primary, standby, term }
        | Claim::Restore { primary, standby, term }
        | Claim::Withdraw { primary, standby, term } => Record::Protected { primary, standby, term },
        Claim::GoAlone { primary, term, .. } => solo(primary, term.next()),
        Claim::TakeOver { standby, term, .. } => solo(standby, term.next()),
        Claim::Stop { term, disks, .. } => Record::Stopped { term, disks },
    }
}

/// Whether `claim` may follow `record`, and what the record becomes. What speaks of terms that cannot be is refused.
#[must_use]
pub fn judge(record: Option<Record>, claim: Claim) -> Verdict {
    let plausible = claim.term().is_plausible() && record.is_none_or(|record| record.is_plausible());
    let granted = if plausible { granted(record, claim) } else { None };
    if let (Some(before), Some(after)) = (record, granted) {
        assert!(after.term() >= before.term(), "{claim:?} makes {after:?} of {before:?}, an earlier term");
    }
    granted.map_or(Verdict::Refused(record), Verdict::Granted)
}

fn granted(record: Option<Record>, claim: Claim) -> Option<Record> {
    use Record::{Protected, Solo, Stopped};
    let solo = |owner, term| Solo { owner, term, since: term };
    match (claim, record) {
        (Claim::Start { node, disks, waited }, record) => start(record, node, disks, waited),

        (Claim::Own { node, term, first: true }, None) => Some(solo(node, term.next())),
        (Claim::Own { node, term, first: true }, Some(Stopped { term: last, .. })) => {
            Some(solo(node, term.max(last).next()))
        }
        // Its own record is later already when an answer got lost: then it stays.
        (Claim::Own { node, term, .. }, Some(Solo { owner, term: last, since })) if owner == node => {
            Some(Solo { owner, term: last.max(term.next()), since })
        }

        (Claim::Register { primary, standby, term }, Some(Solo { owner, term: t, .. }))
            if owner == primary && t == term =>
        {
            Some(Protected { primary, standby, term })
        }
        (Claim::Register { primary, standby, term }, Some(now)) if now == (Protected { primary, standby, term }) => {
            record
        }

        (Claim::Restore { primary, standby, term }, None) => Some(Protected { primary, standby, term }),
        (Claim::Restore { primary, standby, term }, Some(now)) if now == (Protected { primary, standby, term }) => {
            record
        }

        (Claim::GoAlone { primary, standby, term }, Some(now)) if now == (Protected { primary, standby, term }) => {
            Some(solo(primary, term.next()))
        }
        // A registration that never arrived: nobody else ever had a right in this term.
        (Claim::GoAlone { primary, term, .. }, Some(Solo { owner, term: t, .. })) if owner == primary && t == term => {
            Some(solo(primary, term.next()))
        }
        (Claim::GoAlone { primary, term, .. }, Some(now)) if now == solo(primary, term.next()) => record,

        (Claim::TakeOver { primary, standby, term }, Some(now)) if now == (Protected { primary, standby, term }) => {
            Some(solo(standby, term.next()))
        }
        (Claim::TakeOver { standby, term, .. }, Some(now)) if now == solo(standby, term.next()) => record,

        (Claim::Force { node, term }, Some(now)) if now.term() == term => Some(solo(node, term.next())),
        (Claim::Force { node, term }, Some(now)) if now == solo(node, term.next()) => record,

        (Claim::Withdraw { primary, standby, term }, Some(now))
            if now == (Protected { primary, standby, term })
                || matches!(now, Solo { owner, term: t, .. } if owner == primary && t == term) =>
        {
            record
        }

        // Without a standby the owner may not have taken up the last term that it was given.
        (Claim::Stop { node, term, disks }, Some(Solo { owner, term: t, .. })) if owner == node && t >= term => {
            Some(Stopped { term: t, disks })
        }
        (Claim::Stop { term, .. }, Some(Stopped { term: t, .. })) if t >= term => record,
        _ => None,
    }
}

/// Who may boot the VM: only a host whose disks prove that none are newer. The exception is what an operator has said before:
/// a standby's that has waited for so long.
///
/// | record | granted to | with disks |
/// |---|---|---|
/// | none | anybody | that were never on record |
/// | `Stopped(t, d)` | anybody | of a run that ended in term d or later |
/// | `Solo(A, t)` since s | A's host | of a run in a term from s - 1 to t, or a copy of s - 1 if it has waited |
/// | `Protected(A, B), t` | A's host | that were protected in term t |
/// | | B's host | that are a copy of term t, if it has waited |
fn start(record: Option<Record>, node: NodeId, disks: DiskState, waited: bool) -> Option<Record> {
    let next = |term: Term| Some(Record::Solo { owner: node, term: term.next(), since: term.next() });
    let diskless = disks == DiskState::None;
    match record {
        None => (disks.ran()? == Term(0)).then(|| next(Term(0)))?,
        Some(Record::Stopped { term, disks: newest }) => {
            let ran = disks.ran().filter(|ran| *ran >= newest)?;
            next(term.max(ran))
        }
        Some(Record::Solo { owner, .. }) if owner == node => record,
        Some(Record::Solo { owner, term, since }) if owner.host == node.host => {
            // The last owner may not have come to note the term that it was given: then its disks are of the one before.
            let ran = |ran: Term| ran > Term(0) && ran.next() >= since && ran <= term;
            let copied = |copy: Term| waited && copy.next() == since;
            let newest = match disks {
                DiskState::Copy(copy) => copied(copy),
                other => diskless || other.ran().is_some_and(ran),
            };
            newest.then(|| next(term))?
        }
        Some(Record::Protected { primary, term, .. }) if primary.host == node.host => {
            (diskless || disks == DiskState::Protected(term)).then(|| next(term))?
        }
        Some(Record::Protected { standby, term, .. }) if standby.host == node.host => {
            (waited && (diskless || disks == DiskState::Copy(term))).then(|| next(term))?
        }
        Some(Record::Solo { .. } | Record::Protected { .. }) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HostId;

    const A: NodeId = NodeId::numbered(1, 1);
    const B: NodeId = NodeId::numbered(2, 1);
    const T: Term = Term(7);

    const PROTECTED: Record = Record::Protected { primary: A, standby: B, term: T };
    const ALONE: Claim = Claim::GoAlone { primary: A, standby: B, term: T };
    const OVER: Claim = Claim::TakeOver { primary: A, standby: B, term: T };

    fn granted(record: Option<Record>, claim: Claim) -> Option<Record> {
        match judge(record, claim) {
            Verdict::Granted(record) => Some(record),
            Verdict::Refused(_) => None,
        }
    }

    fn own(node: NodeId, term: Term) -> Claim {
        Claim::Own { node, term, first: true }
    }

    fn start(node: NodeId, disks: DiskState) -> Claim {
        Claim::Start { node, disks, waited: false }
    }

    fn after(node: NodeId) -> NodeId {
        NodeId { incarnation: node.incarnation + 1, ..node }
    }

    fn solo(owner: NodeId, term: Term) -> Option<Record> {
        Some(Record::Solo { owner, term, since: term })
    }

    #[test]
    fn exactly_one_side_wins_a_partition() {
        for (first, second, owner) in [(ALONE, OVER, A), (OVER, ALONE, B)] {
            let after = granted(Some(PROTECTED), first);
            assert_eq!(after, solo(owner, T.next()));
            assert_eq!(granted(after, first), after, "asked again, granted again");
            assert_eq!(granted(after, second), None);
        }
    }

    #[test]
    fn a_standby_has_no_right_before_it_is_registered() {
        let alone = granted(None, own(A, Term(6)));
        assert_eq!(alone, solo(A, T));
        assert_eq!(granted(alone, OVER), None);
        let registered = granted(alone, Claim::Register { primary: A, standby: B, term: T });
        assert_eq!(registered, Some(PROTECTED));
        assert!(granted(registered, OVER).is_some());
    }

    #[test]
    fn a_claim_to_take_over_is_withdrawn_unless_it_was_granted() {
        let withdraw = Claim::Withdraw { primary: A, standby: B, term: T };
        assert_eq!(granted(Some(PROTECTED), withdraw), Some(PROTECTED));
        let unregistered = solo(A, T);
        assert_eq!(granted(unregistered, withdraw), unregistered);
        for over in [granted(Some(PROTECTED), OVER), granted(Some(PROTECTED), ALONE), None] {
            assert_eq!(granted(over, withdraw), None, "{over:?}");
        }
    }

    #[test]
    fn each_session_of_an_owner_has_a_term_of_its_own() {
        let given = Some(Record::Solo { owner: A, term: Term(2), since: Term(2) });
        let first = granted(None, own(A, Term(1)));
        assert_eq!(first, given);
        assert_eq!(granted(first, own(A, Term(1))), first, "an answer that got lost, or a question that came late");
        let next = Some(Record::Solo { owner: A, term: Term(3), since: Term(2) });
        assert_eq!(granted(first, own(A, Term(2))), next, "the next session");
    }

    #[test]
    fn a_record_that_was_lost_is_nobodys_for_the_taking() {
        let later = Claim::Own { node: A, term: T, first: false };
        let ran = [DiskState::Alone(T), DiskState::Ended(T), DiskState::Protected(T), DiskState::Copy(T)];
        let starts = ran.map(|disks| Claim::Start { node: A, disks, waited: true });
        for claim in starts.into_iter().chain([later, ALONE, OVER, start(A, DiskState::Hole)]) {
            assert_eq!(granted(None, claim), None, "{claim:?}");
        }
        let restore = Claim::Restore { primary: A, standby: B, term: T };
        assert_eq!(granted(None, restore), Some(PROTECTED));
        assert_eq!(granted(Some(PROTECTED), restore), Some(PROTECTED));
        for other in [solo(B, T.next()), solo(A, T), Some(Record::Stopped { term: T, disks: T })] {
            assert_eq!(granted(other, restore), None, "{other:?}");
        }
    }

    #[test]
    fn a_stale_owner_gets_nothing() {
        let solo_b = solo(B, T.next());
        for claim in [own(A, T), ALONE, Claim::Register { primary: A, standby: B, term: T }] {
            assert_eq!(granted(solo_b, claim), None, "{claim:?}");
        }
    }

    #[test]
    fn an_operator_ends_the_term_that_he_has_seen_and_no_later_one() {
        let force = Claim::Force { node: B, term: T };
        for record in [solo(A, T), Some(PROTECTED), Some(Record::Stopped { term: T, disks: T })] {
            let forced = granted(record, force);
            assert_eq!(forced, solo(B, T.next()));
            assert_eq!(granted(forced, force), forced, "asked again, granted again");
            assert_eq!(
                granted(forced, Claim::Force { node: after(B), term: T }),
                None,
                "left in a unit, it is used up"
            );
            assert_eq!(granted(forced, ALONE), None);
        }
        assert_eq!(granted(None, force), None);
        assert_eq!(granted(solo(A, Term(6)), force), None);
    }

    #[test]
    fn a_stopped_vm_starts_from_the_newest_disks_in_a_new_term() {
        let stopped = granted(solo(A, T), Claim::Stop { node: A, term: T, disks: T });
        assert_eq!(stopped, Some(Record::Stopped { term: T, disks: T }));
        for older in [DiskState::Fresh, DiskState::Ended(Term(6)), DiskState::Copy(T), DiskState::None] {
            assert_eq!(granted(stopped, start(B, older)), None);
        }
        let claim = start(B, DiskState::Ended(T));
        let again = granted(stopped, claim);
        assert_eq!(again, solo(B, T.next()));
        assert_eq!(granted(again, claim), again, "asked again, granted again");
        assert_eq!(granted(again, start(A, DiskState::Ended(T))), None, "one of two with the same disks");
    }

    #[test]
    fn who_could_not_start_the_vm_leaves_it_to_the_same_disks() {
        let stopped = Some(Record::Stopped { term: T, disks: T });
        let started = granted(stopped, start(A, DiskState::Ended(T)));
        let back = granted(started, Claim::Stop { node: A, term: T.next(), disks: T });
        assert_eq!(back, Some(Record::Stopped { term: T.next(), disks: T }));
        assert_eq!(granted(back, start(B, DiskState::Ended(Term(6)))), None);
        assert!(granted(back, start(A, DiskState::Ended(T))).is_some());
    }

    #[test]
    fn after_a_blackout_the_last_runner_comes_back_with_its_own_disks() {
        let (again, other) = (after(A), after(B));
        let next = solo(again, T.next());
        assert_eq!(granted(Some(PROTECTED), start(again, DiskState::Protected(T))), next);
        assert_eq!(granted(solo(A, T), start(again, DiskState::Alone(T))), next);
        // It went alone, or had no time to note that it was given the VM, or shut it down and had no time to say so.
        for disks in [DiskState::Protected(Term(6)), DiskState::Alone(Term(6)), DiskState::Ended(T)] {
            assert_eq!(granted(solo(A, T), start(again, disks)), next, "{disks:?}");
        }
        for disks in
            [DiskState::Fresh, DiskState::Hole, DiskState::Alone(Term(5)), DiskState::Copy(T), DiskState::Unusable]
        {
            assert_eq!(granted(solo(A, T), start(again, disks)), None, "{disks:?}");
            assert_eq!(granted(Some(PROTECTED), start(again, disks)), None, "{disks:?}");
        }
        for disks in [DiskState::Alone(T), DiskState::Protected(T), DiskState::Copy(T)] {
            assert_eq!(granted(solo(A, T), Claim::Start { node: other, disks, waited: true }), None, "{disks:?}");
            assert_eq!(granted(Some(PROTECTED), start(other, disks)), None, "{disks:?}");
        }
    }

    #[test]
    fn a_standby_alone_goes_on_only_where_an_operator_said_so() {
        let claim = |copy, waited| Claim::Start { node: after(B), disks: DiskState::Copy(copy), waited };
        assert_eq!(granted(Some(PROTECTED), claim(T, false)), None);
        assert_eq!(granted(Some(PROTECTED), claim(Term(6), true)), None, "of an earlier session");
        assert_eq!(granted(Some(PROTECTED), claim(T, true)), solo(after(B), T.next()));
        // It was given the VM and died before it ran.
        assert_eq!(granted(solo(B, T), claim(Term(6), false)), None);
        assert_eq!(granted(solo(B, T), claim(Term(6), true)), solo(after(B), T.next()));
    }

    #[test]
    fn terms_that_cannot_be_are_refused() {
        let absurd = Term(u64::MAX);
        assert_eq!(absurd.next(), absurd);
        let records = [solo(A, absurd), Some(Record::Stopped { term: absurd, disks: T })];
        for record in records {
            let Some(Record::Solo { term, .. } | Record::Stopped { term, .. }) = record else { unreachable!() };
            assert_eq!(granted(record, Claim::Force { node: B, term }), None);
            assert_eq!(granted(record, own(A, T)), None);
        }
        assert_eq!(granted(None, own(A, absurd)), None);
        let stopped = Some(Record::Stopped { term: T, disks: T });
        assert_eq!(granted(stopped, start(A, DiskState::Ended(absurd))), None);
    }

    /// Hosts start, run, take over, shut down and crash, one or both, in any order, as far as the witness lets them: each start
    /// is from the newest disks.
    #[test]
    fn nobody_starts_from_old_disks() {
        let begin =
            Hosts { record: None, content: [0; 2], disks: [DiskState::Fresh, DiskState::Hole], written: 0, started: 0 };
        let mut seen = std::collections::HashSet::new();
        explore(&begin, 9, &mut seen);
        assert!(seen.len() > 10_000, "{}", seen.len());
    }

    fn explore(hosts: &Hosts, depth: u32, seen: &mut std::collections::HashSet<(Hosts, u32)>) {
        if depth == 0 || !seen.insert((*hosts, depth)) {
            return;
        }
        for host in 0..2 {
            hosts.steps(host).iter().for_each(|after| explore(after, depth - 1, seen));
        }
    }

    /// What is on the disks of two hosts: the number of their last write, and their record.
    #[derive(Clone, Copy, Eq, Hash, PartialEq)]
    struct Hosts {
        record: Option<Record>,
        content: [u32; 2],
        disks: [DiskState; 2],
        written: u32,
        started: u64,
    }

    impl Hosts {
        /// Everything that may happen at a host.
        fn steps(self, host: usize) -> Vec<Self> {
            let mut steps = self.start(host);
            if let Some(Record::Solo { owner, term, .. }) = self.record
                && owner.host == HostId::numbered(host as u64)
            {
                steps.extend(self.while_it_runs(owner, host, term));
            }
            steps
        }

        /// Comes up after whatever became of its last incarnation.
        fn start(mut self, host: usize) -> Vec<Self> {
            self.started += 1;
            let (node, disks) = (NodeId::numbered(host as u64, self.started), self.disks[host]);
            let Some(started) = self.judged(super::tests::start(node, disks)) else { return Vec::new() };
            assert_eq!(self.content[host], self.written, "{:?} {:?}", self.record, self.disks);
            let term = started.record.unwrap().term();
            let mut noted = started;
            noted.disks[host] = DiskState::Alone(term);
            let gives_back = disks.ran().and_then(|ran| started.judged(Claim::Stop { node, term, disks: ran }));
            // Or it could not be built.
            [Some(started), Some(noted.write(host)), gives_back].into_iter().flatten().collect()
        }

        fn while_it_runs(self, node: NodeId, host: usize, term: Term) -> Vec<Self> {
            // Nothing runs before the disks have noted it.
            if !matches!(self.disks[host], DiskState::Alone(_)) {
                return Vec::new();
            }
            let standby = NodeId::numbered(1 - host as u64, self.started);
            let owned = self.judged(Claim::Own { node, term, first: false }).unwrap();
            let term = owned.record.unwrap().term();
            let mut session = owned;
            session.disks[host] = DiskState::Alone(term);
            let mut synced = session;
            synced.content[1 - host] = synced.written;
            synced.disks = [DiskState::Protected(term); 2];
            synced.disks[1 - host] = DiskState::Copy(term);
            let protected = synced.judged(Claim::Register { primary: node, standby, term }).unwrap();
            let granted = protected.judged(Claim::TakeOver { primary: node, standby, term }).unwrap();
            let mut moved = granted;
            moved.disks[1 - host] = DiskState::Alone(term.next());
            let alone = protected.judged(Claim::GoAlone { primary: node, standby, term }).unwrap();
            let mut noted = alone;
            noted.disks[host] = DiskState::Alone(term.next());
            let mut ended = self;
            ended.disks[host] = DiskState::Ended(self.record.unwrap().term());
            let stop = |hosts: Self| {
                let Some(Record::Solo { term, .. }) = hosts.record else { unreachable!() };
                hosts.judged(Claim::Stop { node, term, disks: term }).unwrap()
            };
            // Each may be where the host, or both, lose power: what comes next is a start.
            vec![
                self.write(host),
                owned,
                session.write(host),
                synced,
                protected.write(host),
                granted,
                moved.write(1 - host),
                alone.write(host),
                noted.write(host),
                ended,
                stop(ended),
            ]
        }

        fn judged(self, claim: Claim) -> Option<Self> {
            granted(self.record, claim).map(|record| Self { record: Some(record), ..self })
        }

        fn write(mut self, host: usize) -> Self {
            self.written += 1;
            self.content[host] = self.written;
            self
        }
    }
}
