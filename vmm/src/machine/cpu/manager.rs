//! The vCPUs: one thread each, started parked, stopped and started together.
//!
//! In: pause, resume, load. Out: captured registers, and guest events when the guest ends its own run. Never:
//! a sleep of a set time; whoever waits is woken by whoever is done, after having spun for a moment when it
//! is about a checkpoint.
//!
//! A vCPU thread is either in its run loop or parked. [`CpuManager::pause`] sets `immediate_exit` and sends a
//! signal; whichever comes first, the next `KVM_RUN` ends with EINTR after finishing the I/O that was
//! pending, and the thread parks. While parked it does jobs (capture, load, anything that needs the vCPU's
//! own thread).

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::cpuid::{self, CpuidOptions};
use super::error::CpuError;
use super::msr;
use super::options::{Capture, CpuOptions, CpuPorts, VCPUS_MAX};
use super::rendezvous::Purpose;
use super::state::{self, Features, VcpuState, VcpuStateError};
use super::vcpu::{self, Job, RunPage, Vcpu};
use super::vcpu_sync::{Failure, SPIN, VcpuSync};
use super::worker_pool::PausedWork;
use crate::machine::state::{StateError, StateReader, StateWriter};

/// What a vCPU could not do when it could not capture itself.
const CAPTURE: &str = "capture its state";

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

/// All vCPUs of a VM. They live as long as it does, parked when the guest does not run.
pub struct CpuManager {
    sync: Arc<VcpuSync<Job, VcpuStateError>>,
    /// Whether whoever waits for the checkpoint is on no vCPU's processor.
    waits_aside: AtomicBool,
    features: Arc<Features>,
    vcpus: Vec<Handle>,
    /// What this host can show a guest.
    cpuid: Vec<kvm_cpuid_entry2>,
    /// What the guest is shown.
    guest_cpuid: Mutex<Vec<kvm_cpuid_entry2>>,
    phys_bits: u8,
    /// Of the guest's TSC.
    tsc_khz: AtomicU32,
}

