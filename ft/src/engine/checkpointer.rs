//! Captures the checkpoints of this VM: postpones one while the guest cannot be stopped, chooses the CPU, and
//! produces an immutable image. Knows nothing of the replicas that receive it.

use std::time::Duration;

use ft_proto::{CutKind, Epoch, Time};
use host_kit::cpu_load::CpuLoad;

use crate::checkpoint::capture::{CaptureError, capture};
use crate::checkpoint::cpu_placement::CpuPlacement;
use crate::checkpoint::epoch_image::EpochImage;
use crate::context::Context;
use crate::platform::Platform;

/// How long a cut is put off while the guest cannot be stopped.
const CUT_AGAIN: Duration = Duration::from_millis(2);

/// A checkpoint that was captured.
pub(super) struct Checkpoint {
    image: EpochImage,
    begun: Time,
    paused: Duration,
    carriers: Option<u16>,
}

impl Checkpoint {
    /// What it is, for whoever receives it, and when its capture began.
    pub(super) fn image(&self) -> (EpochImage, Time) {
        (self.image.clone(), self.begun)
    }

    /// How long the guest was paused; or, if a vCPU does not run again yet, how long the capture took.
    pub(super) fn paused(&self) -> Duration {
        self.paused
    }

    pub(super) fn pages(&self) -> u64 {
        self.image.pages.len() as u64
    }

    /// The processor from where it is sent, if it is to be one.
    pub(super) fn carriers(&self) -> Option<u16> {
        self.carriers
    }
}

/// Makes the checkpoints of a session.
pub(super) struct Checkpointer {
    place: CpuPlacement,
    /// Where the vCPUs run.
    vcpus: Vec<usize>,
    /// A cut that could not be made at once, and when to try again.
    postponed: Option<(Epoch, CutKind, Time)>,
}

impl Checkpointer {
    /// Nothing has been captured yet.
    pub(super) fn new(load: Option<CpuLoad>) -> Self {
        Self { place: CpuPlacement::begin(load), vcpus: Vec::new(), postponed: None }
    }

    /// Console output of an epoch is held.
    pub(super) fn console_output(&mut self, epoch: Epoch) {
        self.place.console_output(epoch);
    }

    /// Captures an epoch. The guest goes on, unless it is the last cut; the devices do when they are told to.
    /// `None`: it has to wait, since the guest cannot be stopped now.
    pub(super) fn cut<P: Platform>(
        &mut self,
        cx: &mut Context<P>,
        epoch: Epoch,
        kind: CutKind,
    ) -> Result<Option<Checkpoint>, CaptureError> {
        let begun = cx.now();
        // Of the cut before, since that is over only now.
        let last_pause = cx.machine_mut().guest().last_pause().filter(|_| kind != CutKind::Base);
        let mut staging = cx.buffers().take(epoch);
        if kind == CutKind::Base {
            self.place = CpuPlacement::begin(cx.platform().cpu_load());
        }
        cx.machine_mut().guest().processors(&mut self.vcpus);
        let cpu = self.place.next(&self.vcpus);
        cx.platform().pin_to_cpu(cpu);
        let (platform, machine) = cx.platform_and_machine();
        let (guest, devices) = machine.parts();
        let result = capture(guest, devices, kind, &mut staging, cpu, || platform.now());
        if let Some(pause) = last_pause.filter(|_| !matches!(result, Err(CaptureError::Busy))) {
            cx.reporter().measured().paused(pause);
        }
        match result {
            Ok((held, paused)) => {
                let pages = staging.pages.len();
                cx.reporter().measured().captured(pages as u64, held);
                self.place.epoch(epoch, pages, held.frames() > 0);
                let carriers = self.place.of_carriers();
                Ok(Some(Checkpoint { image: EpochImage::new(staging), begun, paused, carriers }))
            }
            Err(error) => {
                cx.buffers().put_back(staging);
                if !matches!(error, CaptureError::Busy) {
                    return Err(error);
                }
                self.postponed = Some((epoch, kind, begun + CUT_AGAIN));
                Ok(None)
            }
        }
    }

    /// When a cut that was put off is to be made.
    pub(super) fn due(&self) -> Option<Time> {
        self.postponed.map(|(_, _, at)| at)
    }

    /// That cut, if it is time for it.
    pub(super) fn take_due(&mut self, now: Time) -> Option<(Epoch, CutKind)> {
        self.postponed.take_if(|(_, _, at)| *at <= now).map(|(epoch, kind, _)| (epoch, kind))
    }
}
