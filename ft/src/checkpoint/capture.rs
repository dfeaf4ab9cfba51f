//! One checkpoint: devices sealed, the guest stopped, captured and running again, devices running again.

use std::time::{Duration, Instant};

use ft_proto::device_ctl::{Command, Hold, Report};
use ft_proto::{CutKind, Epoch};

use crate::checkpoint::staging::Staging;
use crate::devices::link::{DeviceLink, LinkError};
use crate::guest::{Guest, GuestError, Position};

/// A device process that takes longer than this to seal counts as dead. It has microseconds of work to do.
const SEAL_LIMIT: Duration = Duration::from_secs(2);

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

/// A checkpoint in the making is in the staging buffer; this is about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Captured {
    /// What devices held back when they were sealed.
    pub(crate) held: Held,
    /// How long the guest stood still; or, if a vCPU does not run again yet, how long the capture took.
    pub(crate) paused: Duration,
}

/// What devices held back when they were sealed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Held {
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
}

/// Captures the epoch of `staging` into it; `cpu` is where that is worked on, if it is one processor. The guest goes on, unless it is
/// the last cut; the devices do when [`resume`] tells them.
///
/// On failure every page that was harvested is marked dirty again.
pub(crate) fn capture(
    guest: &mut dyn Guest,
    links: &mut [DeviceLink],
    kind: CutKind,
    staging: &mut Staging,
    cpu: Option<u16>,
) -> Result<Captured, CaptureError> {
    let began = Instant::now();
    if !guest.stop() {
        return Err(CaptureError::Busy);
    }
    let stopped = match seal(links, staging, cpu) {
        Ok(held) => guest.checkpoint(kind, staging).map(|()| held).map_err(CaptureError::from),
        Err(error) => {
            guest.resume();
            Err(error.into())
        }
    };
    let stopped = stopped.map(|held| Captured { held, paused: guest.stood_still().unwrap_or(began.elapsed()) });
    // What does not need the guest to stand still; or the undoing of what failed.
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

/// The devices go on, in `epoch`. After the `base` the output of those that are not disks is held.
pub(crate) fn resume(links: &mut [DeviceLink], disks: usize, base: bool, epoch: Epoch) {
    for (at, link) in links.iter_mut().enumerate() {
        // A device that is gone is noticed by its closed socket; the others must run again whatever happens to it.
        if base && at >= disks {
            let _ = link.send(&Command::Protect { epoch, hold: Hold::on() }, None);
        }
        let _ = link.send(&Command::Resume, None);
    }
}

/// Devices touch guest memory no more until they are told to resume. They seal while the vCPUs come to a stop and capture
/// themselves. An interrupt that a device raises after a vCPU has captured its LAPIC is not in the checkpoint; takeover injects
/// every interrupt once for this reason.
fn seal(links: &mut [DeviceLink], staging: &mut Staging, cpu: Option<u16>) -> Result<Held, LinkError> {
    let epoch = staging.epoch;
    links.iter_mut().try_for_each(|link| link.send(&Command::Seal { epoch, cpu }, None))?;
    let mut held = Held::default();
    for link in links {
        let position = sealed(link, epoch, &mut held)?;
        staging.positions.push(position);
    }
    Ok(held)
}

fn sealed(link: &mut DeviceLink, expected: Epoch, held: &mut Held) -> Result<Position, LinkError> {
    let id = link.id().to_owned();
    let (position, frames, bytes) = link.wait_for(SEAL_LIMIT, |report| match report {
        Report::Sealed { epoch, queues, in_flight, held_frames, held_bytes, idle } if epoch == expected => {
            Ok((Position { id: id.clone(), queues, in_flight, idle }, held_frames, held_bytes))
        }
        other => Err(other),
    })?;
    link.holds = frames + bytes > 0;
    held.frames += frames;
    held.bytes += bytes;
    Ok(position)
}
