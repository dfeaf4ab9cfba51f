//! What a VM is to be: the `VmConfig` of Cloud Hypervisor's API, as checked Rust types.
//!
//! In: JSON of `vm.create` or the options of the command line. Out: [`VmConfig`], which
//! [`VmConfig::validate`] checks before anything is started. Never: the host; nothing here opens a file or
//! looks at a device.
//!
//! Names, defaults and spelling follow Cloud Hypervisor v53. Settings of it that Pollux does not have are
//! kept in [`Unsupported`] so that they can be refused by name instead of being lost in silence.

#[macro_use]
mod define;
mod console;
mod devices;
mod landlock;
mod mac;
mod machine;
mod platform;
mod validate;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::console::{ConsoleConfig, ConsoleOutputMode, DebugConsoleConfig, SerialConfig};
pub use self::devices::{DiskConfig, DiskPurpose, ImageType, NetConfig, RngConfig, VhostMode};
pub use self::landlock::LandlockConfig;
pub use self::mac::{MacAddr, MacError};
pub use self::machine::{
    CoreScheduling, CpuAffinity, CpuFeatures, CpuTopology, CpusConfig, DEFAULT_MEMORY_SIZE, HotplugMethod, MemoryConfig,
};
pub use self::platform::{PayloadConfig, PlatformConfig};
pub use self::validate::ConfigError;

/// Everything that defines a VM. `None` fields are left out of the JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmConfig {
    /// Processors.
    #[serde(default)]
    pub cpus: CpusConfig,
    /// Memory.
    #[serde(default)]
    pub memory: MemoryConfig,
    /// What to boot. Needed at boot, not at create.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<PayloadConfig>,
    /// Disks, in the order of their PCI slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<Vec<DiskConfig>>,
    /// Network cards, in the order of their PCI slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<Vec<NetConfig>>,
    /// The entropy device. There is always one.
    #[serde(default)]
    pub rng: RngConfig,
    /// The 16550 at port 0x3f8.
    #[serde(default)]
    pub serial: SerialConfig,
    /// The virtio console. Off unless asked for (Cloud Hypervisor: `Tty`), as Pollux does not have the device
    /// yet.
    #[serde(default)]
    pub console: ConsoleConfig,
    /// The debug port at 0xe9.
    #[serde(default)]
    pub debug_console: DebugConsoleConfig,
    /// Must be false: the device does not exist in Pollux.
    #[serde(default)]
    pub pvpanic: bool,
    /// Must be false: the device does not exist in Pollux.
    #[serde(default)]
    pub iommu: bool,
    /// Must be false: the device does not exist in Pollux.
    #[serde(default)]
    pub watchdog: bool,
    /// SMBIOS strings, PCI segments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<PlatformConfig>,
    /// Whether the VMM leaves itself only those files of the host that it needs for this VM.
    #[serde(default)]
    pub landlock_enable: bool,
    /// More files for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landlock_rules: Option<Vec<LandlockConfig>>,
    /// Settings of Cloud Hypervisor that must be absent or empty here.
    #[serde(flatten)]
    pub unsupported: Unsupported,
}

impl VmConfig {
    /// Gives every card without an address one of random bytes, which it keeps.
    ///
    /// # Errors
    /// When there are none.
    pub fn fill_in_macs<E>(&mut self, mut random: impl FnMut() -> Result<[u8; 6], E>) -> Result<(), E> {
        for net in self.net.iter_mut().flatten().filter(|net| net.mac.is_none()) {
            net.mac = Some(MacAddr::local(random()?));
        }
        Ok(())
    }
}

/// Parts of Cloud Hypervisor's `VmConfig` that Pollux does not have. Each must be absent, null or an empty
/// list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the names are those of Cloud Hypervisor's API")]
pub struct Unsupported {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs: Option<serde_json::Value>,
    #[serde(default, alias = "generic-vhost-user", skip_serializing_if = "Option::is_none")]
    pub generic_vhost_user: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_segments: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pmem: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit_groups: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtc: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpm: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_devices: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vdpa: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<serde_json::Value>,
}

fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod option_tests;
#[cfg(test)]
mod tests;
