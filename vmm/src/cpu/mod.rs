//! The vCPUs: one thread each, started parked, stopped and started together.
//!
//! In: pause, resume, load. Out: captured registers, and [`GuestEvent`]s when the guest ends its own run. Never: a sleep of a set
//! time; who waits is woken by who is done, after having looked for it a moment when it is about a checkpoint, see `bell`.
//!
//! A vCPU thread is either in its run loop or parked. [`CpuManager::pause`] sets `immediate_exit` and sends a signal; whichever
//! comes first, the next `KVM_RUN` ends with EINTR after finishing the I/O that was pending, and the thread parks. While
//! parked it does jobs (capture, load, anything that needs the vCPU's own thread).

mod bell;
pub mod cpuid;
pub mod msr;
pub mod state;
mod vcpu;

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use self::bell::Bell;
use self::cpuid::CpuidOptions;
use self::state::{Features, VcpuState, VcpuStateError};
use self::vcpu::{RunPage, Vcpu};
use crate::bus::Bus;
use crate::state::{StateError, StateReader, StateWriter};

pub use pollux_api::limits::VCPUS_MAX;

/// What a vCPU could not do when it could not capture itself.
const CAPTURE: &str = "capture its state";

/// For so long who waits for a checkpoint's next step looks for it without sleep. It takes tens of microseconds unless much is to
/// be copied.
const PATIENCE: Duration = Duration::from_micros(100);
/// A vCPU that waits to go on looks for longer: its processor would be the guest's anyway, and a thousand pages are copied meanwhile.
const VCPU_PATIENCE: Duration = Duration::from_micros(500);

/// What a guest does to its own machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// It has powered off.
    Shutdown,
    /// It has asked for a reset, or triple-faulted.
    Reset,
    /// It cannot go on; the text says why.
    Crash(String),
}

/// Takes guest events; called on a vCPU thread, so it must not wait for the vCPUs.
pub type OnGuestEvent = Arc<dyn Fn(GuestEvent) + Send + Sync>;

/// Whether a pause reads the vCPUs' registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// Each thread captures its own.
    Yes,
    /// Just stop.
    No,
}

/// What failed on the vCPUs.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// A number of vCPUs that cannot be.
    #[error("cpus boot_vcpus {0} must be from 1 to {VCPUS_MAX}")]
    Count(u32),
    /// The kernel refused a call.
    #[error("{call} failed")]
    Kvm {
        /// The call.
        call: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// More CPUID leaves than KVM takes.
    #[error("the CPUID table has too many entries")]
    CpuidTooLong,
    /// Registers could not be read or written.
    #[error("vCPU {vcpu}: cannot {what}")]
    State {
        /// Which vCPU.
        vcpu: u32,
        /// What was done.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: VcpuStateError,
    },
    /// No thread.
    #[error("cannot start the thread of vCPU {vcpu}")]
    Thread {
        /// Which vCPU.
        vcpu: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The signal that stops vCPUs.
    #[error("cannot install the handler of the vCPU signal")]
    Signal(#[source] io::Error),
}

impl CpuError {
    /// Wraps the kernel's answer to `call`.
    pub fn kvm(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |e| Self::Kvm { call, source: e.into() }
    }
}

/// What a parked vCPU's thread does with it.
type Job = Box<dyn FnOnce(&mut VcpuFd) -> Result<(), VcpuStateError> + Send>;

/// What is to be done at a checkpoint when every vCPU stands still and has captured itself. The last of them does it, so that
/// nobody has to be woken for it while the guest waits.
pub trait AtRest: Send {
    /// Does it, with the help of the others where that is worth it; tells whether the guest goes on.
    fn at_rest(&mut self, crew: &Crew<'_>) -> bool;
}

/// A part of that which another thread may do.
pub type Chore = Box<dyn FnOnce() + Send>;

/// The vCPU threads, which stand still.
pub struct Crew<'a>(&'a Shared);

impl Crew<'_> {
    /// Number of threads, the calling one among them.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.lock().orders.len()
    }

    /// Has all the chores done by whoever comes first. When it returns they are done, or under way on another thread.
    pub fn share(&self, chores: impl Iterator<Item = Chore>) {
        self.0.lock().chores.extend(chores);
        self.0.changed.ring();
        while let Some(chore) = self.next() {
            chore();
        }
    }

    fn next(&self) -> Option<Chore> {
        self.0.lock().chores.pop_front()
    }
}

