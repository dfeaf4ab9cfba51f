//! Option strings of the command line into configuration: which keys each flag has, and the field each one
//! sets.
//!
//! Names on the command line and in JSON differ in places (`socket` is `vhost_socket`, `boot` is
//! `boot_vcpus`); this is the only file that knows both.

use std::path::PathBuf;

use super::{
    ConsoleConfig, ConsoleOutputMode, CoreScheduling, CpuAffinity, CpuFeatures, CpuTopology, CpusConfig, DiskConfig,
    HotplugMethod, ImageType, MemoryConfig, NetConfig, PlatformConfig, RngConfig, SerialConfig, VhostMode,
};
use crate::options::{ByteSize, NumberList, OptionError, Options, TextList, Toggle, Tuples};

/// Bandwidth limits, of disks and network cards.
const RATE_LIMIT_KEYS: [&str; 6] =
    ["bw_size", "bw_one_time_burst", "bw_refill_time", "ops_size", "ops_one_time_burst", "ops_refill_time"];

impl CpusConfig {
    /// From the text after `--cpus`.
    ///
    /// # Errors
    /// When the text does not follow the grammar or a value is not what it should be.
    pub fn from_option(text: &str) -> Result<Self, OptionError> {
        let keys = [
            "boot",
            "max",
            "topology",
            "kvm_hyperv",
            "max_phys_bits",
            "affinity",
            "features",
            "nested",
            "core_scheduling",
            "profile",
        ];
        let options = Options::parse("--cpus", text, &keys, &[])?;
        let default = Self::default();
        let boot_vcpus = options.value_or("boot", default.boot_vcpus)?;
        let scheduling = [("vm", CoreScheduling::Vm), ("vcpu", CoreScheduling::Vcpu), ("off", CoreScheduling::Off)];
        Ok(Self {
            boot_vcpus,
            max_vcpus: options.value_or("max", boot_vcpus)?,
            topology: topology(&options)?,
            kvm_hyperv: options.toggle_or("kvm_hyperv", false)?,
            max_phys_bits: options.value_or("max_phys_bits", default.max_phys_bits)?,
            affinity: affinity(&options)?,
            features: features(&options)?,
            nested: options.toggle_or("nested", true)?,
            core_scheduling: options.word_or_default("core_scheduling", &scheduling)?,
            profile: profile(&options, default.profile),
        })
    }
}

/// `threads_per_core:cores_per_die:dies_per_package:packages`.
fn topology(options: &Options) -> Result<Option<CpuTopology>, OptionError> {
    let Some(text) = options.text("topology") else { return Ok(None) };
    let wrong = || options.bad_value("topology", "four numbers with colons: threads:cores:dies:packages");
    let parts = text.split(':').map(|part| part.parse::<u16>().map_err(|_| wrong())).collect::<Result<Vec<_>, _>>()?;
    let [threads_per_core, cores_per_die, dies_per_package, packages] = parts[..] else { return Err(wrong()) };
    Ok(Some(CpuTopology { threads_per_core, cores_per_die, dies_per_package, packages }))
}

fn affinity(options: &Options) -> Result<Option<Vec<CpuAffinity>>, OptionError> {
    let Some(Tuples(tuples)) = options.value("affinity")? else { return Ok(None) };
    let wrong = || options.bad_value("affinity", "vCPUs and host CPUs such as [0@[0,2],1@[1]]");
    let one = |(vcpu, cpus): (u64, Vec<u64>)| {
        let host_cpus = cpus.into_iter().map(|cpu| usize::try_from(cpu).map_err(|_| wrong()));
        Ok(CpuAffinity {
            vcpu: u32::try_from(vcpu).map_err(|_| wrong())?,
            host_cpus: host_cpus.collect::<Result<_, _>>()?,
        })
    };
    tuples.into_iter().map(one).collect::<Result<_, _>>().map(Some)
}

