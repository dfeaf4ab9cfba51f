//! The VM as the engine sees it: a trait that the VMM implements. The engine never names a register, a page table or a bus.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use ft_proto::device_ctl::{InFlight, QueueState};
use ft_proto::{Alone, Committed, CutKind};
use pollux_api::EventRecord;
use serde::{Deserialize, Serialize};

use crate::staging::Staging;

/// The VMM could not do what the engine asked: a local failure, not the peer's.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct GuestError {
    what: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl GuestError {
    /// `what` failed because of `source`.
    pub fn new(what: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { what: what.into(), source: Some(source.into()) }
    }

    /// `what` failed.
    pub fn plain(what: impl Into<String>) -> Self {
        Self { what: what.into(), source: None }
    }
}

/// Guest memory by page number (guest-physical address / 4096). Shared between the engine's threads.
///
/// Copies may race with a running guest; a page that was torn by that is marked dirty and sent again.
pub trait Memory: Send + Sync {
    /// The page numbers that are RAM.
    fn ranges(&self) -> Vec<Range<u64>>;
    /// The part of them that was ever touched; the rest reads as zeroes and costs nothing.
    ///
    /// # Errors
    /// When the kernel does not tell.
    fn populated(&self) -> Result<Vec<Range<u64>>, GuestError>;
    /// Copies a page out; `into` is one page long.
    ///
    /// # Errors
    /// When the page is not RAM.
    fn copy_out(&self, page: u64, into: &mut [u8]) -> Result<(), GuestError>;
    /// Overwrites a page; `from` is one page long.
    ///
    /// # Errors
    /// When the page is not RAM.
    fn copy_in(&self, page: u64, from: &[u8]) -> Result<(), GuestError>;
    /// Makes a page zero.
    ///
    /// # Errors
    /// When the page is not RAM.
    fn zero(&self, page: u64) -> Result<(), GuestError>;
    /// Makes all memory zero and gives it back to the host.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn clear(&self) -> Result<(), GuestError>;
}

/// Where a sealed device stands.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Position {
    /// Id of the device.
    pub id: String,
    /// Its queues.
    pub queues: Vec<QueueState>,
    /// Its requests in flight.
    pub in_flight: Vec<InFlight>,
    /// A disk of which the epoch has nothing; a network card that holds nothing back, of this epoch or one before.
    pub idle: bool,
}

/// A device process's control socket.
#[derive(Debug)]
pub struct LinkEnd {
    /// Id of the device.
    pub id: String,
    /// `SOCK_SEQPACKET`, after `Hello` and `Ready`.
    pub socket: OwnedFd,
}

/// What a VM is made of, as far as two of them must be alike.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Shape {
    /// Bytes of guest memory.
    pub memory: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// CPU features as the guest sees them; opaque here.
    pub cpuid: Vec<u8>,
    /// Whether there is a serial port.
    pub serial: bool,
    /// Disks in slot order.
    pub disks: Vec<DiskShape>,
    /// Network cards in slot order.
    pub nets: Vec<NetShape>,
}

impl Shape {
    /// Indices of the disks that are mirrored. A disk that the guest cannot write needs no mirror: both hosts bring the same.
    pub fn mirrored(&self) -> impl Iterator<Item = u16> + '_ {
        (0..).zip(&self.disks).filter(|(_, disk)| !disk.read_only).map(|(index, _)| index)
    }
}

/// What a driver sees of a device of a [`Shape`], of whatever kind it is.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct VirtioShape {
    /// PCI slot.
    pub slot: u16,
    /// Largest size of each queue.
    pub queue_sizes: Vec<u16>,
    /// Features offered to the driver. A standby may have more of them; the driver goes on with those that it knows.
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

