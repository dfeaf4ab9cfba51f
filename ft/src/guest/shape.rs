//! What a VM is made of, as far as the VMs of both hosts must be alike.

use serde::{Deserialize, Serialize};

/// What a VM is made of, as far as two of them must be alike.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Shape {
    /// Bytes of guest memory.
    pub memory: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// CPU features as the guest sees them; opaque here.
    pub cpuid: Vec<u8>,
    /// kHz of the guest's time stamp counter; 0 if the host does not tell.
    pub tsc_khz: u32,
    /// Whether there is a serial port.
    pub serial: bool,
    /// Disks in slot order.
    pub disks: Vec<DiskShape>,
    /// Network cards in slot order.
    pub nets: Vec<NetShape>,
}

impl Shape {
    /// Numbers of the disks that are mirrored. A disk that the guest cannot write needs no mirror: both hosts
    /// bring the same.
    pub fn mirrored(&self) -> impl Iterator<Item = u16> + '_ {
        (0..).zip(&self.disks).filter(|(_, disk)| !disk.read_only).map(|(number, _)| number)
    }

    /// The id of the disk that messages between the hosts call by this number. The engine itself knows
    /// devices by their ids only.
    pub(crate) fn disk_id(&self, number: u16) -> Option<&str> {
        self.disks.get(usize::from(number)).map(|disk| disk.id.as_str())
    }

    /// What messages between the hosts call the disk of this id.
    pub(crate) fn disk_number(&self, id: &str) -> Option<u16> {
        (0..).zip(&self.disks).find(|(_, disk)| disk.id == id).map(|(number, _)| number)
    }
}

/// What a driver sees of a device of a [`Shape`], of whatever kind it is.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct VirtioShape {
    /// PCI slot.
    pub slot: u16,
    /// Largest size of each queue.
    pub queue_sizes: Vec<u16>,
    /// Features offered to the driver. A standby may have more of them; the driver goes on with those that it
    /// knows.
    pub features: u64,
}

/// A disk of a [`Shape`].
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct DiskShape {
    /// Id of the device.
    pub id: String,
    /// Bytes.
    pub size: u64,
    /// Whether the guest may not write.
    pub read_only: bool,
    /// What the guest reads as its serial number.
    pub serial: String,
    /// Smallest unit of I/O in bytes, as the guest was told.
    pub block_size: u32,
    /// Number of queues.
    pub queues: u16,
    /// What its driver sees.
    pub virtio: VirtioShape,
}

/// A network card of a [`Shape`].
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct NetShape {
    /// Id of the device.
    pub id: String,
    /// The guest's address.
    pub mac: [u8; 6],
    /// Largest packet in bytes, as the guest was told.
    pub mtu: u16,
    /// Number of queues.
    pub queues: u16,
    /// What its driver sees.
    pub virtio: VirtioShape,
}
