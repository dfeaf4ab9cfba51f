//! What a virtio device has to know and do, whatever it is and however it is reached.

use ft_wire::device_ctl::QueueState;
use vmm_sys_util::eventfd::EventFd;

use crate::virtio::error::VirtioError;
use crate::virtio::ring::Ring;
use crate::virtio::state::DeviceState;

/// A queue that the guest has enabled, with its notifications.
#[derive(Debug)]
pub struct ActiveQueue {
    /// Where it is.
    pub ring: Ring,
    /// Signalled by the guest: something is in the avail ring.
    pub kick: EventFd,
    /// To be signalled: something is in the used ring.
    pub call: EventFd,
    /// To be signalled: the queue makes no sense, and only a reset by the driver can mend it.
    pub broken: EventFd,
}

/// What an observer (the event monitor) hears of a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DeviceEvent {
    /// The guest's driver has set it up.
    Activated,
    /// The guest's driver, or a reset of the machine, has taken it down.
    Reset,
}

/// A device behind a virtio transport.
///
/// Called with the transport's lock held, on a vCPU (guest accesses) or on the thread that owns the VM with
/// the vCPUs parked. There are no default bodies: a device says for itself what it saves and how it stops.
pub trait VirtioDevice: Send {
    /// Virtio device type.
    fn device_type(&self) -> u32;
    /// Largest size of each queue.
    fn queue_sizes(&self) -> &[u16];
    /// Features offered to the driver.
    fn features(&self) -> u64;
    /// The device specific configuration.
    fn config(&self) -> &[u8];
    /// The driver writes to the device specific configuration.
    fn write_config(&mut self, offset: usize, data: &[u8]);
    /// Whether somebody else waits for the kicks of `queue`; if not, [`VirtioDevice::notify`] is called for
    /// each. May be another answer while the device is active.
    fn has_doorbell(&self, queue: u16) -> bool;
    /// Starts with the driver's `features` on `queues`: from the beginning, or (`resume`) where
    /// [`VirtioDevice::set_state`] said that they stand.
    ///
    /// # Errors
    /// When a queue or the backend does not work; the device is stopped then.
    fn activate(&mut self, features: u64, queues: Vec<ActiveQueue>, resume: bool) -> Result<(), VirtioError>;
    /// The driver has kicked `queue`, for which there is no doorbell. Done when it returns.
    ///
    /// # Errors
    /// When the queue makes no sense: it is not served any more until the next activation.
    fn notify(&mut self, queue: u16) -> Result<(), VirtioError>;
    /// From now on `call` is to be signalled for `queue`.
    ///
    /// # Errors
    /// When the backend does not work.
    fn set_call(&mut self, queue: u16, call: EventFd) -> Result<(), VirtioError>;
    /// Stops and forgets the driver. Afterwards guest memory is not touched.
    ///
    /// # Errors
    /// When the backend does not work.
    fn reset(&mut self) -> Result<(), VirtioError>;
    /// Stops serving queues (`true`), keeping everything; or goes on.
    ///
    /// # Errors
    /// When the backend does not work.
    fn pause(&mut self, paused: bool) -> Result<(), VirtioError>;
    /// Logs writes to guest memory in the shared dirty log, or stops that.
    ///
    /// # Errors
    /// When the device cannot.
    fn set_dirty_log(&mut self, on: bool) -> Result<(), VirtioError>;
    /// Where the queues stand, as the device process has said when it was sealed. Called with the vCPUs
    /// parked; those that were in the middle of an access at the seal may have finished setting the device up
    /// since, or taking it down.
    fn set_positions(&mut self, queues: &[QueueState]);
    /// Whether the driver has set `queue` up and a device process serves it.
    fn is_set_up(&self, queue: u16) -> bool;
    /// What goes into a checkpoint.
    fn state(&self) -> DeviceState<'_>;
    /// Becomes what a checkpoint says, for a driver that has taken `features`; takes effect at the next
    /// activation.
    ///
    /// # Errors
    /// When the other device is not built like this one.
    fn set_state(&mut self, state: &DeviceState<'_>, features: u64) -> Result<(), VirtioError>;
    /// The VM runs on another host now: prepare whatever the driver must be told (by a configuration
    /// interrupt).
    fn moved(&mut self);
}