enum Order {
    /// The registers that no other vCPU can change.
    Capture,
    /// The others. A vCPU that still runs may send this one an interrupt, which would be sent in its own state, and never arrive in
    /// this one's: so not before all are parked.
    CaptureRest,
    Job(Job),
}

/// What all threads agree on.
struct Control {
    /// Who wants the vCPUs parked; they run when nobody does.
    pauses: u32,
    parked: u32,
    orders: Vec<Option<Order>>,
    /// Orders not done yet.
    open: u32,
    failure: Option<(u32, VcpuStateError)>,
    exit: bool,
    /// Whether the vCPUs stand still for a checkpoint and nothing else.
    checkpoint: bool,
    /// How often they were told to capture themselves.
    round: u64,
    /// What is to be done when they have.
    at_rest: Option<Arc<Mutex<dyn AtRest>>>,
    /// Whether all that it needs is there.
    ready: bool,
    /// Whether somebody is doing it.
    resting: bool,
    /// What the others may help with.
    chores: VecDeque<Chore>,
    /// Whether who waits for it has a processor to look from.
    looks: bool,
    /// When the first of them did.
    stopped: Option<Instant>,
    /// The longest that one of them did for the last checkpoint, so far as that is over.
    stood: Option<Duration>,
}

impl Control {
    fn all_parked(&self) -> bool {
        self.parked as usize == self.orders.len()
    }

    /// What this vCPU can do now.
    fn take_order(&mut self, vcpu: u32) -> Option<Order> {
        let all_parked = self.all_parked();
        self.orders[vcpu as usize].take_if(|order| all_parked || !matches!(order, Order::CaptureRest))
    }
}

struct Shared {
    control: Mutex<Control>,
    /// For vCPU threads: an order, or an end of the pause.
    changed: Bell,
    /// For whoever waits for them: all parked, all orders done.
    settled: Bell,
    /// Whether this machine has processors for those who look.
    spare: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until when to look for the next step of a checkpoint.
    fn patience(&self, for_so_long: Duration) -> Option<Instant> {
        self.spare.then(|| Instant::now() + for_so_long)
    }
}

struct Handle {
    thread: Option<JoinHandle<()>>,
    run_page: RunPage,
    state: Arc<Mutex<VcpuState>>,
    section: String,
    /// The processor that it was on last.
    on_cpu: Arc<AtomicUsize>,
    /// Whether a device is at work on its behalf.
    in_device: Arc<AtomicBool>,
}

/// How the vCPUs are to be.
pub struct CpuOptions {
    /// Their number.
    pub count: u32,
    /// Upper bound of physical address bits.
    pub max_phys_bits: u8,
    /// Show advanced matrix extensions.
    pub amx: bool,
    /// Show virtualisation extensions.
    pub nested: bool,
    /// Host CPUs of each vCPU; empty = any. May be shorter than `count`.
    pub affinity: Vec<Vec<usize>>,
}

/// What vCPUs reach.
pub struct CpuPorts {
    /// Port I/O.
    pub pio: Arc<Bus>,
    /// Memory-mapped I/O.
    pub mmio: Arc<Bus>,
    /// Where guest events go.
    pub on_event: OnGuestEvent,
}

/// All vCPUs of a VM. They live as long as it does, parked when the guest does not run.
pub struct CpuManager {
    shared: Arc<Shared>,
    features: Arc<Features>,
    vcpus: Vec<Handle>,
    cpuid: Vec<kvm_cpuid_entry2>,
    phys_bits: u8,
    /// Of the guest's TSC.
    tsc_khz: AtomicU32,
}

