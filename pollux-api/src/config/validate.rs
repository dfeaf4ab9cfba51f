//! What must hold for a configuration before anything is started, each violation with the name of its field.

use std::collections::HashSet;
use std::path::Path;

use super::console::{CONSOLE_MODES, SERIAL_MODES, names};
use super::{
    ConsoleOutputMode, DiskConfig, HotplugMethod, ImageType, LandlockConfig, NetConfig, Unsupported, VmConfig,
};
use crate::limits::{
    DEVICE_QUEUES_MAX, DISK_QUEUES_MAX, MEMORY_MAX, NET_QUEUE_PAIRS_MAX, QUEUE_SIZE_MIN, VCPUS_MAX, check_disk_serial,
    check_interface, check_mac, check_queue_size,
};

/// Least memory, in bytes: the first MiB holds tables, the kernel goes above it.
const MEMORY_MIN: u64 = 2 << 20;
/// Size of the pages that memory is made of, in bytes.
const PAGE: u64 = 4 << 10;
/// Sizes of the huge pages that memory can be made of, in bytes; the first is the default.
const HUGE_PAGES: [u64; 2] = [2 << 20, 1 << 30];

/// Longest id of a device, in bytes. Ids are names of threads, sections of the saved state and keys of
/// events.
const ID_MAX: usize = 64;
/// What ids may have besides letters and digits.
const ID_MARKS: &str = "-_.:@";
/// What ids of disks and cards must not begin with: names of devices that are always there, and of nodes in
/// the device tree.
const RESERVED_IDS: [&str; 2] = ["__", "_virtio-pci-"];

/// Why a configuration cannot be used. Fields are named as in the JSON of `vm.create`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A value that cannot be right.
    #[error("{field}: {problem}")]
    Invalid {
        /// Path of the field, such as `disks[0].queue_size`.
        field: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// Something that Cloud Hypervisor has and Pollux does not.
    #[error("{field} is not supported by pollux-vmm: {hint}")]
    Unsupported {
        /// Path of the field.
        field: String,
        /// What to do instead.
        hint: String,
    },
}

fn invalid(field: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { field: field.into(), problem: problem.into() }
}

fn unsupported(field: impl Into<String>, hint: impl Into<String>) -> ConfigError {
    ConfigError::Unsupported { field: field.into(), hint: hint.into() }
}

/// `Err(error())` unless the condition holds.
fn require(condition: bool, error: impl FnOnce() -> ConfigError) -> Result<(), ConfigError> {
    if condition { Ok(()) } else { Err(error()) }
}

