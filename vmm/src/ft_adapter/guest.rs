//! The VM as the fault-tolerance engine sees it.
//!
//! In: calls of the engine, on its thread. Out: the VM stopped, captured, restored, started. Never: the lock
//! of the control loop on the epoch path; checkpoints and VM-changing calls of the API keep out of each
//! other's way by the VM's gate.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::Sender;
use ft::guest::{
    DeviceCaps, DeviceWait, DiskShape, Form, Guest, GuestError, HeldOutput, LinkEnd, Memory, NetShape, Shape,
    VirtioShape,
};
use ft::{EventRecord, PORTION_PAGES, Staging};
use ft_proto::{Alone, Committed, CutKind, Epoch};
use ft_wire::device_ctl::DeviceInfo;
use host_kit::sync::lock;
use pollux_api::Blocker;
use serde_json::Value;

use crate::contract::VmEvent;
use crate::devices::{DirtyLog, FtLink};
use crate::legacy::console::ConsoleOut;
use crate::machine::cpu::{PausedWork, Task, WorkerPool, cpuid};
use crate::machine::memory::dirty::{DirtySet, DirtyTracker, Watch};
use crate::machine::memory::foresight::Seen;
use crate::machine::memory::guest::GuestMemory;
use crate::machine::memory::view::MemoryView;
use crate::vm::Inside;
use crate::vm::{SavedParts, Vm};

/// The engine's hands on one VM.
pub struct GuestAdapter {
    parts: Arc<SavedParts>,
    /// Held while a checkpoint is being taken.
    stopped: Option<Inside>,
    /// Whether it was stopped and no checkpoint has been taken since.
    untaken: bool,
    /// Whether the last cut was made, and the guest stays stopped until it is known which node runs it.
    leaving: bool,
    dirty: Arc<Mutex<DirtyTracker>>,
    memory: Arc<AdapterMemory>,
    snapshot: Arc<Mutex<Snapshot>>,
    console: Option<Arc<ConsoleOut>>,
    device_wait: DeviceWait,
    events: Sender<VmEvent>,
}

impl GuestAdapter {
    /// The engine's hands on `vm`; what happens to the VM through it is told to `events`.
    #[must_use]
    pub fn new(vm: &Vm, events: Sender<VmEvent>) -> Self {
        let memory = AdapterMemory { view: vm.memory_view(), memory: vm.memory().clone() };
        let memory = Arc::new(memory);
        let watchdog = lock(vm.devices()).watchdog().clone();
        let snapshot = Snapshot {
            parts: vm.parts().clone(),
            dirty: vm.dirty().clone(),
            device_log: lock(vm.devices()).dirty_log().clone(),
            set: DirtySet::new(vm.memory()),
            memory: memory.clone(),
            console: vm.console(),
            console_held: false,
            kind: CutKind::Plain,
            staging: Staging::default(),
            result: Ok(()),
        };
        Self {
            parts: vm.parts().clone(),
            stopped: None,
            untaken: false,
            leaving: false,
            dirty: vm.dirty().clone(),
            memory,
            snapshot: Arc::new(Mutex::new(snapshot)),
            console: vm.console(),
            device_wait: DeviceWait::new(move || watchdog.is_waited_for()),
            events,
        }
    }

    fn tell(&self, event: VmEvent) {
        // The control loop has ended only when the VM is about to.
        let _ = self.events.send(event);
    }
}

impl Guest for GuestAdapter {
    fn shape(&self) -> Shape {
        let mut shape = Shape {
            memory: self.memory.memory.size(),
            vcpus: self.parts.cpus.count(),
            cpuid: cpuid::to_bytes(&self.parts.cpus.guest_cpuid()),
            tsc_khz: self.parts.cpus.tsc_khz(),
            serial: self.parts.has_serial(),
            ..Shape::default()
        };
        for link in lock(&self.parts.devices).ft_links() {
            let FtLink { id, queues, slot, queue_sizes, features, .. } = link;
            let virtio = VirtioShape { slot, queue_sizes, features };
            match link.info {
                DeviceInfo::Disk { size, read_only, serial, .. } => {
                    let block_size = link.block_size;
                    shape.disks.push(DiskShape { id, size, read_only, serial, block_size, queues, virtio });
                }
                DeviceInfo::Net { .. } => {
                    let (mac, mtu) = (link.mac.unwrap_or_default(), link.mtu);
                    shape.nets.push(NetShape { id, mac, mtu, queues, virtio });
                }
            }
        }
        shape
    }

