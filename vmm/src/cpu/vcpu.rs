//! The thread of one vCPU: run loop, exits to devices, parking.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_lapic_state, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::os::unix::thread::JoinHandleExt;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::state::{Features, VcpuState, describe};
use super::{Control, CpuError, Crew, GuestEvent, OnGuestEvent, Order, Shared, VCPU_PATIENCE};
use crate::bus::Bus;
use host_kit::info_limited;

/// LAPIC register offsets of the two local pins, and what they do after reset of a PC.
const LAPIC_LVT0: usize = 0x350;
const LAPIC_LVT1: usize = 0x360;
const DELIVER_NMI: u8 = 4;
const DELIVER_EXTINT: u8 = 7;

/// A vCPU's shared page with the kernel, for the two fields that others than its `VcpuFd` touch.
pub(super) struct RunPage(NonNull<kvm_run>);

// SAFETY: the page is mapped until the `VcpuFd` is dropped, at the end of its thread; `CpuManager`, which alone holds a copy for
// other threads, uses it only before it joins that thread. What other threads touch is one byte, atomically.
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
        // SAFETY: inside a live mapping, see above; only called on the vCPU's own thread after KVM_EXIT_IO, so the kernel does
        // not write it now and the union holds `io`.
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

enum Parked {
    Run,
    Exit,
}

pub(super) struct Vcpu {
    pub(super) fd: VcpuFd,
    pub(super) index: u32,
    pub(super) shared: Arc<Shared>,
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
        if matches!(self.park(&page), Parked::Exit) {
            return;
        }
        loop {
            let next = self.run_once(&page);
            self.in_device.store(false, Ordering::Release);
            match next {
                Next::Run => {}
                Next::Stop(event) => {
                    (self.on_event)(event);
                    self.wait_for_pause();
                }
                Next::Interrupted if self.shared.lock().pauses == 0 => {}
                Next::Interrupted => {
                    if matches!(self.park(&page), Parked::Exit) {
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

    /// Counted as parked until nobody wants a pause any more; does orders meanwhile.
    fn park(&mut self, page: &RunPage) -> Parked {
        let (shared, stopped) = (self.shared.clone(), Instant::now());
        // The guest is to go on the moment that its checkpoint is complete.
        let mut patience = None;
        let mut control = shared.lock();
        control.parked += 1;
        control.stopped = control.stopped.min(Some(stopped)).or(Some(stopped));
        // Whoever waits is told without the lock, which he needs at once; he may well preempt this thread.
        let mut settled = control.open == 0 && control.all_parked();
        let mut awaited = control.open > 0 && control.orders.len() > 1 && control.all_parked();
        loop {
            if std::mem::take(&mut awaited) {
                drop(control);
                shared.changed.ring();
                control = shared.lock();
            } else if let Some(order) = control.take_order(self.index) {
                drop(control);
                if matches!(order, Order::Capture) {
                    patience = shared.patience(VCPU_PATIENCE);
                }
                let result = self.perform(order);
                control = shared.lock();
                if let Ok(Some(rest)) = result {
                    control.orders[self.index as usize] = Some(rest);
                    continue;
                }
                finish_order(&mut control, self.index, result.err());
                settled = control.open == 0;
                if settled {
                    control = finish_checkpoint(&shared, control);
                }
            } else if let Some(chore) = control.chores.pop_front() {
                drop(control);
                chore();
                control = shared.lock();
            } else if std::mem::take(&mut settled) {
                drop(control);
                shared.settled.ring();
                control = shared.lock();
            } else if control.exit {
                return Parked::Exit;
            } else if control.pauses == 0 {
                control.parked -= 1;
                if control.checkpoint {
                    control.stood = control.stood.max(Some(stopped.elapsed()));
                }
                // Under the lock, so that a pause that comes right now sets it again.
                page.set_immediate_exit(false);
                return Parked::Run;
            } else {
                control = shared.changed.wait(&shared.control, control, patience);
            }
        }
    }

    /// Returns what remains to be done later.
    fn perform(&mut self, order: Order) -> Result<Option<Order>, super::VcpuStateError> {
        let state = || self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match order {
            Order::Capture => {
                let mut state = state();
                if self.index == 0 {
                    state.capture_tsc_offset(&self.fd, &self.features);
                }
                state.capture_own(&self.fd, &self.features)?;
                Ok(Some(Order::CaptureRest))
            }
            Order::CaptureRest => state().capture_rest(&mut self.fd, &self.features).map(|()| None),
            Order::Job(job) => job(&mut self.fd).map(|()| None),
        }
    }

    /// The guest will not run on by itself; neither do we.
    fn wait_for_pause(&self) {
        let control = self.shared.lock();
        drop(self.shared.changed.wait_while(&self.shared.control, control, None, |control| control.pauses == 0));
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
                let what = describe(&exit);
                Next::Stop(GuestEvent::Crash(self.explain(&what)))
            }
            Err(e) if e.errno() == libc::EINTR => Next::Interrupted,
            Err(e) if e.errno() == libc::EAGAIN => Next::Run,
            Err(e) => Next::Stop(GuestEvent::Crash(self.explain(&format!("KVM_RUN failed, {e}")))),
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

/// Every vCPU has captured itself: does what is to be done now if the pause is for a checkpoint, and ends that.
fn finish_checkpoint<'a>(shared: &'a Shared, mut control: MutexGuard<'a, Control>) -> MutexGuard<'a, Control> {
    let patience = shared.patience(VCPU_PATIENCE);
    let round = control.round;
    // The next round may begin before this thread has noticed that this one was called off.
    let early =
        move |control: &Control| control.round == round && control.at_rest.is_some() && !control.ready && !control.exit;
    if early(&control) {
        // Somebody else may wait until all have captured themselves.
        drop(control);
        shared.settled.ring();
        control = shared.changed.wait_while(&shared.control, shared.lock(), patience, early);
    }
    if control.round != round || !control.ready {
        return control;
    }
    let Some(work) = control.at_rest.take() else { return control };
    let mut goes_on = true;
    if control.failure.is_none() {
        control.resting = true;
        drop(control);
        goes_on = work.lock().unwrap_or_else(PoisonError::into_inner).at_rest(&Crew(shared));
        control = shared.lock();
        control.resting = false;
    }
    if goes_on {
        control.pauses -= 1;
    }
    if control.checkpoint {
        control.stood = control.stopped.map(|stopped| stopped.elapsed());
    }
    drop(control);
    shared.changed.ring();
    shared.lock()
}

fn finish_order(control: &mut Control, index: u32, failure: Option<super::VcpuStateError>) {
    control.open -= 1;
    if let Some(error) = failure
        && control.failure.is_none()
    {
        control.failure = Some((index, error));
    }
}