impl VmConfig {
    /// Whether a VM can be built from this and booted.
    ///
    /// # Errors
    /// The first thing that is wrong, by the name of its field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_payload()?;
        self.validate_standby()
    }

    /// Whether a standby can be built from this: it needs no payload, as its memory comes from its primary.
    ///
    /// # Errors
    /// The first thing that is wrong, by the name of its field.
    pub fn validate_standby(&self) -> Result<(), ConfigError> {
        self.validate_cpus()?;
        self.validate_memory()?;
        self.validate_consoles()?;
        self.validate_platform()?;
        self.unsupported.validate()?;
        for (field, on) in [
            ("pvpanic", self.pvpanic),
            ("iommu", self.iommu),
            ("watchdog", self.watchdog),
            ("rng.iommu", self.rng.iommu),
        ] {
            require(!on, || unsupported(field, "set it to false"))?;
        }
        require(self.rng.pci_segment == 0, || unsupported("rng.pci_segment", "use segment 0"))?;
        require(!self.rng.src.as_os_str().is_empty(), || invalid("rng.src", "must name a file"))?;
        validate_path(|| "rng.src".to_owned(), &self.rng.src)?;
        validate_path(|| "serial.file".to_owned(), self.serial.file.as_deref().unwrap_or(Path::new("")))?;
        for (index, rule) in self.landlock_rules.iter().flatten().enumerate() {
            rule.validate(&format!("landlock_rules[{index}]"))?;
        }
        for (index, disk) in self.disks.iter().flatten().enumerate() {
            disk.validate(&format!("disks[{index}]"))?;
        }
        for (index, net) in self.net.iter().flatten().enumerate() {
            net.validate(&format!("net[{index}]"))?;
        }
        self.validate_limits()
    }

    /// Whether numbers are within their limits and names can be used. Known as soon as the VM is created, not
    /// only when it boots.
    ///
    /// # Errors
    /// The first one that is not, by the name of its field.
    pub fn validate_limits(&self) -> Result<(), ConfigError> {
        self.cpus.check_limits("cpus")?;
        for (index, disk) in self.disks.iter().flatten().enumerate() {
            disk.validate_limits(&format!("disks[{index}]"))?;
        }
        for (index, net) in self.net.iter().flatten().enumerate() {
            net.validate_limits(&format!("net[{index}]"))?;
        }
        self.validate_ids()
    }

    /// Settings that are accepted for compatibility but change nothing, by field. Worth one warning each.
    #[must_use]
    pub fn ignored(&self) -> Vec<&'static str> {
        let disks = || self.disks.iter().flatten();
        let mut fields = Vec::new();
        let mut note = |set: bool, field| {
            if set {
                fields.push(field);
            }
        };
        note(self.cpus.topology.is_some(), "cpus.topology");
        note(self.cpus.max_vcpus > self.cpus.boot_vcpus, "cpus.max_vcpus");
        note(self.memory.mergeable, "memory.mergeable");
        note(self.memory.reserve, "memory.reserve");
        note(disks().any(|disk| disk.lock_granularity.is_some()), "disks.lock_granularity");
        note(disks().any(|disk| !disk.sparse), "disks.sparse");
        note(
            self.platform.as_ref().is_some_and(super::PlatformConfig::has_strings),
            "platform (strings for the guest's SMBIOS)",
        );
        fields
    }

    fn validate_payload(&self) -> Result<(), ConfigError> {
        let payload = self.payload.as_ref();
        let kernel = payload.and_then(|payload| payload.kernel.as_ref());
        let firmware = payload.and_then(|payload| payload.firmware.as_ref());
        match (kernel, firmware) {
            (None, None) => Err(invalid("payload", "nothing to boot: give a kernel or a firmware")),
            (Some(_), Some(_)) => Err(invalid("payload.firmware", "cannot be used together with payload.kernel")),
            (None, Some(_)) => {
                let initramfs = payload.and_then(|payload| payload.initramfs.as_ref());
                require(initramfs.is_none(), || invalid("payload.initramfs", "needs payload.kernel, not a firmware"))
            }
            (Some(_), None) => Ok(()),
        }
    }

    fn validate_cpus(&self) -> Result<(), ConfigError> {
        let cpus = &self.cpus;
        cpus.check_limits("cpus")?;
        require((cpus.boot_vcpus..=VCPUS_MAX).contains(&cpus.max_vcpus), || {
            let boot = cpus.boot_vcpus;
            invalid("cpus.max_vcpus", format!("must be {boot} (boot_vcpus) to {VCPUS_MAX}, not {}", cpus.max_vcpus))
        })?;
        if let Some(shape) = &cpus.topology {
            let parts = [shape.threads_per_core, shape.cores_per_die, shape.dies_per_package, shape.packages];
            let product = parts.iter().map(|&part| u64::from(part)).product::<u64>();
            require(product == u64::from(cpus.max_vcpus), || {
                invalid(
                    "cpus.topology",
                    format!("has {product} vCPUs in all, but cpus.max_vcpus is {}", cpus.max_vcpus),
                )
            })?;
        }
        for pinned in cpus.affinity.iter().flatten() {
            require(pinned.vcpu < cpus.boot_vcpus, || {
                invalid(
                    "cpus.affinity",
                    format!("there is no vCPU {}, the last is {}", pinned.vcpu, cpus.boot_vcpus - 1),
                )
            })?;
        }
        require(!cpus.kvm_hyperv, || unsupported("cpus.kvm_hyperv", "set it to false"))?;
        require(cpus.profile == "Host", || unsupported("cpus.profile", "use Host"))
    }

    fn validate_memory(&self) -> Result<(), ConfigError> {
        let memory = &self.memory;
        require(memory.zones.as_ref().is_none_or(Vec::is_empty), || unsupported("memory.zones", "use memory.size"))?;
        require(memory.size >= MEMORY_MIN, || {
            invalid("memory.size", format!("must be at least {MEMORY_MIN} bytes, not {}", memory.size))
        })?;
        require(memory.size <= MEMORY_MAX, || {
            invalid("memory.size", format!("must be at most {MEMORY_MAX} bytes, not {}", memory.size))
        })?;
        require(memory.size.is_multiple_of(PAGE), || {
            invalid("memory.size", format!("must be a multiple of {PAGE} bytes, not {}", memory.size))
        })?;
        if memory.hugepages {
            let page = memory.hugepage_size.unwrap_or(HUGE_PAGES[0]);
            require(HUGE_PAGES.contains(&page), || {
                invalid("memory.hugepage_size", format!("must be 2M or 1G, not {page} bytes"))
            })?;
            require(memory.size.is_multiple_of(page), || {
                invalid("memory.size", format!("must be a multiple of {page} bytes with these huge pages"))
            })?;
        } else {
            require(memory.hugepage_size.is_none(), || invalid("memory.hugepage_size", "needs memory.hugepages on"))?;
        }
        let hotplug = memory.hotplug_size.unwrap_or(0).max(memory.hotplugged_size.unwrap_or(0));
        require(hotplug == 0, || unsupported("memory.hotplug_size", "give all memory at boot by memory.size"))?;
        require(memory.hotplug_method == HotplugMethod::Acpi, || {
            unsupported("memory.hotplug_method", "remove this field: memory cannot be added to a running VM")
        })
    }

    fn validate_consoles(&self) -> Result<(), ConfigError> {
        let (serial, console) = (&self.serial, self.console.mode);
        require(SERIAL_MODES.contains(&serial.mode), || {
            unsupported(format!("serial.mode {:?}", serial.mode), format!("use one of {}", names(&SERIAL_MODES)))
        })?;
        require(serial.mode != ConsoleOutputMode::File || serial.file.is_some(), || {
            invalid("serial.file", "is missing for mode File")
        })?;
        require(CONSOLE_MODES.contains(&console), || {
            unsupported(
                format!("console.mode {console:?}"),
                "there is no virtio console yet, use Off here and the serial port",
            )
        })?;
        let debug = self.debug_console.mode;
        require(debug == ConsoleOutputMode::Off, || unsupported("debug_console", "use the serial port"))
    }

    fn validate_platform(&self) -> Result<(), ConfigError> {
        let Some(platform) = &self.platform else { return Ok(()) };
        require(platform.num_pci_segments == 1, || unsupported("platform.num_pci_segments", "use 1"))?;
        require(platform.iommu_segments.as_ref().is_none_or(Vec::is_empty), || {
            unsupported("platform.iommu_segments", "remove this field")
        })?;
        require(!platform.iommufd, || unsupported("platform.iommufd", "set it to false"))
    }

    /// Whether devices can be called what they are called.
    fn validate_ids(&self) -> Result<(), ConfigError> {
        let disks = self.disks.iter().flatten().enumerate().map(|(index, disk)| ("disks", index, disk.id.as_ref()));
        let nets = self.net.iter().flatten().enumerate().map(|(index, net)| ("net", index, net.id.as_ref()));
        let mut seen = HashSet::new();
        for (list, index, id) in disks.chain(nets) {
            let Some(id) = id else { continue };
            let field = || format!("{list}[{index}].id");
            validate_id(id).map_err(|problem| invalid(field(), problem))?;
            require(seen.insert(id), || invalid(field(), format!("{id:?} is the id of another device too")))?;
        }
        Ok(())
    }
}

