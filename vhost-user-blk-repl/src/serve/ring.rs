//! The guest's queues: their type, and how a request is put into a used ring.

pub use device_kit::Vring;
use tracing::debug;
use vhost_user_backend::VringState;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

/// Guest memory, with a dirty log the frontend may put underneath.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap<vhost_user_backend::bitmap::BitmapMmapRegion>>;
pub(crate) type Guest = <Memory as GuestAddressSpace>::T;

/// What became of one avail entry.
pub(crate) enum Taken {
    /// The used ring has it already.
    Used,
    /// It is under way.
    Submitted,
    /// It cannot be taken now.
    NoRoom,
}

/// Puts a request into the used ring. A head outside of the ring cannot be answered at all.
pub(crate) fn answer(
    ring: &mut VringState<Memory>,
    mem: &Guest,
    head: u16,
    status: Option<(GuestAddress, u8)>,
    written: u32,
) -> Taken {
    let status_written = status.is_some_and(|(addr, status)| mem.write_obj(status, addr).is_ok());
    if let Err(e) = ring.add_used(head, written + u32::from(status_written)) {
        debug!("head {head}: {e}");
    }
    Taken::Used
}

pub(crate) fn signal(ring: &mut VringState<Memory>) {
    if ring.needs_notification().unwrap_or(true)
        && let Err(e) = ring.signal_used_queue()
    {
        debug!("cannot signal the guest: {e}");
    }
}
