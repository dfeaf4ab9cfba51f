//! virtio-rng: entropy from a file of the host, served by the VMM itself.
//!
//! A request is served on the vCPU that makes it, so nothing here waits: what the file does not have at once
//! comes from the host's kernel.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use ft_wire::device_ctl::QueueState;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vmm_sys_util::eventfd::EventFd;

use crate::machine::memory::guest::GuestRam;
use crate::virtio::device::{ActiveQueue, VirtioDevice};
use crate::virtio::error::VirtioError;
use crate::virtio::local_queue::{Chain, LocalQueue};
use crate::virtio::ring::{F_EVENT_IDX, RING_FEATURES};
use crate::virtio::state::DeviceState;

const QUEUE_SIZE: u16 = 256;
/// The most bytes for one request: a request is served on a vCPU, which should not be away for long.
const REQUEST_MAX: usize = 4096;

/// The device.
pub struct Rng {
    source: File,
    ram: GuestRam,
    queue: Option<LocalQueue>,
    /// Where the queue stood in the checkpoint, or now.
    position: [QueueState; 1],
    log_failure: bool,
}

impl Rng {
    /// Entropy from `source`, such as `/dev/urandom`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn new(source: &Path, ram: GuestRam) -> io::Result<Self> {
        let source = host_kit::file::open_nonblocking(source)?;
        Ok(Self { source, ram, queue: None, position: Default::default(), log_failure: true })
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        RING_FEATURES
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    fn has_doorbell(&self, _queue: u16) -> bool {
        false
    }

    fn activate(&mut self, features: u64, queues: Vec<ActiveQueue>, resume: bool) -> Result<(), VirtioError> {
        if !resume {
            self.position = Default::default();
        }
        let event_idx = features & F_EVENT_IDX != 0;
        self.queue = match queues.into_iter().next() {
            Some(active) => Some(LocalQueue::new(active, self.position[0], event_idx, &self.ram)?),
            None => None,
        };
        Ok(())
    }

    fn notify(&mut self, _queue: u16) -> Result<(), VirtioError> {
        let Some(queue) = &mut self.queue else { return Ok(()) };
        let (source, log_failure) = (&mut self.source, &mut self.log_failure);
        let served = queue.serve(|chain, ram| {
            fill(chain, ram, source).unwrap_or_else(|e| {
                if std::mem::take(log_failure) {
                    tracing::warn!("virtio-rng request fails: {e}");
                }
                0
            })
        });
        self.position = [queue.position()];
        served
    }

    fn set_call(&mut self, _queue: u16, call: EventFd) -> Result<(), VirtioError> {
        if let Some(queue) = &mut self.queue {
            queue.set_call(call);
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), VirtioError> {
        self.queue = None;
        self.position = Default::default();
        Ok(())
    }

    /// Served on vCPUs only: paused when they are.
    fn pause(&mut self, _paused: bool) -> Result<(), VirtioError> {
        Ok(())
    }

    /// Writes through the VMM's mapping, which has its own log that is always on.
    fn set_dirty_log(&mut self, _on: bool) -> Result<(), VirtioError> {
        Ok(())
    }

    /// Knows better itself.
    fn set_positions(&mut self, _queues: &[QueueState]) {}

    fn is_set_up(&self, _queue: u16) -> bool {
        false
    }

    fn state(&self) -> DeviceState<'_> {
        DeviceState {
            config: Cow::Borrowed(&[]),
            features: self.features(),
            positions: Cow::Borrowed(&self.position),
            pairs: 0,
        }
    }

    fn set_state(&mut self, state: &DeviceState<'_>, features: u64) -> Result<(), VirtioError> {
        if features & !self.features() != 0 {
            return Err(VirtioError::Differs(format!("the driver uses features {:#x}", features & !self.features())));
        }
        self.position = [state.positions.first().copied().unwrap_or_default()];
        Ok(())
    }

    fn moved(&mut self) {}
}

/// Fills the request with entropy, as far as it may; the bytes written are returned.
fn fill(chain: Chain<'_>, ram: &GuestRam, source: &mut File) -> io::Result<u32> {
    let mut writer = chain.writer(ram).map_err(io::Error::other)?;
    let mut buffer = [0; REQUEST_MAX];
    let wanted = writer.available_bytes().min(REQUEST_MAX);
    let entropy = &mut buffer[..wanted];
    let got = match source.read(entropy) {
        // It is at its end, or has nothing now.
        Ok(0) => host_entropy(entropy)?,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => host_entropy(entropy)?,
        read => read?,
    };
    writer.write_all(&buffer[..got])?;
    // At most REQUEST_MAX.
    Ok(got as u32)
}

fn host_entropy(buffer: &mut [u8]) -> io::Result<usize> {
    host_kit::random::fill(buffer)?;
    Ok(buffer.len())
}