impl CpuManager {
    /// Creates the vCPUs with CPUID, boot MSRs and LAPIC pins set, and their threads, parked (one pause is in force). The
    /// interrupt controller must be there already.
    ///
    /// # Errors
    /// When the kernel refuses any of it.
    pub fn new(kvm: &Kvm, vm: &VmFd, options: &CpuOptions, ports: &CpuPorts) -> Result<Self, CpuError> {
        if options.count == 0 || options.count > VCPUS_MAX {
            return Err(CpuError::Count(options.count));
        }
        vcpu::install_kick_handler()?;
        let fds: Result<Vec<_>, _> =
            (0..options.count).map(|i| vm.create_vcpu(i.into()).map_err(CpuError::kvm("KVM_CREATE_VCPU"))).collect();
        let fds = fds?;
        let state_error = |what| move |source| CpuError::State { vcpu: 0, what, source };
        // CPUID decides which MSRs there are, so it comes before probing.
        let (cpuid, phys_bits) = cpuid::common(kvm, &cpuid_options(options, fds[0].get_tsc_khz().ok()))?;
        for (i, fd) in (0..).zip(&fds) {
            set_up(fd, &cpuid, i)?;
        }
        let features = Arc::new(Features::probe(kvm, &fds[0]).map_err(state_error("probe"))?);
        for fd in &fds {
            msr::set_boot_msrs(fd).map_err(CpuError::kvm("KVM_SET_MSRS"))?;
        }
        let control = Control {
            pauses: 1,
            parked: 0,
            orders: fds.iter().map(|_| None).collect(),
            open: 0,
            failure: None,
            exit: false,
            checkpoint: false,
            round: 0,
            at_rest: None,
            ready: false,
            resting: false,
            chores: VecDeque::new(),
            looks: false,
            stopped: None,
            stood: None,
        };
        let shared = Arc::new(Shared {
            control: Mutex::new(control),
            changed: Bell::default(),
            settled: Bell::default(),
            spare: std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1),
        });
        let tsc_khz = AtomicU32::new(features.tsc_khz);
        let mut manager = Self { shared, features, vcpus: Vec::new(), cpuid, phys_bits, tsc_khz };
        for (i, fd) in (0..).zip(fds) {
            let affinity = options.affinity.get(i as usize).cloned().unwrap_or_default();
            let handle = manager.start_thread(i, fd, ports, affinity)?;
            manager.vcpus.push(handle);
        }
        manager.wait_settled();
        manager.sync_tsc()?;
        Ok(manager)
    }

    fn start_thread(
        &self,
        index: u32,
        mut fd: VcpuFd,
        ports: &CpuPorts,
        affinity: Vec<usize>,
    ) -> Result<Handle, CpuError> {
        let state =
            VcpuState::new(&self.features).map_err(|source| CpuError::State { vcpu: index, what: "probe", source })?;
        let state = Arc::new(Mutex::new(state));
        let run_page = RunPage::new(&mut fd);
        let on_cpu = Arc::new(AtomicUsize::new(usize::MAX));
        let in_device = Arc::new(AtomicBool::new(false));
        let vcpu = Vcpu {
            fd,
            index,
            shared: self.shared.clone(),
            features: self.features.clone(),
            state: state.clone(),
            on_cpu: on_cpu.clone(),
            in_device: in_device.clone(),
            pio: ports.pio.clone(),
            mmio: ports.mmio.clone(),
            on_event: ports.on_event.clone(),
        };
        let thread = host_kit::thread::spawn(format!("vcpu{index}"), move || vcpu.run(&affinity))
            .map_err(|source| CpuError::Thread { vcpu: index, source })?;
        Ok(Handle { thread: Some(thread), run_page, state, section: format!("vcpu{index}"), on_cpu, in_device })
    }

    /// Parks all vCPUs and returns when the last one is. Each finishes its pending port or memory I/O first. Pauses nest: the
    /// vCPUs run again when every `pause` had its `resume`.
    ///
    /// # Errors
    /// When a capture fails. The pause is in force all the same.
    pub fn pause(&self, capture: Capture) -> Result<(), CpuError> {
        drop(self.stop(capture, None));
        self.wait_settled();
        self.take_failure(CAPTURE)
    }

    /// Whether all vCPUs would park in next to no time. One that is in the middle of an access to a device finishes it first, which
    /// takes as long as the device does: to reset a disk, until the storage below it has answered all requests. Looks for a moment,
    /// since almost all accesses take a microsecond.
    #[must_use]
    pub fn can_stop_soon(&self) -> bool {
        let mut end = None;
        self.vcpus.iter().all(|vcpu| {
            while vcpu.in_device.load(Ordering::Acquire) {
                if Instant::now() > *end.get_or_insert_with(|| Instant::now() + PATIENCE) {
                    return false;
                }
                std::hint::spin_loop();
            }
            true
        })
    }

    /// Begins to park all vCPUs with capture. When they have captured themselves, and [`CpuManager::checkpoint`] is called, the last
    /// one does `work`; [`CpuManager::call_off`] instead calls it off.
    pub fn stop_for(&self, work: Arc<Mutex<dyn AtRest>>) {
        self.stop(Capture::Yes, Some(work)).looks = self.is_aside();
    }

    /// Has the work done, and ends the pause unless that says that the guest stays.
    ///
    /// # Errors
    /// When a capture has failed: then nothing is done, and the pause is over.
    pub fn checkpoint(&self) -> Result<(), CpuError> {
        let mut control = self.shared.lock();
        control.ready = true;
        let patience = if control.looks { self.shared.patience(PATIENCE) } else { None };
        drop(control);
        self.shared.changed.ring();
        let over = |control: &Control| control.open == 0 && control.at_rest.is_none() && !control.resting;
        drop(self.wait_until(self.shared.lock(), patience, over));
        self.take_failure(CAPTURE)
    }

    /// Instead of [`CpuManager::checkpoint`]: the work is not done, and the vCPUs go on.
    pub fn call_off(&self) {
        self.shared.lock().at_rest = None;
        self.shared.changed.ring();
        // They are on their way to a stop.
        drop(self.wait_until(self.shared.lock(), None, |control| control.open == 0));
        self.resume();
    }

    fn stop(&self, capture: Capture, work: Option<Arc<Mutex<dyn AtRest>>>) -> MutexGuard<'_, Control> {
        // A capture that nobody waited for may not be over.
        let mut control = self.wait_until(self.shared.lock(), None, |control| control.open == 0);
        control.pauses += 1;
        control.checkpoint = work.is_some() && control.pauses == 1;
        if capture == Capture::Yes {
            (control.failure, control.stopped, control.stood) = (None, None, None);
            (control.at_rest, control.ready) = (work, false);
            control.round += 1;
            control.orders.fill_with(|| Some(Order::Capture));
            control.open = self.count();
        }
        // For parked threads with an order, and for one whose guest has ended its run.
        self.shared.changed.ring();
        if control.pauses == 1 {
            for vcpu in &self.vcpus {
                vcpu.run_page.set_immediate_exit(true);
                if let Some(thread) = &vcpu.thread {
                    vcpu::kick(thread);
                }
            }
        }
        control
    }

    /// Makes `cpus` the processors on which the vCPUs were last.
    pub fn processors(&self, cpus: &mut Vec<usize>) {
        cpus.clear();
        cpus.extend(self.vcpus.iter().map(|vcpu| vcpu.on_cpu.load(Ordering::Relaxed)));
    }

    /// The longest that a vCPU stood still for the last checkpoint, by the vCPUs' own clocks. `None` if somebody else had paused
    /// them.
    #[must_use]
    pub fn stood_still(&self) -> Option<Duration> {
        self.shared.lock().stood
    }

    /// Ends one pause; the vCPUs run when it was the last.
    ///
    /// # Panics
    /// When there is no pause to end.
    pub fn resume(&self) {
        let mut control = self.shared.lock();
        assert!(control.pauses > 0, "resume without pause");
        control.pauses -= 1;
        let run = control.pauses == 0;
        drop(control);
        if run {
            self.shared.changed.ring();
        }
    }

    /// Whether some pause is in force.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.shared.lock().pauses > 0
    }

    /// Number of vCPUs.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.vcpus.len() as u32
    }

    /// Physical address bits the guest sees.
    #[must_use]
    pub fn phys_bits(&self) -> u8 {
        self.phys_bits
    }

    /// The CPUID table of the guest, without what differs between vCPUs. A standby must have an equal one.
    #[must_use]
    pub fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }

    /// Takes over another host's CPUID table, before the vCPUs run for the first time: a guest must find the CPU it was started
    /// with. Look at [`cpuid::missing`] first.
    ///
    /// # Errors
    /// When KVM refuses it.
    ///
    /// # Panics
    /// When the vCPUs are not paused.
    pub fn adopt_cpuid(&self, table: &[kvm_cpuid_entry2]) -> Result<(), CpuError> {
        let job = |vcpu| -> Result<Option<Job>, CpuError> {
            let own = cpuid::for_vcpu(table, vcpu)?;
            let set = move |fd: &mut VcpuFd| {
                fd.set_cpuid2(&own).map_err(|e| VcpuStateError::Kvm { call: "KVM_SET_CPUID2", source: e.into() })
            };
            Ok(Some(Box::new(set)))
        };
        let jobs: Result<Vec<_>, _> = (0..self.count()).map(job).collect();
        self.run_jobs(jobs?, "take over CPU features")
    }

    /// What this host's KVM can tell of a vCPU.
    #[must_use]
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Appends what the last pause with capture has read.
    ///
    /// # Errors
    /// When it does not fit into a section.
    pub fn save(&self, out: &mut StateWriter<'_>) -> Result<(), StateError> {
        for vcpu in &self.vcpus {
            let state = vcpu.state.lock().unwrap_or_else(PoisonError::into_inner);
            out.section(&vcpu.section, state::VERSION, &state.wire())?;
        }
        Ok(())
    }

    /// Sets all (parked) vCPUs to what the sections say, each on its own thread. Their time stamp counters are all set to the
    /// one furthest on, so that none goes backwards, and then kept in step.
    ///
    /// # Errors
    /// When a section is missing or malformed, or this host cannot restore it. The vCPUs are of no use then until a load
    /// succeeds.
    ///
    /// # Panics
    /// When the vCPUs are not paused.
    pub fn load(&self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        let failed = |id: &str, source: VcpuStateError| StateError::Part {
            id: id.to_owned(),
            what: host_kit::error::chain(&source),
            source: None,
        };
        let mut states = Vec::new();
        for vcpu in &self.vcpus {
            let section: state::Section<'_> = from.take(&vcpu.section, state::VERSION)?;
            let mut state = VcpuState::new(&self.features).map_err(|e| failed(&vcpu.section, e))?;
            state.load(&section).map_err(|e| failed(&vcpu.section, e))?;
            states.push(state);
        }
        let tsc = states.iter().map(VcpuState::tsc).max().unwrap_or(0);
        for (vcpu, state) in self.vcpus.iter().zip(&states) {
            let khz = state.restored_tsc_khz(&self.features);
            vcpu.state.lock().unwrap_or_else(PoisonError::into_inner).set_tsc_khz(khz);
            self.tsc_khz.store(khz, Ordering::Relaxed);
        }
        let jobs = states.into_iter().map(|mut state| -> Job {
            let features = self.features.clone();
            state.set_tsc(tsc);
            Box::new(move |fd| state.restore(fd, &features))
        });
        let result = self.run_jobs(jobs.map(Some).collect(), "restore its state").and_then(|()| self.sync_tsc());
        result.map_err(|e| StateError::Part { id: "vcpus".to_owned(), what: host_kit::error::chain(&e), source: None })
    }

    /// Does `job` on the thread of (parked) vCPU `index`.
    ///
    /// # Errors
    /// What the job says.
    ///
    /// # Panics
    /// When the vCPUs are not paused or there is no such vCPU.
    pub fn run_on(
        &self,
        index: u32,
        what: &'static str,
        job: impl FnOnce(&mut VcpuFd) -> Result<(), VcpuStateError> + Send + 'static,
    ) -> Result<(), CpuError> {
        let mut jobs: Vec<Option<Job>> = self.vcpus.iter().map(|_| None).collect();
        jobs[index as usize] = Some(Box::new(job));
        self.run_jobs(jobs, what)
    }

    fn run_jobs(&self, jobs: Vec<Option<Job>>, what: &'static str) -> Result<(), CpuError> {
        let mut control = self.shared.lock();
        assert!(control.pauses > 0 && control.parked == self.count(), "vCPU job while the vCPUs run");
        control.open = jobs.iter().flatten().count() as u32;
        control.orders = jobs.into_iter().map(|job| job.map(Order::Job)).collect();
        drop(control);
        self.shared.changed.ring();
        self.wait_settled();
        self.take_failure(what)
    }

    /// Tells the guest that it was stopped on purpose, so that its watchdogs do not complain. Not in every epoch.
    pub fn announce_stop(&self) {
        let jobs = self.vcpus.iter().map(|_| -> Option<Job> {
            Some(Box::new(|fd| {
                // A guest without kvmclock has nobody to tell.
                let _ = fd.kvmclock_ctrl();
                Ok(())
            }))
        });
        let _ = self.run_jobs(jobs.collect(), "announce a stop");
    }

    /// Raises a non-maskable interrupt on every vCPU.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn nmi(&self) -> Result<(), CpuError> {
        self.pause(Capture::No)?;
        let job = || -> Job {
            Box::new(|fd| fd.nmi().map_err(|e| VcpuStateError::Kvm { call: "KVM_NMI", source: e.into() }))
        };
        let result = self.run_jobs(self.vcpus.iter().map(|_| Some(job())).collect(), "raise an NMI");
        self.resume();
        result
    }

    /// Gives all vCPUs the TSC offset of the first one. Where KVM has no such attribute, its own matching of writes that come
    /// close together has done it.
    fn sync_tsc(&self) -> Result<(), CpuError> {
        if !self.features.tsc_offset || self.count() == 1 {
            return Ok(());
        }
        let (send, receive) = std::sync::mpsc::sync_channel(1);
        self.run_on(0, "read its TSC offset", move |fd| {
            let _ = send.send(crate::kvm::tsc_offset(fd));
            Ok(())
        })?;
        match receive.recv() {
            Ok(Some(offset)) => self.set_tsc_offset(offset),
            _ => Ok(()),
        }
    }

    /// What the first vCPU's TSC was ahead of the host's at the last capture; `None` when KVM does not tell.
    #[must_use]
    pub fn captured_tsc_offset(&self) -> Option<u64> {
        self.vcpus.first()?.state.lock().unwrap_or_else(PoisonError::into_inner).tsc_offset()
    }

    /// Whether the guest's TSC runs at another speed than the host's.
    #[must_use]
    pub fn is_tsc_scaled(&self) -> bool {
        self.tsc_khz.load(Ordering::Relaxed) != self.features.tsc_khz
    }

    /// Sets what all (parked) vCPUs' TSCs are ahead of the host's.
    ///
    /// # Errors
    /// When KVM has no such attribute.
    ///
    /// # Panics
    /// When the vCPUs are not paused.
    pub fn set_tsc_offset(&self, offset: u64) -> Result<(), CpuError> {
        let job = || -> Job {
            Box::new(move |fd| {
                crate::kvm::set_tsc_offset(fd, offset)
                    .map_err(|source| VcpuStateError::Kvm { call: "KVM_SET_DEVICE_ATTR", source })
            })
        };
        self.run_jobs(self.vcpus.iter().map(|_| Some(job())).collect(), "set its TSC offset")
    }

    fn wait_settled(&self) {
        drop(self.wait_until(self.shared.lock(), None, |control| control.all_parked() && control.open == 0));
    }

    fn wait_until<'a>(
        &'a self,
        control: MutexGuard<'a, Control>,
        patience: Option<Instant>,
        wanted: impl Fn(&Control) -> bool,
    ) -> MutexGuard<'a, Control> {
        self.shared.settled.wait_while(&self.shared.control, control, patience, |control| !wanted(control))
    }

    /// Whether the calling thread is in no vCPU's way: who looks must not keep it from its processor.
    fn is_aside(&self) -> bool {
        let here = nix::sched::sched_getcpu();
        here.is_ok_and(|here| self.vcpus.iter().all(|vcpu| vcpu.on_cpu.load(Ordering::Relaxed) != here))
    }

    fn take_failure(&self, what: &'static str) -> Result<(), CpuError> {
        match self.shared.lock().failure.take() {
            Some((vcpu, source)) => Err(CpuError::State { vcpu, what, source }),
            None => Ok(()),
        }
    }
}

