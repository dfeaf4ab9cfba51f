//! A guest without a processor: memory, a state, and what an engine has had it do.

use std::collections::BTreeSet;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ft::guest::{DeviceCaps, DeviceWait, DiskShape, Guest, GuestError, HeldOutput, LinkEnd, Memory, Shape};
use ft::{EventRecord, Staging};
use ft_proto::{Alone, Committed, CutKind, Epoch};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

pub const PAGES: u64 = 300;
pub const PAGE: usize = 4096;
/// A disk, as the VMM knows it.
pub const DISK: DeviceCaps = DeviceCaps { mirrors: true, holds_output: false, in_flight: true };
/// Guest memory does not begin at zero, to catch mixed-up offsets.
pub const FIRST: u64 = 16;

#[derive(Default)]
pub struct Toy {
    pub memory: Vec<u8>,
    pub dirty: BTreeSet<u64>,
    pub tracking: bool,
    pub paused: u32,
    /// `stop` would take long.
    pub busy: bool,
    /// Its disk's process: the engine's end of its socket, and the process's.
    pub disk: Option<[OwnedFd; 2]>,
    /// Set by `start`: the state that it runs from.
    pub started: Option<Vec<u8>>,
    pub fenced: Option<String>,
    /// What `save` writes.
    pub state: Vec<u8>,
    /// Why it cannot become what a checkpoint says.
    pub unlike: Option<&'static str>,
    /// The epoch that its console output belongs to, from the base on.
    pub console_epoch: Option<u64>,
    /// The last epoch whose console output was let go.
    pub console_released: u64,
    /// Who is told that console output is held.
    pub held: Option<HeldOutput>,
    /// A vCPU waits for a device: a checkpoint is not taken before it has come back.
    pub at_device: Arc<AtomicBool>,
}

#[derive(Clone)]
pub struct ToyGuest(pub Arc<Mutex<Toy>>);

impl ToyGuest {
    pub fn new() -> Self {
        let memory = vec![0; PAGES as usize * PAGE];
        Self(Arc::new(Mutex::new(Toy { memory, ..Toy::default() })))
    }

    /// With a disk whose process never answers.
    pub fn with_disk() -> Self {
        let toy = Self::new();
        let (near, far) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        toy.0.lock().unwrap().disk = Some([near, far]);
        toy
    }

    /// The guest writes: memory and state change together, or not at all if it is paused.
    pub fn write(&self, page: u64, value: u8) -> bool {
        let mut toy = self.0.lock().unwrap();
        if toy.paused > 0 {
            return false;
        }
        let at = usize::try_from(page - FIRST).unwrap() * PAGE;
        toy.memory[at..at + PAGE].fill(value);
        toy.state = vec![value];
        if toy.tracking {
            toy.dirty.insert(page);
        }
        true
    }

    /// The guest prints something: the epoch that it belongs to.
    pub fn print(&self) -> u64 {
        let toy = self.0.lock().unwrap();
        let epoch = toy.console_epoch.expect("output is not held yet");
        toy.held.as_ref().unwrap().held(Epoch(epoch));
        epoch
    }

    pub fn memory_copy(&self) -> Vec<u8> {
        self.0.lock().unwrap().memory.clone()
    }

    pub fn started(&self) -> Option<Vec<u8>> {
        self.0.lock().unwrap().started.clone()
    }

    pub fn fenced(&self) -> Option<String> {
        self.0.lock().unwrap().fenced.clone()
    }

    pub fn page(page: u64) -> Result<Range<usize>, GuestError> {
        if !(FIRST..FIRST + PAGES).contains(&page) {
            return Err(GuestError::plain(format!("page {page} is not RAM")));
        }
        let at = usize::try_from(page - FIRST).unwrap() * PAGE;
        Ok(at..at + PAGE)
    }
}

impl Memory for ToyGuest {
    fn ranges(&self) -> Vec<Range<u64>> {
        std::iter::once(FIRST..FIRST + PAGES).collect()
    }

    fn populated(&self) -> Result<Vec<Range<u64>>, GuestError> {
        Ok(self.ranges())
    }

    fn copy_out(&self, page: u64, into: &mut [u8]) -> Result<(), GuestError> {
        into.copy_from_slice(&self.0.lock().unwrap().memory[Self::page(page)?]);
        Ok(())
    }

    fn copy_in(&self, page: u64, from: &[u8]) -> Result<(), GuestError> {
        self.0.lock().unwrap().memory[Self::page(page)?].copy_from_slice(from);
        Ok(())
    }

