//! The thread of one vCPU: run loop, exits to devices, parking.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread::JoinHandle;

use host_kit::sandbox::Needs;
use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_lapic_state, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::os::unix::thread::JoinHandleExt;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::error::CpuError;
use super::options::{GuestEvent, OnGuestEvent};
use super::rendezvous::Order;
use super::state::{Features, VcpuState, VcpuStateError, describe};
use super::vcpu_sync::{Parked, ParkedVcpu, VcpuSync};

use crate::machine::bus::Bus;
use host_kit::info_limited;

/// Of KVM, and of the devices that its guest accesses, whose backends it talks to.
pub(super) const NEEDS: Needs = Needs::VCPU.union(Needs::MESSAGES).union(Needs::SCHEDULE).union(Needs::SHARED_MEMORY);

/// What a parked vCPU's thread does with it.
pub(super) type Job = Box<dyn FnOnce(&mut VcpuFd) -> Result<(), VcpuStateError> + Send>;

/// LAPIC register offsets of the two local pins, and what they do after reset of a PC.
const LAPIC_LVT0: usize = 0x350;
const LAPIC_LVT1: usize = 0x360;
const DELIVER_NMI: u8 = 4;
const DELIVER_EXTINT: u8 = 7;

/// A vCPU's shared page with the kernel, for the two fields that others than its `VcpuFd` touch.
pub(super) struct RunPage(NonNull<kvm_run>);

// SAFETY: the page is mapped until the `VcpuFd` is dropped, at the end of its thread; `CpuManager`, which
// alone holds a copy for other threads, uses it only before it joins that thread. What other threads touch is
// one byte, atomically.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    pub(super) fn new(fd: &mut VcpuFd) -> Self {
        Self(NonNull::from(fd.get_kvm_run()))
    }

    /// Makes the next `KVM_RUN` return at once, or stops doing so.
    pub(super) fn set_immediate_exit(&self, on: bool) {
        // SAFETY: the field is one byte inside a live mapping, see above; the kernel reads it as one byte.
        let flag = unsafe { AtomicU8::from_ptr(&raw mut (*self.0.as_ptr()).immediate_exit) };
        flag.store(on.into(), Ordering::SeqCst);
    }

    /// Bytes of one item of the port access that the last `KVM_RUN` ended with.
    fn io_size(&self) -> usize {
        // SAFETY: inside a live mapping, see above; only called on the vCPU's own thread after KVM_EXIT_IO,
        // so the kernel does not write it now and the union holds `io`.
        let size = unsafe { (*self.0.as_ptr()).__bindgen_anon_1.io.size };
        usize::from(size).max(1)
    }
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// The signal only has to end `KVM_RUN`; its handler does nothing.
pub(super) fn install_kick_handler() -> Result<(), CpuError> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        result = register_signal_handler(SIGRTMIN(), on_kick).map_err(|e| CpuError::Signal(e.into()));
    });
    result
}

pub(super) fn kick(thread: &JoinHandle<()>) {
    // SAFETY: the thread has not been joined, so its id is valid.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGRTMIN()) };
}

/// LINT0 takes the legacy controller's interrupts, LINT1 non-maskable ones.
pub(super) fn set_lapic_pins(lapic: &mut kvm_lapic_state) {
    for (offset, mode) in [(LAPIC_LVT0, DELIVER_EXTINT), (LAPIC_LVT1, DELIVER_NMI)] {
        // Delivery mode is in bits 8 to 10.
        let byte = &mut lapic.regs[offset + 1];
        *byte = (*byte as u8 & !0x7 | mode) as libc::c_char;
    }
}

/// What the run loop does next.
enum Next {
    Run,
    /// `KVM_RUN` was interrupted and no I/O is pending: the only place to park.
    Interrupted,
    /// The guest has ended its run; wait for a pause.
    Stop(GuestEvent),
}

pub(super) struct Vcpu {
    pub(super) fd: VcpuFd,
    pub(super) index: u32,
    pub(super) sync: Arc<VcpuSync<Job, VcpuStateError>>,
    pub(super) features: Arc<Features>,
    pub(super) state: Arc<Mutex<VcpuState>>,
    pub(super) on_cpu: Arc<AtomicUsize>,
    pub(super) in_device: Arc<AtomicBool>,
    pub(super) pio: Arc<Bus>,
    pub(super) mmio: Arc<Bus>,
    pub(super) on_event: OnGuestEvent,
}

impl Vcpu {
    /// The thread's body: parked until the first resume, then running or parked until the VM is dropped.
    pub(super) fn run(mut self, affinity: &[usize]) {
        self.set_affinity(affinity);
        let page = RunPage::new(&mut self.fd);
        if self.park(&page) == Parked::Exit {
            return;
        }
        loop {
            let next = self.run_once(&page);
            self.in_device.store(false, Ordering::Release);
            match next {
                Next::Run => {}
                Next::Stop(event) => {
                    (self.on_event)(event);
                    // The guest will not run on by itself; neither does this thread.
                    self.sync.wait_for_pause();
                }
                Next::Interrupted if !self.sync.is_paused() => {}
                Next::Interrupted => {
                    if self.park(&page) == Parked::Exit {
                        return;
                    }
                }
            }
        }
    }

