//! The ACPI tables: hardware-reduced, one PCI bus, a serial port, a power button.
//!
//! In: what the machine has. Out: bytes in guest memory between 640 KiB and 960 KiB, the root pointer first.
//! The tables say what Cloud Hypervisor's say, except for hotplug, which there is none of.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method, Name, Notify, OpRegion,
    OpRegionSpace, Package, Path, ResourceTemplate, Scope, Store,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{Immutable, IntoBytes};

use crate::legacy::power::{GED_POWER_BUTTON, RESET_VALUE, S5_TYPE};
use crate::machine::memory::guest::GuestRam;
use crate::machine::memory::layout;

const OEM: [u8; 6] = *b"CLOUDH";
const OEM_TABLE: [u8; 8] = *b"CHDSDT  ";
const OEM_REVISION: u32 = 1;
/// Integers in a table of this revision have 64 bits.
const DSDT_REVISION: u8 = 6;
/// FADT: there is no VGA to look for.
const BOOT_ARCH_NO_VGA: u16 = 1 << 2;

/// What the tables describe.
#[derive(Clone, Copy, Debug)]
pub struct AcpiOptions {
    /// Number of vCPUs; APIC ids are 0 and up.
    pub vcpus: u32,
    /// Bytes of RAM.
    pub ram_size: u64,
    /// Physical address bits of the vCPUs.
    pub phys_bits: u8,
    /// There is a COM1.
    pub serial: bool,
}

/// Writes all tables; the root pointer is at [`layout::RSDP`].
///
/// # Errors
/// When guest memory does not take them.
pub fn write(ram: &GuestRam, options: &AcpiOptions) -> Result<u64, vm_memory::GuestMemoryError> {
    // One after the other, 16 bytes aligned, each pointing back only.
    let mut at = layout::RSDP + (Rsdp::len() as u64).next_multiple_of(16);
    let mut put = |table: &[u8]| {
        let address = at;
        at = (address + table.len() as u64).next_multiple_of(16);
        assert!(at <= layout::ACPI_END, "ACPI tables need more room than they have");
        ram.write_slice(table, GuestAddress(address)).map(|()| address)
    };
    let dsdt = put(&bytes(&dsdt(options)))?;
    let tables = [put(&fadt(dsdt))?, put(&madt(options.vcpus))?, put(&mcfg())?];
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    tables.into_iter().for_each(|address| xsdt.add_entry(address));
    let xsdt = put(&bytes(&xsdt))?;
    ram.write_slice(&bytes(&Rsdp::new(OEM, xsdt)), GuestAddress(layout::RSDP))?;
    Ok(layout::RSDP)
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut out = Vec::new();
    table.to_aml_bytes(&mut out);
    out
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let register = GAS::new(GasSpace::SystemIo, 8, 0, AccessSize::ByteAccess, layout::PORT_RESET.into());
    let mut fadt = FADTBuilder::new(OEM, *b"CHFACP  ", OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::TmrValExt);
    fadt.pm_tmr_blk = u32::from(layout::PORT_PM_TIMER).into();
    fadt.pm_tmr_len = layout::PORT_PM_TIMER_LEN as u8;
    fadt.x_pm_tmr_blk = GAS::new(GasSpace::SystemIo, 32, 0, AccessSize::DwordAccess, layout::PORT_PM_TIMER.into());
    fadt.reset_reg = register;
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = register;
    fadt.sleep_status_reg = register;
    fadt.iapc_boot_arch = BOOT_ARCH_NO_VGA.into();
    bytes(&fadt.finalize())
}

/// ISA interrupt `source` is the IOAPIC's pin of the same number, active high, edge.
#[repr(C, packed)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct InterruptOverride {
    kind: u8,
    length: u8,
    bus: u8,
    source: u8,
    pin: [u8; 4],
    flags: [u8; 2],
}

impl Aml for InterruptOverride {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.as_bytes());
    }
}

