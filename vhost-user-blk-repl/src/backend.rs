//! The vhost-user device: kicks in, used ring out, all on one worker thread of the library.
//!
//! The mutex around the worker is contended only while the frontend changes the memory table or stops a ring.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::{Arc, Mutex, Weak};

use tracing::debug;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vhost_user_backend::{VhostUserBackend, VringEpollHandler};
use virtio_bindings::bindings::virtio_blk as blk;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use crate::control::Link;
use crate::geometry::{Geometry, MAX_ZERO_RANGES, MAX_ZERO_SECTORS, SEG_MAX, SIZE_MAX};
use crate::image::SECTOR;
use crate::lock;
use crate::serve::{Memory, Vring, Worker};

const CONFIG_LEN: usize = 60;
/// The largest queue that virtio knows.
const QUEUE_SIZE_MAX: u16 = 32768;
/// What a discard or a big request should be a multiple of, in bytes: pages of the host.
const PHYSICAL_BLOCK: u32 = 4096;

type Handler = VringEpollHandler<Arc<Backend>>;

/// The device as the library sees it.
pub struct Backend {
    worker: Mutex<Worker>,
    handler: Mutex<Weak<Handler>>,
    geometry: Geometry,
    queues: u16,
    queue_size: u16,
}

impl Backend {
    /// A device with `queues` queues, which usually have `queue_size` entries.
    #[must_use]
    pub fn new(worker: Worker, queues: u16, queue_size: u16) -> Self {
        let geometry = worker.geometry;
        Self { worker: Mutex::new(worker), handler: Mutex::default(), geometry, queues, queue_size }
    }

    /// Watches the device's own events on the library's worker thread.
    ///
    /// # Errors
    /// Of epoll.
    pub fn listen(&self, handler: &Arc<Handler>) -> io::Result<()> {
        *lock(&self.handler) = Arc::downgrade(handler);
        let worker = lock(&self.worker);
        self.watch(worker.disk_event(), self.disk_token())?;
        self.watch(worker.wake_event(), self.mirror_token())
    }

    /// Takes commands from the connected ft-ctl socket `fd`.
    ///
    /// # Errors
    /// Of epoll.
    pub fn attach_control(&self, fd: OwnedFd) -> io::Result<()> {
        let link = Arc::new(Link::new(fd));
        let raw = link.raw_fd();
        lock(&self.worker).attach(link);
        self.watch(raw, self.control_token())
    }

    /// Blocks until what counts is in the image, and its record says that nobody writes to it any more.
    pub fn close(&self) {
        let (applier, tracker) = lock(&self.worker).shut();
        // What is released belongs to the image, also when the VMM ends.
        let _ = applier.is_some_and(|applier| applier.drain());
        tracker.close();
    }

    fn watch(&self, fd: RawFd, token: u16) -> io::Result<()> {
        let handler = lock(&self.handler).upgrade().ok_or(io::ErrorKind::NotConnected)?;
        handler.register_listener(fd, EventSet::IN, u64::from(token))
    }

    // The library uses the tokens up to and including the number of queues.
    fn control_token(&self) -> u16 {
        self.queues + 1
    }

    fn disk_token(&self) -> u16 {
        self.queues + 2
    }

    fn mirror_token(&self) -> u16 {
        self.queues + 3
    }

    fn handle_control(&self, worker: &mut Worker) {
        let Some(fd) = worker.link.as_ref().map(|link| link.raw_fd()) else { return };
        if !worker.handle_commands()
            && let Some(handler) = lock(&self.handler).upgrade()
            && let Err(e) = handler.unregister_listener(fd, EventSet::IN, u64::from(self.control_token()))
        {
            debug!("ft-ctl: {e}");
        }
    }

