//! The VM as the engine sees it: a trait that the VMM implements. The engine never names a register, a page
//! table or a bus.

pub(crate) mod device;
pub(crate) mod memory;
pub(crate) mod shape;
pub mod staging;

use std::sync::Arc;
use std::time::Duration;

use ft_proto::{Alone, Committed, CutKind, Epoch};
use pollux_api::{Blocker, EventRecord};

pub use self::device::{DeviceCaps, DeviceWait, LinkEnd};
pub use self::memory::{GuestError, Memory};
pub use self::shape::{DiskShape, NetShape, Shape, VirtioShape};

use self::staging::Staging;

/// How a page of an epoch was sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Form {
    /// Not at all, or in some bytes: the standby has it.
    Same,
    /// What changed in it.
    Delta,
    /// All of it.
    Whole,
    /// All of it, although it seems to be what was sent whole the last time.
    WholeAgain,
}

/// Tells the engine that output of an epoch is held by something that is no device process. Cheap to clone
/// and to call.
#[derive(Clone)]
pub struct HeldOutput(Arc<dyn Fn(Epoch) + Send + Sync>);

impl HeldOutput {
    pub(crate) fn new(tell: impl Fn(Epoch) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// The first output of `epoch` is held: a reason to cut that epoch now.
    pub fn held(&self, epoch: Epoch) {
        (self.0)(epoch);
    }
}

impl std::fmt::Debug for HeldOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HeldOutput")
    }
}

/// The VM. Methods are called on the engine's thread only.
pub trait Guest: Send {
    /// What it is made of.
    fn shape(&self) -> Shape;
    /// Why it cannot be protected: all reasons.
    fn blockers(&self) -> Vec<Blocker>;
    /// Why it cannot run a guest that was started on CPUs like these, of features and speed.
    fn check_cpu(&self, shape: &Shape) -> Vec<String>;
    /// Standby: becomes like the primary in what [`Shape`] says and may differ (CPU features).
    ///
    /// # Errors
    /// When the kernel refuses.
    fn adopt(&mut self, shape: &Shape) -> Result<(), GuestError>;
    /// Its memory.
    fn memory(&self) -> Arc<dyn Memory>;
    /// Control sockets of its device processes, in slot order.
    ///
    /// # Errors
    /// When descriptors run out.
    fn links(&mut self) -> Result<Vec<LinkEnd>, GuestError>;

    /// Tells whether it waits for a device process that still has time to answer.
    fn device_wait(&self) -> DeviceWait {
        DeviceWait::default()
    }

    /// Makes `cpus` the host's processors on which the vCPUs were last.
    fn processors(&self, cpus: &mut Vec<usize>);
    /// Begins to stop the vCPUs; they capture their state as soon as they have stopped. `checkpoint` or
    /// `resume` follows. Does nothing and tells false when that could take long, since somebody changes the
    /// VM as a whole, or a vCPU waits for a device: then the checkpoint has to wait, but not this thread. A
    /// vCPU that begins to wait for one right after that is waited for by `checkpoint` and `resume`.
    #[must_use]
    fn stop(&mut self) -> bool;
    /// Captures the epoch of `staging` when the vCPUs have stopped, and runs them again, unless it is the
    /// last cut. The pages that were written since the last harvest are copied, and the state of the devices
    /// is appended, which are sealed and stand at the positions in `staging`; the vCPUs' is kept for
    /// `save_vcpus`. From the base on console output is held; what comes after the pause belongs to the next
    /// epoch. A guest that was paused before stays paused.
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
    /// Appends the pages written since the last call, each once, and re-arms tracking. The guest may be
    /// running. While somebody changes the VM as a whole it may be that none are told; they are by a later
    /// call, or a checkpoint.
    ///
    /// # Errors
    /// When the kernel does not tell; nothing is lost then.
    fn harvest(&mut self, pages: &mut Vec<u64>) -> Result<(), GuestError>;
    /// Marks pages as written again: what harvested them came to nothing.
    fn put_back(&mut self, pages: &[u64]);
    /// How the pages of an epoch were sent: tracking may learn from it. Called once for each epoch, in order.
    fn sent(&mut self, _pages: &[(u64, Form)]) {}
    /// Appends the state of the vCPUs that the last checkpoint has captured. The guest may be running.
    ///
    /// # Errors
    /// When it cannot be encoded.
    fn save_vcpus(&mut self, out: &mut Vec<u8>) -> Result<(), GuestError>;
    /// How long the guest was paused by the last checkpoint, if that is over: the longest of its vCPUs.
    fn last_pause(&self) -> Option<Duration>;

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
    /// Standby: kicks every queue, injects every interrupt once, and runs the vCPUs, unless an operator has
    /// paused the VM before it came here.
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

    /// From now on the first console output that is held in an epoch is told to `held`, from whatever thread
    /// writes it.
    fn watch_console(&mut self, held: HeldOutput);
    /// Lets console output go.
    fn release_console(&mut self, committed: &Committed);
    /// Lets all console output go and holds no more.
    fn free_console(&mut self, alone: &Alone);
}
