//! Why devices cannot be had or do not work.

use std::io;

use crate::machine::bus::BusError;
use crate::machine::irq::IrqError;
use crate::pci::bar::BarSpaceError;
use crate::pci::bus::SlotError;
use crate::process::ProcessError;
use crate::vhost_user::VhostUserError;
use crate::virtio::VirtioError;

/// Why the devices cannot be built or do not work. The text names the device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A setting that cannot be.
    #[error("{field}: {problem}")]
    Config {
        /// Path of the field, such as `disks[0].num_queues`.
        field: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A device process does not work.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A vhost-user backend does not work.
    #[error(transparent)]
    VhostUser(#[from] VhostUserError),
    /// A device does not work.
    #[error("device {id} does not work")]
    Virtio {
        /// Which.
        id: String,
        /// Reason.
        #[source]
        source: VirtioError,
    },
    /// A slot is not there or taken.
    #[error("no PCI slot for device {id}")]
    Slot {
        /// Which.
        id: String,
        /// Reason.
        #[source]
        source: SlotError,
    },
    /// The address space for devices is full.
    #[error(transparent)]
    BarSpace(#[from] BarSpaceError),
    /// An address range is taken.
    #[error("PCI does not fit the address map")]
    Bus(#[from] BusError),
    /// Interrupts have run out.
    #[error(transparent)]
    Irq(#[from] IrqError),
    /// A system call failed.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}
