//! The witness's record of who may run the VM, and the only transitions it allows.
//!
//! The record is compare-and-swapped by whatever stores it (a file, etcd); [`judge`] is the comparison. Each
//! change of who runs the VM has a new term. Claims are idempotent: repeated by the node that won, a claim is
//! granted again, so a lost answer can be asked for.

use serde::{Deserialize, Serialize};

mod disks;
mod record;
mod replicas;
#[cfg(test)]
mod tests;

pub use disks::{DiskState, Disks};
pub use record::Record;
pub use replicas::{RecordError, Replicas};

use crate::{NodeId, Term};

/// A change of the record that a node asks for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub enum Claim {
    /// `node` runs the VM, unprotected, and wants a term after `term` on record before it looks for a
    /// standby: each session has its own term, so that what a former standby still holds, or claims, is
    /// recognised as old.
    Own {
        /// Who asks.
        node: NodeId,
        /// Its term.
        term: Term,
        /// The VM has never been on record. Otherwise a missing record was lost, and the claim is refused.
        first: bool,
    },
    /// `node` has just started and wants to boot the VM.
    Start {
        /// Who asks.
        node: NodeId,
        /// What its disks have on record.
        disks: DiskState,
        /// It has waited for the host with the newest disks, for as long as its operator configured.
        waited: bool,
    },
    /// `standby` holds a complete checkpoint: from now on it may take over, as those that could before.
    Register {
        /// Who asks.
        primary: NodeId,
        /// Who may take over.
        standby: NodeId,
        /// Their term.
        term: Term,
    },
    /// The record was lost while these were connected: each standby has acknowledged an epoch that was cut
    /// after the loss was noticed, so none had taken over before, and none can have since.
    Restore {
        /// Who asks.
        primary: NodeId,
        /// Who may take over.
        in_sync: Replicas,
        /// Their term.
        term: Term,
    },
    /// The primary continues without its standbys.
    GoAlone {
        /// Who asks.
        primary: NodeId,
        /// Who loses their right: all that have one.
        in_sync: Replicas,
        /// Their term.
        term: Term,
    },
    /// A standby takes over; others lose their right, too.
    TakeOver {
        /// Who loses its right.
        primary: NodeId,
        /// Who asks.
        standby: NodeId,
        /// Their term.
        term: Term,
    },
    /// An operator states that every node of the record is gone for good, and that this one has the newest
    /// disks. No node claims it on its own.
    Force {
        /// Who runs the VM from now on.
        node: NodeId,
        /// The term on record that the operator has seen. Later ones are not overridden, so the statement
        /// works once.
        term: Term,
    },
    /// The standby no longer wants to take over, and its claim to was not answered. The record stays as it
    /// is, but is written again: a claim that was judged before and is still under way finds it changed.
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
    /// The term that it names.
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

/// The witness's answer to a claim.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Verdict {
    /// The record is now this one.
    Granted(Record),
    /// The record stays as it is.
    Refused(Option<Record>),
}

/// What a witness that grants everything would write.
#[cfg(feature = "model")]
#[must_use]
pub fn grant_unchecked(claim: Claim) -> Record {
    let solo = |owner, term| Record::Solo { owner, term, since: term };
    match claim {
        Claim::Start { node, disks, .. } => solo(node, disks.term().next()),
        Claim::Own { node, term, .. } | Claim::Force { node, term } => solo(node, term.next()),
        Claim::Register { primary, standby, term } | Claim::Withdraw { primary, standby, term } => {
            Record::Protected { primary, in_sync: Replicas::one(standby), term }
        }
        Claim::Restore { primary, in_sync, term } => Record::Protected { primary, in_sync, term },
        Claim::GoAlone { primary, term, .. } => solo(primary, term.next()),
        Claim::TakeOver { standby, term, .. } => solo(standby, term.next()),
        Claim::Stop { term, disks, .. } => Record::Stopped { term, disks },
    }
}

