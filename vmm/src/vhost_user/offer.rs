//! What a driver is offered: the type of the device, its queues, its features and its configuration. Pure.
//!
//! Network cards have their configuration here, that of all others comes from the backend.

use virtio_bindings::virtio_blk::VIRTIO_BLK_F_CONFIG_WCE;
use virtio_bindings::virtio_ids::{VIRTIO_ID_BLOCK, VIRTIO_ID_NET};
use virtio_bindings::virtio_net as net;

use crate::virtio::state::DeviceState;
use crate::virtio::{RING_FEATURES, VirtioError};

/// Feature bits that have a meaning of their own for each device type.
const DEVICE_FEATURES: u64 = (1 << 24) - 1;
/// Bytes of `virtio_blk_config` up to the write-zeroes fields, which is as far as the features offered go.
const BLOCK_CONFIG_SIZE: usize = 60;
/// Offset of the block size in it.
const BLOCK_SIZE: usize = 20;
/// Offset of the number of queues in it.
const BLOCK_QUEUES: usize = 34;
/// Bytes of `virtio_net_config` up to the MTU.
const NET_CONFIG_SIZE: usize = 12;
/// Entries of a network card's control queue.
const CONTROL_QUEUE_SIZE: u16 = 64;
/// Offset of the status in a network card's configuration.
const NET_STATUS: usize = 6;
/// Offset of the MTU in it.
const NET_MTU: usize = 10;

const fn bit(feature: u32) -> u64 {
    1 << feature
}

/// Network features that the backend carries out.
const NET_BACKEND_FEATURES: u64 = bit(net::VIRTIO_NET_F_CSUM)
    | bit(net::VIRTIO_NET_F_GUEST_CSUM)
    | bit(net::VIRTIO_NET_F_GUEST_TSO4)
    | bit(net::VIRTIO_NET_F_GUEST_TSO6)
    | bit(net::VIRTIO_NET_F_GUEST_ECN)
    | bit(net::VIRTIO_NET_F_GUEST_UFO)
    | bit(net::VIRTIO_NET_F_HOST_TSO4)
    | bit(net::VIRTIO_NET_F_HOST_TSO6)
    | bit(net::VIRTIO_NET_F_HOST_ECN)
    | bit(net::VIRTIO_NET_F_HOST_UFO)
    | bit(net::VIRTIO_NET_F_MRG_RXBUF)
    | bit(net::VIRTIO_NET_F_GUEST_USO4)
    | bit(net::VIRTIO_NET_F_GUEST_USO6)
    | bit(net::VIRTIO_NET_F_HOST_USO);
const NET_CHECKSUM: u64 = bit(net::VIRTIO_NET_F_CSUM) | bit(net::VIRTIO_NET_F_GUEST_CSUM);
const NET_TSO: u64 = bit(net::VIRTIO_NET_F_GUEST_TSO4)
    | bit(net::VIRTIO_NET_F_GUEST_TSO6)
    | bit(net::VIRTIO_NET_F_GUEST_ECN)
    | bit(net::VIRTIO_NET_F_HOST_TSO4)
    | bit(net::VIRTIO_NET_F_HOST_TSO6)
    | bit(net::VIRTIO_NET_F_HOST_ECN);
const NET_UFO: u64 = bit(net::VIRTIO_NET_F_GUEST_UFO)
    | bit(net::VIRTIO_NET_F_HOST_UFO)
    | bit(net::VIRTIO_NET_F_GUEST_USO4)
    | bit(net::VIRTIO_NET_F_GUEST_USO6)
    | bit(net::VIRTIO_NET_F_HOST_USO);

/// What a network card is to be.
#[derive(Clone, Copy, Debug)]
pub struct NetOptions {
    /// The guest's address.
    pub mac: [u8; 6],
    /// Largest packet in bytes, if the guest is to be told.
    pub mtu: Option<u16>,
    /// Queue pairs.
    pub pairs: u16,
    /// Offer TCP segmentation.
    pub tso: bool,
    /// Offer UDP fragmentation and segmentation.
    pub ufo: bool,
    /// Offer checksums.
    pub csum: bool,
}

