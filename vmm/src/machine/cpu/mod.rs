//! The vCPUs of a VM: [`CpuManager`] on top, below it KVM's registers, and how threads meet at a checkpoint.
//!
//! Who waits for what is in `rendezvous`, which is pure; `vcpu_sync` puts a lock around it; `vcpu` is a
//! thread's own life.

pub mod cpuid;
mod error;
mod manager;
pub mod msr;
mod nested;
mod options;
mod rendezvous;
mod spin_condvar;
pub mod state;
mod sync;
mod vcpu;
mod vcpu_sync;
mod worker_pool;

pub use self::error::CpuError;
pub use self::manager::CpuManager;
pub use self::options::{Capture, CpuOptions, CpuPorts, GuestEvent, OnGuestEvent, VCPUS_MAX};
pub use self::worker_pool::{PausedWork, Task, WorkerPool};