    fn blockers(&self) -> Vec<Blocker> {
        let devices = lock(&self.parts.devices);
        devices.foreign().map(|id| Blocker::ForeignDevice { device: id.to_string() }).collect()
    }

    fn check_cpu(&self, shape: &Shape) -> Vec<String> {
        let cpus = &self.parts.cpus;
        let mut reasons = match cpuid::from_bytes(&shape.cpuid) {
            Some(theirs) => cpuid::missing(&theirs, cpus.cpuid()),
            None => vec!["the primary's CPU features do not decode".to_owned()],
        };
        if let Err(error) = cpus.features().can_run_tsc_at(shape.tsc_khz) {
            reasons.push(format!("{error}: use a host whose TSC runs as fast, or whose KVM can scale it"));
        }
        reasons
    }

    fn adopt(&mut self, shape: &Shape) -> Result<(), GuestError> {
        let table = cpuid::from_bytes(&shape.cpuid)
            .ok_or_else(|| GuestError::plain("the primary's CPU features do not decode"))?;
        let adopted = self.parts.cpus.adopt_cpuid(&table);
        adopted.map_err(|error| GuestError::new("cannot take on the primary's CPU features", error))
    }

    fn memory(&self) -> Arc<dyn Memory> {
        self.memory.clone()
    }

    fn links(&mut self) -> Result<Vec<LinkEnd>, GuestError> {
        let links = lock(&self.parts.devices).ft_links();
        let end = |link: FtLink| LinkEnd { id: link.id, caps: caps(&link.info), socket: link.fd };
        Ok(links.into_iter().map(end).collect())
    }

    fn processors(&self, cpus: &mut Vec<usize>) {
        self.parts.cpus.processors(cpus);
    }

    fn device_wait(&self) -> DeviceWait {
        self.device_wait.clone()
    }

    fn stop(&mut self) -> bool {
        // Neither for the VM's owner, whose changes take as long as the slowest device, nor for a vCPU that
        // waits for one.
        let Some(inside) = self.parts.gate.try_enter().filter(|_| self.parts.cpus.can_stop_soon()) else {
            return false;
        };
        self.stopped = Some(inside);
        self.parts.cpus.stop_for(self.snapshot.clone());
        self.untaken = true;
        true
    }

    fn checkpoint(&mut self, kind: CutKind, staging: &mut Staging) -> Result<(), GuestError> {
        let mut snapshot = lock(&self.snapshot);
        (snapshot.kind, snapshot.staging) = (kind, std::mem::take(staging));
        snapshot.result = Err(GuestError::plain("the checkpoint was not taken"));
        drop(snapshot);
        self.untaken = false;
        let captured = self.parts.cpus.checkpoint();
        let mut snapshot = lock(&self.snapshot);
        *staging = std::mem::take(&mut snapshot.staging);
        let taken = std::mem::replace(&mut snapshot.result, Ok(()));
        let result = captured.map_err(|error| GuestError::new("cannot capture the vCPUs", error)).and(taken);
        if result.is_ok() {
            self.parts.confirmed.taken(staging.epoch.0, self.parts.is_paused());
        }
        if kind == CutKind::Last && result.is_ok() {
            // Whoever wants to change the VM meanwhile must not wait for the standby.
            self.parts.gate.leaving();
            self.leaving = true;
        }
        self.stopped = None;
        result
    }

    fn resume(&mut self) {
        if std::mem::take(&mut self.untaken) {
            self.parts.cpus.call_off();
        } else {
            self.parts.cpus.resume();
        }
        self.stopped = None;
        if std::mem::take(&mut self.leaving) {
            self.parts.gate.stays();
            self.tell(VmEvent::Stays);
        }
    }

    fn start_tracking(&mut self) -> Result<(), GuestError> {
        lock(&self.dirty).start().map_err(|error| GuestError::new("cannot track memory writes", error))?;
        let logged = lock(&self.parts.devices).set_dirty_log(true);
        logged.map_err(|error| {
            // All of it or nothing: the guest pays for each write that is tracked.
            self.stop_tracking();
            GuestError::new("cannot track the devices' memory writes", error)
        })
    }

    fn stop_tracking(&mut self) {
        if let Err(error) = lock(&self.parts.devices).set_dirty_log(false) {
            tracing::warn!("cannot stop to track the devices' memory writes: {}", host_kit::error::chain(&error));
        }
        if let Err(error) = lock(&self.dirty).stop() {
            tracing::warn!("cannot stop to track memory writes: {}", host_kit::error::chain(&error));
        }
    }

