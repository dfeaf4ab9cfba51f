//! One checkpoint: everything stopped and sealed, captured, running again. What happens in here is the guest's pause.

use std::time::{Duration, Instant};

use ft_proto::device_ctl::{Command, Hold, Report};
use ft_proto::{CutKind, Epoch};

use crate::device_link::{DeviceLink, LinkError};
use crate::guest::{Guest, GuestError, Memory, Position};
use crate::staging::Staging;

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
}

/// A checkpoint in the making is in the staging buffer; this is about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Captured {
    /// What devices held back when they were sealed.
    pub(crate) held: Held,
    /// How long the guest stood still; or, if a vCPU does not run again yet, how long it took to stop and start it.
    pub(crate) paused: Duration,
}

/// What devices held back when they were sealed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Held {
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
}

/// Captures `epoch` into `staging`. After the base output is held, after the last one nothing runs any more.
///
/// On failure the guest runs on in a new epoch, and every page that was harvested is marked dirty again.
pub(crate) fn capture(
    guest: &mut dyn Guest,
    links: &mut [DeviceLink],
    disks: usize,
    kind: CutKind,
    staging: &mut Staging,
    memory: &dyn Memory,
) -> Result<Captured, CaptureError> {
    let (epoch, began) = (staging.epoch, Instant::now());
    let stopped = stop_and_copy(guest, links, staging, memory);
    let captured = |held| Captured { held, paused: began.elapsed() };
    if kind == CutKind::Last && stopped.is_ok() {
        return finish(guest, staging, stopped.map(captured));
    }
    let base = kind == CutKind::Base;
    if base && stopped.is_ok() {
        guest.hold_console(epoch.next());
    } else {
        guest.tag_console(epoch.next());
    }
    // First: the pause is the vCPUs'. A device that they kick looks at its queues when it resumes.
    guest.resume();
    let result = stopped.map(captured);
    for (at, link) in links.iter_mut().enumerate() {
        // A device that is gone is noticed by its closed socket; the others must run again whatever happens to it.
        if base && result.is_ok() && at >= disks {
            let _ = link.send(&Command::Protect { epoch: epoch.next(), hold: Hold::on() }, None);
        }
        let _ = link.send(&Command::Resume, None);
    }
    finish(guest, staging, result)
}

/// What does not need the guest to stand still; or the undoing of what failed.
fn finish(
    guest: &mut dyn Guest,
    staging: &mut Staging,
    stopped: Result<Captured, CaptureError>,
) -> Result<Captured, CaptureError> {
    let mut result = stopped.and_then(|captured| Ok(guest.save_vcpus(&mut staging.state).map(|()| captured)?));
    if let (Ok(captured), Some(stood)) = (&mut result, guest.stood_still()) {
        captured.paused = stood;
    }
    if result.is_err() {
        guest.put_back(&staging.pages);
    }
    result
}

fn stop_and_copy(
    guest: &mut dyn Guest,
    links: &mut [DeviceLink],
    staging: &mut Staging,
    memory: &dyn Memory,
) -> Result<Held, CaptureError> {
    let epoch = staging.epoch;
    // Devices seal while the vCPUs come to a stop. An interrupt that a device raises after a vCPU has captured its LAPIC
    // is not in the checkpoint; takeover injects every interrupt once for this reason.
    let asked = links.iter_mut().try_for_each(|link| link.send(&Command::Seal { epoch }, None));
    let paused = guest.pause();
    asked?;
    paused?;
    let mut held = Held::default();
    for link in &mut *links {
        let position = sealed(link, epoch, &mut held)?;
        staging.positions.push(position);
    }
    guest.harvest(&mut staging.pages)?;
    staging.copy_pages(memory)?;
    guest.save(&staging.positions, &mut staging.state)?;
    Ok(held)
}

fn sealed(link: &mut DeviceLink, expected: Epoch, held: &mut Held) -> Result<Position, LinkError> {
    let id = link.id().to_owned();
    let (position, frames, bytes) = link.wait_for(SEAL_LIMIT, |report| match report {
        Report::Sealed { epoch, queues, in_flight, held_frames, held_bytes } if epoch == expected => {
            Ok((Position { id: id.clone(), queues, in_flight }, held_frames, held_bytes))
        }
        other => Err(other),
    })?;
    link.holds = frames + bytes > 0;
    held.frames += frames;
    held.bytes += bytes;
    Ok(position)
}
