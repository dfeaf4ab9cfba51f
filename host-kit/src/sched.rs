//! Real-time priority and CPU of the calling thread, for threads on the epoch path.
//!
//! Such a thread runs for microseconds and waits; a vCPU of a guest that computes never waits, and would keep
//! a CPU for milliseconds. The lowest real-time priority puts the thread first. Not for a first copy, which
//! would starve everybody else on a small host. The threads that it starts inherit its CPU, not its priority.

use std::cell::{Cell, OnceCell};
use std::io;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::Pid;

/// The lowest.
const REALTIME_PRIORITY: i32 = 1;

pub(crate) const THIS_THREAD: Pid = Pid::from_raw(0);

thread_local! {
    static ALLOWED: OnceCell<Option<CpuSet>> = const { OnceCell::new() };
    static PINNED_TO: Cell<Option<u16>> = const { Cell::new(None) };
    static REALTIME: Cell<bool> = const { Cell::new(false) };
}

/// The CPUs that the calling thread was allowed to run on when it was started.
pub(crate) fn allowed() -> Option<CpuSet> {
    ALLOWED.with(|allowed| *allowed.get_or_init(|| sched_getaffinity(THIS_THREAD).ok()))
}

/// Gives the calling thread real-time priority, or makes it an ordinary thread again, which also unpins it.
/// Costs nothing when it is so already. Where real-time priority is not permitted, epochs take longer on a
/// busy host.
pub fn set_realtime(realtime: bool) {
    if !realtime {
        pin_to_cpu(None);
    }
    if REALTIME.replace(realtime) == realtime {
        return;
    }
    // Its threads are ordinary ones. Only who has CAP_SYS_NICE can take that back.
    let (policy, priority) = if realtime { (libc::SCHED_RR, REALTIME_PRIORITY) } else { (libc::SCHED_OTHER, 0) };
    let with_reset = || set_policy(policy | libc::SCHED_RESET_ON_FORK, priority);
    let set = if realtime { with_reset() } else { set_policy(policy, priority).or_else(|_| with_reset()) };
    if let Err(error) = set {
        tracing::info!("no real-time priority for threads on the epoch path: {error}");
    }
}

/// Whether this process may have real-time priority without CAP_SYS_NICE.
pub(crate) fn realtime_needs_no_capability() -> bool {
    getrlimit(Resource::RLIMIT_RTPRIO).is_ok_and(|(soft, _)| soft >= REALTIME_PRIORITY.cast_unsigned().into())
}

/// Pins the calling thread to that CPU; `None` lets it run on all that it is allowed to. Costs nothing when
/// it is so already.
pub fn pin_to_cpu(cpu: Option<u16>) {
    if PINNED_TO.get() == cpu {
        return;
    }
    let Some(allowed) = allowed() else { return };
    PINNED_TO.set(cpu);
    let mut one = CpuSet::new();
    let set = match cpu {
        Some(cpu) if allowed.is_set(cpu.into()) == Ok(true) && one.set(cpu.into()).is_ok() => one,
        _ => allowed,
    };
    if let Err(errno) = sched_setaffinity(THIS_THREAD, &set) {
        tracing::info!("a thread on the epoch path cannot change its CPU: {errno}");
    }
}

/// The niceness, which counts for an ordinary thread, stays what it is.
fn set_policy(policy: i32, sched_priority: i32) -> io::Result<()> {
    let param = libc::sched_param { sched_priority };
    // SAFETY: the calling thread exists, and the call reads `param`.
    match unsafe { libc::sched_setscheduler(THIS_THREAD.as_raw(), policy, &raw const param) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use nix::sched::sched_getcpu;

    use super::*;

    /// Priority and niceness of the calling thread, as the kernel tells them.
    fn seen() -> (i64, i64) {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let fields: Vec<i64> = stat
            .rsplit_once(") ")
            .unwrap()
            .1
            .split(' ')
            .skip(1)
            .map(|field| field.trim().parse().unwrap_or(0))
            .collect();
        (fields[14], fields[15])
    }

    #[test]
    fn a_realtime_thread_becomes_again_what_it_was() {
        let before = seen();
        set_realtime(true);
        let realtime = seen();
        assert!(realtime.0 < 0 || realtime == before, "real-time, or not allowed to be: {realtime:?}");
        let child = std::thread::spawn(seen).join().unwrap();
        // The kernel gives such threads the usual niceness, 0.
        assert!(child == before || child == (20, 0), "its threads are ordinary ones: {child:?}");
        set_realtime(false);
        assert_eq!(seen(), before);
    }

    #[test]
    fn a_pinned_thread_stays_on_its_cpu_and_is_let_go() {
        let before = sched_getaffinity(THIS_THREAD);
        let cpu = sched_getcpu().unwrap();
        pin_to_cpu(u16::try_from(cpu).ok());
        assert_eq!(sched_getcpu(), Ok(cpu));
        set_realtime(false);
        assert_eq!(sched_getaffinity(THIS_THREAD), before);
        pin_to_cpu(Some(u16::MAX));
        assert_eq!(sched_getaffinity(THIS_THREAD), before, "a CPU that does not exist");
    }
}