    fn harvest(&mut self, pages: &mut Vec<u64>) -> Result<(), GuestError> {
        // A thread that changes the VM as a whole may be waiting for a device. Nothing is lost: what is not
        // told now is told later, to the base's cut at the latest, which waits until they are through.
        let Some(_inside) = self.parts.gate.try_enter() else { return Ok(()) };
        // Rounds of a first copy want to know what is still being written, not what was.
        lock(&self.snapshot).harvest(Watch::All, pages)
    }

    fn put_back(&mut self, pages: &[u64]) {
        lock(&self.dirty).put_back_pages(pages);
    }

    fn sent(&mut self, pages: &[(u64, Form)]) {
        let mut dirty = lock(&self.dirty);
        for (gfn, form) in pages {
            dirty.seen(
                *gfn,
                match form {
                    Form::Same => Seen { written: false, cheap: true },
                    Form::Delta => Seen { written: true, cheap: true },
                    Form::Whole => Seen { written: true, cheap: false },
                    Form::WholeAgain => Seen { written: false, cheap: false },
                },
            );
        }
    }

    fn save_vcpus(&mut self, out: &mut Vec<u8>) -> Result<(), GuestError> {
        self.parts.save_vcpus(out).map_err(|error| GuestError::new("cannot save the vCPUs' state", error))
    }

    fn last_pause(&self) -> Option<Duration> {
        self.parts.cpus.last_pause()
    }

    fn load(&mut self, state: &[u8]) -> Result<(), GuestError> {
        self.parts.load(state).map_err(|error| GuestError::new("the checkpoint's state cannot be restored", error))
    }

    fn activate(&mut self) -> Result<(), GuestError> {
        let activated = lock(&self.parts.devices).activate_restored();
        activated.map_err(|error| GuestError::new("cannot set the device processes up", error))
    }

    fn start(&mut self) -> Result<(), GuestError> {
        let paused = self.parts.is_paused();
        let mut devices = lock(&self.parts.devices);
        devices.kick_all();
        if paused && let Err(error) = devices.quiesce() {
            // It is not worth the takeover: what the device does, the guest sees when it is resumed.
            tracing::warn!("a device of the paused VM continues: {}", host_kit::error::chain(&error));
        }
        drop(devices);
        // Before the guest can do anything that is told too.
        self.tell(VmEvent::TakenOver { paused });
        self.parts.pending_event.taken_over();
        if !paused {
            self.parts.cpus.resume();
        }
        Ok(())
    }

    fn fence(&mut self, reason: &str) {
        // One pause more than is ever ended.
        self.parts.cpus.park();
        self.parts.gate.gone();
        self.parts.confirmed.end();
        self.stopped = None;
        if let Some(console) = &self.console {
            console.discard();
        }
        self.tell(VmEvent::Fenced { reason: reason.to_owned() });
    }

    fn unusable(&mut self, reason: &str) {
        self.tell(VmEvent::Unusable { reason: reason.to_owned() });
    }

    fn told(&mut self, event: &EventRecord) {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let detail = event.detail.as_object().into_iter().flatten();
        let properties = detail.map(|(key, value)| (key.clone(), text(value))).collect();
        self.tell(VmEvent::Ft { event: event.event.clone(), properties });
    }

    fn watch_console(&mut self, held: HeldOutput) {
        if let Some(console) = &self.console {
            console.on_held(move |tag| held.held(Epoch(tag)));
        }
    }

    fn release_console(&mut self, committed: &Committed) {
        self.parts.confirmed.confirm(committed.epoch().0);
        if let Some(console) = &self.console {
            console.release(committed.epoch().0);
        }
    }

    fn free_console(&mut self, _: &Alone) {
        self.parts.confirmed.end();
        lock(&self.snapshot).console_held = false;
        if let Some(console) = &self.console {
            console.stop_holding();
        }
    }
}

/// What a checkpoint depends on of a device.
fn caps(info: &DeviceInfo) -> DeviceCaps {
    match info {
        DeviceInfo::Disk { read_only, .. } => {
            DeviceCaps { mirrors: !read_only, in_flight: true, ..DeviceCaps::default() }
        }
        DeviceInfo::Net { .. } => DeviceCaps { holds_output: true, ..DeviceCaps::default() },
    }
}

