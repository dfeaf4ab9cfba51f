//! A guest, a VMM and a wire for the real binary: split rings in a memfd, a vhost-user frontend, an ft-ctl socket, and a
//! packet socket on the tap, all in a network namespace of the calling thread.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use ft_proto::Epoch;
use ft_proto::device_ctl::{CTL_MAX, Command as Ctl, QueueState, Report, decode, encode};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

pub const MEMORY: usize = 16 << 20;
pub const QUEUE_SIZE: u16 = 64;
pub const HEADER: usize = 12;
/// Buffers of the guest start here; rings are below.
pub const BUFFERS: u64 = 1 << 20;
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const VERSION_1: u64 = 1 << 32;
/// Not a feature: leaves VERSION_1 out.
pub const NO_VERSION_1: u64 = 1 << 63;
pub const MRG_RXBUF: u64 = 1 << 15;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT_DESC: u64 = 1 << 28;
pub const CSUM_TSO: u64 = 1 | 1 << 11;
pub const LOG_ALL: u64 = 1 << 26;
pub const MQ: u64 = 1 << 22 | 1 << 17;

const PATIENCE_MS: i32 = 10_000;

/// False, with a printed reason, where these tests cannot run. Otherwise the thread is in a namespace of its own.
pub fn ready() -> bool {
    // SAFETY: no arguments, cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    let tun = std::path::Path::new("/dev/net/tun").exists();
    if !root || !tun {
        println!("SKIPPED: needs {}", if root { "/dev/net/tun (modprobe tun)" } else { "root, to make a tap" });
        return false;
    }
    // SAFETY: affects this thread only.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        println!("SKIPPED: needs the right to make network namespaces: {}", io::Error::last_os_error());
        return false;
    }
    // Without IPv6 the host has nothing to say on a new interface. Kernels without IPv6 lack the file.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    true
}

/// Waits until `fd` is readable; false after `ms`.
pub fn readable(fd: RawFd, ms: i32) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd that lives through the call.
    unsafe { libc::poll(&raw mut poll, 1, ms) > 0 }
}

/// The binary under test.
pub struct Device {
    child: Child,
}

