//! What a VM is to be: the `VmConfig` of Cloud Hypervisor's API, as checked Rust types.
//!
//! In: JSON of `vm.create` or the options of the command line. Out: [`VmConfig`], which
//! [`VmConfig::validate`] checks before anything is started. Never: the host; nothing here opens a file or
//! looks at a device.
//!
//! Names, defaults and spelling follow Cloud Hypervisor v53. Settings of it that Pollux does not have are
//! kept in [`Unsupported`] so that they can be refused by name instead of being lost in silence.

mod devices;
mod from_options;
mod mac;
mod validate;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::devices::{DiskConfig, DiskPurpose, ImageType, NetConfig, RngConfig, VhostMode};
pub use self::mac::{MacAddr, MacError};
pub use self::validate::ConfigError;

/// Bytes of memory when nothing is said: 512 MiB.
pub const DEFAULT_MEMORY_SIZE: u64 = 512 << 20;

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
    /// Must be false: not done by Pollux.
    #[serde(default)]
    pub landlock_enable: bool,
    /// Settings of Cloud Hypervisor that must be absent or empty here.
    #[serde(flatten)]
    pub unsupported: Unsupported,
}

/// Processors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CpusConfig {
    /// vCPUs that are there at boot.
    pub boot_vcpus: u32,
    /// vCPUs that can ever be there, at least `boot_vcpus`.
    pub max_vcpus: u32,
    /// How the guest is told that its vCPUs are arranged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<CpuTopology>,
    /// Hyper-V enlightenments.
    #[serde(default)]
    pub kvm_hyperv: bool,
    /// Upper bound for the width of guest-physical addresses, in bits.
    #[serde(default = "default_max_phys_bits")]
    pub max_phys_bits: u8,
    /// Host CPUs that each vCPU may run on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Vec<CpuAffinity>>,
    /// CPU features that are off unless asked for.
    #[serde(default)]
    pub features: CpuFeatures,
    /// Whether the guest may be a hypervisor itself.
    #[serde(default = "yes")]
    pub nested: bool,
    /// Which threads may share a physical core.
    #[serde(default)]
    pub core_scheduling: CoreScheduling,
    /// Name of the CPU model shown to the guest; `Host` is the only one.
    #[serde(default = "default_profile")]
    pub profile: String,
}

impl Default for CpusConfig {
    fn default() -> Self {
        Self {
            boot_vcpus: 1,
            max_vcpus: 1,
            topology: None,
            kvm_hyperv: false,
            max_phys_bits: default_max_phys_bits(),
            affinity: None,
            features: CpuFeatures::default(),
            nested: true,
            core_scheduling: CoreScheduling::default(),
            profile: default_profile(),
        }
    }
}

/// Arrangement of vCPUs; the product of the four is `max_vcpus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CpuTopology {
    /// Hardware threads of a core.
    pub threads_per_core: u16,
    /// Cores of a die.
    pub cores_per_die: u16,
    /// Dies of a package.
    pub dies_per_package: u16,
    /// Packages.
    pub packages: u16,
}

/// The host CPUs of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CpuAffinity {
    /// Which vCPU.
    pub vcpu: u32,
    /// Where it may run.
    pub host_cpus: Vec<usize>,
}

/// CPU features that are off unless asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CpuFeatures {
    /// Advanced matrix extensions.
    #[serde(default)]
    pub amx: bool,
}

/// Which threads may share a physical core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum CoreScheduling {
    /// Those of the same VM.
    #[default]
    Vm,
    /// Those of the same vCPU.
    Vcpu,
    /// Any.
    Off,
}

/// Memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MemoryConfig {
    /// Bytes.
    pub size: u64,
    /// Let the host merge equal pages.
    #[serde(default)]
    pub mergeable: bool,
    /// How memory is added to a running VM.
    #[serde(default)]
    pub hotplug_method: HotplugMethod,
    /// Bytes that can be added while the VM runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hotplug_size: Option<u64>,
    /// Bytes of those that are there at boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hotplugged_size: Option<u64>,
    /// Visible to vhost-user backends. Pollux memory always is, whatever this says.
    #[serde(default)]
    pub shared: bool,
    /// Back it with huge pages of the host.
    #[serde(default)]
    pub hugepages: bool,
    /// Size of those, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugepage_size: Option<u64>,
    /// Touch all of it before the VM starts.
    #[serde(default)]
    pub prefault: bool,
    /// Reserve swap space for it.
    #[serde(default)]
    pub reserve: bool,
    /// Ask for transparent huge pages.
    #[serde(default = "yes")]
    pub thp: bool,
    /// Must be absent or empty: zones do not exist in Pollux.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zones: Option<Vec<serde_json::Value>>,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            size: DEFAULT_MEMORY_SIZE,
            mergeable: false,
            hotplug_method: HotplugMethod::default(),
            hotplug_size: None,
            hotplugged_size: None,
            shared: false,
            hugepages: false,
            hugepage_size: None,
            prefault: false,
            reserve: false,
            thp: true,
            zones: None,
        }
    }
}

/// How memory is added to a running VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum HotplugMethod {
    /// Memory slots announced by ACPI.
    #[default]
    Acpi,
    /// The virtio-mem device.
    VirtioMem,
}