/// What the device is.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A disk; its configuration comes from the backend.
    Disk,
    /// A network card.
    Net(NetOptions),
    /// Anything else, with `config_size` bytes of configuration from the backend.
    Other {
        /// Virtio device type.
        device_type: u32,
        /// Bytes of configuration; 0 is none.
        config_size: usize,
    },
}

/// The offer of one device.
pub struct Offer {
    kind: Kind,
    queue_sizes: Vec<u16>,
    /// What this backend allows to offer.
    possible: u64,
    /// What is offered; after a takeover no more than on the host before.
    features: u64,
    config: Vec<u8>,
}

impl Offer {
    /// Of a device of `kind` with `queues` queues of at most `queue_size` entries, on a backend that has
    /// `features`. `read` asks the backend for its configuration, of so many bytes.
    ///
    /// # Errors
    /// When the backend does not tell it.
    pub fn new<E>(
        kind: Kind,
        features: u64,
        (queues, queue_size): (usize, u16),
        read: impl FnOnce(usize) -> Result<Vec<u8>, E>,
    ) -> Result<Self, E> {
        let mut queue_sizes = vec![queue_size; queues];
        let config = match &kind {
            Kind::Disk => {
                let mut config = read(BLOCK_CONFIG_SIZE)?;
                // The backend may have more queues than are configured here.
                config[BLOCK_QUEUES..BLOCK_QUEUES + 2].copy_from_slice(&(queues as u16).to_le_bytes());
                config
            }
            Kind::Net(options) => {
                queue_sizes.push(CONTROL_QUEUE_SIZE);
                net_config(options)
            }
            Kind::Other { config_size: 0, .. } => Vec::new(),
            Kind::Other { config_size, .. } => read(*config_size)?,
        };
        let possible = offer(&kind, features);
        Ok(Self { kind, queue_sizes, possible, features: possible, config })
    }

    /// Virtio device type.
    #[must_use]
    pub fn device_type(&self) -> u32 {
        match &self.kind {
            Kind::Disk => VIRTIO_ID_BLOCK,
            Kind::Net(_) => VIRTIO_ID_NET,
            Kind::Other { device_type, .. } => *device_type,
        }
    }

    /// Largest size of each queue.
    #[must_use]
    pub fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    /// Features.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The device specific configuration.
    #[must_use]
    pub fn config(&self) -> &[u8] {
        &self.config
    }

    /// Index of the control queue, if there is one, for a driver that has taken `features`: it comes after
    /// the pairs that the driver can use (virtio 1.2, 5.1.2).
    #[must_use]
    pub fn control_queue(&self, features: u64) -> Option<u16> {
        match &self.kind {
            Kind::Net(_) if features & bit(net::VIRTIO_NET_F_MQ) == 0 => Some(2),
            Kind::Net(options) => Some(2 * options.pairs),
            _ => None,
        }
    }

    /// Whether a driver that has taken `features` may use so many queue pairs.
    #[must_use]
    pub fn has_pairs(&self, pairs: u16, features: u64) -> bool {
        let Kind::Net(options) = &self.kind else { return false };
        pairs > 0 && pairs <= options.pairs && features & bit(net::VIRTIO_NET_F_MQ) != 0
    }

    /// Whether the queue is to be served with `pairs` queue pairs in use.
    #[must_use]
    pub fn is_served(&self, queue: u16, pairs: u16) -> bool {
        !matches!(self.kind, Kind::Net(_)) || queue / 2 < pairs
    }

    /// Asks a driver that has taken `features` to announce the card's address, or no longer asks any.
    pub fn set_announce(&mut self, on: bool, features: u64) {
        if !matches!(self.kind, Kind::Net(_)) {
            return;
        }
        if !on {
            self.config[NET_STATUS] &= !(net::VIRTIO_NET_S_ANNOUNCE as u8);
        } else if features & bit(net::VIRTIO_NET_F_GUEST_ANNOUNCE) != 0 {
            self.config[NET_STATUS] |= net::VIRTIO_NET_S_ANNOUNCE as u8;
        }
    }

