//! One checkpoint: devices sealed, the guest stopped, captured and running again, devices running again.

use std::time::Duration;

use ft_proto::{CutKind, Time};

use crate::devices::control::{DeviceControl, LinkError};
use crate::devices::{Devices, Held};
use crate::guest::staging::Staging;
use crate::guest::{Guest, GuestError};

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaptureError {
    /// A device process failed: the VM should go on elsewhere.
    #[error(transparent)]
    Device(#[from] LinkError),
    /// The VMM failed.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The guest cannot be stopped at once. Nothing has been done.
    #[error("the guest is busy")]
    Busy,
}

/// Captures the epoch of `staging` into it; `cpu` is where that is worked on, if it is one processor. The
/// guest goes on, unless it is the last cut; the devices do when they are told to.
///
/// Returns what devices held back when they were sealed, and how long the guest was paused; or, if a vCPU
/// does not run again yet, how long the capture took. On failure every page that was harvested is marked
/// dirty again.
pub(crate) fn capture<C: DeviceControl>(
    guest: &mut dyn Guest,
    devices: &mut Devices<C>,
    kind: CutKind,
    staging: &mut Staging,
    cpu: Option<u16>,
    now: impl Fn() -> Time,
) -> Result<(Held, Duration), CaptureError> {
    let began = now();
    if !guest.stop() {
        return Err(CaptureError::Busy);
    }
    let device_wait = guest.device_wait();
    let stopped = match devices.seal(staging.epoch, cpu, &mut staging.positions, &device_wait) {
        Ok(held) => guest.checkpoint(kind, staging).map(|()| held).map_err(CaptureError::from),
        Err(error) => {
            guest.resume();
            Err(error.into())
        }
    };
    let stopped = stopped.map(|held| (held, guest.last_pause().unwrap_or(now().since(began))));
    // What does not need the guest to be paused; or the undoing of what failed.
    let stays = kind == CutKind::Last && stopped.is_ok();
    let result = stopped.and_then(|captured| Ok(guest.save_vcpus(&mut staging.state).map(|()| captured)?));
    if result.is_err() {
        guest.put_back(&staging.pages);
        if stays {
            guest.resume();
        }
    }
    result
}
