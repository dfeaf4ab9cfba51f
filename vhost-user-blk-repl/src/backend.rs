//! The vhost-user device: kicks in, used ring out, all on one worker thread of the library.
//!
//! The mutex around the disk is contended only while the frontend changes the memory table or stops a ring.

use std::io;

use device_kit::control::Control;
use device_kit::events::{Event, Events, exit_event};
use device_kit::{Device, QUEUE_SIZE_MAX, Vring};
use host_kit::sandbox::Needs;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::VhostUserBackendMut;
use vhost_user_backend::bitmap::BitmapMmapRegion;
use virtio_bindings::bindings::virtio_blk as blk;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventNotifier};

use crate::disk::Disk;
use crate::geometry::{MAX_ZERO_RANGES, MAX_ZERO_SECTORS, SEG_MAX, SIZE_MAX};
use crate::image::SECTOR;
use crate::serve::Memory;

const CONFIG_LEN: usize = 60;
/// The device's own events: a request is finished; the mirror or the record has news.
const DISK: usize = 0;
const MIRROR: usize = 1;
/// What a discard or a big request should be a multiple of, in bytes: pages of the host.
const PHYSICAL_BLOCK: u32 = 4096;

/// The device as the library sees it.
pub struct Backend {
    disk: Disk,
    queues: u16,
    queue_size: u16,
}

impl Backend {
    /// A device with `queues` queues, which usually have `queue_size` entries.
    #[must_use]
    pub fn new(disk: Disk, queues: u16, queue_size: u16) -> Self {
        Self { disk, queues, queue_size }
    }

    /// The device's configuration space, `struct virtio_blk_config`.
    fn config(&self) -> [u8; CONFIG_LEN] {
        let mut config = [0; CONFIG_LEN];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        let block = self.disk.geometry().block;
        put(0, &(self.disk.geometry().size / SECTOR).to_le_bytes());
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

impl VhostUserBackendMut for Backend {
    type Bitmap = BitmapMmapRegion;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        usize::from(self.queues)
    }

    /// Whatever the frontend has: `queue_size` is what the guest is advised by.
    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE_MAX
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
        if self.disk.geometry().read_only {
            bits.push(blk::VIRTIO_BLK_F_RO);
        } else {
            bits.extend([blk::VIRTIO_BLK_F_DISCARD, blk::VIRTIO_BLK_F_WRITE_ZEROES]);
        }
        let vhost = VhostUserVirtioFeatures::PROTOCOL_FEATURES | VhostUserVirtioFeatures::LOG_ALL;
        bits.into_iter().fold(vhost.bits(), |features, bit| features | 1 << bit)
    }

    fn acked_features(&mut self, features: u64) {
        let has = |bit: u32| features & 1 << bit != 0;
        let limited = has(blk::VIRTIO_BLK_F_SEG_MAX) && has(blk::VIRTIO_BLK_F_SIZE_MAX);
        self.disk.set_driver(has(blk::VIRTIO_BLK_F_FLUSH), limited);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::LOG_SHMFD
    }

    fn set_event_idx(&mut self, _enabled: bool) {
        // The library has told the queues, and nobody else needs to know.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        // A frontend may know a longer structure than this device: the rest reads as zero.
        let mut config = self.config().to_vec();
        let end = offset.saturating_add(size).min(4096) as usize;
        config.resize(config.len().max(end), 0);
        config.get(offset as usize..end).unwrap_or_default().to_vec()
    }

    fn set_config(&mut self, _offset: u32, _data: &[u8]) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "nothing in the configuration can be written"))
    }

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.disk.set_memory(memory);
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        vec![u64::MAX]
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        exit_event()
    }

    fn stop_vring(&mut self, queue: u32) -> io::Result<()> {
        self.disk.stop_queue(queue as u16);
        Ok(())
    }

    fn handle_event(&mut self, event: u16, _events: EventSet, vrings: &[Vring], _thread: usize) -> io::Result<()> {
        let disk = &mut self.disk;
        disk.set_vrings(vrings);
        match Event::of(event, usize::from(self.queues)) {
            Some(Event::Queue(queue)) => disk.serve(queue),
            Some(Event::Control) => disk.handle_commands(),
            Some(Event::Own(DISK)) => disk.collect(),
            Some(Event::Own(MIRROR)) => disk.replication_changed(),
            Some(Event::Own(_)) | None => {}
        }
        Ok(())
    }
}

impl Device for Backend {
    const NEEDS: Needs =
        Needs::MESSAGES.union(Needs::STORAGE).union(Needs::FILES).union(Needs::SCHEDULE).union(Needs::THREADS);

    fn attach(&mut self, events: &Events) -> io::Result<()> {
        events.watch(&self.disk.disk_event(), DISK)?;
        events.watch(&self.disk.wake_event(), MIRROR)
    }

    fn connect(&mut self, control: Control) {
        self.disk.connect(control);
    }

    fn close(&mut self) {
        self.disk.close();
    }
}
