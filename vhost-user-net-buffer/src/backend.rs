//! The network card as a vhost-user backend: events in, frames moved, used rings and reports out.
//!
//! One thread, the only worker of the vhost-user daemon, does everything: queues, taps, ft-ctl, timer. So a
//! `Seal` needs no lock: when its answer is sent, nothing else of this process can be touching guest memory.
//! Work is cut into chunks of a few frames and the ft-ctl link is read between any two, so that a `Seal`
//! waits for one chunk only.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use device_api::counters::NetCounters;
use device_kit::control::Control;
use device_kit::events::{Event, Events, exit_event};
use device_kit::sockets::accept;
use device_kit::{Device, Memory, QUEUE_SIZE_MAX, Vring};
use ft_wire::device_ctl::{QueueState, Report};
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

use crate::announce::{Announcer, Mac};
use crate::args::Args;
use crate::epoch_buffer::EpochBuffer;
use crate::gate::Gate;
use crate::relay;
use crate::ring::{FRAME_MAX, HEADER_LEN, LEGACY_HEADER_LEN, Segment};
use crate::tap::Tap;
use crate::work::{Job, Work};

/// The card's own events, beside one for each tap queue.
const TIMER: usize = 0;
const AGAIN: usize = 1;
const FIRST_TAP: usize = 2;

/// Frames (or other units of work) per wake of the worker; then the other event sources have their turn.
const TURN_FRAMES: usize = 128;

/// `VHOST_F_LOG_ALL`: the frontend may ask for a log of dirtied pages.
const VHOST_F_LOG_ALL: u32 = 26;

/// One queue pair's side of the host.
#[derive(Debug)]
pub(crate) struct Port {
    /// A frame read from the tap that waits for guest buffers.
    pub(crate) frame: Box<[u8]>,
    /// Its length; 0 when there is none.
    pub(crate) frame_len: usize,
    /// The tap is not polled: sealed, or the guest has no buffers.
    pub(crate) parked: bool,
    /// The tap has failed for good.
    pub(crate) dead: bool,
    /// Output waits for room in the epoch buffer.
    pub(crate) stalled: bool,
    /// The guest has used the receive queue since it was set up.
    pub(crate) in_use: bool,
}

/// Buffers that are reused from frame to frame.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(crate) segments: Vec<Segment>,
    pub(crate) used: Vec<(u16, u32)>,
    pub(crate) bad: Vec<(u16, u32)>,
    pub(crate) queues: Vec<QueueState>,
    pub(crate) frame: Vec<u8>,
}

/// The network card.
pub struct Net {
    pub(crate) tap: Tap,
    pub(crate) ports: Vec<Port>,
    pub(crate) gate: Gate,
    pub(crate) buffer: EpochBuffer,
    pub(crate) control: Option<Control>,
    pub(crate) announcer: Announcer,
    pub(crate) guest_mac: Option<Mac>,
    pub(crate) memory: GuestMemoryAtomic<Memory>,
    pub(crate) header_len: usize,
    pub(crate) mergeable: bool,
    /// Queue pairs that the driver can use, by the features that it has taken.
    pub(crate) usable_pairs: usize,
    /// Queue pairs that the driver has asked for over the control queue.
    pub(crate) pairs_set: Option<u16>,
    pub(crate) work: Work,
    pub(crate) counters: NetCounters,
    pub(crate) scratch: Scratch,
    /// Nothing is served any more.
    pub(crate) ended: bool,
    events: Option<Events>,
    again: (EventConsumer, EventNotifier),
}

