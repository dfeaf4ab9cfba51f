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
        /// The reign.
        term: Term,
    },
    /// `owner` runs the VM and nobody may take over.
    Solo {
        /// Who runs.
        owner: NodeId,
        /// The reign.
        term: Term,
    },
    /// The VM was shut down; who has its newest disks may start it.
    Stopped {
        /// The last reign.
        term: Term,
        /// The reign that the newest disks say the VM was shut down in; 0: any disks will do.
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

/// A transition that a node asks the witness for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub enum Claim {
    /// `node` runs the VM, unprotected, and wants a reign after `term` on record before it looks for a standby: each
    /// session has a term of its own, so that what a former standby still holds, or asks for, is plainly of the past.
    Own {
        /// Who asks.
        node: NodeId,
        /// Its term.
        term: Term,
    },
    /// `node` has just come up and wants to boot the VM.
    Start {
        /// Who asks.
        node: NodeId,
        /// The reign that the VM was last shut down in from its disks, by their own record; 0: never.
        disks: Term,
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
        /// What its disks have on record now, as in `Start`.
        disks: Term,
    },
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
    /// The reign it speaks of.
    #[must_use]
    pub fn term(&self) -> Term {
        match *self {
            Self::Protected { term, .. } | Self::Solo { term, .. } | Self::Stopped { term, .. } => term,
        }
    }
}

