//! vhost-user: devices whose queues are served by another process.
//!
//! One generic device ([`device::VhostUserDevice`]) for disks, network cards and anything else; its type,
//! queues and the few things that differ are parameters. [`link`] is the connection, [`log`] the dirty bitmap
//! that all backends share.

pub mod device;
mod error;
pub mod link;
pub mod log;
mod net_control;
mod offer;
mod watchdog;

pub use self::device::VhostUserDevice;
pub use self::error::VhostUserError;
pub use self::link::Link;
pub use self::log::DirtyLog;
pub use self::offer::{Kind, NetOptions, told_block_size, told_mtu};
pub use self::watchdog::Watchdog;
