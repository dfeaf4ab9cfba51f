//! The Pollux VMM: a Cloud-Hypervisor-compatible virtual machine monitor on KVM.
//!
//! Mechanism only: apart from `guest_port` and `memory::foresight`, nothing here knows what an epoch is.

pub mod acpi;
pub mod api;
pub mod assemble;
pub mod boot;
pub mod bus;
pub mod cli;
pub mod clock;
pub mod confirmed;
pub mod cpu;
pub mod device_process;
pub mod devices;
pub mod disk_records;
pub mod election;
pub mod event_monitor;
pub mod ft_api;
pub mod gate;
pub mod guest_port;
pub mod ioapic;
pub mod irq;
pub mod kvm;
pub mod legacy;
pub mod logging;
pub mod machine;
pub mod memory;
pub mod pci;
pub mod run;
pub mod state;
pub mod vhost_user;
pub mod virtio;
pub mod vm;
pub mod vmm;

pub use pollux_api::config;
