//! The vhost-user frontend device against a real backend (the vhost-user-backend crate) in this process.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ft_wire::device_ctl::QueueState;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pollux_vmm::machine::memory::guest::{GuestMemory, GuestRam, RamOptions};
use pollux_vmm::vhost_user::{DirtyLog, Kind, Link, NetOptions, VhostUserDevice, VhostUserError, Watchdog};
use pollux_vmm::virtio::{ActiveQueue, F_EVENT_IDX, F_VERSION_1, Ring, VirtioDevice, VirtioError};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringMutex, VringT};
use virtio_queue::QueueOwnedT;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const RAM: u64 = 64 << 20;
const CAPACITY: u64 = 0x1234;
/// `VIRTIO_BLK_F_FLUSH`, `VIRTIO_BLK_F_CONFIG_WCE`, and a bit that no device of ours offers.
const DEVICE_BITS: u64 = 1 << 9 | 1 << 11 | 1 << 35;
type Memory = GuestMemoryAtomic<GuestMemoryMmap<BitmapMmapRegion>>;

/// A backend that writes 0x5a into every buffer it is given.
struct Painter {
    memory: Memory,
    features: u64,
    protocol: VhostUserProtocolFeatures,
    acked: Arc<AtomicU64>,
}

impl VhostUserBackendMut for Painter {
    type Bitmap = BitmapMmapRegion;
    type Vring = VringMutex<Memory>;

    fn num_queues(&self) -> usize {
        2
    }
    fn max_queue_size(&self) -> usize {
        256
    }
    fn features(&self) -> u64 {
        self.features
    }
    fn acked_features(&mut self, features: u64) {
        self.acked.store(features, Ordering::SeqCst);
    }
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.protocol
    }
    fn set_event_idx(&mut self, _enabled: bool) {}
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut config = vec![0; (offset + size) as usize];
        config[..8].copy_from_slice(&CAPACITY.to_le_bytes());
        config.split_off(offset as usize)
    }
    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }
    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }
    fn handle_event(
        &mut self,
        event: u16,
        _events: EventSet,
        vrings: &[Self::Vring],
        _thread: usize,
    ) -> io::Result<()> {
        let Some(vring) = vrings.get(usize::from(event)) else { return Ok(()) };
        let memory = self.memory.memory();
        let chains: Vec<_> = vring.get_mut().get_queue_mut().iter(memory.clone()).unwrap().collect();
        if chains.is_empty() {
            // The library calls once when a ring is enabled.
            return Ok(());
        }
        for chain in chains {
            let head = chain.head_index();
            let mut writer = chain.writer(&memory).unwrap();
            let paint = vec![0x5a; writer.available_bytes()];
            writer.write_all(&paint).unwrap();
            vring.add_used(head, paint.len() as u32).unwrap();
        }
        vring.signal_used_queue()
    }
}

struct Bench {
    ram: GuestRam,
    log: Arc<DirtyLog>,
    watchdog: Arc<Watchdog>,
    acked: Arc<AtomicU64>,
    _memory: GuestMemory,
}

fn virtio_bits() -> u64 {
    let vhost = VhostUserVirtioFeatures::PROTOCOL_FEATURES | VhostUserVirtioFeatures::LOG_ALL;
    vhost.bits() | F_VERSION_1 | F_EVENT_IDX | DEVICE_BITS
}

fn protocol_bits() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::LOG_SHMFD
        | VhostUserProtocolFeatures::REPLY_ACK
}

impl Bench {
    fn new() -> Self {
        let memory = GuestMemory::new(&RamOptions { size: RAM, ..Default::default() }).unwrap();
        Self {
            ram: memory.ram().clone(),
            log: Arc::new(DirtyLog::new(memory.ranges()).unwrap()),
            watchdog: Arc::new(Watchdog::new().unwrap()),
            acked: Arc::default(),
            _memory: memory,
        }
    }