fn madt(vcpus: u32) -> Vec<u8> {
    /// Polarity high, trigger edge.
    const HIGH_EDGE: u16 = 0b0101;
    let mut madt = MADT::new(OEM, *b"CHMADT  ", OEM_REVISION, LocalInterruptController::Address(layout::LAPIC as u32));
    // The plain entry, not the x2APIC one, is what the specification asks for with ids below 255.
    for id in 0..vcpus.min(255) as u8 {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC as u32, 0));
    madt.add_structure(InterruptOverride {
        kind: 2,
        length: size_of::<InterruptOverride>() as u8,
        bus: 0,
        source: layout::IRQ_SERIAL,
        pin: u32::from(layout::IRQ_SERIAL).to_le_bytes(),
        flags: HIGH_EDGE.to_le_bytes(),
    });
    bytes(&madt)
}

fn mcfg() -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM, *b"CHMCFG  ", OEM_REVISION);
    mcfg.add_ecam(layout::ECAM_START, 0, 0, 0);
    bytes(&mcfg)
}

fn dsdt(options: &AcpiOptions) -> Sdt {
    let mut sdt = Sdt::new(*b"DSDT", 36, DSDT_REVISION, OEM, OEM_TABLE, OEM_REVISION);
    let mut append = |part: &dyn Aml| sdt.append_slice(&bytes(part));
    append(&PciRoot(options));
    append(&Motherboard);
    append(&RealTimeClock);
    if options.serial {
        append(&SerialPort);
    }
    append(&PowerButton { register: layout::platform_start(options.phys_bits) });
    append(&Name::new("_S5_".into(), &Package::new(vec![&S5_TYPE])));
    sdt
}

/// A device of the system bus; the children that all have come first.
fn device(path: &str, hid: &str, children: &[&dyn Aml], sink: &mut dyn AmlSink) {
    let hid = Name::new("_HID".into(), &EISAName::new(hid));
    let uid = Name::new("_UID".into(), &0_u8);
    let children = [&hid as &dyn Aml, &uid].into_iter().chain(children.iter().copied()).collect();
    Device::new(path.into(), children).to_aml_bytes(sink);
}

struct PciRoot<'a>(&'a AcpiOptions);

impl Aml for PciRoot<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (start64, len64) = layout::mmio64(self.0.ram_size, self.0.phys_bits);
        let mmio32_end = (layout::MMIO32_START + layout::MMIO32_SIZE - 1) as u32;
        let memory = AddressSpaceCacheable::NotCacheable;
        let resources: [&dyn Aml; 6] = [
            &AddressSpace::new_bus_number(0_u16, 0),
            &IO::new(0xcf8, 0xcf8, 1, 8),
            &AddressSpace::new_io(0_u16, 0xcf7, None),
            &AddressSpace::new_io(0xd00_u16, 0xffff, None),
            &AddressSpace::new_memory(memory, true, layout::MMIO32_START as u32, mmio32_end, None),
            &AddressSpace::new_memory(memory, true, start64, start64 + len64 - 1, None),
        ];
        let crs = ResourceTemplate::new(resources.to_vec());
        device(
            "_SB_.PC00",
            "PNP0A08",
            &[
                &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
                &Name::new("_SEG".into(), &0_u8),
                &Name::new("_BBN".into(), &0_u8),
                &Name::new("_CCA".into(), &1_u8),
                &Name::new("_CRS".into(), &crs),
            ],
            sink,
        );
    }
}

/// Reserves what the MCFG points to, or the guest will not use it.
struct Motherboard;

impl Aml for Motherboard {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let ecam = Memory32Fixed::new(true, layout::ECAM_START as u32, layout::ECAM_SEGMENT_SIZE as u32);
        let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ecam]));
        device("_SB_.MBRD", "PNP0C02", &[&crs], sink);
    }
}

/// Without an interrupt: it tells the time and wakes nobody.
struct RealTimeClock;

impl Aml for RealTimeClock {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let ports = IO::new(layout::PORT_RTC, layout::PORT_RTC, 1, 2);
        let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports]));
        device("_SB_.RTC_", "PNP0B00", &[&crs], sink);
    }
}

struct SerialPort;

impl Aml for SerialPort {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let interrupt = Interrupt::new(true, true, false, false, layout::IRQ_SERIAL.into());
        let ports = IO::new(layout::PORT_SERIAL, layout::PORT_SERIAL, 1, layout::PORT_SERIAL_LEN as u8);
        let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt, &ports]));
        let ddn = Name::new("_DDN".into(), &"COM1");
        device("_SB_.COM1", "PNP0501", &[&ddn, &crs], sink);
    }
}

