//! A toy guest with hand-made split queues behind a real vhost-user `Frontend`.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ft_wire::device_ctl::QueueState;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{LIMIT, soon, wait_readable};

pub const MEM_SIZE: u64 = 32 << 20;
pub const QUEUE_SIZE: u16 = 128;
/// Requests of a queue that can be in flight at once.
pub const SLOTS: u16 = 32;
const SLOT_SIZE: u64 = 128 * 1024;
const DATA_AT: u64 = 4096;

pub const T_IN: u32 = 0;
pub const T_OUT: u32 = 1;
pub const T_FLUSH: u32 = 4;
pub const T_GET_ID: u32 = 8;
pub const T_DISCARD: u32 = 11;
pub const T_ZEROES: u32 = 13;
pub const F_EVENT_IDX: u64 = 1 << 29;
pub const F_INDIRECT: u64 = 1 << 28;
pub const F_FLUSH: u64 = 1 << 9;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Guest memory from address 0 on, mapped at `host` from the start of `fd`.
pub fn region_info(size: u64, host: u64, fd: RawFd) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: size,
        userspace_addr: host,
        mmap_offset: 0,
        mmap_handle: fd,
    }
}

struct Ring {
    kick: EventFd,
    call: EventFd,
    /// Written by the device when the ring makes no sense to it.
    broken: EventFd,
    avail: u16,
    used: u16,
    free: Vec<u16>,
}

/// A guest with split queues: every slot has three descriptors and its own buffers.
pub struct Guest {
    pub frontend: Frontend,
    pub mem: Arc<GuestMemoryMmap<()>>,
    rings: Vec<Ring>,
    pub features: u64,
    pub indirect: bool,
    pub log: Option<File>,
}

fn memory() -> GuestMemoryMmap<()> {
    let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(MEM_SIZE).unwrap();
    let range = (GuestAddress(0), MEM_SIZE as usize, Some(FileOffset::new(file, 0)));
    GuestMemoryMmap::from_ranges_with_files([range]).unwrap()
}

fn table(queue: usize) -> u64 {
    0x1_0000 * (queue as u64 + 1)
}
fn avail_ring(queue: usize) -> u64 {
    table(queue) + 0x2000
}
fn used_ring(queue: usize) -> u64 {
    table(queue) + 0x3000
}
fn indirect_table(queue: usize, slot: u16) -> u64 {
    table(queue) + 0x8000 + u64::from(slot) * 64
}

/// Where a slot's header is; its status byte is at 16, its data at the next page.
pub fn slot_at(queue: usize, slot: u16) -> u64 {
    (1 << 20) + (queue as u64 * u64::from(SLOTS) + u64::from(slot)) * SLOT_SIZE
}

pub fn slot_data(queue: usize, slot: u16) -> u64 {
    slot_at(queue, slot) + DATA_AT
}

impl Guest {
    pub fn connect(socket: &Path, queues: usize, drop_features: u64) -> Self {
        Self::with_memory(socket, queues, drop_features, memory(), &[])
    }

    /// A guest that goes on with `mem`, its queues where `positions` say.
    pub fn with_memory(
        socket: &Path,
        queues: usize,
        drop_features: u64,
        mem: GuestMemoryMmap<()>,
        positions: &[QueueState],
    ) -> Self {
        let mut frontend = soon(|| Frontend::connect(socket, queues as u64).ok());
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap() & !drop_features;
        frontend.set_features(features & !(1 << 26)).unwrap();
        let wanted = VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::LOG_SHMFD;
        assert_eq!(frontend.get_protocol_features().unwrap(), wanted);
        frontend.set_protocol_features(wanted).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        assert!(frontend.get_queue_num().unwrap() >= queues as u64);
        let mut guest = Self { frontend, mem: Arc::new(mem), rings: vec![], features, indirect: false, log: None };
        guest.set_memory();
        for queue in 0..queues {
            let position = positions.iter().find(|p| usize::from(p.index) == queue).copied().unwrap_or_default();
            guest.set_up(queue, position);
        }
        guest
    }

    fn host(&self, addr: u64) -> u64 {
        self.mem.get_host_address(GuestAddress(addr)).unwrap() as u64
    }