fn validate_id(id: &str) -> Result<(), String> {
    if id.is_empty() || id.len() > ID_MAX {
        return Err(format!("must have 1 to {ID_MAX} characters, not {}: choose another id, or none", id.len()));
    }
    if let Some(wrong) = id.chars().find(|c| !c.is_ascii_alphanumeric() && !ID_MARKS.contains(*c)) {
        return Err(format!("{id:?} must not have {wrong:?}: use ASCII letters, digits and any of {ID_MARKS}"));
    }
    match RESERVED_IDS.iter().find(|prefix| id.starts_with(**prefix)) {
        Some(prefix) => Err(format!("{id:?}: ids that start with {prefix} are reserved, choose another one")),
        None => Ok(()),
    }
}

/// Text that is handed on as it is: to programs, files and sockets, whose names end at a NUL.
fn validate_path(field: impl FnOnce() -> String, path: &Path) -> Result<(), ConfigError> {
    require(!path.as_os_str().as_encoded_bytes().contains(&0), || {
        invalid(field(), format!("{path:?} has a NUL character: no file is called so"))
    })
}

impl LandlockConfig {
    fn validate(&self, name: &str) -> Result<(), ConfigError> {
        require(!self.path.as_os_str().is_empty(), || invalid(format!("{name}.path"), "is missing"))?;
        validate_path(|| format!("{name}.path"), &self.path)?;
        let known = !self.access.is_empty() && self.access.chars().all(|kind| matches!(kind, 'r' | 'w'));
        require(known, || invalid(format!("{name}.access"), "must be r, w or rw"))
    }
}

