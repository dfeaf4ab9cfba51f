//! The transport with a device that only remembers.

use std::sync::Mutex;

use ft_wire::device_ctl::QueueState;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::Bytes;

use super::*;
use crate::machine::memory::guest::{GuestMemory, RamOptions};
use crate::pci::msix::tests::{FakeLine, Told};
use crate::virtio::ring::{F_VERSION_1, Ring};
use crate::virtio::state::DeviceState;

const BASE: u64 = 4 << 30;
const RAM: u64 = 64 << 20;
const FEATURES: u64 = F_VERSION_1 | 1 << 9;

#[derive(Default)]
struct Seen {
    started: Vec<(u64, Vec<Ring>, bool)>,
    resets: usize,
    notified: Vec<u16>,
    calls: Vec<u16>,
    moved: bool,
    bad_queue: bool,
    control_is_first: bool,
    positions: Vec<QueueState>,
}

/// Two queues; the second has no doorbell.
struct Toy {
    seen: Arc<Mutex<Seen>>,
    config: Vec<u8>,
}

impl VirtioDevice for Toy {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }
    fn queue_sizes(&self) -> &[u16] {
        &[128, 64]
    }
    fn features(&self) -> u64 {
        FEATURES
    }
    fn config(&self) -> &[u8] {
        &self.config
    }
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config[offset..offset + data.len()].copy_from_slice(data);
    }
    fn has_doorbell(&self, queue: u16) -> bool {
        queue == u16::from(self.seen.lock().unwrap().control_is_first)
    }
    fn activate(&mut self, features: u64, queues: Vec<ActiveQueue>, resume: bool) -> Result<(), VirtioError> {
        let rings = queues.iter().map(|queue| queue.ring).collect();
        self.seen.lock().unwrap().started.push((features, rings, resume));
        Ok(())
    }
    fn notify(&mut self, queue: u16) -> Result<(), VirtioError> {
        self.seen.lock().unwrap().notified.push(queue);
        let source = virtio_queue::Error::InvalidAvailRingIndex;
        if self.seen.lock().unwrap().bad_queue { Err(VirtioError::Queue { queue, source }) } else { Ok(()) }
    }
    fn set_call(&mut self, queue: u16, _call: EventFd) -> Result<(), VirtioError> {
        self.seen.lock().unwrap().calls.push(queue);
        Ok(())
    }
    fn reset(&mut self) -> Result<(), VirtioError> {
        self.seen.lock().unwrap().resets += 1;
        Ok(())
    }
    fn pause(&mut self, _paused: bool) -> Result<(), VirtioError> {
        Ok(())
    }
    fn set_dirty_log(&mut self, _on: bool) -> Result<(), VirtioError> {
        Ok(())
    }
    fn set_positions(&mut self, queues: &[QueueState]) {
        self.seen.lock().unwrap().positions = queues.to_vec();
    }
    fn is_set_up(&self, queue: u16) -> bool {
        queue < 2
    }
    fn state(&self) -> DeviceState<'_> {
        let positions = self.seen.lock().unwrap().positions.clone();
        DeviceState {
            config: Cow::Borrowed(&self.config),
            features: FEATURES,
            positions: Cow::Owned(positions),
            pairs: 0,
        }
    }
    fn set_state(&mut self, state: &DeviceState<'_>, features: u64) -> Result<(), VirtioError> {
        if features & !FEATURES != 0 {
            return Err(VirtioError::Differs("features".to_owned()));
        }
        self.config = state.config.to_vec();
        self.seen.lock().unwrap().positions = state.positions.to_vec();
        Ok(())
    }
    fn moved(&mut self) {
        self.seen.lock().unwrap().moved = true;
    }
}

/// Which doorbells are bound, by address.
#[derive(Default)]
struct FakeDoorbells(Mutex<Vec<u64>>);

