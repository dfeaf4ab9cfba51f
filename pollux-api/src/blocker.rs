//! Why a VM cannot be protected: every reason as a type, with what is to blame and what to do about it.

use crate::options::Fault;
use crate::reason::{Blame, BlockerReport};
use crate::status::State;

/// A reason why a VM cannot be protected now.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Blocker {
    /// The options contradict each other.
    #[error(transparent)]
    Options(#[from] Fault),
    /// A device whose process does not know checkpoints.
    #[error("device {device} is served by a vhost-user process that is not ours and cannot be sealed")]
    ForeignDevice {
        /// Its id.
        device: String,
    },
    /// A device process has failed before.
    #[error("{reason}")]
    DeviceFailed {
        /// Why.
        reason: String,
    },
    /// Nobody accepts a connection there.
    #[error("cannot reach a standby at {peer}: {reason}")]
    StandbyUnreachable {
        /// Its address.
        peer: String,
        /// Why.
        reason: String,
    },
    /// Whoever answers there is not of this host's pair, or does not take this host for one of its own.
    #[error("{peer} and this host are not of the same pair: {reason}")]
    NotOfThePair {
        /// Its address.
        peer: String,
        /// Why.
        reason: String,
    },
    /// This host cannot say who it is.
    #[error("{reason}")]
    NoCredentials {
        /// Why.
        reason: String,
    },
    /// A connection was accepted, and nothing followed.
    #[error("standby at {peer} has accepted the connection, but not answered: {reason}")]
    StandbySilent {
        /// Its address.
        peer: String,
        /// Why.
        reason: String,
    },
    /// The connection failed later.
    #[error("standby at {peer}: {reason}")]
    ConnectionFailed {
        /// Its address.
        peer: String,
        /// Why.
        reason: String,
    },
    /// The standby says no.
    #[error("standby at {peer}: {reason}")]
    RefusedByStandby {
        /// Its address.
        peer: String,
        /// In its words.
        reason: String,
    },
    /// There is no way to the standby's address on the second link.
    #[error("no heartbeat link to {peer}: {reason}")]
    NoHeartbeatLink {
        /// That address.
        peer: String,
        /// Why.
        reason: String,
    },
    /// The witness does not answer.
    #[error("witness {witness}: {reason}")]
    WitnessUnreachable {
        /// Its address.
        witness: String,
        /// Why.
        reason: String,
    },
    /// The witness has no record of a VM that had one.
    #[error("the witness at {witness} has lost its record of this VM")]
    WitnessRecordLost {
        /// Its address.
        witness: String,
    },
    /// The witness says that another host may run the VM.
    #[error("{record}")]
    RefusedByWitness {
        /// Its record, in words.
        record: String,
    },
    /// Two sessions must not have the same term.
    #[error("the witness gave term {term} twice")]
    TermRepeated {
        /// That term.
        term: u64,
    },
    /// The VM has changed its state while the standby was asked.
    #[error("this VM is {0} now")]
    StateChanged(State),
    /// The VM has ended meanwhile.
    #[error("the VM has ended")]
    VmEnded,
    /// An operator has ended the search meanwhile.
    #[error("protection was stopped meanwhile")]
    NotWanted,
    /// A session ended before the VM was protected.
    #[error("{reason}")]
    SessionFailed {
        /// Why.
        reason: String,
    },
    /// This host has nothing left for it.
    #[error("cannot start a thread: {reason}")]
    HostExhausted {
        /// Why.
        reason: String,
    },
}