impl Device {
    /// Starts it with `args`; `fds` are inherited.
    pub fn spawn(args: &[&str], fds: Vec<RawFd>, stderr: Stdio) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-net-buffer"));
        command.args(args).stderr(stderr);
        // SAFETY: only fcntl between fork and exec.
        unsafe {
            command.pre_exec(move || {
                for fd in &fds {
                    libc::fcntl(*fd, libc::F_SETFD, 0);
                }
                Ok(())
            });
        }
        Self { child: command.spawn().unwrap() }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: our own child, not reaped yet.
        unsafe { libc::kill(self.pid(), signal) };
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        // SAFETY: a plain system call on our own child.
        let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid(), 0) } as RawFd;
        assert!(pidfd >= 0);
        // SAFETY: just opened.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        assert!(readable(pidfd.as_raw_fd(), PATIENCE_MS), "the device does not end");
        self.child.wait().unwrap()
    }

    /// Runs it to its end and returns what it said.
    pub fn fails(args: &[&str]) -> String {
        let mut device = Self::spawn(args, vec![], Stdio::piped());
        let status = device.ended();
        let mut text = String::new();
        device.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(status.code(), Some(1), "{text}");
        text
    }

    pub fn stderr(&mut self) -> std::process::ChildStderr {
        self.child.stderr.take().unwrap()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Harmless when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The VMM's end of ft-ctl.
pub struct Link(pub OwnedFd);

impl Link {
    pub fn pair() -> (Self, OwnedFd) {
        let mut fds = [0; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        // SAFETY: room for two descriptors.
        assert_eq!(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) }, 0);
        // SAFETY: just made.
        unsafe { (Self(OwnedFd::from_raw_fd(fds[0])), OwnedFd::from_raw_fd(fds[1])) }
    }

    pub fn send_raw(&self, bytes: &[u8]) {
        // SAFETY: reads `bytes`.
        let n = unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
        assert_eq!(n, bytes.len() as isize);
    }

    pub fn send(&self, command: &Ctl) {
        self.send_raw(encode(command, &mut vec![0; CTL_MAX]).unwrap());
    }

    /// Only the engine can make a `Release`, so this is what one looks like on the wire.
    pub fn release(&self, epoch: u8) {
        let bytes = [5, epoch];
        assert!(matches!(decode::<Ctl>(&bytes), Ok(Ctl::Release(r)) if r.epoch() == Epoch(u64::from(epoch))));
        self.send_raw(&bytes);
    }

    pub fn next(&self, ms: i32) -> Option<Report> {
        if !readable(self.0.as_raw_fd(), ms) {
            return None;
        }
        let mut buf = vec![0; CTL_MAX];
        // SAFETY: writes into `buf`.
        let n = unsafe { libc::recv(self.0.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), 0) };
        assert!(n > 0, "ft-ctl closed");
        Some(decode(&buf[..n as usize]).unwrap())
    }

    /// The next report, whatever it is.
    pub fn report(&self) -> Report {
        self.next(PATIENCE_MS).expect("a report")
    }

    /// Everything up to the first report that `wanted` accepts; the others must be `Held` or `Full`.
    pub fn wait<T>(&self, wanted: impl Fn(&Report) -> Option<T>) -> (T, Vec<Report>) {
        let mut before = Vec::new();
        loop {
            let report = self.report();
            if let Some(found) = wanted(&report) {
                return (found, before);
            }
            assert!(matches!(report, Report::Held { .. } | Report::Full { .. }), "{report:?}");
            before.push(report);
        }
    }

    /// Seals `epoch`: queue states, held frames, and what was reported before.
    pub fn seal(&self, epoch: u64) -> (Vec<QueueState>, u64, Vec<Report>) {
        self.send(&Ctl::Seal { epoch: Epoch(epoch) });
        let ((queues, held), before) = self.wait(|report| match report {
            Report::Sealed { epoch: e, queues, held_frames, in_flight, .. } => {
                assert_eq!(*e, Epoch(epoch));
                assert!(in_flight.is_empty());
                Some((queues.clone(), *held_frames))
            }
            _ => None,
        });
        (queues, held, before)
    }

    pub fn resume(&self) {
        self.send(&Ctl::Resume);
    }

    /// A round trip: whatever was sent before has been read and obeyed.
    pub fn sync(&self) -> Vec<Report> {
        self.send(&Ctl::Hello { version: 1 });
        self.wait(|report| matches!(report, Report::Ready { .. }).then_some(())).1
    }

    pub fn protect(&self, epoch: u8, hold: bool) {
        // Only the engine can make the command that ends holding.
        let bytes = [2, epoch, u8::from(hold)];
        assert!(matches!(decode::<Ctl>(&bytes), Ok(Ctl::Protect { hold: h, .. }) if h.is_on() == hold));
        self.send_raw(&bytes);
        assert_eq!(self.sync(), []);
    }
}

/// A split virtqueue, driver's side.
pub struct Queue {
    pub index: usize,
    base: u64,
    pub event_idx: bool,
    pub avail: u16,
    pub seen: u16,
    next: u16,
    kick: EventFd,
    call: EventFd,
}

impl Queue {
    fn new(index: usize, event_idx: bool) -> Self {
        let base = index as u64 * 0x4000;
        let new = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).unwrap();
        Self { index, base, event_idx, avail: 0, seen: 0, next: 0, kick: new(), call: new() }
    }

    pub fn desc_at(&self, i: u16) -> u64 {
        self.base + u64::from(i) * 16
    }

    pub fn avail_at(&self) -> u64 {
        self.base + 0x1000
    }

    pub fn used_at(&self) -> u64 {
        self.base + 0x2000
    }

    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Interrupts since the last call.
    pub fn interrupts(&self) -> u64 {
        self.call.read().unwrap_or(0)
    }
}

/// Guest memory.
pub struct Guest {
    pub memory: GuestMemoryMmap,
    file: File,
}

