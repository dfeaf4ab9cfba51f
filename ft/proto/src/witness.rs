//! The witness's record of who may run the VM, and the only transitions it allows.
//!
//! The record is compare-and-swapped by whatever keeps it (a locked file, etcd); [`judge`] is the comparison. A change of
//! who runs makes a new term. Every claim is idempotent: asked again by the node that already won, it is granted again, so
//! an answer that got lost can be asked for.

use serde::{Deserialize, Serialize};

use crate::{NodeId, Term};

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
    /// The VM was shut down in `term`; any node may start it.
    Stopped {
        /// The last reign.
        term: Term,
    },
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
    /// The owner has shut the VM down.
    Stop {
        /// Who asks.
        node: NodeId,
        /// Its term.
        term: Term,
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
            Self::Protected { term, .. } | Self::Solo { term, .. } | Self::Stopped { term } => term,
        }
    }
}

/// Whether `claim` may follow `record`, and what the record becomes.
#[must_use]
pub fn judge(record: Option<Record>, claim: Claim) -> Verdict {
    use Record::{Protected, Solo, Stopped};
    let granted = match (claim, record) {
        (Claim::Own { node, term }, None) => Some(Solo { owner: node, term: term.next() }),
        (Claim::Own { node, term }, Some(Stopped { term: last })) => {
            Some(Solo { owner: node, term: term.max(last).next() })
        }
        // Its own record is later already when an answer got lost: then it stays.
        (Claim::Own { node, term }, Some(Solo { owner, term: last })) if owner == node => {
            Some(Solo { owner, term: last.max(term.next()) })
        }

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
        (Claim::Stop { node, term }, Some(Solo { owner, term: t })) if owner == node && t >= term => {
            Some(Stopped { term: t })
        }
        (Claim::Stop { term, .. }, Some(Stopped { term: t })) if t >= term => record,
        _ => None,
    };
    granted.map_or(Verdict::Refused(record), Verdict::Granted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
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
        for record in [None, solo, Some(PROTECTED), Some(Record::Stopped { term: T })] {
            let forced = granted(record, Claim::Force { node: B });
            assert!(matches!(forced, Some(Record::Solo { owner: B, term }) if record.is_none_or(|r| term > r.term())));
            assert_eq!(granted(forced, ALONE), None);
        }
    }

    #[test]
    fn a_stopped_vm_may_be_started_anywhere_in_a_new_term() {
        let stopped = granted(Some(Record::Solo { owner: A, term: T }), Claim::Stop { node: A, term: T });
        assert_eq!(stopped, Some(Record::Stopped { term: T }));
        let again = granted(stopped, Claim::Own { node: B, term: Term(1) });
        assert_eq!(again, Some(Record::Solo { owner: B, term: T.next() }));
    }
}
