//! A guest, a VMM and a wire for the real binary: split rings in a memfd, a vhost-user frontend, an ft-ctl
//! socket, and a packet socket on the tap, all in a network namespace of the calling thread.

// Each test binary uses its own part of this.
#![allow(dead_code, unused_imports)]

mod device;
mod guest;
mod wire;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;

use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

pub use device::{Device, Link};
pub use guest::{Guest, Queue, memfd};
pub use wire::{Wire, persistent_tap, taken};

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

const PATIENCE_MS: i32 = 60_000;

/// False, with a printed reason, where these tests cannot run. Otherwise the thread is in a namespace of its
/// own.
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

    /// A device with two pairs, running, whose driver has not taken MQ.
    pub fn without_mq(features: u64, extra: &[&str]) -> Self {
        let mut rig = Self::connect(features & !MQ, 2, true, extra, Stdio::null());
        rig.set_up_queues(None);
        rig
    }

    /// As [`Self::new`], but the guest's driver has not set up its queues.
    pub fn connected(features: u64, ft: bool, extra: &[&str]) -> Self {
        let pairs = if features & MQ == MQ { 2 } else { 1 };
        Self::connect(features, pairs, ft, extra, Stdio::null())
    }

    /// As [`Self::new`], without ft-ctl; what it logs can be read.
    pub fn logged(features: u64) -> Self {
        let mut rig = Self::connect(features, 1, false, &[], Stdio::piped());
        rig.set_up_queues(None);
        rig
    }

    fn connect(features: u64, pairs: usize, ft: bool, extra: &[&str], stderr: Stdio) -> Self {
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
        let stderr = if std::env::var_os("RIG_LOG").is_some() { Stdio::inherit() } else { stderr };
        let device = Device::spawn(&args, vec![listener.as_raw_fd(), theirs.as_raw_fd()], stderr);
        let stream = UnixStream::connect(&path).unwrap();
        drop((listener, theirs));

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
            self.frontend.set_vring_err(i, &queue.broken).unwrap();
            self.frontend.set_vring_kick(i, &queue.kick).unwrap();
        }
        for i in 0..self.queues.len() {
            self.frontend.set_vring_enable(i, true).unwrap();
        }
    }

    /// What a driver's reset comes to: the queues are taken away, emptied, and set up again.
    pub fn restart(&mut self) {
        for (i, queue) in self.queues.iter_mut().enumerate() {
            self.frontend.get_vring_base(i).unwrap();
            for ring in [queue.avail_at(), queue.used_at()] {
                self.guest.write(ring, &[0; 4]);
            }
            *queue = Queue::new(i, queue.event_idx);
        }
        self.set_up_queues(None);
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

    /// Queues frames `ids` on the first transmit queue, kicks, and waits until the guest has its buffers
    /// back.
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
