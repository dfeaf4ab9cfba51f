//! Fault tolerance for the VM: the engine's hands on it, and what puts VM and engine together. Only this
//! folder and `ft_api` know the engine.

pub mod disk_records;
pub mod factory;
pub mod guest;
pub mod start_retry;