fn features(options: &Options) -> Result<CpuFeatures, OptionError> {
    match options.text("features") {
        None => Ok(CpuFeatures::default()),
        Some("amx") => Ok(CpuFeatures { amx: true }),
        Some(_) => Err(options.bad_value("features", "amx")),
    }
}

fn profile(options: &Options, default: String) -> String {
    match options.text("profile") {
        None => default,
        Some(name) if name.eq_ignore_ascii_case(&default) => default,
        Some(name) => name.to_owned(),
    }
}

impl MemoryConfig {
    /// From the text after `--memory`.
    ///
    /// # Errors
    /// When the text does not follow the grammar or a value is not what it should be.
    pub fn from_option(text: &str) -> Result<Self, OptionError> {
        let keys = [
            "size",
            "mergeable",
            "hotplug_method",
            "hotplug_size",
            "hotplugged_size",
            "shared",
            "hugepages",
            "hugepage_size",
            "prefault",
            "reserve",
            "thp",
        ];
        let options = Options::parse("--memory", text, &keys, &["file"])?;
        let bytes = |key| Ok::<_, OptionError>(options.value::<ByteSize>(key)?.map(|size| size.0));
        let methods = [("acpi", HotplugMethod::Acpi), ("virtio-mem", HotplugMethod::VirtioMem)];
        Ok(Self {
            size: bytes("size")?.unwrap_or(super::DEFAULT_MEMORY_SIZE),
            mergeable: options.toggle_or("mergeable", false)?,
            hotplug_method: options.word_or_default("hotplug_method", &methods)?,
            hotplug_size: bytes("hotplug_size")?,
            hotplugged_size: bytes("hotplugged_size")?,
            shared: options.toggle_or("shared", false)?,
            hugepages: options.toggle_or("hugepages", false)?,
            hugepage_size: bytes("hugepage_size")?,
            prefault: options.toggle_or("prefault", false)?,
            reserve: options.toggle_or("reserve", false)?,
            thp: options.toggle_or("thp", true)?,
            zones: None,
        })
    }
}

impl DiskConfig {
    /// From one text after `--disk`.
    ///
    /// # Errors
    /// When the text does not follow the grammar or a value is not what it should be.
    pub fn from_option(text: &str) -> Result<Self, OptionError> {
        let keys = [
            "path",
            "readonly",
            "direct",
            "iommu",
            "num_queues",
            "queue_size",
            "vhost_user",
            "socket",
            "id",
            "serial",
            "backing_files",
            "sparse",
            "image_type",
            "lock_granularity",
            "disable_io_uring",
            "disable_aio",
            "pci_segment",
            "pci_device_id",
            "force",
        ];
        let unsupported = [&RATE_LIMIT_KEYS[..], &["rate_limit_group", "queue_affinity"]].concat();
        let options = Options::parse("--disk", text, &keys, &unsupported)?;
        let default = Self::default();
        let types = [
            ("raw", ImageType::Raw),
            ("qcow2", ImageType::Qcow2),
            ("vhd", ImageType::FixedVhd),
            ("vhdx", ImageType::Vhdx),
            ("unknown", ImageType::Unknown),
        ];
        Ok(Self {
            id: options.value("id")?,
            path: options.value("path")?,
            readonly: options.toggle_or("readonly", false)?,
            direct: options.toggle_or("direct", false)?,
            iommu: options.toggle_or("iommu", false)?,
            num_queues: options.value_or("num_queues", default.num_queues)?,
            queue_size: options.value_or("queue_size", default.queue_size)?,
            vhost_user: options.toggle_or("vhost_user", false)?,
            vhost_socket: options.value("socket")?,
            serial: options.value("serial")?,
            backing_files: options.toggle_or("backing_files", false)?,
            sparse: options.toggle_or("sparse", true)?,
            image_type: options.word_or_default("image_type", &types)?,
            lock_granularity: options.value("lock_granularity")?,
            disable_io_uring: options.toggle_or("disable_io_uring", false)?,
            disable_aio: options.toggle_or("disable_aio", false)?,
            pci_segment: options.value_or("pci_segment", 0)?,
            pci_device_id: options.value("pci_device_id")?,
            force: options.toggle_or("force", false)?,
            ..default
        })
    }
}

