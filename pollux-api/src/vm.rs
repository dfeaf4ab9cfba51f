//! What `vmm.ping`, `vm.info` and `vm.counters` answer, as Cloud Hypervisor spells it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::config::VmConfig;

/// The version of Cloud Hypervisor whose API this is.
pub const CH_VERSION: &str = "53.0.0";

/// What `vmm.ping` answers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Ping {
    /// Version of Cloud Hypervisor, and that of Pollux.
    pub build_version: String,
    /// What the VMM can do.
    pub features: Vec<String>,
    /// Its process.
    pub pid: u32,
    /// Version of Cloud Hypervisor whose API this is.
    pub version: String,
}

/// State of a VM.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub enum VmState {
    /// Configured, not booted; also after `vm.shutdown`.
    Created,
    /// The guest runs.
    Running,
    /// Ended by the guest, not yet deleted.
    Shutdown,
    /// The guest is stopped and can go on.
    Paused,
}

/// What `vm.info` answers.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct VmInfo {
    /// The configuration, filled in once the VM was built.
    pub config: VmConfig,
    /// State.
    pub state: VmState,
    /// Memory of the guest, in bytes.
    pub memory_actual_size: u64,
    /// Devices, by id; absent unless the VM was booted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_tree: Option<Value>,
}

/// What `vm.counters` answers: by device and name.
pub type Counters = BTreeMap<String, BTreeMap<String, u64>>;