    fn set_affinity(&self, cpus: &[usize]) {
        if cpus.is_empty() {
            return;
        }
        let mut set = nix::sched::CpuSet::new();
        let valid = cpus.iter().all(|cpu| set.set(*cpu).is_ok());
        if !valid || nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).is_err() {
            tracing::warn!("vCPU {} cannot be bound to host CPUs {cpus:?}", self.index);
        }
    }

    fn park(&mut self, page: &RunPage) -> Parked {
        let sync = self.sync.clone();
        sync.park(self.index, &mut OnItsThread { vcpu: self, page })
    }

    fn run_once(&mut self, page: &RunPage) -> Next {
        self.on_cpu.store(nix::sched::sched_getcpu().unwrap_or(usize::MAX), Ordering::Relaxed);
        let exit = self.fd.run();
        self.in_device.store(true, Ordering::Release);
        match exit {
            Ok(VcpuExit::IoOut(port, data)) => {
                // A string instruction gives many items at once.
                for item in data.chunks(page.io_size()) {
                    self.pio.write(port.into(), item);
                }
                Next::Run
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                data.fill(0xff);
                for item in data.chunks_mut(page.io_size()) {
                    self.pio.read(port.into(), item);
                }
                Next::Run
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                data.fill(0xff);
                self.mmio.read(address, data);
                Next::Run
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.mmio.write(address, data);
                Next::Run
            }
            // Our IOAPIC has edges only, so nobody waits for an end of interrupt.
            Ok(VcpuExit::IoapicEoi(_) | VcpuExit::Intr) => Next::Run,
            Ok(VcpuExit::Shutdown) => {
                info_limited!("vCPU {}: triple fault", self.index);
                Next::Stop(GuestEvent::Reset)
            }
            Ok(VcpuExit::SystemEvent(kind, _)) => match kind {
                KVM_SYSTEM_EVENT_SHUTDOWN => Next::Stop(GuestEvent::Shutdown),
                KVM_SYSTEM_EVENT_RESET => Next::Stop(GuestEvent::Reset),
                kind => Next::Stop(GuestEvent::Crash(format!("vCPU {}: system event {kind}", self.index))),
            },
            Ok(exit) => {
                let (event, what) = (event_of(&exit), describe(&exit));
                Next::Stop(event(self.explain(&what)))
            }
            Err(e) if e.errno() == libc::EINTR => Next::Interrupted,
            Err(e) if e.errno() == libc::EAGAIN => Next::Run,
            Err(e) => Next::Stop(GuestEvent::HostFailed(self.explain(&format!("KVM_RUN failed, {e}")))),
        }
    }

    /// What is known about a vCPU that KVM cannot run on.
    fn explain(&mut self, what: &str) -> String {
        let mut text = format!("vCPU {}: {what}", self.index);
        let run = self.fd.get_kvm_run();
        if run.exit_reason == kvm_bindings::KVM_EXIT_INTERNAL_ERROR {
            // SAFETY: the exit reason says that the union holds `internal`.
            let internal = unsafe { run.__bindgen_anon_1.internal };
            text = format!("{text} (suberror {})", internal.suberror);
        }
        if let Ok(regs) = self.fd.get_regs() {
            text = format!("{text} at rip {:#x}", regs.rip);
        }
        text
    }
}

/// Whose fault it is that KVM does not run a vCPU on: this host's if the processor does not take the vCPU as
/// it is, or memory that the guest has is not there; otherwise the guest's, with which it goes elsewhere.
fn event_of(exit: &VcpuExit<'_>) -> fn(String) -> GuestEvent {
    match exit {
        VcpuExit::FailEntry(..) | VcpuExit::MemoryFault { .. } => GuestEvent::HostFailed,
        _ => GuestEvent::Crash,
    }
}

/// A parked vCPU in the hands of its own thread.
struct OnItsThread<'a> {
    vcpu: &'a mut Vcpu,
    page: &'a RunPage,
}

impl ParkedVcpu for OnItsThread<'_> {
    type Job = Job;
    type Error = VcpuStateError;

    fn obey(&mut self, order: Order<Job>) -> Result<(), VcpuStateError> {
        let Vcpu { fd, index, features, state, .. } = &mut *self.vcpu;
        let state = || state.lock().unwrap_or_else(PoisonError::into_inner);
        match order {
            Order::Capture => {
                let mut state = state();
                if *index == 0 {
                    state.capture_tsc_offset(fd, features);
                }
                state.capture_own(fd, features)
            }
            Order::CaptureRest => state().capture_rest(fd, features),
            Order::Job(job) => job(fd),
        }
    }

    fn let_run(&self) {
        self.page.set_immediate_exit(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_cannot_run_a_vcpu_is_not_a_guest_that_crashes() {
        let is_hosts = |exit| matches!(event_of(&exit)(String::new()), GuestEvent::HostFailed(_));
        assert!(is_hosts(VcpuExit::FailEntry(0x8000_0021, 0)));
        assert!(is_hosts(VcpuExit::MemoryFault { flags: 0, gpa: 0x30_0000, size: 4096 }));
        assert!(!is_hosts(VcpuExit::InternalError) && !is_hosts(VcpuExit::Exception));
    }
}
