//! Virtio: what every device here has in common.
//!
//! A [`VirtioDevice`] knows its features, its configuration bytes and what to do with its queues. Everything the guest sees
//! of it (registers, capabilities, interrupts) is [`pci_transport`]'s, so devices are free of PCI and testable without it.

pub mod common_config;
pub mod local_queue;
mod pci_layout;
pub mod pci_transport;
pub mod rng;
pub mod state;

use std::io;

use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusError;
use crate::memory::guest::GuestRam;
use crate::vhost_user::VhostUserError;
use crate::virtio::state::DeviceState;
use ft_proto::device_ctl::QueueState;

/// Feature bit: the device follows the 1.0 specification; without it nothing works here.
pub const F_VERSION_1: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
/// Feature bit: a descriptor may point to a table of descriptors.
pub const F_INDIRECT_DESC: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
/// Feature bit: notifications are suppressed by ring index.
pub const F_EVENT_IDX: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
/// Ring features that every device may offer; packed rings, in-order and the rest are not for us.
pub const RING_FEATURES: u64 = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX;

pub use pollux_api::limits::QUEUE_SIZE_MAX;

/// Why a device cannot do what the guest or the VMM asks of it.
#[derive(Debug, thiserror::Error)]
pub enum VirtioError {
    /// The guest set up a queue that cannot work. Its fault: the device asks for a reset.
    #[error("queue {queue}: {what} at {address:#x} is not aligned or not in guest RAM")]
    QueueAddress {
        /// Which queue.
        queue: u16,
        /// Which of its parts.
        what: &'static str,
        /// Where the guest put it.
        address: u64,
    },
    /// The guest chose a size that cannot work.
    #[error("queue {queue}: size {size} is not a power of two or above {max}")]
    QueueSize {
        /// Which queue.
        queue: u16,
        /// Size chosen.
        size: u16,
        /// Largest allowed.
        max: u16,
    },
    /// The guest broke a queue that the VMM serves. Its fault: the device asks for a reset.
    #[error("queue {queue} cannot be served")]
    Queue {
        /// Which queue.
        queue: u16,
        /// What is wrong with it.
        #[source]
        source: virtio_queue::Error,
    },
    /// Its place in the address space is another device's.
    #[error("its PCI BAR cannot be mapped")]
    Bar(#[source] BusError),
    /// The device's process does not do its part.
    #[error(transparent)]
    VhostUser(#[from] VhostUserError),
    /// A system call failed.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A checkpoint of a device that is not built like this one.
    #[error("saved device differs from this one: {0}")]
    Differs(String),
    /// The device has no dirty log: its writes to guest memory would be missed.
    #[error("device {id} cannot log its writes to guest memory: its backend lacks {missing}")]
    NoDirtyLog {
        /// Which device.
        id: String,
        /// The vhost-user feature that it lacks.
        missing: &'static str,
    },
}

/// Where a queue is; checked to be inside RAM, each part in one piece.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ring {
    /// Index of the queue in the device.
    pub index: u16,
    /// Entries; a power of two.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the avail ring.
    pub avail: u64,
    /// Guest address of the used ring.
    pub used: u64,
}

impl Ring {
    /// Checks what the guest wants against its RAM.
    ///
    /// # Errors
    /// When a size or an address cannot work.
    pub fn check(self, max_size: u16, ram: &GuestRam) -> Result<Self, VirtioError> {
        if !self.size.is_power_of_two() || self.size > max_size {
            return Err(VirtioError::QueueSize { queue: self.index, size: self.size, max: max_size });
        }
        let size = usize::from(self.size);
        let parts = [
            ("descriptor table", self.descriptors, 16 * size, 16),
            ("avail ring", self.avail, 6 + 2 * size, 2),
            ("used ring", self.used, 6 + 8 * size, 4),
        ];
        for (what, address, len, align) in parts {
            if !address.is_multiple_of(align) || ram.get_slice(GuestAddress(address), len).is_err() {
                return Err(VirtioError::QueueAddress { queue: self.index, what, address });
            }
        }
        Ok(self)
    }
}

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
/// Called with the transport's lock held, on a vCPU (guest accesses) or on the thread that owns the VM with the vCPUs parked.
/// There are no default bodies: a device says for itself what it saves and how it stops.
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
    /// Whether somebody else waits for the kicks of `queue`; if not, [`VirtioDevice::notify`] is called for each. May be
    /// another answer while the device is active.
    fn has_doorbell(&self, queue: u16) -> bool;
    /// Starts with the driver's `features` on `queues`: from the beginning, or (`resume`) where [`VirtioDevice::set_state`]
    /// said that they stand.
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
    /// Where the queues stand, as the device process has said.
    fn set_positions(&mut self, queues: &[QueueState]);
    /// What goes into a checkpoint.
    fn state(&self) -> DeviceState<'_>;
    /// Becomes what a checkpoint says, for a driver that has taken `features`; takes effect at the next activation.
    ///
    /// # Errors
    /// When the other device is not built like this one.
    fn set_state(&mut self, state: &DeviceState<'_>, features: u64) -> Result<(), VirtioError>;
    /// The VM runs on another host now: prepare whatever the driver must be told (by a configuration interrupt).
    fn moved(&mut self);
}
