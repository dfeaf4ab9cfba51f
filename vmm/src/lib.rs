//! The Pollux VMM: a Cloud-Hypervisor-compatible virtual machine monitor on KVM.
//!
//! Mechanism only: apart from `guest_port`, nothing here knows what an epoch is.

pub mod bus;
pub mod config;
pub mod irq;
pub mod memory;
pub mod state;
