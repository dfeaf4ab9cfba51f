//! Configuration of the virtio devices: disks, network cards, entropy.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::MacAddr;
use crate::limits::{DEVICE_QUEUES_MAX, MTU_MAX, MTU_MIN, PCI_SLOT_MAX, QUEUE_SIZE_MAX};
use crate::options::option_words;

config_struct! {
    /// A disk: an image served by a device process that Pollux starts, or by a running vhost-user backend.
    #[derive(Clone, Debug, PartialEq)]
    pub struct DiskConfig("--disk") {
        /// Device id; filled in (`_disk0`) when absent.
        id ("ID"): Option<String>,
        /// The image. Exclusive with `vhost_user`.
        #[schema(value_type = Option<String>)]
        path ("IMAGE"): Option<PathBuf>,
        /// The guest may only read.
        readonly ("on|off"): bool = false,
        /// Bypass the host's page cache.
        direct ("on|off"): bool = false,
        /// Behind the virtual IOMMU; must be false.
        iommu (""): bool = false,
        /// Virtqueues; a device process of Pollux serves 32 at most.
        num_queues ("N", 1..=DEVICE_QUEUES_MAX): usize = 1,
        /// Entries of each virtqueue, a power of two.
        queue_size ("N", 1..=QUEUE_SIZE_MAX): u16 = 128,
        /// Served by the vhost-user backend that listens on its socket.
        vhost_user ("on|off"): bool = false,
        /// Socket of that backend.
        vhost_socket as "socket" ("PATH"): Option<String>,
        /// Bandwidth limits; must be absent.
        rate_limiter_config: Option<serde_json::Value>,
        /// Shared bandwidth limits; must be absent.
        rate_limit_group: Option<String>,
        /// What the guest reads as the disk's serial number; at most 20 bytes.
        serial ("TEXT"): Option<String>,
        /// Host CPUs of each queue's thread; must be absent or empty.
        queue_affinity: Option<Vec<serde_json::Value>>,
        /// Follow qcow2 backing files; must be false.
        backing_files (""): bool = false,
        /// Give discarded blocks back to the file system.
        sparse (""): bool = true,
        /// Format of the image; only `Raw`, which is also what an absent type means.
        image_type ("raw"): ImageType = ImageType::Unknown,
        /// How the image is locked: `ByteRange` or `Full`.
        lock_granularity (""): Option<String>,
        /// No effect: Pollux does not use io_uring for disks.
        disable_io_uring [hidden] (""): bool = false,
        /// No effect: Pollux does not use Linux AIO for disks.
        disable_aio [hidden] (""): bool = false,
        /// PCI segment; must be 0.
        pci_segment (""): u16 = 0,
        /// Slot on the PCI bus; chosen when absent.
        pci_device_id ("N", 1..=PCI_SLOT_MAX): Option<u8>,
        /// Use the image even if its record says that it is half-synchronised or that another copy may be
        /// newer.
        force [hidden] ("on|off"): bool = false,
    }
    refuses [
        "bw_size", "bw_one_time_burst", "bw_refill_time", "ops_size", "ops_one_time_burst", "ops_refill_time",
        "rate_limit_group", "queue_affinity",
    ]
    internal {
        /// Not configured, but what the VM is built for.
        purpose: DiskPurpose = DiskPurpose::Run,
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

option_words! {
    ImageType {
        "raw" => Self::Raw, "qcow2" => Self::Qcow2, "vhd" => Self::FixedVhd, "vhdx" => Self::Vhdx,
        "unknown" => Self::Unknown,
    }
}

config_struct! {
    /// A network card: a tap served by a device process that Pollux starts, or a running vhost-user backend.
    #[derive(Clone, Debug, PartialEq)]
    pub struct NetConfig("--net") {
        /// Device id; filled in (`_net1`) when absent.
        id ("ID"): Option<String>,
        /// Name of the tap; one is created (`vmtap0`) when absent.
        tap ("NAME"): Option<String>,
        /// Address given to the host's side of the tap.
        #[schema(value_type = Option<String>)]
        ip ("ADDR"): Option<IpAddr>,
        /// Its network mask.
        #[schema(value_type = Option<String>)]
        mask ("MASK"): Option<IpAddr>,
        /// Address of the guest's card; filled in at random when absent.
        mac ("MAC"): Option<MacAddr>,
        /// Address of the host's side of the tap.
        host_mac ("MAC"): Option<MacAddr>,
        /// Largest packet, in bytes.
        mtu ("N", MTU_MIN..=MTU_MAX): Option<u16>,
        /// Behind the virtual IOMMU; must be false.
        iommu (""): bool = false,
        /// Virtqueues, receive and transmit counted apart, so an even number; a device process of Pollux
        /// serves 32 at most.
        num_queues ("N", 1..=DEVICE_QUEUES_MAX): usize = 2,
        /// Entries of each virtqueue, a power of two.
        queue_size ("N", 1..=QUEUE_SIZE_MAX): u16 = 256,
        /// Served by a vhost-user backend.
        vhost_user ("on|off"): bool = false,
        /// Socket of that backend.
        vhost_socket as "socket" ("PATH"): Option<String>,
        /// Which side connects to that socket; the other one listens.
        vhost_mode ("client|server"): VhostMode = VhostMode::Client,
        /// Open taps; never taken from JSON, must be absent.
        fds: Option<Vec<i32>>,
        /// Bandwidth limits; must be absent.
        rate_limiter_config: Option<serde_json::Value>,
        /// Offer TCP segmentation to the guest.
        offload_tso ("on|off"): bool = true,
        /// Offer UDP fragmentation to the guest.
        offload_ufo ("on|off"): bool = true,
        /// Offer checksums to the guest.
        offload_csum ("on|off"): bool = true,
        /// PCI segment; must be 0.
        pci_segment (""): u16 = 0,
        /// Slot on the PCI bus; chosen when absent.
        pci_device_id ("N", 1..=PCI_SLOT_MAX): Option<u8>,
    }
    refuses [
        "bw_size", "bw_one_time_burst", "bw_refill_time", "ops_size", "ops_one_time_burst", "ops_refill_time", "fd",
        "queue_affinity",
    ]
}

/// Which part the VMM has in a vhost-user connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum VhostMode {
    /// The backend listens, and the VMM connects to it.
    #[default]
    Client,
    /// The VMM listens, and waits for the backend.
    Server,
}

option_words! {
    VhostMode { "client" => Self::Client, "server" => Self::Server }
}

config_struct! {
    /// The entropy device.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct RngConfig("--rng") {
        /// PCI segment; must be 0.
        pci_segment (""): u16 = 0,
        /// Where the bytes come from.
        #[schema(value_type = String)]
        src ("PATH"): PathBuf [or PathBuf::from("/dev/urandom")],
        /// Behind the virtual IOMMU; must be false.
        iommu [hidden] (""): bool = false,
    }
}