    /// The device's configuration space, `struct virtio_blk_config`.
    fn config(&self) -> [u8; CONFIG_LEN] {
        let mut config = [0; CONFIG_LEN];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        let block = self.geometry.block;
        put(0, &(self.geometry.size / SECTOR).to_le_bytes());
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &self.seg_max().to_le_bytes());
        put(20, &block.to_le_bytes());
        put(24, &[(PHYSICAL_BLOCK / block).ilog2() as u8]);
        put(26, &((PHYSICAL_BLOCK / block) as u16).to_le_bytes());
        put(34, &self.queues.to_le_bytes());
        put(36, &MAX_ZERO_SECTORS.to_le_bytes());
        put(40, &MAX_ZERO_RANGES.to_le_bytes());
        put(44, &(PHYSICAL_BLOCK / SECTOR as u32).to_le_bytes());
        put(48, &MAX_ZERO_SECTORS.to_le_bytes());
        put(52, &MAX_ZERO_RANGES.to_le_bytes());
        put(56, &[1]);
        config
    }

    /// Header and status take two descriptors.
    fn seg_max(&self) -> u32 {
        SEG_MAX.min(u32::from(self.queue_size) - 2)
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = BitmapMmapRegion;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        usize::from(self.queues)
    }

    /// Whatever the frontend has: `queue_size` is what the guest is advised by.
    fn max_queue_size(&self) -> usize {
        usize::from(QUEUE_SIZE_MAX)
    }

    fn features(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
            blk::VIRTIO_BLK_F_SIZE_MAX,
            blk::VIRTIO_BLK_F_SEG_MAX,
            blk::VIRTIO_BLK_F_BLK_SIZE,
            blk::VIRTIO_BLK_F_TOPOLOGY,
            blk::VIRTIO_BLK_F_FLUSH,
        ];
        if self.queues > 1 {
            bits.push(blk::VIRTIO_BLK_F_MQ);
        }
        if self.geometry.read_only {
            bits.push(blk::VIRTIO_BLK_F_RO);
        } else {
            bits.extend([blk::VIRTIO_BLK_F_DISCARD, blk::VIRTIO_BLK_F_WRITE_ZEROES]);
        }
        let vhost = VhostUserVirtioFeatures::PROTOCOL_FEATURES | VhostUserVirtioFeatures::LOG_ALL;
        bits.into_iter().fold(vhost.bits(), |features, bit| features | 1 << bit)
    }

    fn acked_features(&self, features: u64) {
        let has = |bit: u32| features & 1 << bit != 0;
        let limited = has(blk::VIRTIO_BLK_F_SEG_MAX) && has(blk::VIRTIO_BLK_F_SIZE_MAX);
        lock(&self.worker).set_driver(has(blk::VIRTIO_BLK_F_FLUSH), limited);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::LOG_SHMFD
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The library has told the queues, and nobody else needs to know.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        // A frontend may know a longer structure than this device: the rest reads as zero.
        let mut config = self.config().to_vec();
        let end = offset.saturating_add(size).min(4096) as usize;
        config.resize(config.len().max(end), 0);
        config.get(offset as usize..end).unwrap_or_default().to_vec()
    }

    fn set_config(&self, _offset: u32, _data: &[u8]) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "nothing in the configuration can be written"))
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        lock(&self.worker).set_memory(memory);
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        vec![u64::MAX]
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).ok()
    }

    fn stop_vring(&self, queue: u32) -> io::Result<()> {
        lock(&self.worker).stop_queue(queue as u16);
        Ok(())
    }

    fn handle_event(&self, event: u16, _events: EventSet, vrings: &[Vring], _thread: usize) -> io::Result<()> {
        let mut worker = lock(&self.worker);
        worker.set_vrings(vrings);
        if event < self.queues {
            worker.serve(usize::from(event));
        } else if event == self.control_token() {
            self.handle_control(&mut worker);
        } else if event == self.disk_token() {
            worker.collect();
        } else if event == self.mirror_token() {
            worker.mirror_changed();
        }
        Ok(())
    }
}
