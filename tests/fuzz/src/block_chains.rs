//! Descriptor chains of the disk, served by the real disk from an image in memory.
//!
//! Input: what the driver has taken of the features, then guest memory from address 0 on (see `guest_ring`).

use std::cell::RefCell;
use std::io;
use std::sync::{Arc, Mutex};

use vhost_user_backend::VringT;
use vhost_user_blk_repl::Options;
use vhost_user_blk_repl::fuzzing::Disk;
use vhost_user_blk_repl::image::Image;
use vhost_user_blk_repl::image::stamp::{Moment, Stamp};
use virtio_queue::QueueT;

use crate::guest_ring::Rings;

/// Bytes of the disk.
const SIZE: usize = 256 << 10;

struct InMemory(Mutex<Vec<u8>>);

impl InMemory {
    /// Ranges have been checked, so one that is not in the image is a panic.
    fn with(&self, offset: u64, len: u64, act: impl FnOnce(&mut [u8])) -> io::Result<()> {
        act(&mut self.0.lock().unwrap()[offset as usize..][..len as usize]);
        Ok(())
    }
}

impl Image for InMemory {
    fn size(&self) -> u64 {
        SIZE as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.with(offset, buf.len() as u64, |image| buf.copy_from_slice(image))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(offset, data.len() as u64, |image| image.copy_from_slice(data))
    }

    fn zero(&self, offset: u64, len: u64, _unmap: bool) -> io::Result<()> {
        self.with(offset, len, |image| image.fill(0))
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn hole_end(&self, _offset: u64) -> Option<u64> {
        None
    }

    fn stamp(&self) -> io::Result<Option<Stamp>> {
        Ok(None)
    }

    fn changed(&self) -> io::Result<Option<Moment>> {
        Ok(None)
    }
}

struct Rig {
    rings: Rings,
    disk: Disk,
}

impl Rig {
    fn new(read_only: bool) -> Self {
        let options = Options {
            block_size: 512,
            read_only,
            serial: "serial".to_owned(),
            queues: 1,
            queue_size: crate::guest_ring::QUEUE_SIZE,
            threads: 1,
            record: None,
            counters: None,
        };
        let rings = Rings::new(1);
        let mut disk = Disk::new(Arc::new(InMemory(Mutex::new(vec![7; SIZE]))), options).unwrap();
        disk.set_memory(rings.memory.clone());
        disk.set_vrings(&rings.vrings);
        Self { rings, disk }
    }

    /// Serves what the driver has made available, until everything is answered or the ring is found broken.
    fn serve(&mut self, features: u8, memory: &[u8]) {
        self.rings.set_up(memory, features & 4 != 0);
        self.disk.set_driver(features & 1 != 0, features & 2 != 0);
        self.disk.serve(0);
        self.disk.stop_queue(0);
        assert!(self.disk.is_idle());
        self.rings.check(0);
        if !self.rings.vrings[0].is_broken() {
            let ring = self.rings.vrings[0].get_ref();
            assert_eq!(ring.get_queue().next_avail(), ring.get_queue().next_used(), "a request without an answer");
        }
    }
}

thread_local! {
    static RIGS: RefCell<[Rig; 2]> = RefCell::new([false, true].map(Rig::new));
}

/// Serves the queue.
pub fn run(input: &[u8]) {
    let Some((features, memory)) = input.split_first() else { return };
    RIGS.with_borrow_mut(|rigs| rigs[usize::from(features >> 7)].serve(*features, memory));
}