    /// Becomes what `state` says was offered to a driver that has taken `taken`.
    ///
    /// # Errors
    /// When this device cannot keep that promise.
    pub fn adopt(&mut self, state: &DeviceState<'_>, taken: u64) -> Result<(), VirtioError> {
        let lacking = taken & !self.possible;
        if lacking != 0 {
            return Err(VirtioError::Differs(format!("the driver uses features {lacking:#x} that are missing here")));
        }
        if state.config.len() != self.config.len() {
            return Err(VirtioError::Differs("the configuration has another size".to_owned()));
        }
        if let (Kind::Disk, Some(wanted), Some(here)) =
            (&self.kind, state.config.first_chunk::<8>(), self.config.first_chunk::<8>())
            && u64::from_le_bytes(*wanted) > u64::from_le_bytes(*here)
        {
            return Err(VirtioError::Differs("the disk here is smaller".to_owned()));
        }
        let (wanted, here) = (told_block_size(&state.config), told_block_size(&self.config));
        if matches!(self.kind, Kind::Disk) && wanted != here {
            return Err(VirtioError::Differs(format!(
                "the guest was told blocks of {wanted} bytes, here they have {here}"
            )));
        }
        self.config.copy_from_slice(&state.config);
        self.features = state.features & self.possible;
        Ok(())
    }
}

/// Block size in the configuration of a disk, in bytes.
#[must_use]
pub fn told_block_size(config: &[u8]) -> u32 {
    config.get(BLOCK_SIZE..).and_then(|rest| rest.first_chunk()).copied().map_or(0, u32::from_le_bytes)
}

/// MTU in the configuration of a network card, in bytes; 0 is none.
#[must_use]
pub fn told_mtu(config: &[u8]) -> u16 {
    config.get(NET_MTU..).and_then(|rest| rest.first_chunk()).copied().map_or(0, u16::from_le_bytes)
}

/// Features to offer to the driver.
fn offer(kind: &Kind, backend: u64) -> u64 {
    let options = match kind {
        // Turning the write cache off at run time would be state that only the backend has.
        Kind::Disk => return backend & (RING_FEATURES | DEVICE_FEATURES & !bit(VIRTIO_BLK_F_CONFIG_WCE)),
        Kind::Other { .. } => return backend & (RING_FEATURES | DEVICE_FEATURES),
        Kind::Net(options) => options,
    };
    let mut features = backend & (RING_FEATURES | NET_BACKEND_FEATURES);
    // Segmentation needs checksums.
    let without_checksum = NET_CHECKSUM | NET_TSO | NET_UFO;
    for (wanted, bits) in [(options.csum, without_checksum), (options.tso, NET_TSO), (options.ufo, NET_UFO)] {
        if !wanted {
            features &= !bits;
        }
    }
    features |= bit(net::VIRTIO_NET_F_MAC)
        | bit(net::VIRTIO_NET_F_STATUS)
        | bit(net::VIRTIO_NET_F_CTRL_VQ)
        | bit(net::VIRTIO_NET_F_GUEST_ANNOUNCE);
    if options.mtu.is_some() {
        features |= bit(net::VIRTIO_NET_F_MTU);
    }
    if options.pairs > 1 {
        features |= bit(net::VIRTIO_NET_F_MQ);
    }
    features
}

/// mac, status, max_virtqueue_pairs, mtu.
fn net_config(options: &NetOptions) -> Vec<u8> {
    let mut config = Vec::with_capacity(NET_CONFIG_SIZE);
    config.extend_from_slice(&options.mac);
    config.extend_from_slice(&(net::VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
    config.extend_from_slice(&options.pairs.to_le_bytes());
    config.extend_from_slice(&options.mtu.unwrap_or(0).to_le_bytes());
    config
}