impl CpuManager {
    /// Creates the vCPUs with CPUID, boot MSRs and LAPIC pins set, and their threads, parked (one pause is in
    /// force). The interrupt controller must be there already.
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
        let may_spin = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
        let sync = Arc::new(VcpuSync::new(options.count, may_spin));
        let tsc_khz = AtomicU32::new(features.tsc_khz);
        let mut manager = Self {
            sync,
            waits_aside: AtomicBool::new(false),
            features,
            vcpus: Vec::new(),
            guest_cpuid: Mutex::new(cpuid.clone()),
            cpuid,
            phys_bits,
            tsc_khz,
        };
        for (i, fd) in (0..).zip(fds) {
            let affinity = options.affinity.get(i as usize).cloned().unwrap_or_default();
            let handle = manager.start_thread(i, fd, ports, affinity)?;
            manager.vcpus.push(handle);
        }
        report(manager.sync.settle(), "start")?;
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
            sync: self.sync.clone(),
            features: self.features.clone(),
            state: state.clone(),
            on_cpu: on_cpu.clone(),
            in_device: in_device.clone(),
            pio: ports.pio.clone(),
            mmio: ports.mmio.clone(),
            on_event: ports.on_event.clone(),
        };
        let thread = host_kit::thread::spawn(format!("vcpu{index}"), vcpu::NEEDS, move || vcpu.run(&affinity))
            .map_err(|source| CpuError::Thread { vcpu: index, source })?;
        Ok(Handle { thread: Some(thread), run_page, state, section: format!("vcpu{index}"), on_cpu, in_device })
    }

    /// Parks all vCPUs and returns when the last one is. Each finishes its pending port or memory I/O first.
    /// Pauses nest: the vCPUs run again when every `pause` had its `resume`.
    ///
    /// # Errors
    /// When a capture fails. The pause is in force all the same.
    pub fn pause(&self, capture: Capture) -> Result<(), CpuError> {
        self.stop(match capture {
            Capture::Yes => Purpose::Capture,
            Capture::No => Purpose::Stop,
        });
        report(self.sync.settle(), CAPTURE)
    }

    /// Parks all vCPUs, as [`CpuManager::pause`] does, but waits for none that is in the middle of an access
    /// to a device: it finishes that, and executes no instruction of the guest before it parks.
    pub fn park(&self) {
        self.stop(Purpose::Stop);
        // In this order: whoever parks in between is counted once.
        while self.sync.parked() as usize + self.at_devices() < self.vcpus.len() {
            std::thread::sleep(SPIN);
        }
    }

    fn at_devices(&self) -> usize {
        self.vcpus.iter().filter(|vcpu| vcpu.in_device.load(Ordering::Acquire)).count()
    }

    /// Whether all vCPUs would park in next to no time. One that is in the middle of an access to a device
    /// finishes it first, which takes as long as the device does: to reset a disk, until the storage below it
    /// has answered all requests. Spins for a moment, since almost all accesses take a microsecond.
    #[must_use]
    pub fn can_stop_soon(&self) -> bool {
        let mut end = None;
        self.vcpus.iter().all(|vcpu| {
            while vcpu.in_device.load(Ordering::Acquire) {
                if Instant::now() > *end.get_or_insert_with(|| Instant::now() + SPIN) {
                    return false;
                }
                std::hint::spin_loop();
            }
            true
        })
    }

    /// Begins to park all vCPUs with capture. When they have captured themselves, and
    /// [`CpuManager::checkpoint`] is called, the last one does `work`; [`CpuManager::call_off`] instead calls
    /// it off.
    pub fn stop_for(&self, work: Arc<Mutex<dyn PausedWork>>) {
        self.waits_aside.store(self.is_aside(), Ordering::Relaxed);
        self.stop(Purpose::Checkpoint(work));
    }

    /// Has the work done, and ends the pause unless that says that the guest stays.
    ///
    /// # Errors
    /// When a capture has failed: then nothing is done, and the pause is over.
    pub fn checkpoint(&self) -> Result<(), CpuError> {
        report(self.sync.go_ahead(self.waits_aside.load(Ordering::Relaxed)), CAPTURE)
    }

    /// Instead of [`CpuManager::checkpoint`]: the work is not done, and the vCPUs go on.
    pub fn call_off(&self) {
        self.sync.call_off();
    }

    fn stop(&self, purpose: Purpose<Arc<Mutex<dyn PausedWork>>>) {
        self.sync.stop(purpose, || self.kick_all());
    }

    fn kick_all(&self) {
        for vcpu in &self.vcpus {
            vcpu.run_page.set_immediate_exit(true);
            if let Some(thread) = &vcpu.thread {
                vcpu::kick(thread);
            }
        }
    }

    /// Makes `cpus` the processors on which the vCPUs were last.
    pub fn processors(&self, cpus: &mut Vec<usize>) {
        cpus.clear();
        cpus.extend(self.vcpus.iter().map(|vcpu| vcpu.on_cpu.load(Ordering::Relaxed)));
    }

    /// The longest that a vCPU was paused for the last checkpoint, by the vCPUs' own clocks. `None` if
    /// somebody else had paused them.
    #[must_use]
    pub fn last_pause(&self) -> Option<Duration> {
        self.sync.last_pause()
    }

    /// Ends one pause; the vCPUs run when it was the last.
    ///
    /// # Panics
    /// When there is no pause to end.
    pub fn resume(&self) {
        self.sync.resume();
    }

    /// Whether some pause is in force.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.sync.is_paused()
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

    /// The CPUID table that this host gives a guest which it boots, without what differs between vCPUs: a
    /// guest from elsewhere may have less, not more.
    #[must_use]
    pub fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }

    /// The CPUID table that the guest was started with, here or elsewhere.
    #[must_use]
    pub fn guest_cpuid(&self) -> Vec<kvm_cpuid_entry2> {
        self.guest_cpuid.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// kHz of the guest's TSC; 0 if the host does not tell.
    #[must_use]
    pub fn tsc_khz(&self) -> u32 {
        self.tsc_khz.load(Ordering::Relaxed)
    }

    /// Takes over another host's CPUID table, before the vCPUs run for the first time: a guest must find the
    /// CPU it was started with. Look at [`cpuid::missing`] first.
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
        self.run_jobs(jobs?, "take over CPU features")?;
        *self.guest_cpuid.lock().unwrap_or_else(PoisonError::into_inner) = table.to_vec();
        Ok(())
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

    /// Sets all (parked) vCPUs to what the sections say, each on its own thread. Their time stamp counters
    /// are all set to the one furthest on, so that none goes backwards, and then kept in step.
    ///
    /// # Errors
    /// When a section is missing or malformed, or this host cannot restore it. The vCPUs are of no use then
    /// until a load succeeds.
    ///
    /// # Panics
    /// When the vCPUs are not paused.
    pub fn load(&self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        self.load_at(from, None)
    }

    /// As [`CpuManager::load`], with what the vCPUs were when they were made: a reset. The TSC keeps its
    /// speed, of which a guest from elsewhere was told by the CPUID table that it keeps, too.
    ///
    /// # Errors
    /// As those of [`CpuManager::load`].
    ///
    /// # Panics
    /// When the vCPUs are not paused.
    pub fn power_on(&self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        self.load_at(from, Some(self.tsc_khz()))
    }

    /// `tsc_khz`: instead of what the sections say.
    fn load_at(&self, from: &mut StateReader<'_>, tsc_khz: Option<u32>) -> Result<(), StateError> {
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
            if let Some(khz) = tsc_khz {
                state.set_tsc_khz(khz);
            }
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
        report(self.sync.run_jobs(jobs.into_iter()), what)
    }

    /// Tells the guest that it was stopped on purpose, so that its watchdogs do not complain. Not at every
    /// checkpoint.
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

    /// Gives all vCPUs the TSC offset of the first one. Where KVM has no such attribute, its own matching of
    /// writes that come close together has done it.
    fn sync_tsc(&self) -> Result<(), CpuError> {
        if !self.features.tsc_offset || self.count() == 1 {
            return Ok(());
        }
        let (send, receive) = std::sync::mpsc::sync_channel(1);
        self.run_on(0, "read its TSC offset", move |fd| {
            let _ = send.send(crate::machine::kvm::tsc_offset(fd));
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
        self.tsc_khz() != self.features.tsc_khz
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
                crate::machine::kvm::set_tsc_offset(fd, offset)
                    .map_err(|source| VcpuStateError::Kvm { call: "KVM_SET_DEVICE_ATTR", source })
            })
        };
        self.run_jobs(self.vcpus.iter().map(|_| Some(job())).collect(), "set its TSC offset")
    }

    /// Whether the calling thread is in no vCPU's way: whoever spins must not keep it from its processor.
    fn is_aside(&self) -> bool {
        let here = nix::sched::sched_getcpu();
        here.is_ok_and(|here| self.vcpus.iter().all(|vcpu| vcpu.on_cpu.load(Ordering::Relaxed) != here))
    }
}

impl Drop for CpuManager {
    fn drop(&mut self) {
        self.sync.exit(|| self.kick_all());
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

/// The failure of one of the vCPUs when they were to do `what`.
fn report(failure: Failure<VcpuStateError>, what: &'static str) -> Result<(), CpuError> {
    match failure {
        Some((vcpu, source)) => Err(CpuError::State { vcpu, what, source }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
