//! What the control loop needs of a VM, as a contract: fulfilled by `ft_adapter::factory`, and by a plain
//! struct in tests.
//!
//! Life: built (nothing runs yet) -> `boot` -> any of `pause`, `resume`, `reset`, `power_button`, `nmi` ->
//! `stop` -> `shutdown`, after which nothing but dropping follows. A standby is built and then waits; whoever
//! takes it over starts it and says so by [`VmEvent::TakenOver`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crossbeam_channel::Sender;
use serde_json::Value;

use crate::config::VmConfig;
use crate::ft_api::Control;

/// Any error, with its chain of sources.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

pub use pollux_api::vm::Counters;

/// A VM as the control loop sees it. No call may block for longer than its own work: the loop waits for it.
pub trait Machine: Send {
    /// Loads the payload and starts the vCPUs.
    ///
    /// # Errors
    /// When the payload cannot be loaded or the kernel refuses.
    fn boot(&mut self) -> Result<(), BoxError>;
    /// Stops the vCPUs and the devices.
    ///
    /// # Errors
    /// When a vCPU or a device cannot be stopped.
    fn pause(&mut self) -> Result<(), BoxError>;
    /// Starts them again.
    ///
    /// # Errors
    /// When a device cannot be started.
    fn resume(&mut self) -> Result<(), BoxError>;
    /// Back to power-on, then runs the payload again. Works on a running and on a paused VM; it runs
    /// afterwards.
    ///
    /// # Errors
    /// When a device cannot be reset or the payload cannot be loaded again.
    fn reset(&mut self) -> Result<(), BoxError>;
    /// This VM was a standby, and its vCPUs are set to a checkpoint and, unless it is paused, started: the
    /// rest of it follows.
    ///
    /// # Errors
    /// When the console's input cannot be started.
    fn taken_over(&mut self) -> Result<(), BoxError>;
    /// Stops the vCPUs for good: nothing of what is told about the VM's end from here on is undone by its
    /// guest. `shutdown` follows. After that there is nothing to stop.
    ///
    /// # Errors
    /// When a vCPU cannot be stopped.
    fn stop(&mut self) -> Result<(), BoxError>;
    /// Ends the vCPUs and the device processes, and gives every file back.
    ///
    /// # Errors
    /// When a part did not end in order; it is ended all the same.
    fn shutdown(&mut self) -> Result<(), BoxError>;
    /// Presses the power button.
    ///
    /// # Errors
    /// When the interrupt cannot be raised.
    fn power_button(&mut self) -> Result<(), BoxError>;
    /// Raises a non-maskable interrupt on every vCPU.
    ///
    /// # Errors
    /// When the kernel refuses, or the VM cannot do it.
    fn nmi(&mut self) -> Result<(), BoxError>;
    /// The configuration with everything filled in: ids, addresses, paths of terminals.
    fn config(&self) -> VmConfig;
    /// Memory that the guest has, in bytes.
    fn memory_size(&self) -> u64;
    /// Devices and their resources, as `vm.info` shows them.
    fn device_tree(&self) -> Value;
    /// Counters of the devices.
    fn counters(&self) -> Counters;
}

/// What a VM tells the control loop. Sending never blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmEvent {
    /// The guest powered itself off.
    Shutdown,
    /// The guest asked for a reset, or triple-faulted.
    Reset,
    /// The guest cannot go on, here or elsewhere.
    Crashed {
        /// Why.
        reason: String,
    },
    /// This host cannot run the VM any longer, though another one might.
    HostFailed {
        /// Why.
        reason: String,
    },
    /// A device process is gone though its VM is not.
    DeviceExited {
        /// Device id.
        id: String,
        /// How it ended.
        status: String,
    },
    /// The guest's driver has set a virtio device up.
    DeviceActivated {
        /// Device id.
        id: String,
    },
    /// The guest's driver has reset a virtio device.
    DeviceReset {
        /// Device id.
        id: String,
    },
    /// This VM was a standby and runs here from now on.
    TakenOver {
        /// An operator has paused it, before it came here: it waits to be resumed.
        paused: bool,
    },
    /// This VM was about to leave and stays: it may be changed again.
    Stays,
    /// This VM is a standby and a part of it is dead: it has to be built anew.
    Unusable {
        /// Why.
        reason: String,
    },
    /// This VM is a standby that waited in vain: this host has been given the right to run it.
    MayRun,
    /// Another host runs this VM: it must not run here any more.
    Fenced {
        /// Why.
        reason: String,
    },
    /// Something to put into the event monitor under the source `ft`.
    Ft {
        /// Name of the event.
        event: String,
        /// Its properties.
        properties: BTreeMap<String, String>,
    },
}

/// A VM that was put together, and what controls its protection.
pub struct Built {
    /// The VM.
    pub machine: Arc<Mutex<dyn Machine>>,
    /// Fault tolerance of it; `None` when this build has none.
    pub ft: Option<Arc<dyn Control>>,
}

/// Which part this host has in running a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It runs here.
    Run,
    /// It waits here for the host that runs it.
    StandBy,
}

/// Puts VMs together.
pub trait VmFactory: Send {
    /// Which part this host has, by its configuration and the witness. `boots`: somebody wants the VM to boot
    /// here.
    ///
    /// # Errors
    /// When the witness cannot be asked, or the VM shall boot here and another host runs it.
    fn part(&mut self, config: &VmConfig, boots: bool) -> Result<Part, BoxError>;
    /// Whether this host can be a standby.
    fn can_stand_by(&self) -> bool;
    /// A standby cannot be built, for this reason: operators are to see it. It is tried again.
    fn standby_failed(&self, reason: &str);
    /// Builds a VM that waits for [`Machine::boot`], or a standby that waits for its primary.
    ///
    /// # Errors
    /// When a part cannot be built. Nothing of it is left behind.
    fn assemble(&mut self, config: VmConfig, part: Part, events: Sender<VmEvent>) -> Result<Built, BoxError>;
}