/// Whether `claim` may follow `record`, and what the record becomes.
#[must_use]
pub fn judge(record: Option<Record>, claim: Claim) -> Verdict {
    use Record::{Protected, Solo, Stopped};
    let granted = match (claim, record) {
        (Claim::Own { node, term }, None) => Some(Solo { owner: node, term: term.next() }),
        (Claim::Own { node, term }, Some(Stopped { term: last, .. })) => {
            Some(Solo { owner: node, term: term.max(last).next() })
        }
        // Its own record is later already when an answer got lost: then it stays.
        (Claim::Own { node, term }, Some(Solo { owner, term: last })) if owner == node => {
            Some(Solo { owner, term: last.max(term.next()) })
        }

        (Claim::Start { node, disks }, None) => Some(Solo { owner: node, term: disks.next() }),
        // Disks of an earlier reign lack what was written since.
        (Claim::Start { node, disks }, Some(Stopped { term: last, disks: newest })) if disks >= newest => {
            Some(Solo { owner: node, term: last.max(disks).next() })
        }
        (Claim::Start { node, .. }, Some(Solo { owner, .. })) if owner == node => record,

        (Claim::Register { primary, standby, term }, Some(Solo { owner, term: t }))
            if owner == primary && t == term =>
        {
            Some(Protected { primary, standby, term })
        }
        (Claim::Register { primary, standby, term }, Some(now)) if now == (Protected { primary, standby, term }) => {
            record
        }

        (Claim::GoAlone { primary, standby, term }, Some(now)) if now == (Protected { primary, standby, term }) => {
            Some(Solo { owner: primary, term: term.next() })
        }
        // A registration that never arrived: nobody else ever had a right in this term.
        (Claim::GoAlone { primary, term, .. }, Some(Solo { owner, term: t })) if owner == primary && t == term => {
            Some(Solo { owner: primary, term: term.next() })
        }
        (Claim::GoAlone { primary, term, .. }, Some(now)) if now == (Solo { owner: primary, term: term.next() }) => {
            record
        }

        (Claim::TakeOver { primary, standby, term }, Some(now)) if now == (Protected { primary, standby, term }) => {
            Some(Solo { owner: standby, term: term.next() })
        }
        (Claim::TakeOver { standby, term, .. }, Some(now)) if now == (Solo { owner: standby, term: term.next() }) => {
            record
        }

        // Asked again it makes another reign, which harms nobody.
        (Claim::Force { node }, now) => {
            Some(Solo { owner: node, term: now.map_or(Term(0), |record| record.term()).next() })
        }

        (Claim::Withdraw { primary, standby, term }, Some(now))
            if now == (Protected { primary, standby, term }) || now == (Solo { owner: primary, term }) =>
        {
            record
        }

        // Without a standby the owner may not have taken up the last reign that it was given.
        (Claim::Stop { node, term, disks }, Some(Solo { owner, term: t })) if owner == node && t >= term => {
            Some(Stopped { term: t, disks })
        }
        (Claim::Stop { term, .. }, Some(Stopped { term: t, .. })) if t >= term => record,
        _ => None,
    };
    granted.map_or(Verdict::Refused(record), Verdict::Granted)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn exactly_one_side_wins_a_partition() {
        for (first, second, owner) in [(ALONE, OVER, A), (OVER, ALONE, B)] {
            let after = granted(Some(PROTECTED), first);
            assert_eq!(after, Some(Record::Solo { owner, term: T.next() }));
            assert_eq!(granted(after, first), after, "asked again, granted again");
            assert_eq!(granted(after, second), None);
        }
    }

    #[test]
    fn a_standby_has_no_right_before_it_is_registered() {
        let own = granted(None, Claim::Own { node: A, term: Term(6) });
        assert_eq!(own, Some(Record::Solo { owner: A, term: T }));
        assert_eq!(granted(own, OVER), None);
        let registered = granted(own, Claim::Register { primary: A, standby: B, term: T });
        assert_eq!(registered, Some(PROTECTED));
        assert!(granted(registered, OVER).is_some());
    }

    #[test]
    fn a_claim_to_take_over_is_withdrawn_unless_it_was_granted() {
        let withdraw = Claim::Withdraw { primary: A, standby: B, term: T };
        assert_eq!(granted(Some(PROTECTED), withdraw), Some(PROTECTED));
        let unregistered = Some(Record::Solo { owner: A, term: T });
        assert_eq!(granted(unregistered, withdraw), unregistered);
        for over in [granted(Some(PROTECTED), OVER), granted(Some(PROTECTED), ALONE), None] {
            assert_eq!(granted(over, withdraw), None, "{over:?}");
        }
    }

    #[test]
    fn each_session_of_an_owner_has_a_term_of_its_own() {
        let own = |term| Claim::Own { node: A, term };
        let solo = |term| Some(Record::Solo { owner: A, term });
        let first = granted(None, own(Term(1)));
        assert_eq!(first, solo(Term(2)));
        assert_eq!(granted(first, own(Term(1))), first, "an answer that got lost, or a question that came late");
        assert_eq!(granted(first, own(Term(2))), solo(Term(3)), "the next session");
    }

    #[test]
    fn a_stale_owner_gets_nothing() {
        let solo_b = Some(Record::Solo { owner: B, term: T.next() });
        for claim in [Claim::Own { node: A, term: T }, ALONE, Claim::Register { primary: A, standby: B, term: T }] {
            assert_eq!(granted(solo_b, claim), None, "{claim:?}");
        }
    }

    #[test]
    fn an_operator_may_end_any_reign() {
        let solo = Some(Record::Solo { owner: A, term: T });
        for record in [None, solo, Some(PROTECTED), Some(Record::Stopped { term: T, disks: T })] {
            let forced = granted(record, Claim::Force { node: B });
            assert!(matches!(forced, Some(Record::Solo { owner: B, term }) if record.is_none_or(|r| term > r.term())));
            assert_eq!(granted(forced, ALONE), None);
        }
    }

    #[test]
    fn a_stopped_vm_starts_from_the_newest_disks_in_a_new_term() {
        let stopped = granted(Some(Record::Solo { owner: A, term: T }), Claim::Stop { node: A, term: T, disks: T });
        assert_eq!(stopped, Some(Record::Stopped { term: T, disks: T }));
        for older in [Term(0), Term(6)] {
            assert_eq!(granted(stopped, Claim::Start { node: B, disks: older }), None);
        }
        let start = Claim::Start { node: B, disks: T };
        let again = granted(stopped, start);
        assert_eq!(again, Some(Record::Solo { owner: B, term: T.next() }));
        assert_eq!(granted(again, start), again, "asked again, granted again");
        assert_eq!(granted(again, Claim::Start { node: A, disks: T }), None, "one of two with the same disks");
    }

    #[test]
    fn who_could_not_start_the_vm_leaves_it_to_the_same_disks() {
        let stopped = Some(Record::Stopped { term: T, disks: T });
        let started = granted(stopped, Claim::Start { node: A, disks: T });
        let back = granted(started, Claim::Stop { node: A, term: T.next(), disks: T });
        assert_eq!(back, Some(Record::Stopped { term: T.next(), disks: T }));
        assert_eq!(granted(back, Claim::Start { node: B, disks: Term(6) }), None);
        assert!(granted(back, Claim::Start { node: A, disks: T }).is_some());
    }

    /// Hosts start, run, take over and shut down in any order, as far as the witness lets them.
    #[test]
    fn nobody_starts_from_old_disks() {
        explore(&Hosts { record: None, content: [0; 2], ended: [Term(0); 2], written: 0 }, 8);
    }

    fn explore(hosts: &Hosts, depth: u32) {
        let steps = [(A, 0), (B, 1)].map(|(node, host)| hosts.steps(node, host));
        steps.iter().flatten().filter(|_| depth > 0).for_each(|after| explore(after, depth - 1));
    }

    /// What is on the disks of two hosts: the number of their last write, and their record.
    #[derive(Clone, Copy)]
    struct Hosts {
        record: Option<Record>,
        content: [u32; 2],
        ended: [Term; 2],
        written: u32,
    }

    impl Hosts {
        /// Everything that may happen at a host.
        fn steps(self, node: NodeId, host: usize) -> Vec<Self> {
            match self.record {
                Some(Record::Solo { owner, term }) if owner == node => self.while_it_runs(node, host, term),
                _ => self.start(node, host),
            }
        }

        fn start(self, node: NodeId, host: usize) -> Vec<Self> {
            let disks = self.ended[host];
            let Some(started) = self.judged(Claim::Start { node, disks }) else { return Vec::new() };
            assert_eq!(self.content[host], self.written, "{:?}", self.record);
            let term = started.record.unwrap().term();
            // Or it could not be built.
            [Some(started.write(host)), started.judged(Claim::Stop { node, term, disks })]
                .into_iter()
                .flatten()
                .collect()
        }

        fn while_it_runs(mut self, node: NodeId, host: usize, term: Term) -> Vec<Self> {
            let standby = if node == A { B } else { A };
            let protected = self.judged(Claim::Register { primary: node, standby, term }).unwrap();
            let mut moved = protected.judged(Claim::TakeOver { primary: node, standby, term }).unwrap();
            moved.content[1 - host] = moved.written;
            let alone = protected.judged(Claim::GoAlone { primary: node, standby, term }).unwrap();
            self.ended[host] = term;
            let stopped = self.judged(Claim::Stop { node, term, disks: term }).unwrap();
            // It may also go on although its disks say that it has ended: the process was killed before it asked.
            vec![moved.write(1 - host), alone.write(host), self.write(host), stopped]
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
