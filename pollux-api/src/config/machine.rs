//! Configuration of processors and memory.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::limits::{PHYS_BITS_MAX, PHYS_BITS_MIN, VCPUS_MAX};
use crate::options::{ByteSize, OptionValue, Tuples, option_words};

/// Bytes of memory when nothing is said: 512 MiB.
pub const DEFAULT_MEMORY_SIZE: u64 = 512 << 20;

config_struct! {
    /// Processors.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct CpusConfig("--cpus") {
        /// vCPUs that are there at boot.
        boot_vcpus as "boot" ("N", 1..=VCPUS_MAX): u32 [or 1],
        /// vCPUs that can ever be there, at least `boot_vcpus`, which is also the default.
        max_vcpus as "max" ("N"): u32 [or boot_vcpus],
        /// How the guest is told that its vCPUs are arranged: threads of a core, cores of a die, dies of a
        /// package, packages.
        topology ("T:C:D:P"): Option<CpuTopology>,
        /// Hyper-V enlightenments; must be false.
        kvm_hyperv (""): bool = false,
        /// Upper bound for the width of guest-physical addresses, in bits.
        max_phys_bits ("N", PHYS_BITS_MIN..=PHYS_BITS_MAX): u8 = 46,
        /// Host CPUs that each vCPU may run on.
        affinity ("[VCPU@[CPU,...],...]"): Option<Vec<CpuAffinity>>,
        /// CPU features that are off unless asked for.
        features ("amx"): CpuFeatures = CpuFeatures::default(),
        /// Whether the guest may be a hypervisor itself.
        nested ("on|off"): bool = true,
        /// Which threads may share a physical core.
        core_scheduling ("vm|vcpu|off"): CoreScheduling = CoreScheduling::Vm,
        /// Name of the CPU model shown to the guest; `Host` is the only one.
        profile ("" as Profile): String = Profile::host().0,
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

impl OptionValue for CpuTopology {
    const EXPECTED: &'static str = "four numbers with colons: threads:cores:dies:packages";

    fn from_text(text: &str) -> Option<Self> {
        let parts = text.split(':').map(|part| part.parse::<u16>().ok()).collect::<Option<Vec<_>>>()?;
        let [threads_per_core, cores_per_die, dies_per_package, packages] = parts[..] else { return None };
        Some(Self { threads_per_core, cores_per_die, dies_per_package, packages })
    }
}

/// The host CPUs of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CpuAffinity {
    /// Which vCPU.
    pub vcpu: u32,
    /// Where it may run.
    pub host_cpus: Vec<usize>,
}

impl OptionValue for Vec<CpuAffinity> {
    const EXPECTED: &'static str = "vCPUs and host CPUs such as [0@[0,2],1@[1]]";

    fn from_text(text: &str) -> Option<Self> {
        let one = |(vcpu, cpus): (u64, Vec<u64>)| {
            let host_cpus = cpus.into_iter().map(|cpu| usize::try_from(cpu).ok()).collect::<Option<_>>()?;
            Some(CpuAffinity { vcpu: u32::try_from(vcpu).ok()?, host_cpus })
        };
        Tuples::from_text(text)?.0.into_iter().map(one).collect()
    }
}

/// CPU features that are off unless asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CpuFeatures {
    /// Advanced matrix extensions.
    #[serde(default)]
    pub amx: bool,
}

option_words! {
    CpuFeatures { "amx" => Self { amx: true } }
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

option_words! {
    CoreScheduling { "vm" => Self::Vm, "vcpu" => Self::Vcpu, "off" => Self::Off }
}

/// Name of a CPU model; the one that there is may be written in any case.
struct Profile(String);

impl Profile {
    fn host() -> Self {
        Self("Host".to_owned())
    }
}

impl OptionValue for Profile {
    const EXPECTED: &'static str = "text";

    fn from_text(text: &str) -> Option<Self> {
        let host = Self::host();
        Some(if text.eq_ignore_ascii_case(&host.0) { host } else { Self(text.to_owned()) })
    }
}

impl From<Profile> for String {
    fn from(Profile(name): Profile) -> Self {
        name
    }
}

config_struct! {
    /// Memory.
    #[derive(Clone, Debug, PartialEq)]
    pub struct MemoryConfig("--memory") {
        /// Bytes.
        size ("SIZE" as ByteSize): u64 [or DEFAULT_MEMORY_SIZE],
        /// Let the host merge equal pages.
        mergeable (""): bool = false,
        /// How memory is added to a running VM.
        hotplug_method (""): HotplugMethod = HotplugMethod::Acpi,
        /// Bytes that can be added while the VM runs; must be absent or 0.
        hotplug_size ("" as ByteSize): Option<u64>,
        /// Bytes of those that are there at boot; must be absent or 0.
        hotplugged_size ("" as ByteSize): Option<u64>,
        /// Visible to vhost-user backends. Pollux memory always is, whatever this says.
        shared ("on|off"): bool = false,
        /// Back it with huge pages of the host.
        hugepages ("on|off"): bool = false,
        /// Size of those, in bytes: 2M or 1G.
        hugepage_size ("SIZE" as ByteSize): Option<u64>,
        /// Touch all of it before the VM starts.
        prefault ("on|off"): bool = false,
        /// Reserve swap space for it; has no effect.
        reserve (""): bool = false,
        /// Ask for transparent huge pages.
        thp ("on|off"): bool = true,
        /// Must be absent or empty: zones do not exist in Pollux.
        zones: Option<Vec<serde_json::Value>>,
    }
    refuses ["file"]
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

option_words! {
    HotplugMethod { "acpi" => Self::Acpi, "virtio-mem" => Self::VirtioMem }
}
