//! Test bench: a toy guest with hand-made split queues behind a real vhost-user `Frontend`, a toy VMM on the
//! ft-ctl socket, and images that can be held up.
#![allow(dead_code, missing_docs, reason = "every test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a panic is how tests fail")]

pub mod hosts;
pub mod peer;
pub mod program;

use std::cell::Cell;
use std::fs::File;
use std::io::{self, IoSlice};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ft_proto::Epoch;
use ft_proto::device_ctl::{CTL_MAX, Command, InFlight, QueueState, Release, Report, decode, encode};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair};
use tempfile::TempDir;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, Listener, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vhost_user_blk_repl::image::stamp::{Moment, Stamp};
use vhost_user_blk_repl::image::{FileImage, Image};
use vhost_user_blk_repl::record::Opened;
use vhost_user_blk_repl::{Device, Options};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub const LIMIT: Duration = Duration::from_secs(60);
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

/// A small, seeded random number generator (SplitMix64).
pub struct Rng(pub u64);

impl Rng {
    /// From `SEED`, or from the clock; printed, so that a failure can be repeated.
    pub fn from_env(name: &str) -> Self {
        let clock = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(clock);
        println!("{name}: SEED={seed}");
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len.next_multiple_of(8)];
        bytes.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&self.next().to_le_bytes()));
        bytes.truncate(len);
        bytes
    }
}

/// Tries until it works: a listener in another process is seen before it listens.
pub fn soon<T>(attempt: impl Fn() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        match attempt() {
            Some(value) => return value,
            None if Instant::now() < end => thread::yield_now(),
            None => panic!("did not happen"),
        }
    }
}

pub fn wait_readable(fd: &impl AsRawFd, limit: Duration) -> bool {
    // SAFETY: the descriptor is open for as long as its owner is borrowed.
    let fd = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
    let timeout = PollTimeout::try_from(limit.as_millis()).unwrap();
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout).unwrap() > 0
}

/// An image file of random content.
pub fn make_image(dir: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

/// Which operations wait at the gate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Gate {
    Open,
    All,
    Reads,
    Writes,
}

/// An image whose operations wait at a gate, and whose writes can be made to fail. A read waits after it has
/// read.
pub struct GatedImage {
    inner: FileImage,
    gate: Mutex<Gate>,
    opened: Condvar,
    waiting: Mutex<usize>,
    arrived: Condvar,
    pub fail_writes: AtomicBool,
    pub fail_reads: AtomicBool,
    pub syncs: AtomicUsize,
}

impl GatedImage {
    pub fn open(path: &Path) -> Arc<Self> {
        Arc::new(Self {
            inner: FileImage::open(path, false, false).unwrap(),
            gate: Mutex::new(Gate::Open),
            opened: Condvar::new(),
            waiting: Mutex::new(0),
            arrived: Condvar::new(),
            fail_writes: AtomicBool::new(false),
            fail_reads: AtomicBool::new(false),
            syncs: AtomicUsize::new(0),
        })
    }

    pub fn set(&self, gate: Gate) {
        *self.gate.lock().unwrap() = gate;
        self.opened.notify_all();
    }

    /// Waits until `count` operations stand at the gate.
    pub fn wait_for_waiting(&self, count: usize) {
        let waiting = self.waiting.lock().unwrap();
        let (_waiting, timeout) = self.arrived.wait_timeout_while(waiting, LIMIT, |n| *n < count).unwrap();
        assert!(!timeout.timed_out(), "no {count} operations at the gate");
    }

    fn pass(&self, kind: Gate) {
        *self.waiting.lock().unwrap() += 1;
        self.arrived.notify_all();
        let closed = |gate: &mut Gate| *gate == Gate::All || *gate == kind;
        drop(self.opened.wait_while(self.gate.lock().unwrap(), closed).unwrap());
        *self.waiting.lock().unwrap() -= 1;
    }
}

impl Image for GatedImage {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let result = self.inner.read_at(offset, buf);
        self.pass(Gate::Reads);
        if self.fail_reads.load(Ordering::Relaxed) {
            return Err(io::Error::other("made to fail"));
        }
        result
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.pass(Gate::Writes);
        if self.fail_writes.load(Ordering::Relaxed) {
            return Err(io::Error::other("made to fail"));
        }
        self.inner.write_at(offset, data)
    }
    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.pass(Gate::Writes);
        self.inner.zero(offset, len, unmap)
    }
    fn sync(&self) -> io::Result<()> {
        self.pass(Gate::Writes);
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.inner.sync()
    }
    fn hole_end(&self, offset: u64) -> Option<u64> {
        self.inner.hole_end(offset)
    }
    fn stamp(&self) -> io::Result<Option<Stamp>> {
        self.inner.stamp()
    }
    fn changed(&self) -> io::Result<Option<Moment>> {
        self.inner.changed()
    }
}

/// A device served in this process.
pub struct Served {
    pub dir: TempDir,
    pub socket: PathBuf,
    pub exited: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

pub struct Setup {
    pub queues: u16,
    pub read_only: bool,
    pub serial: &'static str,
    pub record: Option<Opened>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { queues: 1, read_only: false, serial: "disk-1", record: None }
    }
}