    fn zero(&self, page: u64) -> Result<(), GuestError> {
        self.0.lock().unwrap().memory[Self::page(page)?].fill(0);
        Ok(())
    }

    fn clear(&self) -> Result<(), GuestError> {
        self.0.lock().unwrap().memory.fill(0);
        Ok(())
    }
}

impl Guest for ToyGuest {
    fn shape(&self) -> Shape {
        let disk = DiskShape { id: "disk".to_owned(), size: 1, queues: 1, ..DiskShape::default() };
        let disks = self.0.lock().unwrap().disk.iter().map(|_| disk.clone()).collect();
        Shape { memory: PAGES * PAGE as u64, vcpus: 1, disks, ..Shape::default() }
    }

    fn blockers(&self) -> Vec<ft::Blocker> {
        Vec::new()
    }

    fn check_cpu(&self, _: &Shape) -> Vec<String> {
        Vec::new()
    }

    fn adopt(&mut self, _: &Shape) -> Result<(), GuestError> {
        Ok(())
    }

    fn memory(&self) -> Arc<dyn Memory> {
        Arc::new(self.clone())
    }

    fn links(&mut self) -> Result<Vec<LinkEnd>, GuestError> {
        let toy = self.0.lock().unwrap();
        let link =
            |[near, _]: &[OwnedFd; 2]| LinkEnd { id: "disk".to_owned(), caps: DISK, socket: near.try_clone().unwrap() };
        Ok(toy.disk.iter().map(link).collect())
    }

    fn device_wait(&self) -> DeviceWait {
        let at_device = self.0.lock().unwrap().at_device.clone();
        DeviceWait::new(move || at_device.load(Ordering::Relaxed))
    }

    fn processors(&self, cpus: &mut Vec<usize>) {
        cpus.clear();
    }

    fn stop(&mut self) -> bool {
        let mut toy = self.0.lock().unwrap();
        if toy.busy {
            return false;
        }
        toy.paused += 1;
        true
    }

    fn checkpoint(&mut self, kind: CutKind, staging: &mut Staging) -> Result<(), GuestError> {
        let device_wait = self.device_wait();
        while device_wait.is_on() {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.harvest(&mut staging.pages)?;
        staging.copy_pages(&self.clone())?;
        let mut toy = self.0.lock().unwrap();
        staging.state.extend_from_slice(&toy.state);
        toy.paused -= u32::from(kind != CutKind::Last);
        if kind == CutKind::Base || toy.console_epoch.is_some() {
            toy.console_epoch = Some(staging.epoch.next().0);
        }
        Ok(())
    }

    fn resume(&mut self) {
        self.0.lock().unwrap().paused -= 1;
    }

    fn start_tracking(&mut self) -> Result<(), GuestError> {
        self.0.lock().unwrap().tracking = true;
        Ok(())
    }

    fn stop_tracking(&mut self) {
        let mut toy = self.0.lock().unwrap();
        toy.tracking = false;
        toy.dirty.clear();
    }

    fn harvest(&mut self, pages: &mut Vec<u64>) -> Result<(), GuestError> {
        pages.extend(std::mem::take(&mut self.0.lock().unwrap().dirty));
        Ok(())
    }

    fn put_back(&mut self, pages: &[u64]) {
        self.0.lock().unwrap().dirty.extend(pages);
    }

    fn save_vcpus(&mut self, _: &mut Vec<u8>) -> Result<(), GuestError> {
        Ok(())
    }

    fn last_pause(&self) -> Option<Duration> {
        None
    }

    fn load(&mut self, state: &[u8]) -> Result<(), GuestError> {
        let mut toy = self.0.lock().unwrap();
        toy.state = state.to_vec();
        toy.unlike.map_or(Ok(()), |what| Err(GuestError::plain(what)))
    }

    fn activate(&mut self) -> Result<(), GuestError> {
        Ok(())
    }

    fn start(&mut self) -> Result<(), GuestError> {
        let mut toy = self.0.lock().unwrap();
        toy.started = Some(toy.state.clone());
        Ok(())
    }

    fn fence(&mut self, reason: &str) {
        let mut toy = self.0.lock().unwrap();
        toy.fenced = Some(reason.to_owned());
        toy.paused += 1;
    }

    fn unusable(&mut self, _: &str) {}
    fn told(&mut self, _: &EventRecord) {}

    fn watch_console(&mut self, held: HeldOutput) {
        self.0.lock().unwrap().held = Some(held);
    }

    fn release_console(&mut self, committed: &Committed) {
        self.0.lock().unwrap().console_released = committed.epoch().0;
    }

    fn free_console(&mut self, _: &Alone) {}
}