    fn set_memory(&self) {
        let region = self.mem.find_region(GuestAddress(0)).unwrap();
        let fd = region.file_offset().unwrap().file().as_raw_fd();
        let info = region_info(MEM_SIZE, self.host(0), fd);
        self.frontend.set_mem_table(&[info]).unwrap();
    }

    fn set_up(&mut self, queue: usize, position: QueueState) {
        let ring = Ring {
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
            broken: EventFd::new(EFD_NONBLOCK).unwrap(),
            avail: self.mem.read_obj(GuestAddress(avail_ring(queue) + 2)).unwrap(),
            used: position.next_used,
            free: (0..SLOTS).rev().collect(),
        };
        self.frontend.set_vring_num(queue, QUEUE_SIZE).unwrap();
        let config = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: self.host(table(queue)),
            used_ring_addr: self.host(used_ring(queue)),
            avail_ring_addr: self.host(avail_ring(queue)),
            log_addr: None,
        };
        self.frontend.set_vring_addr(queue, &config).unwrap();
        self.frontend.set_vring_base(queue, position.next_avail).unwrap();
        self.frontend.set_vring_call(queue, &ring.call).unwrap();
        self.frontend.set_vring_err(queue, &ring.broken).unwrap();
        self.frontend.set_vring_kick(queue, &ring.kick).unwrap();
        self.frontend.set_vring_enable(queue, true).unwrap();
        match self.rings.get_mut(queue) {
            Some(old) => *old = ring,
            None => self.rings.push(ring),
        }
    }

    /// Waits until the device has found the ring broken. False: it has not.
    pub fn is_broken(&self, queue: usize, limit: Duration) -> bool {
        wait_readable(&self.rings[queue].broken, limit)
    }

    /// What a driver's reset comes to: the ring is taken away, emptied, and set up again.
    pub fn restart(&mut self, queue: usize) {
        self.frontend.get_vring_base(queue).unwrap();
        for ring in [avail_ring(queue), used_ring(queue)] {
            self.write_mem(0_u32, ring);
        }
        self.set_up(queue, QueueState::default());
    }

    /// A request of any length: its data is at `spans` of guest memory. Its header and status are those of
    /// slot 0.
    pub fn post_spans(&mut self, queue: usize, kind: u32, sector: u64, spans: &[(u64, u32)]) {
        let at = slot_at(queue, 0);
        self.write_mem(kind, at);
        self.write_mem(sector, at + 8);
        self.write_mem(0xee_u8, at + 16);
        let place = |i: usize| table(queue) + i as u64 * 16;
        self.desc(place(0), at, 16, NEXT, 1);
        let data_flag = if kind == T_IN { WRITE } else { 0 };
        for (i, (addr, len)) in (1..).zip(spans) {
            self.desc(place(i), *addr, *len, data_flag | NEXT, i as u16 + 1);
        }
        self.desc(place(spans.len() + 1), at + 16, 1, WRITE, 0);
        self.push_avail(queue, 0);
        self.kick(queue);
    }

    /// Has the device log dirty pages to a shared file from now on.
    pub fn start_log(&mut self) {
        let file = File::from(memfd_create("log", MFdFlags::MFD_CLOEXEC).unwrap());
        let len = MEM_SIZE / 4096 / 8;
        file.set_len(len).unwrap();
        self.frontend.set_features(self.features).unwrap();
        let region = VhostUserDirtyLogRegion { mmap_size: len, mmap_offset: 0, mmap_handle: file.as_raw_fd() };
        self.frontend.set_log_base(0, Some(region)).unwrap();
        self.log = Some(file);
    }

    /// Numbers of the pages in the log.
    pub fn dirty_pages(&self) -> Vec<u64> {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; (MEM_SIZE / 4096 / 8) as usize];
        self.log.as_ref().unwrap().read_exact_at(&mut bytes, 0).unwrap();
        let bits = bytes
            .iter()
            .zip(0..)
            .flat_map(|(byte, i)| (0..8).filter(move |b| byte & 1 << b != 0).map(move |b| i * 8 + b));
        bits.collect()
    }

    /// A copy of all of guest memory.
    pub fn snapshot(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEM_SIZE as usize];
        self.mem.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    pub fn write_mem<T: vm_memory::ByteValued>(&self, value: T, addr: u64) {
        self.mem.write_obj(value, GuestAddress(addr)).unwrap();
    }

    pub fn desc(&self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        self.write_mem(addr, at);
        self.write_mem(len, at + 8);
        self.write_mem(flags, at + 12);
        self.write_mem(next, at + 14);
    }

    /// Puts a request into a slot and the slot into the avail ring, without a kick; the slot's number.
    pub fn post(&mut self, queue: usize, kind: u32, sector: u64, out: &[u8], room: usize) -> u16 {
        let slot = self.rings[queue].free.pop().expect("no free slot");
        let at = slot_at(queue, slot);
        self.write_mem(kind, at);
        self.write_mem(0_u32, at + 4);
        self.write_mem(sector, at + 8);
        self.write_mem(0xee_u8, at + 16);
        self.mem.write_slice(out, GuestAddress(at + DATA_AT)).unwrap();
        let data_flag = if room > 0 { WRITE } else { 0 };
        let len = (out.len() + room) as u32;
        let head = slot * 3;
        let (descs, first) = if self.indirect { (indirect_table(queue, slot), 0) } else { (table(queue), head) };
        let place = |i: u16| descs + u64::from(first + i) * 16;
        self.desc(place(0), at, 16, NEXT, first + if len == 0 { 2 } else { 1 });
        self.desc(place(1), at + DATA_AT, len, data_flag | NEXT, first + 2);
        self.desc(place(2), at + 16, 1, WRITE, 0);
        if self.indirect {
            self.desc(table(queue) + u64::from(head) * 16, descs, 48, INDIRECT, 0);
        }
        self.push_avail(queue, head);
        slot
    }

    pub fn push_avail(&mut self, queue: usize, head: u16) {
        let avail = self.rings[queue].avail;
        self.write_mem(head, avail_ring(queue) + 4 + u64::from(avail % QUEUE_SIZE) * 2);
        self.rings[queue].avail = avail.wrapping_add(1);
        let addr = GuestAddress(avail_ring(queue) + 2);
        self.mem.store(avail.wrapping_add(1), addr, Ordering::Release).unwrap();
    }

    pub fn set_avail_index(&mut self, queue: usize, index: u16) {
        self.mem.store(index, GuestAddress(avail_ring(queue) + 2), Ordering::Release).unwrap();
        self.rings[queue].avail = index;
    }

    pub fn kick(&self, queue: usize) {
        self.rings[queue].kick.write(1).unwrap();
    }

    pub fn used_index(&self, queue: usize) -> u16 {
        self.mem.load(GuestAddress(used_ring(queue) + 2), Ordering::Acquire).unwrap()
    }

    /// The next used entry, as (head, length).
    pub fn try_used(&mut self, queue: usize, limit: Duration) -> Option<(u16, u32)> {
        let end = Instant::now() + limit;
        let used = self.rings[queue].used;
        // Ask for an interrupt at the very next entry.
        self.write_mem(used, avail_ring(queue) + 4 + u64::from(QUEUE_SIZE) * 2);
        std::sync::atomic::fence(Ordering::SeqCst);
        while self.used_index(queue) == used {
            if !wait_readable(&self.rings[queue].call, end.saturating_duration_since(Instant::now())) {
                return None;
            }
            let _ = self.rings[queue].call.read();
        }
        let at = used_ring(queue) + 4 + u64::from(used % QUEUE_SIZE) * 8;
        let head: u32 = self.mem.read_obj(GuestAddress(at)).unwrap();
        let len: u32 = self.mem.read_obj(GuestAddress(at + 4)).unwrap();
        self.rings[queue].used = used.wrapping_add(1);
        Some((head as u16, len))
    }

    /// The next finished request: its slot, status and length.
    pub fn finish(&mut self, queue: usize) -> (u16, u8, u32) {
        let (head, len) = self.try_used(queue, LIMIT).expect("no used entry");
        let slot = head / 3;
        assert!(!self.rings[queue].free.contains(&slot), "slot {slot} used twice");
        self.rings[queue].free.push(slot);
        (slot, self.status(queue, slot), len)
    }

    pub fn status(&self, queue: usize, slot: u16) -> u8 {
        self.mem.read_obj(GuestAddress(slot_at(queue, slot) + 16)).unwrap()
    }

    pub fn data(&self, queue: usize, slot: u16, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.mem.read_slice(&mut data, GuestAddress(slot_data(queue, slot))).unwrap();
        data
    }

    pub fn free_slots(&self, queue: usize) -> usize {
        self.rings[queue].free.len()
    }

    /// A slot whose request is answered can be used again.
    pub fn give_slot(&mut self, queue: usize, slot: u16) {
        self.rings[queue].free.push(slot);
    }

    /// After a takeover: slots whose requests are still open are not free.
    pub fn take_slot(&mut self, queue: usize, slot: u16) {
        self.rings[queue].free.retain(|free| *free != slot);
    }

    fn one(&mut self, queue: usize, kind: u32, sector: u64, out: &[u8], room: usize) -> (u8, u32, Vec<u8>) {
        let posted = self.post(queue, kind, sector, out, room);
        self.kick(queue);
        let (slot, status, len) = self.finish(queue);
        assert_eq!(slot, posted);
        (status, len, self.data(queue, slot, room))
    }

    pub fn read(&mut self, queue: usize, sector: u64, len: usize) -> (u8, Vec<u8>) {
        let (status, used, data) = self.one(queue, T_IN, sector, &[], len);
        assert_eq!(used as usize, if status == 0 { len + 1 } else { 1 });
        (status, data)
    }

    pub fn write(&mut self, queue: usize, sector: u64, data: &[u8]) -> u8 {
        self.one(queue, T_OUT, sector, data, 0).0
    }

    pub fn flush(&mut self, queue: usize) -> u8 {
        self.one(queue, T_FLUSH, 0, &[], 0).0
    }

    pub fn get_id(&mut self, queue: usize) -> (u8, Vec<u8>) {
        let (status, _, data) = self.one(queue, T_GET_ID, 0, &[], 20);
        (status, data)
    }

    pub fn zero(&mut self, queue: usize, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        self.one(queue, kind, 0, &zero_list(ranges), 0).0
    }
}