/// The button, and the generic event device that tells of it: its method reads the GED's register.
struct PowerButton {
    register: u64,
}

impl Aml for PowerButton {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        device("_SB_.PWRB", "PNP0C0C", &[], sink);
        let region = OpRegion::new("GDST".into(), OpRegionSpace::SystemMemory, &self.register, &1_u8);
        let field = Field::new(
            "GDST".into(),
            FieldAccessType::Byte,
            FieldLockRule::NoLock,
            FieldUpdateRule::WriteAsZeroes,
            vec![FieldEntry::Named(*b"GDAT", 8)],
        );
        let (events, button) = (Local(0), Local(1));
        // Reading clears the register, so it is read once.
        let register = Path::new("GDAT");
        let read = Store::new(&events, &register);
        let mask = And::new(&button, &events, &GED_POWER_BUTTON);
        let target = Path::new("\\_SB_.PWRB");
        let notify = Notify::new(&target, &0x80_u8);
        let is_set = Equal::new(&button, &GED_POWER_BUTTON);
        let tell = If::new(&is_set, vec![&notify]);
        let event = Method::new("_EVT".into(), 1, true, vec![&read, &mask, &tell]);
        let interrupt = Interrupt::new(true, true, false, false, layout::IRQ_GED.into());
        let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt]));
        let hid = Name::new("_HID".into(), &"ACPI0013");
        let uid = Name::new("_UID".into(), &0_u8);
        let ged = Device::new("GED_".into(), vec![&hid, &uid, &crs, &region, &field, &event]);
        Scope::new("_SB_".into(), vec![&ged]).to_aml_bytes(sink);
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryBackend;

    use super::*;
    use crate::machine::memory::guest::{GuestMemory, RamOptions};

    fn read(ram: &GuestRam, address: u64) -> Vec<u8> {
        let mut header = [0; 36];
        ram.read_slice(&mut header, GuestAddress(address)).unwrap();
        let len = u32::from_le_bytes(header[4..8].try_into().unwrap());
        let mut table = vec![0; len as usize];
        ram.read_slice(&mut table, GuestAddress(address)).unwrap();
        assert_eq!(table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0, "checksum");
        table
    }

    fn address(table: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(table[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn every_table_is_found_from_the_root() {
        let memory = GuestMemory::new(&RamOptions { size: 64 << 20, ..Default::default() }).unwrap();
        let ram = memory.ram();
        let options = AcpiOptions { vcpus: 8, ram_size: memory.size(), phys_bits: 46, serial: true };
        let rsdp = write(ram, &options).unwrap();
        let mut root = [0; 36];
        ram.read_slice(&mut root, GuestAddress(rsdp)).unwrap();
        assert_eq!(&root[..8], b"RSD PTR ");
        let xsdt = read(ram, address(&root, 24));
        let tables: Vec<_> =
            xsdt[36..].as_chunks::<8>().0.iter().map(|at| read(ram, u64::from_le_bytes(*at))).collect();
        let names: Vec<_> = tables.iter().map(|table| &table[..4]).collect();
        assert_eq!(names, [b"FACP", b"APIC", b"MCFG"]);
        assert_eq!(&read(ram, address(&tables[0], 140))[..4], b"DSDT");
        // The timer's port in both forms, 32 bits wide, as the flag TMR_VAL_EXT says.
        let fadt = &tables[0];
        assert_eq!((&fadt[76..80], fadt[91]), (&[8, 6, 0, 0][..], 4));
        assert_eq!(fadt[208..220], [1, 32, 0, 3, 8, 6, 0, 0, 0, 0, 0, 0]);
        assert_eq!(fadt[113] & 1, 1);
        // Eight processors, the IOAPIC, one override.
        assert_eq!(tables[1].len(), 44 + 8 * 8 + 12 + 10);
        assert_eq!(address(&tables[2], 44), layout::ECAM_START);
        assert!(ram.check_range(GuestAddress(layout::ACPI_END), 1));
    }
}