impl Drop for CpuManager {
    fn drop(&mut self) {
        let mut control = self.shared.lock();
        control.exit = true;
        control.pauses += 1;
        self.shared.changed.ring();
        for vcpu in &self.vcpus {
            vcpu.run_page.set_immediate_exit(true);
            if let Some(thread) = &vcpu.thread {
                vcpu::kick(thread);
            }
        }
        drop(control);
        for vcpu in &mut self.vcpus {
            if let Some(thread) = vcpu.thread.take()
                && thread.join().is_err()
            {
                tracing::error!("thread {} has panicked", vcpu.section);
            }
        }
    }
}

fn cpuid_options(options: &CpuOptions, tsc_khz: Option<u32>) -> CpuidOptions {
    CpuidOptions {
        vcpus: options.count,
        max_phys_bits: options.max_phys_bits,
        amx: options.amx,
        nested: options.nested,
        tsc_khz: tsc_khz.filter(|khz| *khz > 0),
    }
}

fn set_up(fd: &VcpuFd, cpuid: &[kvm_cpuid_entry2], index: u32) -> Result<(), CpuError> {
    fd.set_cpuid2(&cpuid::for_vcpu(cpuid, index)?).map_err(CpuError::kvm("KVM_SET_CPUID2"))?;
    let mut lapic = fd.get_lapic().map_err(CpuError::kvm("KVM_GET_LAPIC"))?;
    vcpu::set_lapic_pins(&mut lapic);
    fd.set_lapic(&lapic).map_err(CpuError::kvm("KVM_SET_LAPIC"))
}

#[cfg(test)]
mod tests;
