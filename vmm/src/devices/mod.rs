//! The virtio devices of a VM: from their configuration to devices on the bus, and orders to all of them.

mod broken_queues;
mod build;
mod device;
mod error;
mod link;
mod manager;
mod names;
mod rack;

pub use self::error::DeviceError;
pub use self::link::{FtLink, LinkKind};
pub use self::manager::DeviceManager;
pub use self::rack::DeviceParts;
pub use crate::vhost_user::DirtyLog;