impl NetConfig {
    /// From one text after `--net`.
    ///
    /// # Errors
    /// When the text does not follow the grammar or a value is not what it should be.
    pub fn from_option(text: &str) -> Result<Self, OptionError> {
        let keys = [
            "tap",
            "ip",
            "mask",
            "mac",
            "host_mac",
            "mtu",
            "iommu",
            "num_queues",
            "queue_size",
            "vhost_user",
            "socket",
            "vhost_mode",
            "id",
            "offload_tso",
            "offload_ufo",
            "offload_csum",
            "pci_segment",
            "pci_device_id",
        ];
        let unsupported = [&RATE_LIMIT_KEYS[..], &["fd", "queue_affinity"]].concat();
        let options = Options::parse("--net", text, &keys, &unsupported)?;
        let default = Self::default();
        let modes = [("client", VhostMode::Client), ("server", VhostMode::Server)];
        Ok(Self {
            id: options.value("id")?,
            tap: options.value("tap")?,
            ip: options.value("ip")?,
            mask: options.value("mask")?,
            mac: options.value("mac")?,
            host_mac: options.value("host_mac")?,
            mtu: options.value("mtu")?,
            iommu: options.toggle_or("iommu", false)?,
            num_queues: options.value_or("num_queues", default.num_queues)?,
            queue_size: options.value_or("queue_size", default.queue_size)?,
            vhost_user: options.toggle_or("vhost_user", false)?,
            vhost_socket: options.value("socket")?,
            vhost_mode: options.word_or_default("vhost_mode", &modes)?,
            offload_tso: options.toggle_or("offload_tso", true)?,
            offload_ufo: options.toggle_or("offload_ufo", true)?,
            offload_csum: options.toggle_or("offload_csum", true)?,
            pci_segment: options.value_or("pci_segment", 0)?,
            pci_device_id: options.value("pci_device_id")?,
            ..default
        })
    }
}

impl RngConfig {
    /// From the text after `--rng`.
    ///
    /// # Errors
    /// When the text does not follow the grammar or a value is not what it should be.
    pub fn from_option(text: &str) -> Result<Self, OptionError> {
        let options = Options::parse("--rng", text, &["src", "iommu", "pci_segment"], &[])?;
        Ok(Self {
            pci_segment: options.value_or("pci_segment", 0)?,
            src: options.value("src")?.unwrap_or_else(|| Self::default().src),
            iommu: options.toggle_or("iommu", false)?,
        })
    }
}

/// The words `off`, `pty`, `tty`, `null` and the pairs `file=`, `socket=` that say where bytes go.
fn output(flag: &'static str, text: &str) -> Result<(ConsoleOutputMode, Option<PathBuf>, bool), OptionError> {
    let (mut mode, mut target, mut iommu) = (None, None, false);
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let wrong = || OptionError::NotAPair { flag: flag.to_owned(), part: part.to_owned() };
        let known = "off, null, pty, tty, file=PATH, socket=PATH";
        let found = match part.split_once('=') {
            None if part == "off" => ConsoleOutputMode::Off,
            None if part == "pty" => ConsoleOutputMode::Pty,
            None if part == "tty" => ConsoleOutputMode::Tty,
            None if part == "null" => ConsoleOutputMode::Null,
            Some(("file", path)) if !path.is_empty() => {
                target = Some(PathBuf::from(path));
                ConsoleOutputMode::File
            }
            Some(("socket", path)) if !path.is_empty() => {
                target = Some(PathBuf::from(path));
                ConsoleOutputMode::Socket
            }
            Some(("file" | "socket", _)) => return Err(wrong()),
            Some(("iommu", toggle)) => {
                iommu = <Toggle as crate::options::OptionValue>::from_text(toggle).ok_or_else(wrong)?.0;
                continue;
            }
            _ => {
                return Err(OptionError::UnknownKey {
                    flag: flag.to_owned(),
                    key: part.to_owned(),
                    known: known.to_owned(),
                });
            }
        };
        if mode.replace(found).is_some() {
            return Err(OptionError::Twice { flag: flag.to_owned(), key: "the mode".to_owned() });
        }
    }
    let mode = mode.ok_or_else(|| OptionError::Missing { flag: flag.to_owned(), key: "mode".to_owned() })?;
    Ok((mode, target, iommu))
}

