//! Why the fault-tolerance engine does not do what an operator asks.

use crate::blocker::Blocker;
use crate::reason::{Blame, BlockerReport};
use crate::status::State;

/// Why the engine refuses a call.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// Only a VM that is protected can do this.
    #[error("this VM is not protected, it is {0}")]
    NotProtected(State),
    /// The same, while a VM that was protected leaves its standby.
    #[error("this VM is not protected, it is about to go on alone")]
    AboutToGoAlone,
    /// The VM has a standby, or is one.
    #[error("this VM is {0} already: see `pollux ft status`")]
    Already(State),
    /// A standby is being asked for somebody else.
    #[error("this VM is being protected already: see `pollux ft status`")]
    BeingProtected,
    /// There is no suspension to end.
    #[error("protection is not suspended, this VM is {0}")]
    NotSuspended(State),
    /// No standby is named, and none is configured.
    #[error(
        "there is no standby to ask: name one with peer= and heartbeat=, or start pollux-vmm with --ft standby-peers="
    )]
    NoPeers,
    /// Everything that speaks against protection, none of it the cause of anything else of it.
    #[error("{}", sentences(.0).join("; "))]
    Preflight(Vec<Blocker>),
    /// A planned move did not come about.
    #[error("the VM stays here: its standby was lost during the move, see `pollux ft events`")]
    StandbyLost,
    /// The VM was stopped here meanwhile.
    #[error("{0}")]
    Fenced(String),
    /// This host has nothing left for it.
    #[error("cannot start a thread: {0}")]
    NoThread(String),
    /// A device that has a copy on the other host cannot join a protected VM.
    #[error("device {0} has a copy on the other host, and cannot join while the VM is protected")]
    DeviceNeedsCopy(String),
    /// There is no such device.
    #[error("there is no device {0}")]
    NoDevice(String),
    /// The VM has ended, and its protection with it.
    #[error("the fault-tolerance engine has ended")]
    Ended,
}

impl Refused {
    /// What programs know it by; stays the same when the sentence changes.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotProtected(_) | Self::AboutToGoAlone => "not-protected",
            Self::Already(_) => "already-protected",
            Self::BeingProtected => "being-protected",
            Self::NotSuspended(_) => "not-suspended",
            Self::NoPeers => "no-peers",
            Self::Preflight(_) => "preflight",
            Self::StandbyLost => "standby-lost",
            Self::Fenced(_) => "fenced",
            Self::NoThread(_) => "host-exhausted",
            Self::DeviceNeedsCopy(_) => "device-needs-copy",
            Self::NoDevice(_) => "no-device",
            Self::Ended => "ended",
        }
    }

    /// What has to change before the call can succeed.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::NotProtected(_)
            | Self::AboutToGoAlone
            | Self::Already(_)
            | Self::BeingProtected
            | Self::NotSuspended(_)
            | Self::Fenced(_)
            | Self::DeviceNeedsCopy(_)
            | Self::Ended => Blame::State,
            Self::NoPeers | Self::NoDevice(_) => Blame::Request,
            Self::Preflight(_) | Self::StandbyLost => Blame::Environment,
            Self::NoThread(_) => Blame::Host,
        }
    }

    /// What to do next, where the sentence does not say it.
    #[must_use]
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotProtected(_) => Some("protect it with `pollux ft protect`"),
            Self::AboutToGoAlone => Some("wait until `pollux ft status` shows another state"),
            Self::Fenced(_) => Some("ask the host that runs the VM"),
            Self::Preflight(_) => Some("resolve every reason, then protect the VM again"),
            Self::Already(_)
            | Self::BeingProtected
            | Self::NotSuspended(_)
            | Self::NoPeers
            | Self::StandbyLost
            | Self::NoThread(_)
            | Self::DeviceNeedsCopy(_)
            | Self::NoDevice(_)
            | Self::Ended => None,
        }
    }

    /// Each reason as a sentence of its own.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        match self {
            Self::Preflight(blockers) => sentences(blockers),
            other => vec![other.to_string()],
        }
    }

    /// Each reason for programs, where there may be several.
    #[must_use]
    pub fn blockers(&self) -> Vec<BlockerReport> {
        match self {
            Self::Preflight(blockers) => blockers.iter().map(BlockerReport::from).collect(),
            _ => Vec::new(),
        }
    }
}

fn sentences(blockers: &[Blocker]) -> Vec<String> {
    blockers.iter().map(Blocker::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_name_the_state_and_what_to_do() {
        let sentence = Refused::NotProtected(State::StandbyEmpty).to_string();
        assert_eq!(sentence, "this VM is not protected, it is standby-empty");
        let failed = |reason: &str| Blocker::SessionFailed { reason: reason.to_owned() };
        let two = Refused::Preflight(vec![failed("no witness"), failed("no disk")]);
        assert_eq!((two.to_string().as_str(), two.reasons().len()), ("no witness; no disk", 2));
        assert_eq!(two.blockers()[1].code, "session-failed");
        assert_eq!(Refused::Ended.reasons(), ["the fault-tolerance engine has ended"]);
    }
}
