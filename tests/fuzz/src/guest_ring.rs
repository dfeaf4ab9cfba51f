//! Guest memory with virtqueues, all of it as an input says.
//!
//! The input is what is in memory from address 0 on: for each queue the descriptor table, the avail ring, the
//! used ring; behind them whatever the descriptors point to.

use device_kit::{Memory, Vring};
use vhost_user_backend::VringT;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic};

/// Bytes of guest memory.
pub(crate) const MEMORY: usize = 128 << 10;
/// Descriptors of a queue.
pub(crate) const QUEUE_SIZE: u16 = 16;
/// Where the rings of a queue are, from where its table is on.
pub(crate) const AVAIL: u64 = 16 * QUEUE_SIZE as u64;
pub(crate) const USED: u64 = AVAIL + 0x40;
/// From one queue's table to the next.
pub(crate) const STRIDE: u64 = USED + 0xc0;

/// The memory and its queues.
pub(crate) struct Rings {
    pub(crate) memory: GuestMemoryAtomic<Memory>,
    pub(crate) vrings: Vec<Vring>,
    image: Vec<u8>,
}

impl Rings {
    pub(crate) fn new(queues: usize) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let memory = GuestMemoryAtomic::new(memory);
        let vrings: Vec<_> = (0..queues).map(|_| Vring::new(memory.clone(), QUEUE_SIZE).unwrap()).collect();
        Self { memory, vrings, image: vec![0; MEMORY] }
    }

    /// A driver sets up queues in the memory that the input says.
    pub(crate) fn set_up(&mut self, input: &[u8], event_idx: bool) {
        let len = input.len().min(MEMORY);
        self.image.fill(0);
        self.image[..len].copy_from_slice(&input[..len]);
        self.ram().write_slice(&self.image, GuestAddress(0)).unwrap();
        for (vring, table) in self.vrings.iter().zip((0..).step_by(STRIDE as usize)) {
            vring.set_queue_size(QUEUE_SIZE);
            vring.set_queue_info(table, table + AVAIL, table + USED).unwrap();
            vring.set_queue_event_idx(event_idx);
            vring.set_queue_next_avail(0);
            vring.set_queue_next_used(0);
            vring.set_queue_ready(true);
            vring.set_enabled(true);
        }
    }

    /// What the driver sees has become of a queue: how many entries it has made available and got back, which
    /// cannot be more.
    pub(crate) fn check(&self, queue: usize) {
        let table = queue as u64 * STRIDE;
        let ring = self.vrings[queue].get_ref();
        let (taken, used) = (ring.get_queue().next_avail(), ring.get_queue().next_used());
        assert!(taken.wrapping_sub(used) <= QUEUE_SIZE, "{taken} taken, {used} used");
        // Unless a buffer lies over the ring, it says the same.
        let _: u16 = self.ram().read_obj(GuestAddress(table + USED + 2)).unwrap();
    }

    fn ram(&self) -> std::sync::Arc<Memory> {
        use vm_memory::GuestAddressSpace;
        (*self.memory.memory()).clone().into()
    }
}