/// Puts the target of mode `Socket` into the second place, that of others into the first.
fn file_or_socket(mode: ConsoleOutputMode, target: Option<PathBuf>) -> (Option<PathBuf>, Option<PathBuf>) {
    if mode == ConsoleOutputMode::Socket { (None, target) } else { (target, None) }
}

impl SerialConfig {
    /// From the text after `--serial`.
    ///
    /// # Errors
    /// When it is none of the modes.
    pub fn from_option(text: &str) -> Result<Self, OptionError> {
        let (mode, target, _) = output("--serial", text)?;
        let (file, socket) = file_or_socket(mode, target);
        Ok(Self { file, mode, socket })
    }
}

impl ConsoleConfig {
    /// From the text after `--console`.
    ///
    /// # Errors
    /// When it is none of the modes.
    pub fn from_option(text: &str) -> Result<Self, OptionError> {
        let (mode, target, iommu) = output("--console", text)?;
        let (file, socket) = file_or_socket(mode, target);
        Ok(Self { file, mode, socket, iommu, ..Self::default() })
    }
}

impl PlatformConfig {
    /// From the text after `--platform`.
    ///
    /// # Errors
    /// When the text does not follow the grammar or a value is not what it should be.
    pub fn from_option(text: &str) -> Result<Self, OptionError> {
        let keys = [
            "num_pci_segments",
            "iommu_segments",
            "iommu_address_width",
            "serial_number",
            "system_serial_number",
            "uuid",
            "system_uuid",
            "oem_strings",
            "system_manufacturer",
            "system_product_name",
            "system_version",
            "system_family",
            "system_sku_number",
            "chassis_asset_tag",
            "iommufd",
            "vfio_p2p_dma",
        ];
        let options = Options::parse("--platform", text, &keys, &["tdx", "sev_snp"])?;
        let either = |long: &str, short: &str| -> Result<Option<String>, OptionError> {
            Ok(options.value(long)?.or(options.value(short)?))
        };
        let default = Self::default();
        let segments = match options.value::<NumberList>("iommu_segments")? {
            None => None,
            Some(NumberList(list)) => {
                let wrong = |_| options.bad_value("iommu_segments", "a list of segments up to 65535");
                Some(list.into_iter().map(u16::try_from).collect::<Result<Vec<_>, _>>().map_err(wrong)?)
            }
        };
        Ok(Self {
            num_pci_segments: options.value_or("num_pci_segments", 1)?,
            iommu_segments: segments,
            iommu_address_width: options.value_or("iommu_address_width", default.iommu_address_width)?,
            system_serial_number: either("system_serial_number", "serial_number")?,
            system_uuid: either("system_uuid", "uuid")?,
            oem_strings: options.value::<TextList>("oem_strings")?.map(|list| list.0),
            system_manufacturer: options.value("system_manufacturer")?,
            system_product_name: options.value("system_product_name")?,
            system_version: options.value("system_version")?,
            system_family: options.value("system_family")?,
            system_sku_number: options.value("system_sku_number")?,
            chassis_asset_tag: options.value("chassis_asset_tag")?,
            iommufd: options.toggle_or("iommufd", false)?,
            vfio_p2p_dma: options.toggle_or("vfio_p2p_dma", true)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_and_memory() {
        let cpus =
            CpusConfig::from_option("boot=2,max=4,topology=1:2:1:2,affinity=[0@[0,2],1@[1]],nested=off").unwrap();
        assert_eq!((cpus.boot_vcpus, cpus.max_vcpus, cpus.nested), (2, 4, false));
        assert_eq!(cpus.topology.unwrap().cores_per_die, 2);
        assert_eq!(cpus.affinity.unwrap()[0], CpuAffinity { vcpu: 0, host_cpus: vec![0, 2] });
        assert_eq!(CpusConfig::from_option("boot=3").unwrap().max_vcpus, 3);
        let memory = MemoryConfig::from_option("size=1G,shared=on,hugepages=on,hugepage_size=2M,thp=off").unwrap();
        assert_eq!(
            (memory.size, memory.shared, memory.hugepage_size, memory.thp),
            (1 << 30, true, Some(2 << 20), false)
        );
    }

    #[test]
    fn devices() {
        let disk = DiskConfig::from_option("path=/a,readonly=on,num_queues=2,image_type=raw,serial=s1,id=d").unwrap();
        assert!(!disk.force && DiskConfig::from_option("path=/a,force=on").unwrap().force);
        assert_eq!(disk.path, Some(PathBuf::from("/a")));
        assert_eq!((disk.readonly, disk.num_queues, disk.image_type), (true, 2, ImageType::Raw));
        let disk = DiskConfig::from_option("vhost_user=true,socket=/s").unwrap();
        assert_eq!((disk.vhost_user, disk.vhost_socket.as_deref()), (true, Some("/s")));
        let net = NetConfig::from_option("tap=,mac=12:34:56:78:90:ab,ip=10.0.0.1,mask=255.255.255.0,mtu=1400").unwrap();
        assert_eq!((net.tap, net.mtu), (None, Some(1400)));
        assert_eq!(NetConfig::from_option("vhost_mode=server").unwrap().vhost_mode, VhostMode::Server);
        assert_eq!(RngConfig::from_option("src=/dev/hwrng").unwrap().src, PathBuf::from("/dev/hwrng"));
    }

    #[test]
    fn consoles_and_platform() {
        let serial = |text| SerialConfig::from_option(text).map(|serial| (serial.mode, serial.file, serial.socket));
        let path = Some(PathBuf::from("/p"));
        assert_eq!(serial("tty"), Ok((ConsoleOutputMode::Tty, None, None)));
        assert_eq!(serial("file=/p"), Ok((ConsoleOutputMode::File, path.clone(), None)));
        assert_eq!(serial("socket=/p"), Ok((ConsoleOutputMode::Socket, None, path)));
        assert!(serial("loud").unwrap_err().to_string().starts_with("--serial: unknown key \"loud\""));
        assert!(serial("file=").is_err() && serial("tty,pty").is_err() && serial("").is_err());
        let platform = PlatformConfig::from_option("uuid=u1,serial_number=s1,oem_strings=[a,b]").unwrap();
        assert_eq!(
            (platform.system_uuid.as_deref(), platform.oem_strings.map(|list| list.len())),
            (Some("u1"), Some(2))
        );
    }

    #[test]
    fn bad_values_name_flag_and_key() {
        let errors = [
            CpusConfig::from_option("boot=two").unwrap_err(),
            CpusConfig::from_option("topology=1:2").unwrap_err(),
            MemoryConfig::from_option("size=lots").unwrap_err(),
            DiskConfig::from_option("path=/a,image_type=zip").unwrap_err(),
            DiskConfig::from_option("path=/a,bw_size=1").unwrap_err(),
            NetConfig::from_option("mac=zz").unwrap_err(),
            NetConfig::from_option("speed=9").unwrap_err(),
        ];
        let starts = [
            "--cpus: boot=two is not a number",
            "--cpus: topology=1:2 is not four numbers",
            "--memory: size=lots is not a size",
            "--disk: image_type=zip is not raw or qcow2",
            "--disk: key \"bw_size\" is not supported",
            "--net: mac=zz is not a MAC address",
            "--net: unknown key \"speed\"",
        ];
        for (error, start) in errors.iter().zip(starts) {
            assert!(error.to_string().starts_with(start), "{error}");
        }
    }
}
