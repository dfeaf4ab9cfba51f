//! The `ft.*` calls that change something: straight to the engine, beside the control loop, since hosts that
//! are down and witnesses that hang take their time, and other calls must not wait for them.

use super::{ApiError, Shared, Snapshot, VmmError};
use crate::ft_api::Call;

/// What did not work when a call fails.
fn failure(call: &Call) -> &'static str {
    match call {
        Call::Protect(_) => "The VM cannot be protected",
        Call::Stop => "The protection of the VM could not be ended",
        Call::Suspend => "The protection of the VM could not be suspended",
        Call::Resume => "The protection of the VM could not be resumed",
        Call::HandOver(_) | Call::Switchover => "The VM could not be moved to its standby",
        Call::TestFailover => "The failover could not be tested",
    }
}

/// Performs a call and waits, on a thread that has nothing else to do, until it is done.
///
/// # Errors
/// Why it was not done: the engine's reasons, or that there is no engine to ask.
pub async fn call(shared: &Shared, call: Call) -> Result<(), ApiError> {
    let failure = failure(&call);
    let snapshot = shared.snapshot();
    let Some(ft) = snapshot.ft.clone() else { return Err(ApiError::because(failure, absent(&snapshot))) };
    drop(snapshot);
    let performed = tokio::task::spawn_blocking(move || ft.call(call)).await;
    let source = match performed {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(refused)) => VmmError::Ft(refused),
        Err(_) => VmmError::Ending,
    };
    Err(ApiError::because(failure, source))
}

/// Why there is no engine.
pub(super) fn absent(snapshot: &Snapshot) -> VmmError {
    match &snapshot.vm {
        None => VmmError::NotCreated,
        Some(vm) if vm.device_tree.is_none() => VmmError::NotRunning,
        Some(_) => VmmError::FtUnavailable,
    }
}