/// One checkpoint, as far as the guest waits for it: taken by the vCPU that is the last to be captured.
struct Snapshot {
    parts: Arc<SavedParts>,
    dirty: Arc<Mutex<DirtyTracker>>,
    /// The devices' writes. Without the lock of the devices, which the API may hold while it waits for one.
    device_log: Arc<DirtyLog>,
    set: DirtySet,
    memory: Arc<AdapterMemory>,
    console: Option<Arc<ConsoleOut>>,
    console_held: bool,
    kind: CutKind,
    staging: Staging,
    result: Result<(), GuestError>,
}

impl Snapshot {
    fn harvest(&mut self, watch: Watch, pages: &mut Vec<u64>) -> Result<(), GuestError> {
        let mut logs = |take: &mut dyn FnMut(u64, u64)| self.device_log.harvest(take);
        let harvested = lock(&self.dirty).harvest(&mut self.set, watch, &mut logs);
        harvested.map_err(|error| GuestError::new("cannot read the dirty log", error))?;
        pages.extend_from_slice(self.set.gfns());
        Ok(())
    }

    fn take(&mut self, staging: &mut Staging, pool: &WorkerPool<'_>) -> Result<(), GuestError> {
        self.harvest(Watch::Foresee, &mut staging.pages)?;
        if staging.pages.len() > PORTION_PAGES && pool.size() > 1 {
            self.copy_together(staging, pool)?;
        } else {
            staging.copy_pages(&*self.memory)?;
        }
        let mut devices = lock(&self.parts.devices);
        for position in &mut staging.positions {
            devices.set_position(position);
        }
        drop(devices);
        let saved = self.parts.save_devices(&mut staging.state);
        saved.map_err(|error| GuestError::new("cannot save the devices' state", error))
    }

    fn copy_together(&self, staging: &mut Staging, pool: &WorkerPool<'_>) -> Result<(), GuestError> {
        let (done, copied) = crossbeam_channel::unbounded();
        pool.share(staging.take_portions().into_iter().map(|(number, mut portion)| -> Task {
            let (memory, done) = (self.memory.clone(), done.clone());
            Box::new(move || {
                let result = portion.copy(&*memory);
                // Somebody waits for it until the last one has come.
                let _ = done.send((number, portion, result));
            })
        }));
        drop(done);
        copied.into_iter().try_fold((), |(), (number, portion, result)| {
            staging.put_portion(number, portion);
            result
        })
    }

    /// Console output belongs to the next epoch from here on.
    fn tag_console(&mut self, next: Epoch) {
        self.console_held |= self.kind == CutKind::Base;
        if let Some(console) = self.console.as_ref().filter(|_| self.console_held) {
            console.hold(next.0);
        }
    }
}

impl PausedWork for Snapshot {
    fn run(&mut self, pool: &WorkerPool<'_>) -> bool {
        let mut staging = std::mem::take(&mut self.staging);
        self.result = self.take(&mut staging, pool);
        let goes_on = self.kind != CutKind::Last || self.result.is_err();
        if goes_on && self.result.is_ok() {
            self.tag_console(staging.epoch.next());
        }
        self.staging = staging;
        goes_on
    }
}

/// Guest memory for the engine's threads.
struct AdapterMemory {
    view: MemoryView,
    memory: GuestMemory,
}

impl AdapterMemory {
    fn not_ram(page: u64) -> GuestError {
        GuestError::plain(format!("page {page:#x} is not RAM"))
    }
}

impl Memory for AdapterMemory {
    fn ranges(&self) -> Vec<Range<u64>> {
        self.view.ranges().map(|(first, pages)| first..first + pages).collect()
    }

    fn populated(&self) -> Result<Vec<Range<u64>>, GuestError> {
        self.memory.populated().map_err(|error| GuestError::new("cannot tell which memory exists", error))
    }

    fn copy_out(&self, page: u64, into: &mut [u8]) -> Result<(), GuestError> {
        if !self.view.contains(page) {
            return Err(Self::not_ram(page));
        }
        self.view.copy_out(&[page], into);
        Ok(())
    }

    fn copy_in(&self, page: u64, from: &[u8]) -> Result<(), GuestError> {
        if self.view.write_page(page, from) { Ok(()) } else { Err(Self::not_ram(page)) }
    }

    fn zero(&self, page: u64) -> Result<(), GuestError> {
        if self.view.zero_page(page) { Ok(()) } else { Err(Self::not_ram(page)) }
    }

    fn clear(&self) -> Result<(), GuestError> {
        self.memory.clear().map_err(|error| GuestError::new("cannot clear memory", error))
    }
}
