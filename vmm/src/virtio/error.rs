//! Why a virtio device cannot do what is asked of it.

use std::io;

use crate::machine::bus::BusError;

/// Why a device cannot do what the guest or the VMM asks of it.
#[derive(Debug, thiserror::Error)]
pub enum VirtioError {
    /// The guest set up a queue that cannot work. Its fault: the device asks for a reset.
    #[error("queue {queue}: {what} at {address:#x} is not aligned or not in guest RAM")]
    QueueAddress {
        /// Which queue.
        queue: u16,
        /// Which of its parts.
        what: &'static str,
        /// Where the guest put it.
        address: u64,
    },
    /// The guest chose a size that cannot work.
    #[error("queue {queue}: size {size} is not a power of two or above {max}")]
    QueueSize {
        /// Which queue.
        queue: u16,
        /// Size chosen.
        size: u16,
        /// Largest allowed.
        max: u16,
    },
    /// The guest broke a queue that the VMM serves. Its fault: the device asks for a reset.
    #[error("queue {queue} cannot be served")]
    Queue {
        /// Which queue.
        queue: u16,
        /// What is wrong with it.
        #[source]
        source: virtio_queue::Error,
    },
    /// Its place in the address space is another device's.
    #[error("its PCI BAR cannot be mapped")]
    Bar(#[source] BusError),
    /// Whoever serves the device does not do its part.
    #[error(transparent)]
    Backend(Box<dyn std::error::Error + Send + Sync>),
    /// A system call failed.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A checkpoint of a device that is not built like this one.
    #[error("saved device differs from this one: {0}")]
    Differs(String),
    /// The device has no dirty log: its writes to guest memory would be missed.
    #[error("device {id} cannot log its writes to guest memory: its backend lacks {missing}")]
    NoDirtyLog {
        /// Which device.
        id: String,
        /// The vhost-user feature that it lacks.
        missing: &'static str,
    },
}
