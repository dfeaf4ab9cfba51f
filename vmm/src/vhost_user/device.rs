//! A virtio device whose queues are served by a vhost-user backend: one code for disks, network cards and all
//! others.
//!
//! In: the driver's set-up, kicks of the control queue. Out: requests on the [`Link`]. Network cards have
//! their configuration and their control queue here, everything else comes from the backend.

use std::borrow::Cow;
use std::sync::Arc;

use ft_wire::device_ctl::QueueState;
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_CONFIG_WCE;
use virtio_bindings::virtio_ids::{VIRTIO_ID_BLOCK, VIRTIO_ID_NET};
use virtio_bindings::virtio_net as net;
use vmm_sys_util::eventfd::EventFd;

use crate::machine::memory::guest::GuestRam;
use crate::vhost_user::error::VhostUserError;
use crate::vhost_user::link::{Link, Start};
use crate::vhost_user::log::DirtyLog;
use crate::vhost_user::net_control::{self, Command};
use crate::virtio::local_queue::LocalQueue;
use crate::virtio::state::DeviceState;
use crate::virtio::{ActiveQueue, F_EVENT_IDX, F_VERSION_1, RING_FEATURES, VirtioDevice, VirtioError};

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

/// What the driver has set up.
struct Active {
    features: u64,
    /// Indices of the queues that the backend serves.
    queues: Vec<u16>,
}

/// The device.
pub struct VhostUserDevice {
    id: String,
    kind: Kind,
    link: Link,
    ram: GuestRam,
    log: Arc<DirtyLog>,
    log_on: bool,
    queue_sizes: Vec<u16>,
    /// What this backend allows to offer.
    possible: u64,
    /// What is offered; after a takeover no more than on the host before.
    offered: u64,
    config: Vec<u8>,
    active: Option<Active>,
    positions: Vec<QueueState>,
    /// Network: the control queue, while the driver uses it.
    control: Option<LocalQueue>,
    /// Network: queue pairs in use.
    pairs: u16,
}

impl VhostUserDevice {
    /// A device of `kind` with `queues` queues of at most `queue_size` entries on the backend behind `link`.
    ///
    /// # Errors
    /// When the backend does not do virtio 1, or does not tell its configuration.
    pub fn new(
        id: &str,
        kind: Kind,
        mut link: Link,
        (queues, queue_size): (usize, u16),
        ram: &GuestRam,
        log: Arc<DirtyLog>,
    ) -> Result<Self, VhostUserError> {
        if link.features() & F_VERSION_1 == 0 {
            return Err(link.unsuitable("does not offer VIRTIO_F_VERSION_1"));
        }
        let mut queue_sizes = vec![queue_size; queues];
        let config = match &kind {
            Kind::Disk => {
                let mut config = link.config(BLOCK_CONFIG_SIZE)?;
                // The backend may have more queues than are configured here.
                config[BLOCK_QUEUES..BLOCK_QUEUES + 2].copy_from_slice(&(queues as u16).to_le_bytes());
                config
            }
            Kind::Net(options) => {
                queue_sizes.push(CONTROL_QUEUE_SIZE);
                net_config(options)
            }
            Kind::Other { config_size: 0, .. } => Vec::new(),
            Kind::Other { config_size, .. } => link.config(*config_size)?,
        };
        let possible = offer(&kind, link.features());
        Ok(Self {
            id: id.to_owned(),
            kind,
            link,
            ram: ram.clone(),
            log,
            log_on: false,
            positions: Vec::with_capacity(queue_sizes.len()),
            queue_sizes,
            possible,
            offered: possible,
            config,
            active: None,
            control: None,
            pairs: 1,
        })
    }

    /// Index of the control queue, if there is one, for a driver that has taken `features`: it comes after
    /// the pairs that the driver can use (virtio 1.2, 5.1.2).
    fn control_index(&self, features: u64) -> Option<u16> {
        match &self.kind {
            Kind::Net(_) if features & bit(net::VIRTIO_NET_F_MQ) == 0 => Some(2),
            Kind::Net(options) => Some(2 * options.pairs),
            _ => None,
        }
    }

    /// Whether `queue` is the control queue for the driver that is there.
    fn is_control(&self, queue: u16) -> bool {
        self.active.as_ref().is_some_and(|active| self.control_index(active.features) == Some(queue))
    }

    /// Whether the queue is to be served with `pairs` queue pairs in use.
    fn is_served(&self, queue: u16, pairs: u16) -> bool {
        !matches!(self.kind, Kind::Net(_)) || queue / 2 < pairs
    }

    fn position(&self, index: u16) -> Option<QueueState> {
        self.positions.iter().find(|position| position.index == index).copied()
    }

    /// Remembers where the control queue stands; the backend knows nothing of it.
    fn note_control_position(&mut self) {
        let Some(position) = self.control.as_ref().map(LocalQueue::position) else { return };
        match self.positions.iter_mut().find(|known| known.index == position.index) {
            Some(known) => *known = position,
            None => self.positions.push(position),
        }
    }

    fn carry_out(&mut self, command: Command) -> bool {
        match command {
            Command::AnnounceAck => {
                self.config[NET_STATUS] &= !(net::VIRTIO_NET_S_ANNOUNCE as u8);
                true
            }
            Command::SetPairs(pairs) => self.set_pairs(pairs).unwrap_or_else(|e| {
                host_kit::log_limited!(error, device = self.id, "cannot change the number of queue pairs: {e}");
                false
            }),
        }
    }