/// A queue that is full of requests for the serial number, however fast they are answered.
pub struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// Of `queue`, which is not used otherwise.
    pub fn new(guest: &Guest, queue: usize) -> Self {
        let at = slot_at(queue, 0);
        guest.write_mem(T_GET_ID, at);
        guest.desc(table(queue), at, 16, NEXT, 1);
        guest.desc(table(queue) + 16, at + DATA_AT, 21, WRITE, 0);
        let stop = Arc::new(AtomicBool::new(false));
        let (mem, stopped) = (guest.mem.clone(), stop.clone());
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let used: u16 = mem.load(GuestAddress(used_ring(queue) + 2), Ordering::Acquire).unwrap();
                let index = used.wrapping_add(QUEUE_SIZE);
                mem.store(index, GuestAddress(avail_ring(queue) + 2), Ordering::Release).unwrap();
            }
        });
        // The first ones are there.
        while mem_index(guest, queue) == 0 {}
        guest.kick(queue);
        Self { stop, thread: Some(thread) }
    }
}

fn mem_index(guest: &Guest, queue: usize) -> u16 {
    guest.mem.load(GuestAddress(avail_ring(queue) + 2), Ordering::Acquire).unwrap()
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// The payload of a discard or write-zeroes request: (sector, sectors, flags).
pub fn zero_list(ranges: &[(u64, u32, u32)]) -> Vec<u8> {
    let one = |(sector, count, flags): &(u64, u32, u32)| {
        [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    ranges.iter().flat_map(one).collect()
}

/// A copy of another guest's memory, as a standby's VMM would have it.
pub fn copy_memory(from: &[u8]) -> GuestMemoryMmap<()> {
    let mem = memory();
    mem.write_slice(from, GuestAddress(0)).unwrap();
    mem
}
