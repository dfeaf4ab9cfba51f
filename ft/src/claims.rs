//! The claim that the witness has not answered yet, as status shows it.

use ft_proto::witness::Claim;
use ft_proto::{Time, WitnessAnswer};
use pollux_api::status::{ClaimKind, ClaimStatus};

use crate::clock::millis;

/// A claim that has no answer yet.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    claim: Claim,
    since: Time,
    error: Option<String>,
}

impl Pending {
    /// `claim` is made, perhaps not for the first time.
    pub(crate) fn asked(before: Option<Self>, claim: Claim, now: Time) -> Self {
        match before {
            Some(pending) if pending.claim == claim => pending,
            _ => Self { claim, since: now, error: None },
        }
    }

    /// There is an answer: what is open after it.
    pub(crate) fn answered(self, answer: &WitnessAnswer) -> Option<Self> {
        match answer {
            _ if answer.claim() != self.claim => Some(self),
            WitnessAnswer::Unreachable(_, reason) => Some(Self { error: Some(reason.clone()), ..self }),
            WitnessAnswer::Judged(..) => None,
        }
    }

    pub(crate) fn status(&self, now: Time) -> ClaimStatus {
        let kind = match self.claim {
            Claim::Register { .. } => ClaimKind::Register,
            Claim::Restore { .. } => ClaimKind::Restore,
            Claim::GoAlone { .. } => ClaimKind::GoAlone,
            Claim::TakeOver { .. } => ClaimKind::TakeOver,
            Claim::Withdraw { .. } => ClaimKind::Withdraw,
            _ => ClaimKind::Other,
        };
        ClaimStatus { kind, since_ms: millis(now.since(self.since)), error: self.error.clone() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ft_proto::witness::{Replicas, Verdict};
    use ft_proto::{NodeId, Term};

    use super::*;

    #[test]
    fn a_claim_that_is_repeated_keeps_its_age_and_tells_why() {
        let (primary, standby, term) = (NodeId::numbered(1, 1), NodeId::numbered(2, 1), Term(4));
        let (go_alone, register) = (
            Claim::GoAlone { primary, in_sync: Replicas::one(standby), term },
            Claim::Register { primary, standby, term },
        );
        let begun = Time(1 << 40);
        let later = begun + Duration::from_secs(9);
        let pending = Pending::asked(None, go_alone, begun);
        let full = WitnessAnswer::Unreachable(go_alone, "no space left".to_owned());
        let pending = Pending::asked(pending.answered(&full), go_alone, later);
        let ClaimStatus { kind, since_ms, error } = pending.status(later);
        assert_eq!((kind, since_ms, error.as_deref()), (ClaimKind::GoAlone, 9000, Some("no space left")));
        let late = WitnessAnswer::Judged(register, Verdict::Refused(None));
        let pending = pending.answered(&late).expect("an answer to another claim");
        assert!(pending.answered(&WitnessAnswer::Judged(go_alone, Verdict::Refused(None))).is_none());
    }
}
