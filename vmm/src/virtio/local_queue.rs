//! A queue that the VMM serves itself, at once, on the vCPU that kicks it. One that makes no sense is an
//! error, and is left alone from then on.
//!
//! That is why nothing has to be sealed before a checkpoint: with the vCPUs parked no such queue is being
//! served, and what was written to guest memory is in the VMM's own write log.

use ft_wire::device_ctl::QueueState;
use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vmm_sys_util::eventfd::EventFd;

use crate::machine::memory::guest::GuestRam;
use crate::virtio::device::ActiveQueue;
use crate::virtio::error::VirtioError;

/// A request of the guest.
pub type Chain<'a> = DescriptorChain<&'a GuestRam>;

/// The queue.
pub struct LocalQueue {
    index: u16,
    queue: Queue,
    call: EventFd,
    ram: GuestRam,
    broken: bool,
}

impl LocalQueue {
    /// Serves `active` from `position` on.
    ///
    /// # Errors
    /// When the ring's size is not one.
    pub fn new(
        active: ActiveQueue,
        position: QueueState,
        event_idx: bool,
        ram: &GuestRam,
    ) -> Result<Self, VirtioError> {
        let ring = active.ring;
        let wrong = |_| VirtioError::QueueSize { queue: ring.index, size: ring.size, max: ring.size };
        let mut queue = Queue::new(ring.size).map_err(wrong)?;
        let halves = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
        let (low, high) = halves(ring.descriptors);
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(ring.avail);
        queue.set_avail_ring_address(low, high);
        let (low, high) = halves(ring.used);
        queue.set_used_ring_address(low, high);
        queue.set_size(ring.size);
        queue.set_event_idx(event_idx);
        queue.set_next_avail(position.next_avail);
        queue.set_next_used(position.next_used);
        queue.set_ready(true);
        Ok(Self { index: ring.index, queue, call: active.call, ram: ram.clone(), broken: false })
    }

    /// Where it stands.
    #[must_use]
    pub fn position(&self) -> QueueState {
        QueueState { index: self.index, next_avail: self.queue.next_avail(), next_used: self.queue.next_used() }
    }

    /// From now on `call` is signalled.
    pub fn set_call(&mut self, call: EventFd) {
        self.call = call;
    }

    /// Hands every waiting request to `handle`, which says how many bytes it wrote to it, and interrupts the
    /// guest if it wants that.
    ///
    /// # Errors
    /// When the driver's side of the queue makes no sense. That is said once.
    pub fn serve(&mut self, mut handle: impl FnMut(Chain<'_>, &GuestRam) -> u32) -> Result<(), VirtioError> {
        if self.broken {
            return Ok(());
        }
        self.serve_all(&mut handle).map_err(|source| {
            self.broken = true;
            VirtioError::Queue { queue: self.index, source }
        })
    }

    fn serve_all(&mut self, handle: &mut impl FnMut(Chain<'_>, &GuestRam) -> u32) -> Result<(), Error> {
        // A guest that refills the ring as fast as it is served would keep this vCPU here for ever.
        let mut budget = 2 * u32::from(self.queue.size());
        let mut served = false;
        loop {
            while budget > 0
                && let Some(chain) = self.queue.iter(&self.ram)?.next()
            {
                let head = chain.head_index();
                if head >= self.queue.size() {
                    return Err(Error::InvalidDescriptorIndex);
                }
                let written = handle(chain, &self.ram);
                self.queue.add_used(&self.ram, head, written)?;
                (served, budget) = (true, budget - 1);
            }
            if !self.queue.enable_notification(&self.ram)? || budget == 0 {
                break;
            }
            budget -= 1;
        }
        if served && self.queue.needs_notification(&self.ram)? {
            // A full counter is a signal as well.
            let _ = self.call.write(1);
        }
        Ok(())
    }
}
