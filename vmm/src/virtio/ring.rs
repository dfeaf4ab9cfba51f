//! Virtqueues as the driver describes them, and the ring features that devices may offer.

use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::machine::memory::guest::GuestRam;
use crate::virtio::error::VirtioError;

/// Feature bit: the device follows the 1.0 specification; without it nothing works here.
pub const F_VERSION_1: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
/// Feature bit: a descriptor may point to a table of descriptors.
pub const F_INDIRECT_DESC: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
/// Feature bit: notifications are suppressed by ring index.
pub const F_EVENT_IDX: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
/// Ring features that every device may offer; packed rings, in-order and the rest are not for us.
pub const RING_FEATURES: u64 = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX;

pub use pollux_api::limits::QUEUE_SIZE_MAX;

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
