//! Threads on the way of an epoch go before the vCPUs, which would otherwise keep a processor for milliseconds.
//!
//! Such a thread runs for microseconds and waits; a guest that computes never does. The lowest real-time priorities say so. Not for
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

/// Before whom a thread goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Urgency {
    /// It waits for its turn.
    Ordinary,
    /// It carries an epoch from one host to the other: before vCPUs.
    Carrier,
    /// The guest stands still until it has done its part, or a host is taken for dead if it does not: before carriers too.
    Prompt,
}

thread_local! {
    static URGENCY: Cell<Urgency> = const { Cell::new(Urgency::Ordinary) };
}

/// Says how urgent the calling thread is; an ordinary one runs wherever it may. Costs nothing when it is so already. Where
/// that is not allowed, epochs take longer on a busy host.
pub fn set(urgency: Urgency) {
    if urgency == Urgency::Ordinary {
        stay_on(None);
    }
    if URGENCY.replace(urgency) == urgency {
        return;
    }
    let real_time = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::RoundRobin);
    let (policy, sched_priority) = match urgency {
        Urgency::Ordinary => (ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Other), 0),
        Urgency::Carrier => (real_time, 1),
        Urgency::Prompt => (real_time, 2),
    };
    let priority = ThreadPriority::from_posix(ScheduleParams { sched_priority });
    if let Err(error) = set_thread_priority_and_policy(thread_native_id(), priority, policy) {
        tracing::info!("no real-time priority for threads on the way of an epoch: {error}");
    }
}
