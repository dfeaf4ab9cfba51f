//! The standby becomes the host that runs the VM, from the last committed checkpoint on.

use ft_proto::Epoch;
use ft_wire::session::TookOver;
use pollux_api::status::Takeover;

use super::StandbySession;
use crate::clock::micros;
use crate::context::Context;
use crate::devices::control::LinkError;
use crate::guest::{GuestError, Shape};
use crate::platform::Platform;
use crate::stream::image::WholeImage;

/// A takeover that could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeOverError {
    #[error("there is no committed checkpoint")]
    NoCheckpoint,
    #[error(transparent)]
    Device(#[from] LinkError),
    #[error(transparent)]
    Guest(#[from] GuestError),
}

impl<P: Platform> StandbySession<P> {
    /// Performs `Action::TakeOver`: the session is over, and the VM runs here.
    pub(crate) fn take_over(self, cx: &mut Context<P>, committed: Epoch) -> Result<Takeover, TakeOverError> {
        let begun = cx.now();
        let passed = |cx: &Context<P>| micros(cx.now().since(begun));
        let Self { latest, applied, shape, yielded, primary, stream, .. } = self;
        // Ends the receiving thread: nothing writes to memory behind our back from here on.
        drop(stream);
        let image = latest.filter(|image| image.epoch() == committed).ok_or(TakeOverError::NoCheckpoint)?;
        // A device knows only of the epochs that it has something of.
        cx.devices().roll_back(|key| applied.get(&key).copied().unwrap_or(committed))?;
        cx.machine_mut().guest().load(image.state())?;
        cx.devices().rolled_back()?;
        let disks_us = passed(cx);
        start(cx, &image, &shape)?;
        cx.devices().end_copies();
        let gap_us = yielded.map(|(at, stopped_us)| stopped_us.saturating_add(micros(cx.now().since(at))));
        let total_us = passed(cx);
        let suspected = cx.reporter().suspected().filter(|_| gap_us.is_none());
        let silence_ms = suspected.map(|(silence_ms, _)| silence_ms);
        let last_beat_us = suspected.map(|(silence_ms, at)| silence_ms * 1000 + micros(cx.now().since(at)));
        cx.identity_mut().takes_over(TookOver { from: primary, silence_ms, total_us, gap_us });
        Ok(Takeover { epoch: committed.0, disks_us, total_us, silence_ms, last_beat_us, gap_us })
    }
}

/// The guest and its devices, which stand at the checkpoint, run.
fn start<P: Platform>(cx: &mut Context<P>, image: &WholeImage, shape: &Shape) -> Result<(), TakeOverError> {
    cx.machine_mut().guest().activate()?;
    cx.devices().start(|id| {
        let in_flight = image.position(id).map(|position| position.in_flight.clone()).unwrap_or_default();
        let macs = shape.nets.iter().filter(|net| net.id == id).map(|net| net.mac).collect();
        (in_flight, macs)
    })?;
    Ok(cx.machine_mut().guest().start()?)
}