pub fn memfd(len: usize) -> File {
    // SAFETY: a constant name.
    let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: just made.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len as u64).unwrap();
    file
}

impl Guest {
    fn new() -> Self {
        let file = memfd(MEMORY);
        let range = (GuestAddress(0), MEMORY, Some(FileOffset::new(file.try_clone().unwrap(), 0)));
        Self { memory: GuestMemoryMmap::from_ranges_with_files([range]).unwrap(), file }
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    pub fn u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.read(at, 2).try_into().unwrap())
    }

    pub fn put_u16(&self, at: u64, value: u16) {
        self.write(at, &value.to_le_bytes());
    }

    pub fn descriptor(&self, at: u64, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.write(at, &bytes);
    }

    /// Makes `head` available, without a kick.
    pub fn offer(&self, queue: &mut Queue, head: u16) {
        self.put_u16(queue.avail_at() + 4 + 2 * u64::from(queue.avail % QUEUE_SIZE), head);
        queue.avail = queue.avail.wrapping_add(1);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.put_u16(queue.avail_at() + 2, queue.avail);
    }

    /// Puts (address, len, flags) pieces into the table as one chain and makes it available, without a kick.
    pub fn add(&self, queue: &mut Queue, pieces: &[(u64, u32, u16)]) -> u16 {
        let head = queue.next;
        for (i, (address, len, flags)) in pieces.iter().enumerate() {
            let (at, next) = (queue.next, (queue.next + 1) % QUEUE_SIZE);
            let chained = if i + 1 < pieces.len() { NEXT } else { 0 };
            self.descriptor(queue.desc_at(at), *address, *len, flags | chained, next);
            queue.next = next;
        }
        self.offer(queue, head);
        head
    }

    pub fn used_idx(&self, queue: &Queue) -> u16 {
        self.u16(queue.used_at() + 2)
    }

    /// Waits, by interrupt, for `n` used entries; returns (head, len) of each.
    pub fn used(&self, queue: &mut Queue, n: u16) -> Vec<(u16, u32)> {
        let target = queue.seen.wrapping_add(n);
        if queue.event_idx {
            self.put_u16(queue.avail_at() + 4 + 2 * u64::from(QUEUE_SIZE), target.wrapping_sub(1));
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        }
        while self.used_idx(queue).wrapping_sub(queue.seen) < n {
            assert!(readable(queue.call.as_raw_fd(), PATIENCE_MS), "queue {} stands still", queue.index);
            queue.interrupts();
        }
        (0..n)
            .map(|_| {
                let at = queue.used_at() + 4 + 8 * u64::from(queue.seen % QUEUE_SIZE);
                queue.seen = queue.seen.wrapping_add(1);
                let bytes = self.read(at, 8);
                let word = |i: usize| u32::from_le_bytes(bytes[i..i + 4].try_into().unwrap());
                (word(0) as u16, word(4))
            })
            .collect()
    }
}

/// The outside end of the tap.
pub struct Wire(OwnedFd);