    /// A connection to a new backend, which ends with the connection.
    fn backend(&self, features: u64, protocol: VhostUserProtocolFeatures) -> UnixStream {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let stream = UnixStream::connect(&path).unwrap();
        let memory = Memory::new(GuestMemoryMmap::new());
        let painter = Painter { memory: memory.clone(), features, protocol, acked: self.acked.clone() };
        std::thread::spawn(move || {
            let mut daemon = VhostUserDaemon::new("painter".to_owned(), Arc::new(Mutex::new(painter)), memory).unwrap();
            daemon.start(&mut listener.into()).unwrap();
            let _ = daemon.wait();
        });
        stream
    }

    fn link(&self, stream: UnixStream, queues: usize) -> Result<Link, VhostUserError> {
        Link::new("_disk0", "in-process", stream, queues, &self.ram, self.watchdog.clone())
    }

    fn device(&self, kind: Kind, queues: usize) -> VhostUserDevice {
        let link = self.link(self.backend(virtio_bits(), protocol_bits()), queues).unwrap();
        VhostUserDevice::new("_disk0", kind, link, (queues, 64), &self.ram, self.log.clone()).unwrap()
    }

    fn dirty(&self) -> Vec<u64> {
        let mut pages = Vec::new();
        self.log.harvest(&mut |first, bits| pages.extend((0..64).filter(|i| bits >> i & 1 == 1).map(|i| first + i)));
        pages
    }
}

/// A queue as the guest's driver has it, 16 entries, in a MiB of its own.
struct Driver<'a> {
    ram: &'a GuestRam,
    base: u64,
    index: u16,
    kick: EventFd,
    call: EventFd,
}

impl<'a> Driver<'a> {
    fn new(ram: &'a GuestRam, index: u16) -> Self {
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        Self { ram, base: u64::from(index + 1) << 20, index, kick: event(), call: event() }
    }

    fn queue(&self) -> ActiveQueue {
        let (index, base) = (self.index, self.base);
        ActiveQueue {
            ring: Ring { index, size: 16, descriptors: base, avail: base + 0x1000, used: base + 0x2000 },
            kick: self.kick.try_clone().unwrap(),
            call: self.call.try_clone().unwrap(),
            broken: EventFd::new(EFD_NONBLOCK).unwrap(),
        }
    }

    /// Offers `len` writable bytes at `address` as entry `n` of the avail ring.
    fn offer(&self, n: u16, address: u64, len: u32) {
        let slot = u64::from(n % 16);
        self.ram.write_obj(address, GuestAddress(self.base + 16 * slot)).unwrap();
        self.ram.write_obj(u64::from(len) | 2 << 32, GuestAddress(self.base + 16 * slot + 8)).unwrap();
        self.ram.write_obj(n % 16, GuestAddress(self.base + 0x1004 + 2 * slot)).unwrap();
        self.ram.write_obj(n + 1, GuestAddress(self.base + 0x1002)).unwrap();
        self.kick.write(1).unwrap();
    }

    /// Waits for the interrupt.
    fn wait(&self) -> bool {
        use std::os::fd::{AsRawFd, BorrowedFd};
        // SAFETY: the eventfd lives as long as `self`.
        let fd = unsafe { BorrowedFd::borrow_raw(self.call.as_raw_fd()) };
        let timeout = PollTimeout::try_from(Duration::from_secs(10)).unwrap();
        poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout).unwrap() == 1 && self.call.read().is_ok()
    }

    fn used(&self) -> u16 {
        self.ram.read_obj(GuestAddress(self.base + 0x2002)).unwrap()
    }

    fn byte(&self, address: u64) -> u8 {
        self.ram.read_obj(GuestAddress(address)).unwrap()
    }
}

fn net(pairs: u16) -> Kind {
    let mac = [2, 0, 0, 0, 0, 1];
    Kind::Net(NetOptions { mac, mtu: Some(1400), pairs, tso: true, ufo: true, csum: true })
}

#[test]
fn features_and_configuration_of_a_disk() {
    let bench = Bench::new();
    let device = bench.device(Kind::Disk, 2);
    assert_eq!(device.features(), F_VERSION_1 | F_EVENT_IDX | 1 << 9);
    assert_eq!(device.config()[..8], CAPACITY.to_le_bytes());
    assert_eq!(device.config()[34..36], [2, 0]);
    assert_eq!((device.device_type(), device.queue_sizes()), (2, &[64, 64][..]));
}

