//! Configuration of the virtio devices: disks, network cards, entropy.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{MacAddr, is_false, yes};

/// A disk: an image served by a device process that Pollux starts, or by a running vhost-user backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DiskConfig {
    /// Device id; filled in (`_disk0`) when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The image. Exclusive with `vhost_user`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub path: Option<PathBuf>,
    /// The guest may only read.
    #[serde(default)]
    pub readonly: bool,
    /// Bypass the host's page cache.
    #[serde(default)]
    pub direct: bool,
    /// Behind the virtual IOMMU; must be false.
    #[serde(default)]
    pub iommu: bool,
    /// Virtqueues.
    #[serde(default = "default_disk_queues")]
    pub num_queues: usize,
    /// Entries of each virtqueue, a power of two.
    #[serde(default = "default_disk_queue_size")]
    pub queue_size: u16,
    /// Served by the vhost-user backend that listens on `vhost_socket`.
    #[serde(default)]
    pub vhost_user: bool,
    /// Socket of that backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhost_socket: Option<String>,
    /// Bandwidth limits; must be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter_config: Option<serde_json::Value>,
    /// Shared bandwidth limits; must be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit_group: Option<String>,
    /// What the guest reads as the disk's serial number; at most 20 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Host CPUs of each queue's thread; must be absent or empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_affinity: Option<Vec<serde_json::Value>>,
    /// Follow qcow2 backing files; must be false.
    #[serde(default)]
    pub backing_files: bool,
    /// Give discarded blocks back to the file system.
    #[serde(default = "yes")]
    pub sparse: bool,
    /// Format of the image; only `Raw`, which is also what an absent type means.
    #[serde(default)]
    pub image_type: ImageType,
    /// How the image is locked: `ByteRange` or `Full`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock_granularity: Option<String>,
    /// No effect: Pollux does not use io_uring for disks.
    #[serde(default, skip_serializing_if = "is_false")]
    pub disable_io_uring: bool,
    /// No effect: Pollux does not use Linux AIO for disks.
    #[serde(default, skip_serializing_if = "is_false")]
    pub disable_aio: bool,
    /// PCI segment; must be 0.
    #[serde(default)]
    pub pci_segment: u16,
    /// Wished slot on the bus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_device_id: Option<u8>,
    /// Use the image even if its record says that it is half-synchronised or that another copy may be newer.
    #[serde(default, skip_serializing_if = "is_false")]
    pub force: bool,
    /// Not configured, but what the VM is built for.
    #[serde(skip)]
    pub purpose: DiskPurpose,
}

impl Default for DiskConfig {
    fn default() -> Self {
        Self {
            id: None,
            path: None,
            readonly: false,
            direct: false,
            iommu: false,
            num_queues: default_disk_queues(),
            queue_size: default_disk_queue_size(),
            vhost_user: false,
            vhost_socket: None,
            rate_limiter_config: None,
            rate_limit_group: None,
            serial: None,
            queue_affinity: None,
            backing_files: false,
            sparse: true,
            image_type: ImageType::Unknown,
            lock_granularity: None,
            disable_io_uring: false,
            disable_aio: false,
            pci_segment: 0,
            pci_device_id: None,
            force: false,
            purpose: DiskPurpose::Run,
        }
    }
}

/// What a disk's image is about to be used for: decides which copies are refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskPurpose {
    /// The VM runs from it.
    #[default]
    Run,
    /// The VM runs from it, and a witness said that it is to run on this host.
    RunElected,
    /// It takes in another host's disk.
    StandBy,
}

/// Format of a disk image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ImageType {
    /// Not said: raw, as Pollux never guesses from what a guest may have written.
    #[default]
    Unknown,
    /// Plain bytes.
    Raw,
    /// Not supported.
    Qcow2,
    /// Not supported.
    FixedVhd,
    /// Not supported.
    Vhdx,
}

/// A network card: a tap served by a device process that Pollux starts, or a running vhost-user backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NetConfig {
    /// Device id; filled in (`_net1`) when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Name of the tap; one is created (`vmtap0`) when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// Address given to the host's side of the tap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ip: Option<IpAddr>,
    /// Its network mask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub mask: Option<IpAddr>,
    /// Address of the guest's card; filled in at random when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// Address of the host's side of the tap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_mac: Option<MacAddr>,
    /// Largest packet, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Behind the virtual IOMMU; must be false.
    #[serde(default)]
    pub iommu: bool,
    /// Virtqueues: receive and transmit counted apart, so an even number.
    #[serde(default = "default_net_queues")]
    pub num_queues: usize,
    /// Entries of each virtqueue, a power of two.
    #[serde(default = "default_net_queue_size")]
    pub queue_size: u16,
    /// Served by a vhost-user backend.
    #[serde(default)]
    pub vhost_user: bool,
    /// Socket of that backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhost_socket: Option<String>,
    /// Which side listens on that socket.
    #[serde(default)]
    pub vhost_mode: VhostMode,
    /// Open taps; never taken from JSON, must be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fds: Option<Vec<i32>>,
    /// Bandwidth limits; must be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter_config: Option<serde_json::Value>,
    /// Offer TCP segmentation to the guest.
    #[serde(default = "yes")]
    pub offload_tso: bool,
    /// Offer UDP fragmentation to the guest.
    #[serde(default = "yes")]
    pub offload_ufo: bool,
    /// Offer checksums to the guest.
    #[serde(default = "yes")]
    pub offload_csum: bool,
    /// PCI segment; must be 0.
    #[serde(default)]
    pub pci_segment: u16,
    /// Wished slot on the bus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_device_id: Option<u8>,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            id: None,
            tap: None,
            ip: None,
            mask: None,
            mac: None,
            host_mac: None,
            mtu: None,
            iommu: false,
            num_queues: default_net_queues(),
            queue_size: default_net_queue_size(),
            vhost_user: false,
            vhost_socket: None,
            vhost_mode: VhostMode::Client,
            fds: None,
            rate_limiter_config: None,
            offload_tso: true,
            offload_ufo: true,
            offload_csum: true,
            pci_segment: 0,
            pci_device_id: None,
        }
    }
}

/// Which side of a vhost-user connection listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum VhostMode {
    /// The backend: the VMM connects to it.
    #[default]
    Client,
    /// The VMM, which then waits for the backend.
    Server,
}

/// The entropy device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RngConfig {
    /// PCI segment; must be 0.
    #[serde(default)]
    pub pci_segment: u16,
    /// Where the bytes come from.
    #[schema(value_type = String)]
    pub src: PathBuf,
    /// Behind the virtual IOMMU; must be false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub iommu: bool,
}

impl Default for RngConfig {
    fn default() -> Self {
        Self { pci_segment: 0, src: PathBuf::from("/dev/urandom"), iommu: false }
    }
}

fn default_disk_queues() -> usize {
    1
}

fn default_disk_queue_size() -> u16 {
    128
}

fn default_net_queues() -> usize {
    2
}

fn default_net_queue_size() -> u16 {
    256
}