/// Whether `claim` is granted, given `record`, and what the record becomes. Implausible terms are refused.
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
    use Record::{Solo, Stopped};
    let solo = |owner, term| Solo { owner, term, since: term };
    match (claim, record) {
        (Claim::Start { node, disks, waited }, record) => start(record, node, disks, waited),

        (Claim::Own { node, term, first: true }, None) => Some(solo(node, term.next())),
        (Claim::Own { node, term, first: true }, Some(Stopped { term: last, .. })) => {
            Some(solo(node, term.max(last).next()))
        }
        // Its own record is already later if an answer was lost: then it stays.
        (Claim::Own { node, term, .. }, Some(Solo { owner, term: last, since })) if owner == node => {
            Some(Solo { owner, term: last.max(term.next()), since })
        }

        (Claim::Force { node, term }, Some(now)) if now.term() == term => Some(solo(node, term.next())),
        (Claim::Force { node, term }, Some(now)) if now == solo(node, term.next()) => record,

        // Without a standby the owner may not know the last term that it was given.
        (Claim::Stop { node, term, disks }, Some(Solo { owner, term: t, .. })) if owner == node && t >= term => {
            Some(Stopped { term: t, disks })
        }
        (Claim::Stop { term, .. }, Some(Stopped { term: t, .. })) if t >= term => record,
        (claim, record) => granted_to_pair(record, claim),
    }
}

/// Claims that name a primary and its standbys.
fn granted_to_pair(record: Option<Record>, claim: Claim) -> Option<Record> {
    use Record::{Protected, Solo};
    let solo = |owner, term| Solo { owner, term, since: term };
    match (claim, record) {
        (Claim::Register { primary, standby, term }, Some(Solo { owner, term: t, .. }))
            if owner == primary && t == term =>
        {
            Some(Protected { primary, in_sync: Replicas::one(standby), term })
        }
        (Claim::Register { primary, standby, term }, Some(Protected { primary: p, in_sync, term: t }))
            if p == primary && t == term =>
        {
            Some(Protected { primary, in_sync: in_sync.and(standby)?, term })
        }

        (Claim::Restore { primary, in_sync, term }, None) => Some(Protected { primary, in_sync, term }),
        (Claim::Restore { primary, in_sync, term }, Some(now)) if now == (Protected { primary, in_sync, term }) => {
            record
        }

        (Claim::GoAlone { primary, in_sync, term }, Some(now)) if now == (Protected { primary, in_sync, term }) => {
            Some(solo(primary, term.next()))
        }
        // The registration never arrived: nobody else ever had a right in this term.
        (Claim::GoAlone { primary, term, .. }, Some(Solo { owner, term: t, .. })) if owner == primary && t == term => {
            Some(solo(primary, term.next()))
        }
        (Claim::GoAlone { primary, term, .. }, Some(now)) if now == solo(primary, term.next()) => record,

        (Claim::TakeOver { primary, standby, term }, Some(now)) if now.protects(primary, standby, term) => {
            Some(solo(standby, term.next()))
        }
        (Claim::TakeOver { standby, term, .. }, Some(now)) if now == solo(standby, term.next()) => record,

        (Claim::Withdraw { primary, standby, term }, Some(now))
            if now.protects(primary, standby, term)
                || matches!(now, Solo { owner, term: t, .. } if owner == primary && t == term) =>
        {
            record
        }
        _ => None,
    }
}

/// Who may boot the VM: only a host whose disks prove that no others are newer. The exception is what an
/// operator has configured: a standby's host that has waited for long enough.
///
/// | record | granted to | with disks |
/// |---|---|---|
/// | none | anybody | that were never on record |
/// | `Stopped(t, d)` | anybody | of a run that ended in term d or later |
/// | `Solo(A, t)` since s | A's host | of a run in terms s - 1 to t, or a copy of s - 1 if it has waited |
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
            // The last owner may not have recorded the term that it was given: then its disks are of the one
            // before.
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
        Some(Record::Protected { in_sync, term, .. }) if in_sync.iter().any(|standby| standby.host == node.host) => {
            (waited && (diskless || disks == DiskState::Copy(term))).then(|| next(term))?
        }
        Some(Record::Solo { .. } | Record::Protected { .. }) => None,
    }
}
