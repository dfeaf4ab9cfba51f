//! Virtio: what every device here has in common.
//!
//! A [`VirtioDevice`] knows its features, its configuration bytes and what to do with its queues. Everything
//! the guest sees of it (registers, capabilities, interrupts) is [`pci_transport`]'s, so devices are free of
//! PCI and testable without it.

mod activity;
mod bar_place;
pub mod common_config;
mod device;
mod doorbells;
mod error;
pub mod local_queue;
mod pci_layout;
pub mod pci_transport;
mod ring;
pub mod rng;
pub mod state;

pub use self::device::{ActiveQueue, DeviceEvent, VirtioDevice};
pub use self::error::VirtioError;
pub use self::ring::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, QUEUE_SIZE_MAX, RING_FEATURES, Ring};
