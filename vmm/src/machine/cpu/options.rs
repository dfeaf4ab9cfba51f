//! What vCPUs are made from, and what they tell.

use std::sync::Arc;

use crate::machine::bus::Bus;

pub use pollux_api::limits::VCPUS_MAX;

/// What a guest does to its own machine, or why it gets no further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// It has powered off.
    Shutdown,
    /// It has asked for a reset, or triple-faulted.
    Reset,
    /// It cannot go on, here or elsewhere; the text says why.
    Crash(String),
    /// This host cannot run it any longer, though another one might; the text says why.
    HostFailed(String),
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