#[test]
fn configuration_of_a_network_card_is_ours() {
    let bench = Bench::new();
    let device = bench.device(net(1), 2);
    assert_eq!(device.config(), [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0x78, 5]);
    // Ours: MTU, MAC, STATUS, CTRL_VQ, GUEST_ANNOUNCE. The backend's bits 9 and 11 mean ECN and TSO here.
    let ours = [3, 5, 16, 17, 21].iter().fold(0, |bits, bit| bits | 1_u64 << bit);
    assert_eq!(device.features(), F_VERSION_1 | F_EVENT_IDX | 1 << 9 | 1 << 11 | ours);
    assert_eq!(device.queue_sizes(), [64, 64, 64]);
}

#[test]
fn queues_run_stop_and_run_again() {
    let bench = Bench::new();
    let mut device = bench.device(Kind::Disk, 1);
    for _ in 0..2 {
        let driver = Driver::new(&bench.ram, 0);
        for ring in [0x1000, 0x2000] {
            bench.ram.write_obj(0_u32, GuestAddress(driver.base + ring)).unwrap();
        }
        device.activate(F_VERSION_1, vec![driver.queue()], false).unwrap();
        driver.offer(0, 0x50_0000, 16);
        assert!(driver.wait());
        assert_eq!((driver.used(), driver.byte(0x50_000f), driver.byte(0x50_0010)), (1, 0x5a, 0));
        bench.ram.write_obj([0_u64; 2], GuestAddress(0x50_0000)).unwrap();
        device.reset().unwrap();
        driver.offer(1, 0x50_0000, 16);
        assert_eq!((driver.used(), driver.byte(0x50_0000)), (1, 0), "stopped");
    }
    // Neither log nor anything else of vhost-user's own was taken by the driver.
    assert_eq!(bench.acked.load(Ordering::SeqCst) & 1 << 26, 0);
}

#[test]
fn a_pause_holds_requests_back() {
    let bench = Bench::new();
    let mut device = bench.device(Kind::Disk, 1);
    let driver = Driver::new(&bench.ram, 0);
    device.activate(F_VERSION_1, vec![driver.queue()], false).unwrap();
    device.pause(true).unwrap();
    driver.offer(0, 0x50_0000, 16);
    assert_eq!(driver.used(), 0);
    device.pause(false).unwrap();
    assert!(driver.wait());
    assert_eq!(driver.used(), 1);
}

#[test]
fn writes_are_logged_while_asked_for_and_again_after_a_takeover() {
    let bench = Bench::new();
    let driver = Driver::new(&bench.ram, 0);
    let mut device = bench.device(Kind::Disk, 1);
    device.activate(F_VERSION_1, vec![driver.queue()], false).unwrap();
    driver.offer(0, 0x50_0ff8, 16);
    assert!(driver.wait());
    assert!(bench.dirty().is_empty(), "nobody asked");
    device.set_dirty_log(true).unwrap();
    assert_ne!(bench.acked.load(Ordering::SeqCst) & 1 << 26, 0);
    driver.offer(1, 0x50_0ff8, 16);
    assert!(driver.wait());
    assert_eq!(bench.dirty(), [0x102, 0x500, 0x501]);
    assert!(bench.dirty().is_empty());

    // The next host: another backend, the same guest, which stands at request 2.
    device.set_positions(&[QueueState { index: 0, next_avail: 2, next_used: 2 }]);
    let mut other = bench.device(Kind::Disk, 1);
    other.set_state(&device.state(), F_VERSION_1).unwrap();
    drop(device);
    let driver = Driver::new(&bench.ram, 0);
    other.activate(F_VERSION_1, vec![driver.queue()], true).unwrap();
    driver.offer(2, 0x60_0000, 16);
    assert!(driver.wait());
    assert_eq!((driver.used(), driver.byte(0x60_0000)), (3, 0x5a));
    assert!(bench.dirty().is_empty());
    other.set_dirty_log(true).unwrap();
    driver.offer(3, 0x61_0000, 16);
    assert!(driver.wait());
    assert_eq!(bench.dirty(), [0x102, 0x610]);
    // A driver that starts again is logged too.
    other.reset().unwrap();
    let driver = Driver::new(&bench.ram, 1);
    let queue = ActiveQueue { ring: Ring { index: 0, ..driver.queue().ring }, ..driver.queue() };
    other.activate(F_VERSION_1, vec![queue], false).unwrap();
    assert_ne!(bench.acked.load(Ordering::SeqCst) & 1 << 26, 0);
    driver.offer(0, 0x62_0000, 16);
    assert!(driver.wait());
    assert_eq!(bench.dirty(), [0x202, 0x620]);
    other.set_dirty_log(false).unwrap();
    assert_eq!(bench.acked.load(Ordering::SeqCst) & 1 << 26, 0);
}

