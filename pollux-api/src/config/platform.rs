//! Configuration of what the guest boots and of how its machine is called.

use std::path::PathBuf;

use crate::options::TextList;

config_struct! {
    /// What to boot: a kernel or a firmware image.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct PayloadConfig("payload") {
        /// Firmware to boot: an ELF image with a PVH entry that brings its own loader.
        #[schema(value_type = Option<String>)]
        firmware ("PATH"): Option<PathBuf>,
        /// Kernel to boot: a bzImage (vmlinuz) or an ELF image with a PVH entry (vmlinux).
        #[schema(value_type = Option<String>)]
        kernel ("PATH"): Option<PathBuf>,
        /// The kernel's command line.
        cmdline ("TEXT"): Option<String>,
        /// Initial RAM file system of the kernel.
        #[schema(value_type = Option<String>)]
        initramfs ("PATH"): Option<PathBuf>,
    }
}

config_struct! {
    /// Identity of the machine, which Pollux does not show to the guest, and its PCI segments.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct PlatformConfig("--platform") {
        /// PCI segments; must be 1.
        num_pci_segments (""): u16 = 1,
        /// Segments behind the IOMMU; must be absent or empty.
        iommu_segments (""): Option<Vec<u16>>,
        /// Address width of the IOMMU, in bits.
        iommu_address_width_bits as "iommu_address_width" (""): u8 = 64,
        /// SMBIOS system serial number.
        system_serial_number also "serial_number" ("TEXT"): Option<String>,
        /// SMBIOS system UUID.
        system_uuid also "uuid" ("UUID"): Option<String>,
        /// SMBIOS OEM strings.
        oem_strings ("[TEXT,...]" as TextList): Option<Vec<String>>,
        /// SMBIOS system manufacturer.
        system_manufacturer ("TEXT"): Option<String>,
        /// SMBIOS system product name.
        system_product_name ("TEXT"): Option<String>,
        /// SMBIOS system version.
        system_version ("TEXT"): Option<String>,
        /// SMBIOS system family.
        system_family ("TEXT"): Option<String>,
        /// SMBIOS system SKU number.
        system_sku_number ("TEXT"): Option<String>,
        /// SMBIOS chassis asset tag.
        chassis_asset_tag ("TEXT"): Option<String>,
        /// Pass-through by iommufd; must be false.
        iommufd (""): bool = false,
        /// Pass-through devices may talk to each other; has no effect here.
        vfio_p2p_dma (""): bool = true,
    }
    refuses ["tdx", "sev_snp"]
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
