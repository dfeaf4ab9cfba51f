//! The network card as a vhost-user backend: events in, frames moved, used rings and reports out.
//!
//! One thread, the only worker of the vhost-user daemon, does everything: queues, taps, ft-ctl, timer, signals. So a
//! `Seal` needs no lock: when its answer is sent, nothing else of this process can be touching guest memory. Work is cut
//! into chunks of a few frames and the ft-ctl link is read between any two, so that a `Seal` waits for one chunk only.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use device_counters::NetCounters;
use ft_proto::device_ctl::{QueueState, Report};
use nix::sys::signalfd::SignalFd;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vhost_user_backend::{ShutdownHandle, VhostUserBackendMut};
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
use crate::control::Control;
use crate::epoch_buffer::EpochBuffer;
use crate::gate::Gate;
use crate::poller::Poller;
use crate::ring::{FRAME_MAX, HEADER_LEN, LEGACY_HEADER_LEN, Memory, Segment};
use crate::tap::Tap;
use crate::work::{Job, Work};

/// A vring of the daemon.
pub(crate) type Vring = device_vring::Vring<GuestMemoryAtomic<Memory>>;

/// The largest queue that virtio knows. The frontend may have any size.
const QUEUE_SIZE_MAX: usize = 32768;

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

/// Ends the process from the worker thread.
pub(crate) struct Quit {
    /// Wakes the main thread as long as there is no frontend.
    pub(crate) notifier: EventNotifier,
    /// Breaks the connection to the frontend, once there is one.
    pub(crate) connection: Option<ShutdownHandle>,
    pub(crate) asked: bool,
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
    pub(crate) quit: Quit,
    pub(crate) poller: Option<Poller>,
    again: (EventConsumer, EventNotifier),
    signals: Option<SignalFd>,
}

/// Event numbers of the worker; those up to the number of queues belong to the daemon.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Source {
    Queue(usize),
    Control,
    Timer,
    Again,
    Signal,
    Tap(usize),
}