impl Net {
    /// A card on `tap` that counts in `counters`.
    ///
    /// # Errors
    /// When descriptors or timers cannot be had.
    pub fn new(args: &Args, tap: Tap, counters: NetCounters) -> io::Result<Self> {
        let port = || Port {
            frame: vec![0; FRAME_MAX].into_boxed_slice(),
            frame_len: 0,
            parked: true,
            dead: false,
            stalled: false,
            in_use: false,
        };
        // Without ft-ctl nothing is ever held.
        let with_control = args.common.ft_ctl.is_some();
        let (bytes, frames) = if with_control { (args.hold_bytes, args.hold_frames as usize) } else { (0, 0) };
        Ok(Self {
            ports: (0..args.num_queues).map(|_| port()).collect(),
            tap,
            gate: Gate::default(),
            buffer: EpochBuffer::new(bytes, frames),
            control: None,
            announcer: Announcer::new()?,
            guest_mac: args.guest_mac,
            memory: GuestMemoryAtomic::new(Memory::new()),
            header_len: HEADER_LEN,
            mergeable: false,
            usable_pairs: usize::from(args.num_queues),
            pairs_set: None,
            work: Work::new(usize::from(args.num_queues)),
            counters,
            scratch: Scratch { frame: vec![0; FRAME_MAX], ..Scratch::default() },
            ended: false,
            events: None,
            again: new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)?,
        })
    }

    pub(crate) fn pairs(&self) -> usize {
        self.ports.len()
    }

    /// Index of the control queue: it comes after the pairs that the driver can use (virtio 1.2, 5.1.2).
    pub(crate) fn control_queue(&self) -> usize {
        2 * self.usable_pairs
    }

    fn queues(&self) -> usize {
        2 * self.pairs() + usize::from(self.pairs() > 1)
    }

    /// Stops polling a tap; its frames stay in it.
    pub(crate) fn park(&mut self, port: usize) {
        if !std::mem::replace(&mut self.ports[port].parked, true)
            && let Some(events) = &self.events
        {
            events.unwatch(&self.tap.queues()[port]);
        }
    }

    /// Polls a tap again.
    pub(crate) fn unpark(&mut self, port: usize) {
        if self.ports[port].dead || !self.ports[port].parked {
            return;
        }
        let Some(events) = &self.events else { return };
        match events.watch(&self.tap.queues()[port], FIRST_TAP + port) {
            Ok(()) => self.ports[port].parked = false,
            Err(e) => host_kit::log_limited!(error, "tap {}: cannot be polled: {e}", self.tap.name()),
        }
    }

    /// Drops what is held and serves nothing any more: the process is about to end.
    pub(crate) fn end(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let dropped = self.buffer.discard_held();
        if dropped > 0 {
            tracing::warn!("{dropped} held frames are dropped: their epochs were not committed");
        }
        self.control = None;
        let counters: Vec<_> = self.counters.all().iter().map(|(name, value)| format!("{name} {value}")).collect();
        tracing::info!("counted: {}", counters.join(", "));
    }

    /// Tells the VMM, if there is one.
    pub(crate) fn report(&self, report: &Report) {
        if let Some(control) = &self.control {
            control.report(report);
        }
    }

    fn note(&mut self, event: Event) {
        let control_queue = self.control_queue();
        match event {
            Event::Queue(index) if index == control_queue => self.work.add(Job::Control),
            Event::Queue(index) if index % 2 == 1 => self.work.add(Job::Output(index / 2)),
            // Any tap may be waiting for this queue, if it stands in for one that is not used.
            Event::Queue(_) => self.work.add_all_input(),
            Event::Own(TIMER) => {
                if self.announcer.expired() {
                    self.announce();
                }
            }
            Event::Own(AGAIN) => {
                // An empty event counter is as good: the work is in `work`.
                let _ = self.again.0.consume();
            }
            Event::Own(tap) => {
                let port = tap - FIRST_TAP;
                if self.gate.is_sealed() {
                    self.park(port);
                }
                self.work.add(Job::Input(port));
            }
            // Commands are read between any two chunks of work, and before the first.
            Event::Control => {}
        }
    }

    /// Does the work that is there, a chunk at a time, commands first.
    fn turn(&mut self, vrings: &[Vring]) {
        let mut left = TURN_FRAMES;
        loop {
            self.take_commands(vrings);
            if self.ended {
                return;
            }
            let Some(job) = self.next_job() else { return };
            if left == 0 {
                if let Err(e) = self.again.1.notify() {
                    tracing::error!("cannot schedule more work: {e}");
                }
                return;
            }
            let (frames, more) = match job {
                Job::Drain => self.drain(),
                Job::Output(pair) => self.serve_output(vrings, pair),
                Job::Input(port) => self.serve_input(vrings, port),
                Job::Control => self.serve_control_queue(vrings),
            };
            if !more {
                self.work.remove(job);
            }
            left = left.saturating_sub(frames.max(1));
        }
    }

    fn next_job(&mut self) -> Option<Job> {
        let (open, standby) = (self.gate.is_open(), self.gate.is_standby());
        // Frames that are let go must not be overtaken by new ones that need not wait.
        let output = open && (self.gate.holds() || self.buffer.is_empty());
        self.work.next(|job| match job {
            Job::Drain => true,
            Job::Output(_) => output,
            Job::Input(_) => open || standby,
            Job::Control => open,
        })
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
        let has = |bit: u32| features & (1 << bit) != 0;
        self.mergeable = has(VIRTIO_NET_F_MRG_RXBUF);
        self.header_len = if self.mergeable || has(VIRTIO_F_VERSION_1) { HEADER_LEN } else { LEGACY_HEADER_LEN };
        self.usable_pairs = if has(VIRTIO_NET_F_MQ) { self.pairs() } else { 1 };
        // The driver starts over.
        self.pairs_set = None;
        self.ports.iter_mut().for_each(|port| port.in_use = false);
        if let Err(e) = self.tap.set_offloads(features) {
            host_kit::log_limited!(error, "tap {}: offloads cannot be set: {e}", self.tap.name());
        }
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
        self.memory = memory;
        Ok(())
    }

    fn exit_event(&self, _thread_index: usize) -> Option<(EventConsumer, EventNotifier)> {
        exit_event()
    }

    /// Never fails: an error would end the worker, and with it the card.
    fn handle_event(&mut self, event: u16, _set: EventSet, vrings: &[Vring], _thread: usize) -> io::Result<()> {
        if !self.ended
            && let Some(event) = Event::of(event, self.queues())
        {
            self.note(event);
            self.turn(vrings);
        }
        Ok(())
    }
}

impl Device for Net {
    fn attach(&mut self, events: &Events) -> io::Result<()> {
        events.watch(&self.again.0, AGAIN)?;
        events.watch(&self.announcer.as_fd(), TIMER)?;
        self.events = Some(events.clone());
        (0..self.ports.len()).for_each(|port| self.unpark(port));
        Ok(())
    }

    fn connect(&mut self, control: Control) {
        self.control = Some(control);
    }

    /// Puts the relay between a frontend that is no Pollux VMM and the library.
    fn frontend(listener: OwnedFd, with_control: bool) -> io::Result<OwnedFd> {
        if with_control { Ok(listener) } else { relay::start(accept(&listener)?.into()) }
    }

    fn close(&mut self) {
        self.end();
    }
}
