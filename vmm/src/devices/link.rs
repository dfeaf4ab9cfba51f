//! The ft-ctl link to a device process, with what the device is and what its driver was told.

use std::os::fd::OwnedFd;

use ft_wire::device_ctl::DeviceInfo;

use crate::devices::device::Device;
use crate::vhost_user::{Kind, told_block_size, told_mtu};

/// What a device with an ft-ctl link is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LinkKind {
    /// A disk.
    Disk,
    /// A network card.
    Net,
}

/// The ft-ctl link to a device process; `Hello` has been answered.
#[derive(Debug)]
pub struct FtLink {
    /// Device.
    pub id: String,
    /// Another descriptor of the socket.
    pub fd: OwnedFd,
    /// What the device is.
    pub kind: LinkKind,
    /// Queues that the process serves.
    pub queues: u16,
    /// What the process says it is.
    pub info: DeviceInfo,
    /// A network card's address.
    pub mac: Option<[u8; 6]>,
    /// PCI slot.
    pub slot: u16,
    /// Largest size of each queue.
    pub queue_sizes: Vec<u16>,
    /// Features offered to the driver.
    pub features: u64,
    /// A network card's MTU, as the guest was told.
    pub mtu: u16,
    /// A disk's block size, as the guest was told.
    pub block_size: u32,
}

impl FtLink {
    /// Of a device that a process of ours serves.
    pub(super) fn of(device: &Device) -> Option<Self> {
        let (process, info) = device.process.as_ref()?;
        // From the device and not from its options: after a takeover the guest goes by what it was told on
        // the other host.
        let told = device.lock().device_mut().config().to_vec();
        let (kind, mac) = match device.kind? {
            Kind::Net(_) => (LinkKind::Net, told.first_chunk().copied()),
            _ => (LinkKind::Disk, None),
        };
        let (mtu, block_size) = (told_mtu(&told), told_block_size(&told));
        let fd = process.control().inspect_err(|e| tracing::error!("cannot share an ft-ctl socket: {e}")).ok()?;
        let mut transport = device.lock();
        let virtio = transport.device_mut();
        Some(FtLink {
            id: device.id.clone(),
            fd,
            kind,
            queues: device.queues,
            info: info.clone(),
            mac,
            slot: device.slot as u16,
            queue_sizes: virtio.queue_sizes().to_vec(),
            features: virtio.features(),
            mtu,
            block_size,
        })
    }
}