impl Doorbells for FakeDoorbells {
    fn bind(&self, address: u64, _kick: &EventFd) -> io::Result<()> {
        self.0.lock().unwrap().push(address);
        Ok(())
    }
    fn unbind(&self, address: u64, _kick: &EventFd) -> io::Result<()> {
        self.0.lock().unwrap().retain(|bound| *bound != address);
        Ok(())
    }
}

struct Rig {
    transport: Arc<Mutex<VirtioPci>>,
    seen: Arc<Mutex<Seen>>,
    doorbells: Arc<FakeDoorbells>,
    mmio: Arc<Bus>,
    told: Vec<Told>,
}

impl Rig {
    fn new() -> Self {
        Self::at("_disk0", BASE, Arc::new(Bus::new()))
    }

    fn at(id: &str, base: u64, mmio: Arc<Bus>) -> Self {
        let memory = GuestMemory::new(&RamOptions { size: RAM, ..Default::default() }).unwrap();
        let (seen, doorbells) = (Arc::default(), Arc::new(FakeDoorbells::default()));
        let device = Box::new(Toy { seen: Arc::clone(&seen), config: vec![1, 2, 3, 4] });
        let machine = Machine { mmio: mmio.clone(), doorbells: doorbells.clone(), ram: memory.ram().clone() };
        let (lines, told): (Vec<_>, Vec<_>) = (0..3).map(|_| FakeLine::new()).unzip();
        let lines = lines.into_iter().map(|line| Box::new(line) as Box<dyn Line>).collect();
        let transport = VirtioPci::new(id, device, machine, base, lines).unwrap();
        Self { transport, seen, doorbells, mmio, told }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let base = self.transport.lock().unwrap().bar();
        assert!(self.mmio.write(base + offset, data));
    }

    fn read(&self, offset: u64, len: usize) -> u64 {
        let base = self.transport.lock().unwrap().bar();
        let mut data = [0; 8];
        assert!(self.mmio.read(base + offset, &mut data[..len]));
        u64::from_le_bytes(data)
    }