impl Net {
    /// A card on `tap`, with `control` as its ft-ctl link, that counts in `counters`. `signals` delivers the wish to end; `quit` tells the main
    /// thread about it.
    ///
    /// # Errors
    /// When descriptors or timers cannot be had.
    pub fn new(
        args: &Args,
        tap: Tap,
        control: Option<Control>,
        counters: NetCounters,
        memory: GuestMemoryAtomic<Memory>,
        signals: Option<SignalFd>,
        quit: EventNotifier,
    ) -> io::Result<Self> {
        let port = || Port {
            frame: vec![0; FRAME_MAX].into_boxed_slice(),
            frame_len: 0,
            parked: true,
            dead: false,
            stalled: false,
            in_use: false,
        };
        // Without ft-ctl nothing is ever held.
        let (bytes, frames) = if control.is_some() { (args.hold_bytes, args.hold_frames as usize) } else { (0, 0) };
        Ok(Self {
            ports: (0..args.num_queues).map(|_| port()).collect(),
            tap,
            gate: Gate::default(),
            buffer: EpochBuffer::new(bytes, frames),
            control,
            announcer: Announcer::new()?,
            guest_mac: args.guest_mac,
            memory,
            header_len: HEADER_LEN,
            mergeable: false,
            usable_pairs: usize::from(args.num_queues),
            pairs_set: None,
            work: Work::new(usize::from(args.num_queues)),
            counters,
            scratch: Scratch { frame: vec![0; FRAME_MAX], ..Scratch::default() },
            quit: Quit { notifier: quit, connection: None, asked: false },
            poller: None,
            again: new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)?,
            signals,
        })
    }

    /// Registers everything but the queues with the worker's epoll instance, a duplicate of which is `epoll`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(&mut self, epoll: OwnedFd) -> io::Result<()> {
        let poller = Poller::new(epoll);
        poller.add(self.again.0.as_raw_fd(), self.token(Source::Again))?;
        poller.add(std::os::fd::AsFd::as_fd(&self.announcer).as_raw_fd(), self.token(Source::Timer))?;
        if let Some(signals) = &self.signals {
            poller.add(signals.as_raw_fd(), self.token(Source::Signal))?;
        }
        if let Some(fd) = self.control.as_ref().and_then(Control::fd) {
            poller.add(fd, self.token(Source::Control))?;
        }
        self.poller = Some(poller);
        for port in 0..self.ports.len() {
            self.unpark(port);
        }
        Ok(())
    }

    /// Remembers how to end the connection; ends it at once if the wish came earlier.
    pub fn set_connection(&mut self, handle: Option<ShutdownHandle>) {
        if self.quit.asked
            && let Some(handle) = &handle
        {
            handle.shutdown();
        }
        self.quit.connection = handle;
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

    /// Number of `source` in the worker's epoll instance.
    fn token(&self, source: Source) -> u64 {
        // The first free number: the queues come first, then one that the daemon keeps for itself.
        let base = self.queues() + 1;
        let number = match source {
            Source::Queue(index) => index,
            Source::Control => base,
            Source::Timer => base + 1,
            Source::Again => base + 2,
            Source::Signal => base + 3,
            Source::Tap(port) => base + 4 + port,
        };
        number as u64
    }

    fn source(&self, event: u16) -> Option<Source> {
        let (event, base) = (usize::from(event), self.queues() + 1);
        match event {
            _ if event < self.queues() => Some(Source::Queue(event)),
            _ if event < base => None,
            _ if event == base => Some(Source::Control),
            _ if event == base + 1 => Some(Source::Timer),
            _ if event == base + 2 => Some(Source::Again),
            _ if event == base + 3 => Some(Source::Signal),
            _ if event - base - 4 < self.pairs() => Some(Source::Tap(event - base - 4)),
            _ => None,
        }
    }

    /// Stops polling a tap; its frames stay in it.
    pub(crate) fn park(&mut self, port: usize) {
        if !std::mem::replace(&mut self.ports[port].parked, true)
            && let Some(poller) = &self.poller
        {
            poller.remove(self.tap.queues()[port].as_raw_fd());
        }
    }

    /// Polls a tap again.
    pub(crate) fn unpark(&mut self, port: usize) {
        if self.ports[port].dead || !self.ports[port].parked {
            return;
        }
        let token = self.token(Source::Tap(port));
        let Some(poller) = &self.poller else { return };
        match poller.add(self.tap.queues()[port].as_raw_fd(), token) {
            Ok(()) => self.ports[port].parked = false,
            Err(e) => host_kit::log_limited!(error, "tap {}: cannot be polled: {e}", self.tap.name()),
        }
    }

    /// Drops what is held and ends the process.
    pub(crate) fn end(&mut self) {
        let dropped = self.buffer.discard_held();
        if dropped > 0 {
            tracing::warn!("{dropped} held frames are dropped: their epochs were not committed");
        }
        self.quit.asked = true;
        // Closing the descriptor also removes it from the epoll instance.
        self.control = None;
        self.signals = None;
        if let Err(e) = self.quit.notifier.notify() {
            tracing::error!("cannot wake the main thread: {e}");
        }
        if let Some(connection) = &self.quit.connection {
            connection.shutdown();
        }
    }

    /// Sends `report` to the VMM; the process ends when it cannot be told.
    pub(crate) fn report(&mut self, report: &Report) {
        let Some(control) = &mut self.control else { return };
        if let Err(e) = control.send(report) {
            tracing::error!("{e}");
            self.end();
        }
    }

    fn note(&mut self, source: Source) {
        let control_queue = self.control_queue();
        match source {
            Source::Queue(index) if index == control_queue => self.work.add(Job::Control),
            Source::Queue(index) if index % 2 == 1 => self.work.add(Job::Output(index / 2)),
            // Any tap may be waiting for this queue, if it stands in for one that is not used.
            Source::Queue(_) => self.work.add_all_input(),
            Source::Tap(port) => {
                if self.gate.is_sealed() {
                    self.park(port);
                }
                self.work.add(Job::Input(port));
            }
            Source::Timer => {
                if self.announcer.expired() {
                    self.announce();
                }
            }
            Source::Again => {
                // An empty event counter is as good: the work is in `work`.
                let _ = self.again.0.consume();
            }
            Source::Control => self.accept_control(),
            Source::Signal => {
                tracing::info!("ending on a signal");
                self.end();
            }
        }
    }

    fn accept_control(&mut self) {
        let token = self.token(Source::Control);
        let (Some(control), Some(poller)) = (&mut self.control, &self.poller) else { return };
        if !control.is_listening() {
            return;
        }
        let accepted = control.accept().map_err(|e| e.to_string()).and_then(|accepted| match control.fd() {
            Some(fd) if accepted => poller.add(fd, token).map_err(|e| e.to_string()),
            _ => Ok(()),
        });
        if let Err(e) = accepted {
            tracing::error!("{e}");
            self.end();
        }
    }

    /// Does the work that is there, a chunk at a time, commands first.
    fn turn(&mut self, vrings: &[Vring]) {
        let mut left = TURN_FRAMES;
        loop {
            self.take_commands(vrings);
            if self.quit.asked {
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

    /// Without `RESET_DEVICE`: the library forgets the acknowledged features then, and refuses what QEMU says next.
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
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)
            .inspect_err(|e| tracing::error!("no exit event: {e}"))
            .ok()
    }

    /// Never fails: an error would end the worker, and with it the card.
    fn handle_event(&mut self, event: u16, _set: EventSet, vrings: &[Vring], _thread: usize) -> io::Result<()> {
        if !self.quit.asked
            && let Some(source) = self.source(event)
        {
            self.note(source);
            self.turn(vrings);
        }
        Ok(())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let counters: Vec<_> = self.counters.all().iter().map(|(name, value)| format!("{name} {value}")).collect();
        tracing::info!("counted: {}", counters.join(", "));
    }
}

/// The card as the daemon shares it between its threads.
pub type Shared = Arc<Mutex<Net>>;
