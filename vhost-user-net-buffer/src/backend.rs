//! The network card as a vhost-user backend: events in, and what the library asks of a device.
//!
//! One thread, the only worker of the vhost-user daemon, does everything: queues, taps, ft-ctl, timer. So a
//! `Seal` needs no lock: when its answer is sent, nothing else of this process can be touching guest memory.

use std::io;
use std::os::fd::OwnedFd;

use device_api::counters::NetCounters;
use device_kit::control::Control;
use device_kit::events::{Event, Events, exit_event};
use device_kit::sockets::accept;
use device_kit::{Device, Memory, QUEUE_SIZE_MAX, Vring};
use host_kit::sandbox::Needs;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::VhostUserBackendMut;
use vhost_user_backend::bitmap::BitmapMmapRegion;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestMemoryAtomic;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use crate::args::Args;
use crate::card::Card;
use crate::relay;
use crate::tap::Tap;

/// The card's own events, beside one for each tap queue.
const TIMER: usize = 0;
const AGAIN: usize = 1;
const FIRST_TAP: usize = 2;

/// `VHOST_F_LOG_ALL`: the frontend may ask for a log of dirtied pages.
const VHOST_F_LOG_ALL: u32 = 26;

/// The network card as the library sees it.
pub struct Net {
    card: Card,
    /// Has the worker called again when there is more to do than it does at once.
    again: (EventConsumer, EventNotifier),
}

impl Net {
    /// A card on `tap` that counts in `counters`.
    ///
    /// # Errors
    /// When descriptors or timers cannot be had.
    pub fn new(args: &Args, tap: Tap, counters: NetCounters) -> io::Result<Self> {
        let again = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)?;
        Ok(Self { card: Card::new(args, tap, counters)?, again })
    }

    fn pairs(&self) -> usize {
        self.card.pairs()
    }

    fn queues(&self) -> usize {
        2 * self.pairs() + usize::from(self.pairs() > 1)
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Queue(index) => self.card.kicked(index),
            Event::Own(TIMER) => self.card.timer_fired(),
            Event::Own(AGAIN) => {
                // An empty event counter is as good: the card knows what is to be done.
                let _ = self.again.0.consume();
            }
            Event::Own(tap) => self.card.tap_readable(tap - FIRST_TAP),
            // Commands are read between any two chunks of work, and before the first.
            Event::Control => {}
        }
    }
}

impl VhostUserBackendMut for Net {
    type Bitmap = BitmapMmapRegion;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.queues()
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE_MAX
    }

    fn features(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_ECN,
            VIRTIO_NET_F_GUEST_UFO,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_ECN,
            VIRTIO_NET_F_HOST_UFO,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_F_VERSION_1,
            VHOST_F_LOG_ALL,
        ];
        if self.pairs() > 1 {
            bits.extend([VIRTIO_NET_F_MQ, VIRTIO_NET_F_CTRL_VQ]);
        }
        bits.iter().fold(VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits(), |all, bit| all | 1 << bit)
    }

    fn acked_features(&mut self, features: u64) {
        self.card.driver_starts_over(features);
    }

    /// Without `RESET_DEVICE`: the library forgets the acknowledged features then, and refuses what QEMU says
    /// next.
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    // The daemon has told the queues, which is where it matters.
    fn set_event_idx(&mut self, _enabled: bool) {}

    fn update_memory(&mut self, memory: GuestMemoryAtomic<Memory>) -> io::Result<()> {
        self.card.set_memory(memory);
        Ok(())
    }

    fn exit_event(&self, _thread_index: usize) -> Option<(EventConsumer, EventNotifier)> {
        exit_event()
    }

    /// Never fails: an error would end the worker, and with it the card.
    fn handle_event(&mut self, event: u16, _set: EventSet, vrings: &[Vring], _thread: usize) -> io::Result<()> {
        if !self.card.has_ended()
            && let Some(event) = Event::of(event, self.queues())
        {
            self.note(event);
            if self.card.turn(vrings)
                && let Err(e) = self.again.1.notify()
            {
                tracing::error!("cannot schedule more work: {e}");
            }
        }
        Ok(())
    }
}

impl Device for Net {
    const NEEDS: Needs = Needs::MESSAGES.union(Needs::TAP).union(Needs::SCHEDULE);

    fn attach(&mut self, events: &Events) -> io::Result<()> {
        events.watch(&self.again.0, AGAIN)?;
        events.watch(&self.card.timer(), TIMER)?;
        self.card.attach(events, FIRST_TAP);
        Ok(())
    }

    fn connect(&mut self, control: Control) {
        self.card.connect(control);
    }

    /// Puts the relay between a frontend that is no Pollux VMM and the library.
    fn frontend(listener: OwnedFd, with_control: bool) -> io::Result<OwnedFd> {
        if with_control { Ok(listener) } else { relay::start(accept(&listener)?.into()) }
    }

    fn close(&mut self) {
        self.card.end();
    }
}
