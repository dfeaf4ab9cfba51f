//! The `ft.*` calls that change something: straight to the engine, beside the control loop, since hosts that are down and
//! witnesses that hang take their time, and other calls must not wait for them.

use super::{ApiError, Shared, Snapshot, VmmError};
use crate::ft_api::{FtControl, ProtectOptions};

/// What a client can ask of the engine.
#[derive(Clone, Debug, PartialEq)]
pub enum FtCall {
    /// `ft.protect`, by the configured peers if none is named.
    Protect(Option<Box<ProtectOptions>>),
    /// `ft.stop`
    Stop,
    /// `ft.suspend`
    Suspend,
    /// `ft.resume`
    Resume,
    /// `ft.switchover`
    Switchover,
    /// `ft.test-failover`
    TestFailover,
}

impl FtCall {
    /// What did not work when it fails.
    fn failure(&self) -> &'static str {
        match self {
            Self::Protect(_) => "The VM cannot be protected",
            Self::Stop => "The protection of the VM could not be ended",
            Self::Suspend => "The protection of the VM could not be suspended",
            Self::Resume => "The protection of the VM could not be resumed",
            Self::Switchover => "The VM could not be moved to its standby",
            Self::TestFailover => "The failover could not be tested",
        }
    }

    fn perform(self, ft: &dyn FtControl) -> Result<(), Vec<String>> {
        match self {
            Self::Protect(options) => ft.protect(options.map(|options| *options)),
            Self::Stop => ft.stop(),
            Self::Suspend => ft.suspend(),
            Self::Resume => ft.resume(),
            Self::Switchover => ft.switchover(),
            Self::TestFailover => ft.test_failover(),
        }
    }
}

/// Performs a call and waits, on a thread that has nothing else to do, until it is done.
///
/// # Errors
/// Why it was not done: the engine's reasons, or that there is no engine to ask.
pub async fn call(shared: &Shared, call: FtCall) -> Result<(), ApiError> {
    let failure = call.failure();
    let snapshot = shared.snapshot();
    let Some(ft) = snapshot.ft.clone() else { return Err(ApiError { failure, source: absent(&snapshot) }) };
    drop(snapshot);
    let performed = tokio::task::spawn_blocking(move || call.perform(&*ft)).await;
    let source = match performed {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(reasons)) => VmmError::Ft(reasons),
        Err(_) => VmmError::Ending,
    };
    Err(ApiError { failure, source })
}

/// Why there is no engine.
pub(super) fn absent(snapshot: &Snapshot) -> VmmError {
    match &snapshot.vm {
        None => VmmError::NotCreated,
        Some(vm) if vm.device_tree.is_none() => VmmError::NotRunning,
        Some(_) => VmmError::FtUnavailable,
    }
}
