//! The transport with a device that only remembers.

use std::sync::Mutex;

use ft_proto::device_ctl::QueueState;
use vm_memory::Bytes;

use super::*;
use crate::memory::guest::{GuestMemory, RamOptions};
use crate::pci::msix::tests::{FakeLine, Told};
use crate::virtio::state::DeviceState;
use crate::virtio::{F_VERSION_1, Ring};

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
        queue == 0
    }
    fn activate(&mut self, features: u64, queues: Vec<ActiveQueue>, resume: bool) -> Result<(), VirtioError> {
        let rings = queues.iter().map(|queue| queue.ring).collect();
        self.seen.lock().unwrap().started.push((features, rings, resume));
        Ok(())
    }
    fn notify(&mut self, queue: u16) {
        self.seen.lock().unwrap().notified.push(queue);
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
        let memory = GuestMemory::new(&RamOptions { size: RAM, ..Default::default() }).unwrap();
        let (seen, doorbells, mmio) = (Arc::default(), Arc::new(FakeDoorbells::default()), Arc::new(Bus::new()));
        let device = Box::new(Toy { seen: Arc::clone(&seen), config: vec![1, 2, 3, 4] });
        let machine = Machine { mmio: mmio.clone(), doorbells: doorbells.clone(), ram: memory.ram().clone() };
        let (lines, told): (Vec<_>, Vec<_>) = (0..3).map(|_| FakeLine::new()).unzip();
        let lines = lines.into_iter().map(|line| Box::new(line) as Box<dyn Line>).collect();
        let transport = VirtioPci::new("_disk0", device, machine, BASE, lines).unwrap();
        let transport = Arc::new(Mutex::new(transport));
        mmio.insert(transport.clone(), BASE, BAR_SIZE).unwrap();
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
    assert_eq!(rig.transport.lock().unwrap().kicks[0].read().unwrap(), 1);
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
    assert_eq!(rig.transport.lock().unwrap().bar(), BASE, "not yet");
    rig.config_write(4, &6_u16.to_le_bytes());
    let moved = 0x2_0080_0000;
    assert_eq!(rig.transport.lock().unwrap().bar(), moved);
    assert_eq!(*rig.doorbells.0.lock().unwrap(), [moved + 0x6000]);
    assert_eq!(rig.read(0x4000, 4), 0x0403_0201);
    assert!(!rig.mmio.read(BASE, &mut [0; 4]));
    rig.transport.lock().unwrap().reset().unwrap();
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
    assert_eq!(transport.kicks[0].read().unwrap(), 1);
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
    a.notify(0);
    assert_eq!(used(), 1);
    assert_ne!(ram.read_obj::<[u64; 8]>(vm_memory::GuestAddress(0x5000)).unwrap(), [0; 8]);
    // Not in RAM, and not writable: used all the same, with nothing written.
    offer(1, RAM, 2);
    offer(2, 0x5000, 0);
    a.notify(0);
    assert_eq!(used(), 3);
    let mut b = rng();
    b.set_state(&a.state(), F_VERSION_1).unwrap();
    b.activate(F_VERSION_1, vec![queue()], true).unwrap();
    offer(3, 0x6000, 2);
    b.notify(0);
    assert_eq!(used(), 4);
    assert_ne!(ram.read_obj::<[u64; 8]>(vm_memory::GuestAddress(0x6000)).unwrap(), [0; 8]);
}