#[test]
fn a_checkpoint_without_a_position_is_refused() {
    let bench = Bench::new();
    let mut device = bench.device(Kind::Disk, 1);
    let driver = Driver::new(&bench.ram, 0);
    let error = device.activate(F_VERSION_1, vec![driver.queue()], true).unwrap_err();
    assert!(matches!(error, VirtioError::Differs(_)), "{error}");
}

#[test]
fn a_disk_with_blocks_of_another_size_is_refused() {
    let bench = Bench::new();
    let (device, mut other) = (bench.device(Kind::Disk, 1), bench.device(Kind::Disk, 1));
    let mut state = device.state();
    state.config.to_mut()[20..24].copy_from_slice(&4096_u32.to_le_bytes());
    let error = other.set_state(&state, F_VERSION_1).unwrap_err().to_string();
    assert!(error.contains("4096"), "{error}");
    other.set_state(&device.state(), F_VERSION_1).unwrap();
}

#[test]
fn the_control_queue_announces_and_counts_pairs() {
    let bench = Bench::new();
    let mut device = bench.device(net(1), 2);
    let (rx, tx, control) = (Driver::new(&bench.ram, 0), Driver::new(&bench.ram, 1), Driver::new(&bench.ram, 2));
    let features = F_VERSION_1 | 1 << 17 | 1 << 21;
    assert!(device.has_doorbell(2), "nobody knows yet which one it will be");
    device.activate(features, vec![rx.queue(), tx.queue(), control.queue()], false).unwrap();
    assert!(device.has_doorbell(1) && !device.has_doorbell(2));
    device.moved();
    assert_eq!(device.config()[6], 3, "link up, announce");
    // Class, command, data, and a byte for the answer.
    let mut n = 0_u16;
    let mut command = |device: &mut VhostUserDevice, bytes: &[u8]| {
        let (table, data) = (control.base + 16 * u64::from(n * 2 % 16), 0x70_0000);
        bench.ram.write_slice(bytes, GuestAddress(data)).unwrap();
        bench
            .ram
            .write_obj([data, bytes.len() as u64 | 1 << 32 | u64::from(n * 2 % 16 + 1) << 48], GuestAddress(table))
            .unwrap();
        bench.ram.write_obj([data + 64, 1 | 2 << 32], GuestAddress(table + 16)).unwrap();
        bench.ram.write_obj(0xff_u8, GuestAddress(data + 64)).unwrap();
        bench.ram.write_obj(n * 2 % 16, GuestAddress(control.base + 0x1004 + 2 * u64::from(n % 16))).unwrap();
        bench.ram.write_obj(n + 1, GuestAddress(control.base + 0x1002)).unwrap();
        n += 1;
        device.notify(2).unwrap();
        assert_eq!(control.used(), n);
        control.byte(data + 64)
    };
    assert_eq!(command(&mut device, &[3, 0]), 0);
    assert_eq!(device.config()[6], 1, "announced");
    assert_eq!(command(&mut device, &[4, 0, 1, 0]), 1, "MQ was not negotiated");
    assert_eq!(command(&mut device, &[4]), 1);
    assert_eq!(command(&mut device, &[9, 9]), 1);
    assert_eq!(device.state().positions[..], [QueueState { index: 2, next_avail: 4, next_used: 4 }]);
    let served = [0, 1].map(|index| QueueState { index, next_avail: 1, next_used: 0 });
    device.set_positions(&served);
    assert_eq!(device.state().positions[..2], served);
    assert_eq!(device.state().positions[2..], [QueueState { index: 2, next_avail: 4, next_used: 4 }]);
}

