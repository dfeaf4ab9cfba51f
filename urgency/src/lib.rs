//! Threads on the way of an epoch go before the vCPUs, which would otherwise keep a processor for milliseconds.
//!
//! Such a thread runs for microseconds and waits; a guest that computes never does. The lowest real-time priority says so. Not for
//! a first copy, which would stop everybody else on a small host. Threads inherit it: start them before.
#![forbid(unsafe_code)]

mod place;

use std::cell::Cell;

pub use place::{Busy, stay_on};

use thread_priority::ThreadPriority;
use thread_priority::unix::{
    NormalThreadSchedulePolicy, RealtimeThreadSchedulePolicy, ScheduleParams, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

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
    let (policy, sched_priority) = if urgent {
        (ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::RoundRobin), 1)
    } else {
        (ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Other), 0)
    };
    let priority = ThreadPriority::from_posix(ScheduleParams { sched_priority });
    if let Err(error) = set_thread_priority_and_policy(thread_native_id(), priority, policy) {
        tracing::info!("no real-time priority for threads on the way of an epoch: {error}");
    }
}