impl Served {
    pub fn new(image: Arc<dyn Image>, setup: Setup, control: Option<OwnedFd>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vhost");
        let listener = Listener::from(UnixListener::bind(&socket).unwrap());
        let options = Options {
            block_size: 512,
            read_only: setup.read_only,
            serial: setup.serial.to_owned(),
            queues: setup.queues,
            queue_size: 256,
            threads: 4,
            record: setup.record,
            counters: None,
        };
        let exited = Arc::new(AtomicBool::new(false));
        let exit = exited.clone();
        let exit = Arc::new(move || exit.store(true, Ordering::Release));
        let mut device = Device::new(image, options, exit).unwrap();
        if let Some(fd) = control {
            device.attach_control(fd).unwrap();
        }
        let thread = thread::spawn(move || {
            device.accept(listener).unwrap();
            device.serve().unwrap();
        });
        Self { dir, socket, exited, thread: Some(thread) }
    }

    pub fn file(path: &Path) -> Self {
        Self::new(Arc::new(FileImage::open(path, false, false).unwrap()), Setup::default(), None)
    }

    /// After every frontend is gone: waits for the end.
    pub fn join(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

/// The VMM's end of an ft-ctl socket.
pub struct Vmm {
    fd: OwnedFd,
    /// The last epoch of which the disk has said that it is complete: it does not hear of idle ones.
    pub told: Cell<u64>,
}

pub fn release(epoch: u64) -> Command {
    let mut buf = [0; 16];
    // A real one is made of a `Committed` token; tests go through the wire format, which has the same
    // content.
    let bytes = encode(&Epoch(epoch), &mut buf).unwrap();
    Command::Release(decode::<Release>(bytes).unwrap())
}

#[derive(Clone, Debug, Default)]
pub struct Sealed {
    pub queues: Vec<QueueState>,
    pub in_flight: Vec<InFlight>,
    pub held_bytes: u64,
    pub idle: bool,
}

impl Vmm {
    pub fn pair() -> (Self, OwnedFd) {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        (Self::from_fd(ours), theirs)
    }

    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd, told: Cell::new(0) }
    }

    pub fn send(&self, command: &Command) {
        self.send_with(command, None);
    }

    pub fn send_with(&self, command: &Command, fd: Option<OwnedFd>) {
        let mut buf = vec![0; CTL_MAX];
        self.send_bytes(encode(command, &mut buf).unwrap(), fd);
    }

    pub fn send_bytes(&self, bytes: &[u8], fd: Option<OwnedFd>) {
        let fds: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        sendmsg::<()>(self.fd.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::empty(), None).unwrap();
    }

    pub fn try_recv(&self, limit: Duration) -> Option<Report> {
        if !wait_readable(&self.fd, limit) {
            return None;
        }
        let mut buf = vec![0; CTL_MAX];
        let len = recv(self.fd.as_raw_fd(), &mut buf, MsgFlags::empty()).unwrap();
        assert!(len > 0, "the device closed the link");
        Some(decode(&buf[..len]).unwrap())
    }

    /// The next report that is not progress.
    pub fn recv(&self) -> Report {
        let end = Instant::now() + LIMIT;
        loop {
            match self.try_recv(end.saturating_duration_since(Instant::now())) {
                Some(Report::Resync { .. }) => {}
                Some(report) => return report,
                None => panic!("no report"),
            }
        }
    }

    /// Skips reports until one answers `pick`.
    pub fn until<T>(&self, mut pick: impl FnMut(&Report) -> Option<T>) -> T {
        loop {
            let report = self.recv();
            if let Some(answer) = pick(&report) {
                return answer;
            }
            assert!(!matches!(report, Report::Failed { .. } | Report::MirrorLost { .. }), "{report:?}");
        }
    }

    pub fn seal(&self, epoch: u64) -> Sealed {
        self.send(&Command::Seal { epoch: Epoch(epoch), cpu: None });
        self.until(|report| match report.clone() {
            Report::Sealed { epoch: sealed, queues, in_flight, held_bytes, idle, .. } => {
                assert_eq!(sealed, Epoch(epoch));
                Some(Sealed { queues, in_flight, held_bytes, idle })
            }
            _ => None,
        })
    }

    pub fn mirror(&self, epoch: u64, max_uncommitted: u64, stream: OwnedFd) {
        self.send_with(&Command::Mirror { epoch: Epoch(epoch), max_uncommitted, rate: 0 }, Some(stream));
    }

    pub fn receive(&self, max_uncommitted: u64, stream: OwnedFd) {
        self.send(&Command::Standby(true));
        self.send_with(&Command::Receive { max_uncommitted }, Some(stream));
    }

    pub fn in_sync(&self) {
        self.until(|report| matches!(report, Report::InSync).then_some(()));
    }

    pub fn complete(&self, epoch: u64) {
        self.until(|report| (*report == Report::Complete { epoch: Epoch(epoch) }).then_some(()));
        self.told.set(epoch);
    }

    pub fn discard(&self, after: u64) {
        self.send(&Command::Discard { after: Epoch(after) });
        self.until(|report| (*report == Report::Discarded).then_some(()));
    }

    pub fn mirror_lost(&self) -> String {
        match self.recv() {
            Report::MirrorLost { reason } => reason,
            report => panic!("expected MirrorLost, got {report:?}"),
        }
    }

    /// The reason why the stream is lost, whatever is reported before.
    pub fn until_lost(&self) -> String {
        loop {
            if let Report::MirrorLost { reason } = self.recv() {
                return reason;
            }
        }
    }

    pub fn failed(&self) -> String {
        match self.recv() {
            Report::Failed { reason } => reason,
            report => panic!("expected Failed, got {report:?}"),
        }
    }
}

/// Two ends of a TCP connection over loopback.
pub fn tcp_pair() -> (OwnedFd, OwnedFd) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    (client.into(), server.into())
}

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