impl Wire {
    pub fn on(tap: &str) -> Self {
        let name = std::ffi::CString::new(tap).unwrap();
        // SAFETY: a terminated name.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        assert!(index > 0, "no interface {tap}");
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: plain system calls on a descriptor that is checked.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol)) };
        assert!(fd >= 0);
        // SAFETY: just made.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: plain data.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        (address.sll_family, address.sll_protocol, address.sll_ifindex) =
            (libc::AF_PACKET as u16, protocol, index as i32);
        // SAFETY: a sockaddr_ll of its own size.
        let bound = unsafe {
            libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
        };
        assert_eq!(bound, 0);
        Self(fd)
    }

    /// Sends a frame towards the guest.
    pub fn send(&self, frame: &[u8]) {
        // SAFETY: reads `frame`.
        let n = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(n, frame.len() as isize, "{}", io::Error::last_os_error());
    }

    fn recv(&self, flags: i32) -> Option<Vec<u8>> {
        loop {
            let mut buf = vec![0; 70_000];
            // SAFETY: plain data.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            // SAFETY: writes into `buf` and `from`, whose lengths are given.
            let n = unsafe {
                let to = buf.as_mut_ptr().cast();
                libc::recvfrom(self.0.as_raw_fd(), to, buf.len(), flags, (&raw mut from).cast(), &raw mut len)
            };
            if n < 0 {
                return None;
            }
            // What the host itself sends on the tap is not from the guest.
            if from.sll_pkttype != libc::PACKET_OUTGOING {
                buf.truncate(n as usize);
                return Some(buf);
            }
        }
    }

    /// The next frame from the guest.
    pub fn next(&self) -> Vec<u8> {
        self.within(PATIENCE_MS).expect("a frame on the wire")
    }

    /// The next frame from the guest if it comes within `ms`.
    pub fn within(&self, ms: i32) -> Option<Vec<u8>> {
        loop {
            if !readable(self.0.as_raw_fd(), ms) {
                return None;
            }
            if let Some(frame) = self.recv(libc::MSG_DONTWAIT) {
                return Some(frame);
            }
        }
    }

    /// Nothing from the guest is waiting.
    pub fn is_silent(&self) -> bool {
        self.recv(libc::MSG_DONTWAIT).is_none()
    }
}

/// Everything together.
pub struct Rig {
    pub device: Device,
    pub frontend: Frontend,
    pub link: Option<Link>,
    pub guest: Guest,
    pub queues: Vec<Queue>,
    pub wire: Wire,
    features: u64,
    buffer: u64,
}

pub const TAP: &str = "tap-test";

impl Rig {
    /// A device with `extra` arguments, set up and running, with `features` and VERSION_1.
    pub fn new(features: u64, ft: bool, extra: &[&str]) -> Self {
        let mut rig = Self::connected(features, ft, extra);
        rig.set_up_queues(None);
        rig
    }

    /// As [`Self::new`], but the guest's driver has not set up its queues.
    pub fn connected(features: u64, ft: bool, extra: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vhost.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let socket = format!("fd={}", listener.as_raw_fd());
        let (link, theirs) = Link::pair();
        let ctl = format!("fd={}", theirs.as_raw_fd());
        let mut args = vec!["--socket", &socket, "--tap", TAP];
        if ft {
            args.extend(["--ft-ctl", &ctl]);
        }
        args.extend(extra);
        let stderr = if std::env::var_os("RIG_LOG").is_some() { Stdio::inherit() } else { Stdio::null() };
        let device = Device::spawn(&args, vec![listener.as_raw_fd(), theirs.as_raw_fd()], stderr);
        let stream = UnixStream::connect(&path).unwrap();
        drop((listener, theirs));

        let pairs = if features & MQ == MQ { 2 } else { 1 };
        let count = if pairs > 1 { 2 * pairs + 1 } else { 2 };
        let mut frontend = Frontend::from_stream(stream, count as u64);
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let features = if features & NO_VERSION_1 != 0 { features & !NO_VERSION_1 } else { features | VERSION_1 };
        let wanted = features | protocol;
        assert_eq!(offered & wanted, wanted);
        let can = frontend.get_protocol_features().unwrap();
        let want =
            VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::LOG_SHMFD;
        assert!(can.contains(want));
        frontend.set_protocol_features(want).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_features(wanted).unwrap();
        assert_eq!(frontend.get_queue_num().unwrap(), count as u64);
        let guest = Guest::new();
        let queues = (0..count).map(|i| Queue::new(i, features & EVENT_IDX != 0)).collect();
        // The device has answered, so it has its tap.
        let wire = Wire::on(TAP);
        Self { device, frontend, link: ft.then_some(link), guest, queues, wire, features, buffer: BUFFERS }
    }

    fn host_address(&self) -> u64 {
        vm_memory::GuestMemoryBackend::get_host_address(&self.guest.memory, GuestAddress(0)).unwrap() as u64
    }

