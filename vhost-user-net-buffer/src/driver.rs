//! The guest's driver, as far as it has told: memory, headers, and the queue pairs that it uses.

use std::sync::atomic::Ordering;

use device_kit::{Memory, Vring};
use vhost_user_backend::VringT;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF};
use virtio_queue::QueueT;
use vm_memory::atomic::GuestMemoryLoadGuard;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic};

use crate::header::Offloads;
use crate::ring::{HEADER_LEN, LEGACY_HEADER_LEN};

/// What the driver has set up.
pub struct Driver {
    memory: GuestMemoryAtomic<Memory>,
    header_len: usize,
    mergeable: bool,
    /// What it may ask the card to do with its frames.
    output: Offloads,
    /// What it can receive.
    input: Offloads,
    /// Queue pairs that it can use, by the features that it has taken.
    usable_pairs: usize,
    /// Queue pairs that it has asked for over the control queue.
    pairs_set: Option<u16>,
    /// By queue pair: it has used the receive queue since it was set up.
    receives: Vec<bool>,
}

impl Driver {
    /// No driver yet, for a card with `pairs` queue pairs.
    #[must_use]
    pub fn new(pairs: usize) -> Self {
        Self {
            memory: GuestMemoryAtomic::new(Memory::new()),
            header_len: HEADER_LEN,
            mergeable: false,
            output: Offloads::default(),
            input: Offloads::default(),
            usable_pairs: pairs,
            pairs_set: None,
            receives: vec![false; pairs],
        }
    }

    /// A driver that has taken `features` starts over.
    pub fn start_over(&mut self, features: u64) {
        let has = |bit: u32| features & (1 << bit) != 0;
        self.mergeable = has(VIRTIO_NET_F_MRG_RXBUF);
        (self.output, self.input) = (Offloads::of_output(features), Offloads::of_input(features));
        self.header_len = if self.mergeable || has(VIRTIO_F_VERSION_1) { HEADER_LEN } else { LEGACY_HEADER_LEN };
        self.usable_pairs = if has(VIRTIO_NET_F_MQ) { self.receives.len() } else { 1 };
        self.pairs_set = None;
        self.receives.fill(false);
    }

    /// Guest memory has been mapped anew.
    pub fn set_memory(&mut self, memory: GuestMemoryAtomic<Memory>) {
        self.memory = memory;
    }

    /// Guest memory as it is mapped now.
    #[must_use]
    pub fn memory(&self) -> GuestMemoryLoadGuard<Memory> {
        self.memory.memory()
    }

    /// Bytes of the header before each frame.
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Whether one frame may take several receive buffers.
    #[must_use]
    pub fn merges(&self) -> bool {
        self.mergeable
    }

    /// What it may ask the card to do with its frames.
    #[must_use]
    pub fn output_offloads(&self) -> Offloads {
        self.output
    }

    /// What it can receive.
    #[must_use]
    pub fn input_offloads(&self) -> Offloads {
        self.input
    }

    /// Index of the control queue: it comes after the pairs that the driver can use (virtio 1.2, 5.1.2).
    #[must_use]
    pub fn control_queue(&self) -> usize {
        2 * self.usable_pairs
    }

    /// Whether the driver can use so many queue pairs.
    #[must_use]
    pub fn has_pairs(&self, pairs: u16) -> bool {
        (1..=self.usable_pairs).contains(&usize::from(pairs))
    }

    /// The driver uses so many queue pairs.
    pub fn set_pairs(&mut self, pairs: u16) {
        self.pairs_set = Some(pairs);
    }

    /// The queue pair that takes the frames of a tap queue. The kernel spreads frames over all tap queues;
    /// those of pairs that the driver does not use go to the first.
    pub fn receiver(&mut self, vrings: &[Vring], port: usize) -> Option<usize> {
        // Without MQ the others are no receive queues.
        for pair in [port, 0].into_iter().filter(|pair| *pair < self.usable_pairs) {
            let vring = vrings[2 * pair].get_ref();
            if !vring.is_enabled() || !vring.get_queue().ready() {
                continue;
            }
            if pair == 0 {
                return Some(0);
            }
            if self.pairs_set.is_some_and(|set| pair >= usize::from(set)) {
                continue;
            }
            // After a takeover nobody repeats the driver's command, but a used queue has a position.
            let queue = vring.get_queue();
            let moved = || {
                let avail = queue.avail_idx(&*self.memory.memory(), Ordering::Acquire);
                queue.next_avail() != 0 || avail.is_ok_and(|index| index.0 != 0)
            };
            if self.receives[pair] || moved() {
                self.receives[pair] = true;
                return Some(pair);
            }
        }
        None
    }
}
