//! Why a request is not done, for the control loop, for the log and for clients.

use host_kit::error::causes;
use pollux_api::Refused;
use pollux_api::problem::{Blame, Problem, Relation};
use pollux_api::vm::VmState;

use super::ApiRequest;
use crate::config::ConfigError;
use crate::contract::BoxError;
use crate::vm::NotHere;

/// Why a request failed: what did not work, and the reason.
#[derive(Debug, thiserror::Error)]
#[error("{failure}")]
pub struct ApiError {
    failure: &'static str,
    source: VmmError,
}

impl ApiError {
    /// The failure of `request` for a reason.
    #[must_use]
    pub fn new(request: &ApiRequest, source: VmmError) -> Self {
        Self::because(request.failure(), source)
    }

    /// A failure for a reason.
    pub(super) fn because(failure: &'static str, source: VmmError) -> Self {
        Self { failure, source }
    }

    /// For a client.
    pub(super) fn problem(&self) -> Problem {
        let status = match self.source {
            VmmError::NotCreated => 404,
            _ => 500,
        };
        let problem = Problem::new(status, self.source.code(), self.source.blame(), self.failure);
        match &self.source {
            VmmError::Ft(refused) => {
                let relation = if matches!(refused, Refused::Preflight(_)) { Relation::List } else { Relation::Chain };
                let blockers = refused.blockers();
                Problem { relation, blockers, ..problem }.because(refused.reasons()).hinting(refused.hint())
            }
            source => problem.because(causes(source)),
        }
    }
}

/// Why the control loop did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// There is a VM already.
    #[error("VM is already created")]
    AlreadyCreated,
    /// There is no VM.
    #[error("VM is not created")]
    NotCreated,
    /// There is a VM, but it was not booted.
    #[error("VM is not running")]
    NotRunning,
    /// The VM is not in a state for this. (Text of Cloud Hypervisor.)
    #[error("Invalid transition: InvalidStateTransition({0:?}, {1:?})")]
    Transition(VmState, VmState),
    /// The configuration is wrong.
    #[error("the configuration is wrong")]
    Config(#[source] ConfigError),
    /// The VM itself failed.
    #[error(transparent)]
    Machine(BoxError),
    /// A standby was built without payload, and its guest has to boot again.
    #[error("there is nothing to boot: this VM was a standby without a kernel")]
    NothingToBoot,
    /// Only the primary may do this.
    #[error("this VM is a standby: it runs on the host that it protects")]
    Standby,
    /// Nobody may do this: the VM runs elsewhere.
    #[error("this VM was stopped here: another host runs it")]
    Fenced,
    /// The VM is on its way to another host, or there already.
    #[error(transparent)]
    NotHere(NotHere),
    /// No fault tolerance in this VMM.
    #[error("fault tolerance is not available")]
    FtUnavailable,
    /// The engine refuses.
    #[error(transparent)]
    Ft(#[from] Refused),
    /// No name server tells where a peer is.
    #[error("no name server has told the peer's address in time: give an IP address, or try again")]
    NameServer,
    /// The control loop has ended.
    #[error("the VMM is shutting down")]
    Ending,
}

impl VmmError {
    /// What programs know it by; stays the same when the sentence changes.
    fn code(&self) -> &'static str {
        match self {
            Self::AlreadyCreated => "already-created",
            Self::NotCreated => "not-created",
            Self::NotRunning => "not-running",
            Self::Transition(..) => "invalid-transition",
            Self::Config(_) => "invalid-config",
            Self::Machine(_) => "machine-failed",
            Self::NothingToBoot => "nothing-to-boot",
            Self::Standby => "standby",
            Self::Fenced => "fenced",
            Self::NotHere(_) => "not-here",
            Self::FtUnavailable => "ft-unavailable",
            Self::Ft(refused) => refused.code(),
            Self::NameServer => "name-server",
            Self::Ending => "ending",
        }
    }

    /// What has to change before the request can succeed.
    fn blame(&self) -> Blame {
        match self {
            Self::AlreadyCreated
            | Self::NotCreated
            | Self::NotRunning
            | Self::Transition(..)
            | Self::Standby
            | Self::Fenced
            | Self::NotHere(_)
            | Self::Ending => Blame::State,
            Self::Config(_) | Self::NothingToBoot | Self::FtUnavailable => Blame::Request,
            Self::Machine(_) | Self::NameServer => Blame::Environment,
            Self::Ft(refused) => refused.blame(),
        }
    }
}
