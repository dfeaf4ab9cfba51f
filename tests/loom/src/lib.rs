//! The vCPU rendezvous of the VMM, from the files that ship, with loom's locks instead of the standard
//! library's.
//!
//! Not a feature of `pollux-vmm`: cargo would turn it on for every other crate of the workspace that is built
//! with it, and not `cfg(loom)`: this needs no flags, and so is part of every test run.

#[path = "../../../vmm/src/machine/cpu/rendezvous.rs"]
#[allow(dead_code)] // What is only shown to others.
mod rendezvous;
#[path = "../../../vmm/src/machine/cpu/spin_condvar.rs"]
mod spin_condvar;
#[path = "../../../vmm/src/machine/cpu/vcpu_sync.rs"]
#[allow(dead_code)] // As above.
mod vcpu_sync;
#[path = "../../../vmm/src/machine/cpu/worker_pool.rs"]
mod worker_pool;

pub mod machine;
mod sync;
pub mod turns;