    fn set_pairs(&mut self, pairs: u16) -> Result<bool, VhostUserError> {
        let Kind::Net(options) = &self.kind else { return Ok(false) };
        let Some(active) = &self.active else { return Ok(false) };
        if pairs == 0 || pairs > options.pairs || active.features & bit(net::VIRTIO_NET_F_MQ) == 0 {
            return Ok(false);
        }
        self.link.enable(active.queues.iter().map(|queue| (*queue, queue / 2 < pairs)))?;
        self.pairs = pairs;
        Ok(true)
    }

    fn start(&mut self, features: u64, queues: &[ActiveQueue], resume: bool) -> Result<(), VirtioError> {
        let mut vrings = Vec::with_capacity(queues.len());
        for queue in queues {
            let index = queue.ring.index;
            let base = if resume {
                let position = self.position(index);
                let missing = || VirtioError::Differs(format!("the position of queue {index} is missing"));
                position.ok_or_else(missing)?.next_avail
            } else {
                0
            };
            vrings.push(Start { queue, base, enabled: self.is_served(index, self.pairs) });
        }
        Ok(self.link.start(features, &vrings, &self.ram, self.log_on)?)
    }
}

impl VirtioDevice for VhostUserDevice {
    fn device_type(&self) -> u32 {
        match &self.kind {
            Kind::Disk => VIRTIO_ID_BLOCK,
            Kind::Net(_) => VIRTIO_ID_NET,
            Kind::Other { device_type, .. } => *device_type,
        }
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.offered
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    /// Nothing that is offered has a writable field.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    fn has_doorbell(&self, queue: u16) -> bool {
        !self.is_control(queue)
    }

    fn activate(&mut self, features: u64, mut queues: Vec<ActiveQueue>, resume: bool) -> Result<(), VirtioError> {
        if !resume {
            self.positions.clear();
            self.pairs = 1;
        }
        let control = self.control_index(features).and_then(|index| queues.iter().position(|q| q.ring.index == index));
        let control = control.map(|at| queues.swap_remove(at));
        self.start(features, &queues, resume)?;
        if let Some(queue) = control {
            let start = QueueState { index: queue.ring.index, ..Default::default() };
            let position = self.position(queue.ring.index).unwrap_or(start);
            self.control = Some(LocalQueue::new(queue, position, features & F_EVENT_IDX != 0, &self.ram)?);
            self.note_control_position();
        }
        let queues = queues.iter().map(|queue| queue.ring.index).collect();
        self.active = Some(Active { features, queues });
        Ok(())
    }

    fn notify(&mut self, queue: u16) -> Result<(), VirtioError> {
        if !self.is_control(queue) {
            return Ok(());
        }
        // Out of its place while it is served, since commands change the device.
        let Some(mut control) = self.control.take() else { return Ok(()) };
        let served = control.serve(|chain, ram| net_control::serve(chain, ram, |command| self.carry_out(command)));
        self.control = Some(control);
        self.note_control_position();
        served
    }

    fn set_call(&mut self, queue: u16, call: EventFd) -> Result<(), VirtioError> {
        if self.is_control(queue) {
            if let Some(control) = &mut self.control {
                control.set_call(call);
            }
        } else if self.active.as_ref().is_some_and(|active| active.queues.contains(&queue)) {
            self.link.set_call(queue, &call)?;
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), VirtioError> {
        self.positions.clear();
        self.control = None;
        self.pairs = 1;
        if matches!(self.kind, Kind::Net(_)) {
            self.config[NET_STATUS] &= !(net::VIRTIO_NET_S_ANNOUNCE as u8);
        }
        match self.active.take() {
            Some(active) => Ok(self.link.stop(active.queues.into_iter())?),
            None => Ok(()),
        }
    }

    fn pause(&mut self, paused: bool) -> Result<(), VirtioError> {
        let Some(active) = &self.active else { return Ok(()) };
        let served = |queue: u16| !paused && self.is_served(queue, self.pairs);
        let vrings: Vec<_> = active.queues.iter().map(|queue| (*queue, served(*queue))).collect();
        Ok(self.link.enable(vrings.into_iter())?)
    }

    fn set_dirty_log(&mut self, on: bool) -> Result<(), VirtioError> {
        if let (true, Some(missing)) = (on, self.link.lacks_for_log()) {
            return Err(VirtioError::NoDirtyLog { id: self.id.clone(), missing });
        }
        if on || self.log_on {
            let running = self.active.as_ref().map(|active| active.features);
            self.link.set_log(&self.log, on, running)?;
        }
        self.log_on = on;
        Ok(())
    }

    fn set_positions(&mut self, queues: &[QueueState]) {
        self.positions.clear();
        self.positions.extend_from_slice(queues);
        self.note_control_position();
    }

    fn state(&self) -> DeviceState<'_> {
        DeviceState {
            config: Cow::Borrowed(&self.config),
            features: self.offered,
            positions: Cow::Borrowed(&self.positions),
            pairs: self.pairs,
        }
    }

    fn set_state(&mut self, state: &DeviceState<'_>, features: u64) -> Result<(), VirtioError> {
        let lacking = features & !self.possible;
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
        self.offered = state.features & self.possible;
        self.positions.clear();
        self.positions.extend_from_slice(&state.positions);
        self.pairs = state.pairs.max(1);
        Ok(())
    }

    fn moved(&mut self) {
        let announce = bit(net::VIRTIO_NET_F_GUEST_ANNOUNCE);
        if self.active.as_ref().is_some_and(|active| active.features & announce != 0)
            && matches!(self.kind, Kind::Net(_))
        {
            self.config[NET_STATUS] |= net::VIRTIO_NET_S_ANNOUNCE as u8;
        }
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