impl Unsupported {
    fn validate(&self) -> Result<(), ConfigError> {
        let fields = [
            ("balloon", &self.balloon),
            ("devices", &self.devices),
            ("fs", &self.fs),
            ("generic_vhost_user", &self.generic_vhost_user),
            ("numa", &self.numa),
            ("pci_segments", &self.pci_segments),
            ("pmem", &self.pmem),
            ("rate_limit_groups", &self.rate_limit_groups),
            ("rtc", &self.rtc),
            ("tpm", &self.tpm),
            ("user_devices", &self.user_devices),
            ("vdpa", &self.vdpa),
            ("vsock", &self.vsock),
        ];
        for (field, value) in fields {
            let absent = match value {
                None | Some(serde_json::Value::Null) => true,
                Some(serde_json::Value::Array(list)) => list.is_empty(),
                Some(_) => false,
            };
            require(absent, || unsupported(field, "remove this field"))?;
        }
        Ok(())
    }
}

/// Queues and their size, for a backend of ours that serves `most` of them or for somebody else's.
fn validate_queues(at: &str, (count, size): (usize, u16), most: Option<usize>) -> Result<(), ConfigError> {
    let least = most.map_or(1, |_| QUEUE_SIZE_MIN);
    let most = most.unwrap_or(DEVICE_QUEUES_MAX);
    require((1..=most).contains(&count), || {
        invalid(format!("{at}.num_queues"), format!("must be 1 to {most}, not {count}"))
    })?;
    check_queue_size(size, least).map_err(|problem| invalid(format!("{at}.queue_size"), problem))
}

fn validate_pci(at: &str, iommu: bool, segment: u16) -> Result<(), ConfigError> {
    require(!iommu, || unsupported(format!("{at}.iommu"), "set it to false"))?;
    require(segment == 0, || unsupported(format!("{at}.pci_segment"), "use segment 0"))
}

fn validate_socket(at: &str, socket: Option<&str>) -> Result<(), ConfigError> {
    validate_path(|| format!("{at}.vhost_socket"), Path::new(socket.unwrap_or_default()))
}

impl DiskConfig {
    /// What the VMM or the device process would refuse later.
    fn validate_limits(&self, at: &str) -> Result<(), ConfigError> {
        let ours = (!self.vhost_user).then_some(usize::from(DISK_QUEUES_MAX));
        validate_queues(at, (self.num_queues, self.queue_size), ours)?;
        self.check_limits(at)?;
        let serial = self.serial.as_deref().unwrap_or_default();
        check_disk_serial(serial).map_err(|problem| invalid(format!("{at}.serial"), problem))
    }