impl Blocker {
    /// What programs know it by; stays the same when the sentence changes.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Options(_) => "options",
            Self::ForeignDevice { .. } => "foreign-device",
            Self::DeviceFailed { .. } => "device-failed",
            Self::StandbyUnreachable { .. } => "standby-unreachable",
            Self::NotOfThePair { .. } => "not-of-the-pair",
            Self::NoCredentials { .. } => "no-credentials",
            Self::StandbySilent { .. } => "standby-silent",
            Self::ConnectionFailed { .. } => "connection-failed",
            Self::RefusedByStandby { .. } => "refused-by-standby",
            Self::NoHeartbeatLink { .. } => "no-heartbeat-link",
            Self::WitnessUnreachable { .. } => "witness-unreachable",
            Self::WitnessRecordLost { .. } => "witness-record-lost",
            Self::RefusedByWitness { .. } => "refused-by-witness",
            Self::TermRepeated { .. } => "term-repeated",
            Self::StateChanged(_) => "state-changed",
            Self::VmEnded => "vm-ended",
            Self::NotWanted => "not-wanted",
            Self::SessionFailed { .. } => "session-failed",
            Self::HostExhausted { .. } => "host-exhausted",
        }
    }

    /// What has to change before the VM can be protected.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::Options(_) => Blame::Request,
            Self::ForeignDevice { .. } | Self::StateChanged(_) | Self::VmEnded | Self::NotWanted => Blame::State,
            Self::DeviceFailed { .. } | Self::HostExhausted { .. } | Self::NoCredentials { .. } => Blame::Host,
            Self::StandbyUnreachable { .. }
            | Self::NotOfThePair { .. }
            | Self::StandbySilent { .. }
            | Self::ConnectionFailed { .. }
            | Self::RefusedByStandby { .. }
            | Self::NoHeartbeatLink { .. }
            | Self::WitnessUnreachable { .. }
            | Self::WitnessRecordLost { .. }
            | Self::RefusedByWitness { .. }
            | Self::TermRepeated { .. }
            | Self::SessionFailed { .. } => Blame::Environment,
        }
    }

    /// What to do next, where the sentence does not say it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::ForeignDevice { .. } => "use path= or tap= instead of vhost_user=true".to_owned(),
            Self::DeviceFailed { .. } => "restart the VM: its device processes are started anew".to_owned(),
            Self::StandbyUnreachable { peer, .. } => {
                format!("is pollux-vmm running there with --ft listen={peer}?")
            }
            Self::NotOfThePair { .. } => {
                "`pollux pair show` on both hosts: the authority has to be the same, and the certificates valid"
                    .to_owned()
            }
            Self::WitnessRecordLost { .. } => "`pollux witness create --help` says what to do".to_owned(),
            Self::TermRepeated { .. } => "try again".to_owned(),
            Self::Options(_)
            | Self::NoCredentials { .. }
            | Self::StandbySilent { .. }
            | Self::ConnectionFailed { .. }
            | Self::RefusedByStandby { .. }
            | Self::NoHeartbeatLink { .. }
            | Self::WitnessUnreachable { .. }
            | Self::RefusedByWitness { .. }
            | Self::StateChanged(_)
            | Self::VmEnded
            | Self::NotWanted
            | Self::SessionFailed { .. }
            | Self::HostExhausted { .. } => return None,
        })
    }

    /// Whether it stays until somebody changes something; the others may be gone at the next try.
    #[must_use]
    pub const fn persists(&self) -> bool {
        match self {
            Self::Options(_)
            | Self::ForeignDevice { .. }
            | Self::DeviceFailed { .. }
            | Self::NotOfThePair { .. }
            | Self::NoCredentials { .. }
            | Self::RefusedByStandby { .. }
            | Self::WitnessRecordLost { .. }
            | Self::RefusedByWitness { .. }
            | Self::VmEnded
            | Self::SessionFailed { .. } => true,
            Self::StandbyUnreachable { .. }
            | Self::StandbySilent { .. }
            | Self::ConnectionFailed { .. }
            | Self::NoHeartbeatLink { .. }
            | Self::WitnessUnreachable { .. }
            | Self::TermRepeated { .. }
            | Self::StateChanged(_)
            | Self::NotWanted
            | Self::HostExhausted { .. } => false,
        }
    }
}

impl From<&Blocker> for BlockerReport {
    fn from(blocker: &Blocker) -> Self {
        let (code, blame) = (blocker.code().to_owned(), blocker.blame());
        Self { code, blame, reason: blocker.to_string(), hint: blocker.hint() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_code_blame_sentence_and_hint() {
        let (peer, reason) = ("10.0.0.2:7000".to_owned(), "Connection refused".to_owned());
        let report = BlockerReport::from(&Blocker::StandbyUnreachable { peer, reason });
        let expected = serde_json::json!({
            "code": "standby-unreachable", "blame": "environment",
            "reason": "cannot reach a standby at 10.0.0.2:7000: Connection refused",
            "hint": "is pollux-vmm running there with --ft listen=10.0.0.2:7000?",
        });
        assert_eq!(serde_json::to_value(report).unwrap(), expected);
        let report = BlockerReport::from(&Blocker::Options(Fault::WitnessAndPolicy));
        assert_eq!((report.code.as_str(), report.blame, report.hint), ("options", Blame::Request, None));
    }
}
