//! The guest's physical address map.
//!
//! Addresses are guest-physical, sizes in bytes. The map is Cloud Hypervisor's, so guests see the machine
//! they know.

/// Bytes of a guest page.
pub const PAGE_SIZE: u64 = 4096;

/// Global descriptor table of the boot vCPU.
pub const BOOT_GDT: u64 = 0x500;
/// Interrupt descriptor table of the boot vCPU (empty).
pub const BOOT_IDT: u64 = 0x540;
/// `hvm_start_info` of a PVH boot.
pub const PVH_INFO: u64 = 0x6000;
/// Module list of a PVH boot (the initramfs).
pub const PVH_MODULES: u64 = 0x6040;
/// Memory map of a PVH boot.
pub const PVH_MEMMAP: u64 = 0x7000;
/// The "zero page" of a bzImage boot; never together with [`PVH_MEMMAP`].
pub const ZERO_PAGE: u64 = 0x7000;
/// First stack of a bzImage boot.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Kernel command line.
pub const CMDLINE: u64 = 0x20000;
/// The most a command line may take, with its final zero.
pub const CMDLINE_MAX: u64 = 0x10000;

/// End of the RAM that the guest is told of below 1 MiB; the firmware tables follow.
pub const LOW_RAM_END: u64 = 0xa_0000;
/// ACPI root pointer; all other tables follow it.
pub const RSDP: u64 = LOW_RAM_END;
/// End of the space for ACPI tables.
pub const ACPI_END: u64 = 0xf_0000;
/// Where a real-mode CPU jumps to restart; a guest that gives up on all other ways of resetting does.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// RAM again; kernels are loaded from here.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// The hole for 32-bit devices begins; RAM that does not fit below continues at 4 GiB.
pub const HOLE_START: u64 = 0xc000_0000;
/// RAM above the hole.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// 32-bit PCI device memory.
pub const MMIO32_START: u64 = HOLE_START;
/// Length of the 32-bit PCI device memory.
pub const MMIO32_SIZE: u64 = 640 << 20;
/// PCI configuration space by memory access (ECAM); bus 0 of segment 0 is its first MiB.
pub const ECAM_START: u64 = 0xe800_0000;
/// Length of what is reserved for ECAM.
pub const ECAM_SIZE: u64 = 256 << 20;
/// ECAM of one segment: bus 0 only.
pub const ECAM_SEGMENT_SIZE: u64 = 1 << 20;
/// KVM's task state segment, three pages (only used by hosts without "unrestricted guest").
pub const KVM_TSS: u64 = 0xf800_0000;
/// KVM's identity map page.
pub const KVM_IDENTITY_MAP: u64 = KVM_TSS + 3 * PAGE_SIZE;
/// The IOAPIC's registers.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Length of the IOAPIC's registers.
pub const IOAPIC_SIZE: u64 = 0x20;
/// The LAPIC's registers.
pub const LAPIC: u64 = 0xfee0_0000;

/// MMIO of ACPI platform devices (GED): the last MiB below the last 64 KiB of the address space.
pub const PLATFORM_SIZE: u64 = 1 << 20;

/// End of the address space that devices may use, for a CPU with `phys_bits` physical address bits.
///
/// 64 KiB are left free at the very top: some CPUs' L1TF mitigation inverts addresses there.
#[must_use]
pub fn device_space_end(phys_bits: u8) -> u64 {
    (1 << phys_bits.min(52)) - (64 << 10)
}

/// Start of the ACPI platform devices' MMIO.
#[must_use]
pub fn platform_start(phys_bits: u8) -> u64 {
    device_space_end(phys_bits) - PLATFORM_SIZE
}

/// The 64-bit PCI device memory as (start, length): from the end of RAM, but not below 4 GiB, to the platform
/// devices.
#[must_use]
pub fn mmio64(ram_size: u64, phys_bits: u8) -> (u64, u64) {
    let start = HOLE_END + ram_size.saturating_sub(HOLE_START);
    (start, platform_start(phys_bits).saturating_sub(start))
}

/// Port of the reset register and of the sleep control and status registers.
pub const PORT_RESET: u16 = 0x600;
/// First port of the power management timer.
pub const PORT_PM_TIMER: u16 = 0x608;
/// How many ports it has.
pub const PORT_PM_TIMER_LEN: u64 = 4;
/// The keyboard controller's ports; only the reset command does anything.
pub const PORT_I8042: u16 = 0x61;
/// How many ports the keyboard controller has.
pub const PORT_I8042_LEN: u64 = 4;
/// The real-time clock's index and data ports.
pub const PORT_RTC: u16 = 0x70;
/// First port of the serial line.
pub const PORT_SERIAL: u16 = 0x3f8;
/// How many ports a 16550 has.
pub const PORT_SERIAL_LEN: u64 = 8;
/// The serial line's IOAPIC pin.
pub const IRQ_SERIAL: u8 = 4;
/// The power button's (GED) IOAPIC pin.
pub const IRQ_GED: u8 = 13;