    fn validate(&self, at: &str) -> Result<(), ConfigError> {
        self.validate_limits(at)?;
        validate_pci(at, self.iommu, self.pci_segment)?;
        let image = self.path.as_ref().is_some_and(|path| !path.as_os_str().is_empty());
        if self.vhost_user {
            require(self.vhost_socket.is_some(), || {
                invalid(format!("{at}.vhost_socket"), "is missing for vhost_user")
            })?;
            require(!image, || invalid(format!("{at}.path"), "cannot be used together with vhost_user"))?;
        } else {
            require(image, || {
                invalid(format!("{at}.path"), "is missing: name the image, or use vhost_user with a socket")
            })?;
            require(self.vhost_socket.is_none(), || invalid(format!("{at}.vhost_socket"), "needs vhost_user on"))?;
        }
        require(matches!(self.image_type, ImageType::Unknown | ImageType::Raw), || {
            unsupported(
                format!("{at}.image_type {:?}", self.image_type),
                "convert the image to raw with qemu-img convert",
            )
        })?;
        require(!self.backing_files, || unsupported(format!("{at}.backing_files"), "set it to false"))?;
        require(self.rate_limiter_config.is_none(), || {
            unsupported(format!("{at}.rate_limiter_config"), "remove this field")
        })?;
        require(self.rate_limit_group.is_none(), || {
            unsupported(format!("{at}.rate_limit_group"), "remove this field")
        })?;
        require(self.queue_affinity.as_ref().is_none_or(Vec::is_empty), || {
            unsupported(format!("{at}.queue_affinity"), "remove this field")
        })?;
        validate_path(|| format!("{at}.path"), self.path.as_deref().unwrap_or(Path::new("")))?;
        validate_socket(at, self.vhost_socket.as_deref())
    }
}

impl NetConfig {
    /// What the VMM or the device process would refuse later.
    fn validate_limits(&self, at: &str) -> Result<(), ConfigError> {
        let ours = (!self.vhost_user).then_some(2 * usize::from(NET_QUEUE_PAIRS_MAX));
        validate_queues(at, (self.num_queues, self.queue_size), ours)?;
        require(self.num_queues.is_multiple_of(2), || {
            invalid(format!("{at}.num_queues"), format!("must be even (receive and transmit), not {}", self.num_queues))
        })?;
        self.check_limits(at)?;
        let tap = self.tap.as_deref().filter(|tap| !tap.is_empty());
        let tap = tap.map_or(Ok(()), check_interface);
        tap.map_err(|problem| invalid(format!("{at}.tap"), problem))?;
        for (field, mac) in [("mac", self.mac), ("host_mac", self.host_mac)] {
            let mac = mac.map_or(Ok(()), |mac| check_mac(mac.bytes()));
            mac.map_err(|problem| invalid(format!("{at}.{field}"), problem))?;
        }
        Ok(())
    }

    fn validate(&self, at: &str) -> Result<(), ConfigError> {
        self.validate_limits(at)?;
        validate_pci(at, self.iommu, self.pci_segment)?;
        if self.vhost_user {
            require(self.vhost_socket.is_some(), || {
                invalid(format!("{at}.vhost_socket"), "is missing for vhost_user")
            })?;
            require(self.tap.is_none(), || invalid(format!("{at}.tap"), "cannot be used together with vhost_user"))?;
        } else {
            require(self.vhost_socket.is_none(), || invalid(format!("{at}.vhost_socket"), "needs vhost_user on"))?;
        }
        require(self.fds.as_ref().is_none_or(Vec::is_empty), || unsupported(format!("{at}.fds"), "name a tap"))?;
        require(self.rate_limiter_config.is_none(), || {
            unsupported(format!("{at}.rate_limiter_config"), "remove this field")
        })?;
        validate_socket(at, self.vhost_socket.as_deref())?;
        for (field, address) in [("ip", self.ip), ("mask", self.mask)] {
            require(address.is_none_or(|address| address.is_ipv4()), || {
                unsupported(format!("{at}.{field}"), "give an IPv4 address, or make the tap and name it")
            })?;
        }
        require(self.mask.is_none() || self.ip.is_some(), || invalid(format!("{at}.mask"), "needs an ip"))
    }
}