    /// What a VMM does at DRIVER_OK; `positions` are next_avail of each queue after a takeover.
    pub fn set_up_queues(&mut self, positions: Option<&[u16]>) {
        let base = self.host_address();
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: base,
            mmap_offset: 0,
            mmap_handle: self.guest.file.as_raw_fd(),
        };
        self.frontend.set_mem_table(&[region]).unwrap();
        for (i, queue) in self.queues.iter().enumerate() {
            self.frontend.set_vring_num(i, QUEUE_SIZE).unwrap();
            let config = VringConfigData {
                queue_max_size: QUEUE_SIZE,
                queue_size: QUEUE_SIZE,
                flags: 0,
                desc_table_addr: base + queue.base,
                used_ring_addr: base + queue.used_at(),
                avail_ring_addr: base + queue.avail_at(),
                log_addr: None,
            };
            self.frontend.set_vring_addr(i, &config).unwrap();
            self.frontend.set_vring_base(i, positions.map_or(0, |p| p[i])).unwrap();
            self.frontend.set_vring_call(i, &queue.call).unwrap();
            self.frontend.set_vring_kick(i, &queue.kick).unwrap();
        }
        for i in 0..self.queues.len() {
            self.frontend.set_vring_enable(i, true).unwrap();
        }
    }

    /// Starts a dirty log and returns its memory.
    pub fn log(&mut self) -> GuestMemoryMmap {
        let len = MEMORY / 4096 / 8;
        let file = memfd(len.next_multiple_of(4096));
        let region = VhostUserDirtyLogRegion { mmap_size: len as u64, mmap_offset: 0, mmap_handle: file.as_raw_fd() };
        self.frontend.set_log_base(0, Some(region)).unwrap();
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        self.frontend.set_features(self.features | protocol | LOG_ALL).unwrap();
        GuestMemoryMmap::from_ranges_with_files([(
            GuestAddress(0),
            len.next_multiple_of(4096),
            Some(FileOffset::new(file, 0)),
        )])
        .unwrap()
    }

    pub fn link(&self) -> &Link {
        self.link.as_ref().unwrap()
    }

    /// Room for `len` bytes in guest memory, on pages of its own.
    pub fn room(&mut self, len: usize) -> u64 {
        let at = self.buffer;
        self.buffer += len.next_multiple_of(4096) as u64;
        if self.buffer > MEMORY as u64 {
            self.buffer = BUFFERS;
            return self.room(len);
        }
        at
    }

    /// Queues `frame` on transmit queue `pair`, without a kick.
    pub fn queue_output(&mut self, pair: usize, frame: &[u8]) {
        let at = self.room(HEADER + frame.len());
        self.guest.write(at, &[0; HEADER]);
        self.guest.write(at + HEADER as u64, frame);
        let len = (HEADER + frame.len()) as u32;
        self.guest.add(&mut self.queues[2 * pair + 1], &[(at, len, 0)]);
    }

    /// Queues frames `ids` on the first transmit queue, kicks, and waits until the guest has its buffers back.
    pub fn output(&mut self, ids: std::ops::Range<u32>) {
        let n = ids.len() as u16;
        ids.for_each(|id| self.queue_output(0, &frame(id, 100 + id as usize)));
        self.queues[1].kick();
        self.guest.used(&mut self.queues[1], n);
    }

    /// The wire carries exactly frames `ids` next.
    pub fn expect(&self, ids: std::ops::Range<u32>) {
        for id in ids {
            assert_eq!(self.wire.next(), frame(id, 100 + id as usize), "frame {id}");
        }
    }

    /// Gives the guest's receive queue `pair` a buffer of `len` bytes, without a kick.
    pub fn offer_input(&mut self, pair: usize, len: u32) -> (u16, u64) {
        let at = self.room(len as usize);
        (self.guest.add(&mut self.queues[2 * pair], &[(at, len, WRITE)]), at)
    }
}

/// Frame number `id` from the guest's (or any) address, `len` bytes, of an experimental type.
pub fn frame(id: u32, len: usize) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 0xaa, 0x88, 0xb5]);
    frame.extend(id.to_be_bytes());
    frame.extend((frame.len()..len).map(|i| (i as u32 * 7 + id) as u8));
    frame
}
