//! Threads on the way of an epoch go before the vCPUs, which would otherwise keep a processor for milliseconds.
//!
//! Such a thread runs for microseconds and waits; a guest that computes never does. The lowest real-time priority says so. Not for
//! a first copy, which would stop everybody else on a small host. Threads inherit it: start them before.

mod place;

use std::cell::Cell;
use std::io;

pub use place::{Busy, stay_on};

thread_local! {
    static URGENT: Cell<bool> = const { Cell::new(false) };
}

/// Makes the calling thread urgent, or ordinary again, and then it runs wherever it may. Costs nothing when it is so already. Where
/// that is not allowed, epochs take longer on a busy host.
pub fn set(urgent: bool) {
    if !urgent {
        stay_on(None);
    }
    if URGENT.replace(urgent) == urgent {
        return;
    }
    let (policy, priority) = if urgent { (libc::SCHED_RR, 1) } else { (libc::SCHED_OTHER, 0) };
    if let Err(error) = set_policy(policy, priority) {
        tracing::info!("no real-time priority for threads on the way of an epoch: {error}");
    }
}

/// The niceness, which counts for an ordinary thread, stays what it is.
fn set_policy(policy: i32, sched_priority: i32) -> io::Result<()> {
    let param = libc::sched_param { sched_priority };
    // SAFETY: the calling thread exists, and the call reads `param`.
    match unsafe { libc::pthread_setschedparam(libc::pthread_self(), policy, &raw const param) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

#[cfg(test)]
mod tests {
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
    fn an_urgent_thread_becomes_again_what_it_was() {
        let before = seen();
        set(true);
        let urgent = seen();
        assert!(urgent.0 < 0 || urgent == before, "real-time, or not allowed to be: {urgent:?}");
        set(false);
        assert_eq!(seen(), before);
    }
}
