//! What a checkpoint holds of a virtio device.
//!
//! Borrowed when saved, so that a checkpoint does not allocate; owned when loaded.

use std::borrow::Cow;

use ft_wire::device_ctl::QueueState;
use serde::{Deserialize, Serialize};

use crate::pci::config_space::SavedConfig;
use crate::pci::msix::SavedMsix;
use crate::virtio::common_config::CommonConfig;

/// Version of the section of a device.
pub const VERSION: u16 = 2;

/// The part that is the device's own.
#[derive(Deserialize, Serialize)]
pub struct DeviceState<'a> {
    /// Device specific configuration as the guest sees it.
    pub config: Cow<'a, [u8]>,
    /// Features offered to the driver.
    pub features: u64,
    /// Where the queues stand.
    pub positions: Cow<'a, [QueueState]>,
    /// Network: queue pairs in use.
    pub pairs: u16,
}

/// The section of a device.
#[derive(Deserialize, Serialize)]
pub struct TransportState<'a> {
    /// PCI configuration space.
    #[serde(borrow)]
    pub pci: SavedConfig<'a>,
    /// Interrupt vectors.
    pub msix: SavedMsix<'a>,
    /// The common register block.
    pub common: Cow<'a, CommonConfig>,
    /// The interrupt status register.
    pub isr: u8,
    /// Whether the driver has set the device up.
    pub active: bool,
    /// Where BAR 0 answers, if anywhere.
    pub bar: Option<u64>,
    /// The device's own part.
    pub device: DeviceState<'a>,
}