#[test]
fn a_queue_that_was_set_up_after_the_seal_is_taken_over_from_its_start() {
    let bench = Bench::new();
    let driver = Driver::new(&bench.ram, 0);
    let mut device = bench.device(Kind::Disk, 1);
    device.activate(F_VERSION_1, vec![driver.queue()], false).unwrap();
    device.set_positions(&[]);

    let mut other = bench.device(Kind::Disk, 1);
    other.set_state(&device.state(), F_VERSION_1).unwrap();
    drop(device);
    assert!(!other.is_set_up(0));
    other.activate(F_VERSION_1, vec![driver.queue()], true).unwrap();
    assert!(other.is_set_up(0) && !other.is_set_up(1));
    driver.offer(0, 0x60_0000, 16);
    assert!(driver.wait());
    assert_eq!(driver.used(), 1);
    // And what was taken down after it has nothing in flight.
    other.reset().unwrap();
    assert!(!other.is_set_up(0));
}

#[test]
fn the_control_queue_is_where_the_negotiated_features_put_it() {
    let bench = Bench::new();
    for (features, index) in [(F_VERSION_1 | 1 << 17, 2), (F_VERSION_1 | 1 << 17 | 1 << 22, 4)] {
        let mut device = bench.device(net(2), 2);
        assert_eq!(device.queue_sizes(), [64, 64, 64], "a backend of two queues serves the first pair");
        let control = Driver::new(&bench.ram, index);
        device.activate(features, vec![control.queue()], false).unwrap();
        assert_eq!([2, 4].map(|queue| device.has_doorbell(queue)), [index != 2, index != 4], "{index}");
        control.offer(0, 0x50_0000, 1);
        let served = |device: &mut VhostUserDevice, driver: &Driver<'_>, n| {
            for queue in [2, 4] {
                device.notify(queue).unwrap();
            }
            assert_eq!((driver.used(), driver.byte(0x50_0000 + u64::from(n) - 1)), (n, 1), "an error, but an answer");
        };
        served(&mut device, &control, 1);
        // And on the host that takes over.
        let mut other = bench.device(net(2), 2);
        other.set_state(&device.state(), features).unwrap();
        other.activate(features, vec![control.queue()], true).unwrap();
        control.offer(1, 0x50_0001, 1);
        served(&mut other, &control, 2);
        for ring in [0x1000, 0x2000] {
            bench.ram.write_obj(0_u32, GuestAddress(control.base + ring)).unwrap();
        }
    }
}

#[test]
fn unsuitable_and_dead_backends_are_clear_errors() {
    let bench = Bench::new();
    let error = bench.link(bench.backend(virtio_bits(), protocol_bits()), 3).err().unwrap().to_string();
    assert!(error.contains("_disk0") && error.contains("2 queues") && error.contains("num_queues"), "{error}");

    let link = bench.link(bench.backend(virtio_bits(), VhostUserProtocolFeatures::MQ), 1).unwrap();
    let device = VhostUserDevice::new("_disk0", Kind::Disk, link, (1, 64), &bench.ram, bench.log.clone());
    assert!(matches!(device.err().unwrap(), VhostUserError::Unsuitable { .. }));

    let link = bench.link(bench.backend(virtio_bits(), VhostUserProtocolFeatures::CONFIG), 1).unwrap();
    let mut device = VhostUserDevice::new("_disk0", Kind::Disk, link, (1, 64), &bench.ram, bench.log.clone()).unwrap();
    assert!(matches!(device.set_dirty_log(true), Err(VirtioError::NoDirtyLog { .. })));
    let driver = Driver::new(&bench.ram, 0);
    device.activate(F_VERSION_1, vec![driver.queue()], false).unwrap();
    driver.offer(0, 0x50_0000, 16);
    assert!(driver.wait(), "works without acknowledgements");

    let (near, far) = UnixStream::pair().unwrap();
    drop(far);
    let error = bench.link(near, 1).err().unwrap();
    assert!(matches!(error, VhostUserError::Request { request: "GET_FEATURES", .. }), "{error}");

    let error = Link::connect("_net1", "/nonexistent/socket".as_ref()).err().unwrap().to_string();
    assert!(error.contains("_net1") && error.contains("/nonexistent/socket"), "{error}");
}
