//! The Pollux VMM: a Cloud-Hypervisor-compatible virtual machine monitor on KVM.
//!
//! From the top: `run` wires; `api` and `control` take orders, and see a VM as `contract` has it;
//! `ft_adapter` fulfils that for the engine's VMs; `vm` is one virtual machine; below are its `devices`,
//! their transports and processes, and at the bottom the `machine`. Arrows go down only, and only
//! `ft_adapter` and `ft_api` know the engine.

pub mod api;
pub mod boot;
pub mod cli;
pub mod contract;
pub mod control;
pub mod devices;
pub mod files;
pub mod ft_adapter;
pub mod ft_api;
pub mod legacy;
pub mod logging;
pub mod machine;
pub mod pci;
pub mod process;
pub mod run;
pub mod vhost_user;
pub mod virtio;
pub mod vm;

pub use pollux_api::config;