/// What to boot: a kernel or a firmware image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PayloadConfig {
    /// An ELF image with a PVH entry that brings its own loader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub firmware: Option<PathBuf>,
    /// A bzImage, or an ELF image with a PVH entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub kernel: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// The first file system of the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub initramfs: Option<PathBuf>,
}

/// Where the bytes of a serial port or console go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ConsoleOutputMode {
    /// The device does not exist.
    Off,
    /// A new pseudo terminal, whose path is put into `file`.
    Pty,
    /// Standard input and output of the VMM.
    Tty,
    /// The file named by `file`, output only.
    File,
    /// The unix socket named by `socket`.
    Socket,
    /// Nowhere; the device exists.
    #[default]
    Null,
}

/// The 16550 at port 0x3f8.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SerialConfig {
    /// Target of mode `File`; filled in with the terminal's path in mode `Pty`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub file: Option<PathBuf>,
    /// Where its bytes go.
    pub mode: ConsoleOutputMode,
    /// Target of mode `Socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub socket: Option<PathBuf>,
}

/// The virtio console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConsoleConfig {
    /// Device id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Target of mode `File`; filled in with the terminal's path in mode `Pty`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub file: Option<PathBuf>,
    /// Where its bytes go.
    pub mode: ConsoleOutputMode,
    /// Target of mode `Socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub socket: Option<PathBuf>,
    /// Behind the virtual IOMMU.
    #[serde(default, skip_serializing_if = "is_false")]
    pub iommu: bool,
    /// PCI segment.
    #[serde(default)]
    pub pci_segment: u16,
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        Self { id: None, file: None, mode: ConsoleOutputMode::Off, socket: None, iommu: false, pci_segment: 0 }
    }
}

/// The debug port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DebugConsoleConfig {
    /// Target of mode `File`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub file: Option<PathBuf>,
    /// Must be `Off`: the device does not exist in Pollux.
    pub mode: ConsoleOutputMode,
    /// Its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iobase: Option<u16>,
}

impl Default for DebugConsoleConfig {
    fn default() -> Self {
        Self { file: None, mode: ConsoleOutputMode::Off, iobase: Some(0xe9) }
    }
}

/// Identity of the machine as the guest reads it, and its PCI segments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlatformConfig {
    /// PCI segments; must be 1.
    #[serde(default = "one")]
    pub num_pci_segments: u16,
    /// Segments behind the IOMMU; must be absent or empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iommu_segments: Option<Vec<u16>>,
    /// Address width of the IOMMU, in bits.
    #[serde(default = "default_iommu_bits", rename = "iommu_address_width_bits")]
    pub iommu_address_width: u8,
    /// SMBIOS system serial number.
    #[serde(default, alias = "serial_number", skip_serializing_if = "Option::is_none")]
    pub system_serial_number: Option<String>,
    /// SMBIOS system UUID.
    #[serde(default, alias = "uuid", skip_serializing_if = "Option::is_none")]
    pub system_uuid: Option<String>,
    /// SMBIOS OEM strings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oem_strings: Option<Vec<String>>,
    /// SMBIOS system manufacturer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_manufacturer: Option<String>,
    /// SMBIOS system product name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_product_name: Option<String>,
    /// SMBIOS system version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_version: Option<String>,
    /// SMBIOS system family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_family: Option<String>,
    /// SMBIOS system SKU number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_sku_number: Option<String>,
    /// SMBIOS chassis asset tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chassis_asset_tag: Option<String>,
    /// Pass-through by iommufd; must be false.
    #[serde(default)]
    pub iommufd: bool,
    /// Pass-through devices may talk to each other; has no effect here.
    #[serde(default = "yes")]
    pub vfio_p2p_dma: bool,
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

impl PlatformConfig {
    /// Whether it has something to say to the guest.
    #[must_use]
    pub fn has_strings(&self) -> bool {
        let strings = [
            &self.system_serial_number,
            &self.system_uuid,
            &self.system_manufacturer,
            &self.system_product_name,
            &self.system_version,
            &self.system_family,
            &self.system_sku_number,
            &self.chassis_asset_tag,
        ];
        self.oem_strings.is_some() || strings.into_iter().any(Option::is_some)
    }
}

impl Default for PlatformConfig {
    fn default() -> Self {
        Self {
            num_pci_segments: 1,
            iommu_segments: None,
            iommu_address_width: default_iommu_bits(),
            system_serial_number: None,
            system_uuid: None,
            oem_strings: None,
            system_manufacturer: None,
            system_product_name: None,
            system_version: None,
            system_family: None,
            system_sku_number: None,
            chassis_asset_tag: None,
            iommufd: false,
            vfio_p2p_dma: true,
        }
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
    pub landlock_rules: Option<serde_json::Value>,
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

fn yes() -> bool {
    true
}

fn one() -> u16 {
    1
}

fn default_max_phys_bits() -> u8 {
    46
}

fn default_iommu_bits() -> u8 {
    64
}

fn default_profile() -> String {
    "Host".to_owned()
}

fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests;