    fn config_u32(&self, offset: usize) -> u32 {
        let mut data = [0; 4];
        self.transport.lock().unwrap().config_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn config_write(&self, offset: usize, data: &[u8]) {
        self.transport.lock().unwrap().config_write(offset, data);
    }

    /// What a driver does up to DRIVER_OK, with the first queue's descriptor table at `descriptors`.
    fn drive(&self, descriptors: u64) {
        self.write(20, &[0]);
        self.write(20, &[3]);
        for (select, half) in [(0_u32, FEATURES as u32), (1, (FEATURES >> 32) as u32)] {
            self.write(8, &select.to_le_bytes());
            self.write(12, &half.to_le_bytes());
        }
        self.write(20, &[11]);
        self.write(16, &0_u16.to_le_bytes());
        for queue in 0..2_u16 {
            self.write(22, &queue.to_le_bytes());
            self.write(24, &32_u16.to_le_bytes());
            self.write(26, &(queue + 1).to_le_bytes());
            let base = descriptors.wrapping_add(u64::from(queue) * 0x1000);
            self.write(32, &base.to_le_bytes());
            self.write(40, &0x20_0000_u64.to_le_bytes());
            self.write(48, &0x30_0000_u64.to_le_bytes());
            self.write(28, &1_u16.to_le_bytes());
        }
        self.write(20, &[15]);
    }

    fn saved(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.transport.lock().unwrap().save(&mut StateWriter::new(&mut bytes)).unwrap();
        bytes
    }
}

/// Offsets of all capabilities with this id.
fn capabilities(rig: &Rig, id: u32) -> Vec<usize> {
    let mut found = Vec::new();
    let mut at = rig.config_u32(0x34) as usize & 0xff;
    while at != 0 {
        let head = rig.config_u32(at);
        if head & 0xff == id {
            found.push(at);
        }
        at = (head >> 8) as usize & 0xff;
    }
    found
}

#[test]
fn a_driver_finds_everything_in_configuration_space() {
    let rig = Rig::new();
    assert_eq!(rig.config_u32(0), 0x1042_1af4);
    assert_eq!(rig.config_u32(8), 0x0180_0001);
    let parts: Vec<_> = capabilities(&rig, 9)
        .into_iter()
        .map(|at| (rig.config_u32(at) >> 24, rig.config_u32(at + 8), rig.config_u32(at + 12)))
        .collect();
    assert_eq!(parts, [(1, 0, 56), (3, 0x2000, 1), (4, 0x4000, 0x1000), (2, 0x6000, 0x1000), (5, 0, 0)]);
    let notify = capabilities(&rig, 9)[3];
    assert_eq!(rig.config_u32(notify + 16), 4);
    let msix = capabilities(&rig, 0x11)[0];
    assert_eq!((rig.config_u32(msix) >> 16, rig.config_u32(msix + 4), rig.config_u32(msix + 8)), (2, 0x8000, 0x4_8000));
}

#[test]
fn a_driver_sets_up_uses_and_resets() {
    let rig = Rig::new();
    rig.drive(0x10_0000);
    let ring = |index, descriptors| Ring { index, size: 32, descriptors, avail: 0x20_0000, used: 0x30_0000 };
    {
        let seen = rig.seen.lock().unwrap();
        assert_eq!(seen.started, [(FEATURES, vec![ring(0, 0x10_0000), ring(1, 0x10_1000)], false)]);
    }
    assert_eq!(rig.read(20, 1), 15);
    // A doorbell that the kernel does not take, and one that is the VMM's own.
    rig.write(0x6000, &[0, 0]);
    rig.write(0x6004, &[1, 0]);
    rig.write(0x6008, &[2, 0]);
    assert_eq!(rig.transport.lock().unwrap().kicks.event(0).read().unwrap(), 1);
    assert_eq!(rig.seen.lock().unwrap().notified, [1]);
    rig.write(26, &2_u16.to_le_bytes());
    assert_eq!(rig.seen.lock().unwrap().calls, [1]);
    let resets = rig.seen.lock().unwrap().resets;
    rig.write(20, &[0]);
    assert_eq!((rig.read(20, 1), rig.seen.lock().unwrap().resets), (0, resets + 1));
    rig.drive(0x10_0000);
    assert_eq!(rig.seen.lock().unwrap().started.len(), 2);
    let counts = rig.transport.lock().unwrap().counts();
    assert_eq!(counts, Counts { activations: 2, resets: 1 });
}

#[test]
fn queues_outside_of_ram_ask_for_a_reset() {
    for descriptors in [0x10_0008, RAM, RAM - 0x200, !0xf, 0xf000_0000_0000] {
        let rig = Rig::new();
        rig.drive(descriptors);
        assert_eq!(rig.read(20, 1), 15 | 64, "{descriptors:#x}");
        assert!(rig.seen.lock().unwrap().started.is_empty());
        assert_eq!(rig.read(0x2000, 1), 2, "the driver is told");
        assert_eq!(rig.read(0x2000, 1), 0, "reading acknowledges");
        rig.drive(0x10_0000);
        assert_eq!(rig.read(20, 1), 15);
    }
}

#[test]
fn queue_sizes_are_checked() {
    for size in [0_u16, 3, 256] {
        let memory = GuestMemory::new(&RamOptions { size: RAM, ..Default::default() }).unwrap();
        let ring = Ring { index: 0, size, descriptors: 0x10_0000, avail: 0x20_0000, used: 0x30_0000 };
        assert!(matches!(ring.check(128, memory.ram()), Err(VirtioError::QueueSize { .. })), "{size}");
    }
}

#[test]
fn the_bar_moves_with_its_doorbells_when_decoding_is_on() {
    let rig = Rig::new();
    assert_eq!(*rig.doorbells.0.lock().unwrap(), [BASE + 0x6000]);
    rig.config_write(4, &0_u16.to_le_bytes());
    rig.config_write(0x10, &[0xff; 4]);
    rig.config_write(0x14, &[0xff; 4]);
    assert_eq!(rig.config_u32(0x10), 0xfff8_0004);
    rig.config_write(0x10, &0x0080_0000_u32.to_le_bytes());
    rig.config_write(0x14, &2_u32.to_le_bytes());
    assert!(!rig.mmio.read(BASE, &mut [0; 4]) && !rig.mmio.read(0x2_0080_0000, &mut [0; 4]), "not while it is off");
    rig.config_write(4, &6_u16.to_le_bytes());
    let moved = 0x2_0080_0000;
    assert_eq!(rig.transport.lock().unwrap().bar(), moved);
    assert_eq!(*rig.doorbells.0.lock().unwrap(), [moved + 0x6000]);
    assert_eq!(rig.read(0x4000, 4), 0x0403_0201);
    assert!(!rig.mmio.read(BASE, &mut [0; 4]));
    rig.transport.lock().unwrap().reset().unwrap();
    rig.transport.lock().unwrap().place_bar().unwrap();
    assert_eq!(rig.read(0x4000, 4), 0x0403_0201);
    assert_eq!(*rig.doorbells.0.lock().unwrap(), [BASE + 0x6000]);
}

#[test]
fn the_bar_is_reached_through_configuration_space() {
    let rig = Rig::new();
    let at = capabilities(&rig, 9)[4];
    rig.config_write(at + 8, &0x4000_u32.to_le_bytes());
    rig.config_write(at + 12, &2_u32.to_le_bytes());
    assert_eq!(rig.config_u32(at + 16), 0x0201);
    rig.config_write(at + 16, &[9, 8, 0, 0]);
    assert_eq!(rig.read(0x4000, 4), 0x0403_0809);
    for (offset, len) in [(0x7_ffff_u32, 4_u32), (1, 2), (0, 8), (u32::MAX, 4)] {
        rig.config_write(at + 8, &offset.to_le_bytes());
        rig.config_write(at + 12, &len.to_le_bytes());
        rig.config_u32(at + 16);
        rig.config_write(at + 16, &[0xff; 4]);
    }
}

#[test]
fn every_access_is_survived() {
    let rig = Rig::new();
    for base in [0_u64, 0x1000, 0x2000, 0x3000, 0x4100, 0x5ff8, 0x6000, 0x7000, 0x8000, 0x4_8000, BAR_SIZE - 8] {
        for offset in 0..8 {
            for len in [1_usize, 2, 3, 4, 8] {
                let at = base + offset;
                if at + len as u64 > BAR_SIZE {
                    continue;
                }
                let mut data = vec![0xff; len];
                rig.mmio.read(BASE + at, &mut data);
                if !(0x4000..0x6000).contains(&at) {
                    rig.mmio.write(BASE + at, &vec![0xff; len]);
                }
            }
        }
    }
}

#[test]
fn a_checkpoint_carries_a_running_device_to_another_host() {
    let a = Rig::new();
    a.drive(0x10_0000);
    for (at, value) in [(0x8010, 0xfee0_0000_u32), (0x8018, 0x41), (0x801c, 0)] {
        a.write(at, &value.to_le_bytes());
    }
    let msix = capabilities(&a, 0x11)[0];
    a.config_write(msix + 2, &0x8000_u16.to_le_bytes());
    a.config_write(0x10, &0x0080_0000_u32.to_le_bytes());
    let position = QueueState { index: 0, next_avail: 7, next_used: 5 };
    a.transport.lock().unwrap().device_mut().set_positions(&[position]);
    a.write(0x4000, &[42]);
    let bytes = a.saved();

    let b = Rig::new();
    let mut reader = StateReader::new(&bytes).unwrap();
    b.transport.lock().unwrap().load(&mut reader).unwrap();
    reader.finish().unwrap();
    b.transport.lock().unwrap().place_bar().unwrap();
    assert_eq!(b.saved(), bytes);
    assert_eq!(b.transport.lock().unwrap().bar(), 0x1_0080_0000);
    assert_eq!((b.read(20, 1), b.read(0x4000, 1)), (15, 42));
    assert_eq!(*b.told[1].lock().unwrap(), [(0xfee0_0000, 0x41, false)]);
    b.transport.lock().unwrap().activate_restored().unwrap();
    {
        let seen = b.seen.lock().unwrap();
        assert_eq!((seen.started.len(), seen.started[0].2, seen.positions[0]), (1, true, position));
    }
    b.transport.lock().unwrap().kick_all();
    let transport = b.transport.lock().unwrap();
    assert_eq!(transport.kicks.event(0).read().unwrap(), 1);
    assert_eq!(b.seen.lock().unwrap().notified, [1]);
    assert!(b.seen.lock().unwrap().moved);
    for vector in 0..3 {
        assert_eq!(transport.msix.event(vector).unwrap().read().unwrap(), 1, "vector {vector}");
    }
}

#[test]
fn a_device_without_driver_stays_so() {
    let (a, b) = (Rig::new(), Rig::new());
    let bytes = a.saved();
    let mut transport = b.transport.lock().unwrap();
    transport.load(&mut StateReader::new(&bytes).unwrap()).unwrap();
    transport.activate_restored().unwrap();
    transport.kick_all();
    assert!(b.seen.lock().unwrap().started.is_empty() && !b.seen.lock().unwrap().moved);
}

#[test]
fn entropy_is_served_on_the_spot_and_goes_on_elsewhere() {
    use crate::virtio::rng::Rng;
    let memory = GuestMemory::new(&RamOptions { size: RAM, ..Default::default() }).unwrap();
    let ram = memory.ram();
    let rng = || Rng::new("/dev/urandom".as_ref(), ram.clone()).unwrap();
    let queue = || ActiveQueue {
        ring: Ring { index: 0, size: 4, descriptors: 0x1000, avail: 0x2000, used: 0x3000 },
        kick: EventFd::new(EFD_NONBLOCK).unwrap(),
        call: EventFd::new(EFD_NONBLOCK).unwrap(),
        broken: EventFd::new(EFD_NONBLOCK).unwrap(),
    };
    let offer = |head: u16, address: u64, flags: u16| {
        let descriptor = 0x1000 + 16 * u64::from(head % 4);
        ram.write_obj(address, vm_memory::GuestAddress(descriptor)).unwrap();
        ram.write_obj([64_u16, 0, flags, 0], vm_memory::GuestAddress(descriptor + 8)).unwrap();
        ram.write_obj(head % 4, vm_memory::GuestAddress(0x2004 + 2 * u64::from(head % 4))).unwrap();
        ram.write_obj(head + 1, vm_memory::GuestAddress(0x2002)).unwrap();
    };
    let used = || ram.read_obj::<u16>(vm_memory::GuestAddress(0x3002)).unwrap();
    let mut a = rng();
    a.activate(F_VERSION_1, vec![queue()], false).unwrap();
    offer(0, 0x5000, 2);
    a.notify(0).unwrap();
    assert_eq!(used(), 1);
    assert_ne!(ram.read_obj::<[u64; 8]>(vm_memory::GuestAddress(0x5000)).unwrap(), [0; 8]);
    // Not in RAM, and not writable: used all the same, with nothing written.
    offer(1, RAM, 2);
    offer(2, 0x5000, 0);
    a.notify(0).unwrap();
    assert_eq!(used(), 3);
    // A source that has nothing, and perhaps never will, is not waited for.
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _silent = std::fs::File::options().read(true).write(true).open(&fifo).unwrap();
    let mut b = Rng::new(&fifo, ram.clone()).unwrap();
    b.set_state(&a.state(), F_VERSION_1).unwrap();
    b.activate(F_VERSION_1, vec![queue()], true).unwrap();
    offer(3, 0x6000, 2);
    b.notify(0).unwrap();
    assert_eq!(used(), 4);
    assert_ne!(ram.read_obj::<[u64; 8]>(vm_memory::GuestAddress(0x6000)).unwrap(), [0; 8]);
    // A head outside of the table, then an avail index that has jumped: said once, and only a reset mends it.
    for (head, index) in [(9_u16, 5_u16), (0, 1000)] {
        ram.write_obj(head, vm_memory::GuestAddress(0x2004)).unwrap();
        ram.write_obj(index, vm_memory::GuestAddress(0x2002)).unwrap();
        assert!(matches!(b.notify(0), Err(VirtioError::Queue { queue: 0, .. })), "{index}");
        b.notify(0).unwrap();
        assert_eq!(used(), 4);
        b.activate(F_VERSION_1, vec![queue()], true).unwrap();
    }
    for at in [0x2002, 0x3002] {
        ram.write_obj(0_u16, vm_memory::GuestAddress(at)).unwrap();
    }
    b.reset().unwrap();
    b.activate(F_VERSION_1, vec![queue()], false).unwrap();
    offer(0, 0x7000, 2);
    b.notify(0).unwrap();
    assert_eq!(used(), 1);
}

/// Two devices on one bus whose guest has given each the other's place.
fn swapped() -> [Rig; 2] {
    let mmio = Arc::new(Bus::new());
    let rigs = [Rig::at("_disk0", BASE, mmio.clone()), Rig::at("_disk1", BASE + BAR_SIZE, mmio)];
    for (rig, mark) in rigs.iter().zip([b'a', b'b']) {
        rig.write(0x4000, &[mark]);
    }
    // As Linux does it: decoding of the one that is moved is off, that of the other is on.
    for (rig, base) in rigs.iter().zip([BASE + BAR_SIZE, BASE]) {
        rig.config_write(4, &0_u16.to_le_bytes());
        rig.config_write(0x10, &(base as u32).to_le_bytes());
        rig.config_write(4, &2_u16.to_le_bytes());
    }
    rigs[0].transport.lock().unwrap().place_freed();
    rigs
}

/// Which device answers at each of the two places, and which doorbells each of the two has.
fn places(rigs: &[Rig; 2]) -> ([u8; 2], [Vec<u64>; 2]) {
    let answers = [BASE, BASE + BAR_SIZE].map(|base| {
        let mut data = [0];
        assert!(rigs[0].mmio.read(base + 0x4000, &mut data));
        data[0]
    });
    (answers, [0, 1].map(|at| rigs[at].doorbells.0.lock().unwrap().clone()))
}

#[test]
fn two_devices_change_places() {
    let there = [vec![BASE + BAR_SIZE + 0x6000], vec![BASE + 0x6000]];
    let a = swapped();
    assert_eq!(places(&a), (*b"ba", there.clone()));
    let mmio = Arc::new(Bus::new());
    let b = [Rig::at("_disk0", BASE, mmio.clone()), Rig::at("_disk1", BASE + BAR_SIZE, mmio)];
    for (from, to) in a.iter().zip(&b) {
        to.transport.lock().unwrap().load(&mut StateReader::new(&from.saved()).unwrap()).unwrap();
    }
    for rig in &b {
        rig.transport.lock().unwrap().place_bar().unwrap();
    }
    assert_eq!(places(&b), (*b"ba", there.clone()));
    for rig in &b {
        rig.transport.lock().unwrap().reset().unwrap();
    }
    for rig in &b {
        rig.transport.lock().unwrap().place_bar().unwrap();
    }
    let [first, second] = there;
    assert_eq!(places(&b), (*b"ab", [second, first]));
}

#[test]
fn a_saved_place_that_is_taken_is_an_error() {
    let [a, _] = swapped();
    let mmio = Arc::new(Bus::new());
    let b = [Rig::at("_disk0", BASE, mmio.clone()), Rig::at("_disk1", BASE + BAR_SIZE, mmio)];
    let mut transport = b[0].transport.lock().unwrap();
    transport.load(&mut StateReader::new(&a.saved()).unwrap()).unwrap();
    assert!(matches!(transport.place_bar(), Err(VirtioError::Bar(_))));
}

#[test]
fn a_device_without_a_place_answers_nowhere_and_takes_it_later() {
    let mmio = Arc::new(Bus::new());
    let rigs = [Rig::at("_disk0", BASE, mmio.clone()), Rig::at("_disk1", BASE + BAR_SIZE, mmio.clone())];
    rigs[0].config_write(0x10, &((BASE + BAR_SIZE) as u32).to_le_bytes());
    assert!(!mmio.read(BASE, &mut [0; 4]));
    assert!(rigs[0].doorbells.0.lock().unwrap().is_empty());
    let pci = Arc::new(Mutex::new(crate::pci::bus::PciBus::new()));
    for (slot, rig) in [1, 2].into_iter().zip(&rigs) {
        pci.lock().unwrap().insert(slot, rig.transport.clone()).unwrap();
    }
    // The other one stops decoding, by a write through the bus.
    crate::pci::bus::Ecam(pci).write(2 << 15 | 4, &[0, 0]);
    assert_eq!(*rigs[0].doorbells.0.lock().unwrap(), [BASE + BAR_SIZE + 0x6000]);
}

#[test]
fn a_broken_queue_asks_for_a_reset_until_there_was_one() {
    let rig = Rig::new();
    rig.drive(0x10_0000);
    rig.seen.lock().unwrap().bad_queue = true;
    rig.write(0x6004, &[1, 0]);
    assert_eq!((rig.read(20, 1), rig.read(0x2000, 1)), (15 | 64, 2));
    rig.seen.lock().unwrap().bad_queue = false;
    rig.drive(0x10_0000);
    assert_eq!(rig.read(20, 1), 15);
    // As a backend says it.
    let broken = rig.transport.lock().unwrap().broken_event().unwrap();
    broken.write(1).unwrap();
    rig.transport.lock().unwrap().check_queues();
    assert_eq!((rig.read(20, 1), rig.read(0x2000, 1)), (15 | 64, 2));
    // What was said before a reset does not count after it.
    broken.write(1).unwrap();
    rig.drive(0x10_0000);
    rig.transport.lock().unwrap().check_queues();
    assert_eq!(rig.read(20, 1), 15);
}

#[test]
fn doorbells_follow_what_the_driver_has_negotiated() {
    let rig = Rig::new();
    rig.seen.lock().unwrap().control_is_first = true;
    rig.drive(0x10_0000);
    assert_eq!(*rig.doorbells.0.lock().unwrap(), [BASE + 0x6004]);
    rig.write(0x6000, &[0, 0]);
    assert_eq!(rig.seen.lock().unwrap().notified, [0]);
    rig.seen.lock().unwrap().control_is_first = false;
    rig.write(20, &[0]);
    assert_eq!(*rig.doorbells.0.lock().unwrap(), [BASE + 0x6000]);
}

/// Counts what is logged on this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<usize>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        *self.0.lock().unwrap() += bytes.iter().filter(|byte| **byte == b'\n').count();
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_guest_cannot_fill_the_log() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, || {
        let (rig, other) = (Rig::new(), Rig::new());
        for _ in 0..500 {
            // A queue outside of RAM, and a place that is another device's.
            rig.drive(RAM);
            other.mmio.insert(rig.transport.clone(), BASE + BAR_SIZE, BAR_SIZE).unwrap();
            other.config_write(0x10, &((BASE + BAR_SIZE) as u32).to_le_bytes());
            other.config_write(0x10, &(BASE as u32).to_le_bytes());
            other.mmio.remove(BASE + BAR_SIZE);
        }
    });
    let logged = *lines.0.lock().unwrap();
    // A burst of each in every period, should this test take longer than one.
    assert!((1..200).contains(&logged), "{logged} lines");
}