/// The VM. Methods are called on the engine's thread only.
pub trait Guest: Send {
    /// What it is made of.
    fn shape(&self) -> Shape;
    /// Why it cannot be protected: all reasons, each with its way out.
    fn blockers(&self) -> Vec<String>;
    /// Why it cannot run a guest that was started with these CPU features.
    fn check_cpu(&self, cpuid: &[u8]) -> Vec<String>;
    /// Standby: becomes like the primary in what [`Shape`] says and may differ (CPU features).
    ///
    /// # Errors
    /// When the kernel refuses.
    fn adopt(&mut self, shape: &Shape) -> Result<(), GuestError>;
    /// Its memory.
    fn memory(&self) -> Arc<dyn Memory>;
    /// Control sockets of its device processes, disks first, in slot order.
    ///
    /// # Errors
    /// When descriptors run out.
    fn links(&mut self) -> Result<Vec<LinkEnd>, GuestError>;

    /// Makes `cpus` the host's processors on which the vCPUs were last.
    fn processors(&self, cpus: &mut Vec<usize>);
    /// Begins to stop the vCPUs; they capture their state as soon as they have stopped. `checkpoint` or `resume` follows. Does
    /// nothing and tells false when that could take long, since somebody changes the VM as a whole, or a vCPU waits for a device:
    /// then the checkpoint has to wait, but not this thread.
    #[must_use]
    fn stop(&mut self) -> bool;
    /// Captures the epoch of `staging` when the vCPUs have stopped, and runs them again, unless it is the last cut. The pages that
    /// were written since the last harvest are copied, and the state of the devices is appended, which are sealed and stand at the
    /// positions in `staging`; the vCPUs' is kept for `save_vcpus`. From the base on console output is held; what comes after the
    /// pause belongs to the next epoch. A guest that was paused before stays paused.
    ///
    /// # Errors
    /// When a part cannot be captured. The guest runs on; pages that were harvested are in `staging`.
    fn checkpoint(&mut self, kind: CutKind, staging: &mut Staging) -> Result<(), GuestError>;
    /// Instead of a checkpoint, or after the last one: the guest goes on here.
    fn resume(&mut self);
    /// Begins to track writes to memory, by vCPUs, device processes and the VMM itself.
    ///
    /// # Errors
    /// When tracking cannot be turned on.
    fn start_tracking(&mut self) -> Result<(), GuestError>;
    /// Ends that.
    fn stop_tracking(&mut self);
    /// Appends the pages written since the last call, each once, and re-arms tracking. The guest may be running. While somebody
    /// changes the VM as a whole it may be that none are told; they are by a later call, or a checkpoint.
    ///
    /// # Errors
    /// When the kernel does not tell; nothing is lost then.
    fn harvest(&mut self, pages: &mut Vec<u64>) -> Result<(), GuestError>;
    /// Marks pages as written again: what harvested them came to nothing.
    fn put_back(&mut self, pages: &[u64]);
    /// Appends the state of the vCPUs that the last checkpoint has captured. The guest may be running.
    ///
    /// # Errors
    /// When it cannot be encoded.
    fn save_vcpus(&mut self, out: &mut Vec<u8>) -> Result<(), GuestError>;
    /// How long the guest stood still in the last pause, if that is over: the longest of its vCPUs.
    fn stood_still(&self) -> Option<Duration>;

    /// Standby: becomes what a checkpoint wrote, memory being in place already.
    ///
    /// # Errors
    /// When the state does not fit this VM.
    fn load(&mut self, state: &[u8]) -> Result<(), GuestError>;
    /// Standby: sets the device processes up for the loaded state.
    ///
    /// # Errors
    /// When one of them does not answer.
    fn activate(&mut self) -> Result<(), GuestError>;
    /// Standby: kicks every queue, injects every interrupt once, and runs the vCPUs, unless an operator has paused the VM before it
    /// came here.
    ///
    /// # Errors
    /// When a vCPU cannot start.
    fn start(&mut self) -> Result<(), GuestError>;
    /// Stops the VM for good: another node runs it. The process stays, for its status.
    fn fence(&mut self, reason: &str);

    /// Standby: a part of this VM is dead. It holds nothing worth keeping and has to be built anew.
    fn unusable(&mut self, reason: &str);

    /// Something has happened that operators may want to know.
    fn told(&mut self, event: &EventRecord);

    /// Lets console output go.
    fn release_console(&mut self, committed: &Committed);
    /// Lets all console output go and holds no more.
    fn free_console(&mut self, alone: &Alone);
}
