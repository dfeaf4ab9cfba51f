//! What a kernel finds when it starts: memory map, boot parameters, registers.

use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use linux_loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress};

use super::kernel::{BootError, Entry, Initramfs, Loaded};
use crate::machine::memory::guest::{GuestMemory, GuestRam};
use crate::machine::memory::layout;

/// Same numbers in e820 and in PVH's map.
const RAM: u32 = 1;
const RESERVED: u32 = 2;

const PVH_MAGIC: u32 = 0x336e_c578;
const PVH_VERSION: u32 = 1;
/// A boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
const VIDEO_NORMAL: u16 = 0xffff;

/// GDT entries: two empty ones, so that code and data have the selectors Linux' boot protocol asks for.
const CODE_INDEX: u8 = 2;
const DATA_INDEX: u8 = 3;
const TSS_INDEX: u8 = 4;
/// Type and flag bits: 32-bit code, read/write data, busy 32-bit TSS.
const CODE_FLAGS: u16 = 0xc09b;
const DATA_FLAGS: u16 = 0xc093;
const TSS_FLAGS: u16 = 0x008b;

const CR0_PROTECTED: u64 = 1;
/// ET is hard-wired.
const CR0_ET: u64 = 1 << 4;
const RFLAGS_FIXED: u64 = 2;
const FPU_CONTROL: u16 = 0x37f;
const MXCSR: u32 = 0x1f80;

/// The guest's memory map as (start, length, type).
fn memory_map(memory: &GuestMemory) -> Vec<(u64, u64, u32)> {
    let mut map = vec![(0, layout::LOW_RAM_END, RAM)];
    for (start, len) in memory.ranges() {
        let from = start.max(layout::HIGH_RAM_START);
        map.push((from, start + len - from, RAM));
    }
    map.push((layout::ECAM_START, layout::ECAM_SIZE, RESERVED));
    map.sort_unstable();
    map
}

/// Writes the parameters that `loaded` expects.
///
/// # Errors
/// When guest memory does not take them, which would be a mistake in the layout.
pub fn write(memory: &GuestMemory, loaded: &Loaded, rsdp: u64) -> Result<(), BootError> {
    match &loaded.entry {
        Entry::Pvh { .. } => write_pvh(memory, loaded.initramfs, rsdp),
        Entry::Linux { header, .. } => {
            let mut params = boot_params { hdr: *header, acpi_rsdp_addr: rsdp, ..Default::default() };
            params.hdr.type_of_loader = LOADER_UNDEFINED;
            params.hdr.vid_mode = VIDEO_NORMAL;
            params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
            if let Some(Initramfs { address, size }) = loaded.initramfs {
                // Below the hole, see Payload::place.
                params.hdr.ramdisk_image = address as u32;
                params.hdr.ramdisk_size = size as u32;
            }
            let map = memory_map(memory);
            params.e820_entries = map.len() as u8;
            for (entry, (addr, size, r#type)) in params.e820_table.iter_mut().zip(map) {
                *entry = boot_e820_entry { addr, size, r#type };
            }
            memory.ram().write_obj(params, GuestAddress(layout::ZERO_PAGE)).map_err(BootError::Write)
        }
    }
}

fn write_pvh(memory: &GuestMemory, initramfs: Option<Initramfs>, rsdp: u64) -> Result<(), BootError> {
    let ram = memory.ram();
    let map = memory_map(memory);
    let mut info = hvm_start_info {
        magic: PVH_MAGIC,
        version: PVH_VERSION,
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: rsdp,
        memmap_paddr: layout::PVH_MEMMAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    if let Some(Initramfs { address, size }) = initramfs {
        let module = hvm_modlist_entry { paddr: address, size, ..Default::default() };
        ram.write_obj(module, GuestAddress(layout::PVH_MODULES)).map_err(BootError::Write)?;
        info.nr_modules = 1;
        info.modlist_paddr = layout::PVH_MODULES;
    }
    for (index, (addr, size, type_)) in (0..).zip(map) {
        let entry = hvm_memmap_table_entry { addr, size, type_, reserved: 0 };
        let at = layout::PVH_MEMMAP + index * size_of::<hvm_memmap_table_entry>() as u64;
        ram.write_obj(entry, GuestAddress(at)).map_err(BootError::Write)?;
    }
    ram.write_obj(info, GuestAddress(layout::PVH_INFO)).map_err(BootError::Write)
}

/// A descriptor as the CPU reads it, for a segment of `limit` bytes or pages from 0.
fn descriptor(flags: u16, limit: u32) -> u64 {
    u64::from(flags & 0xf0ff) << 40 | u64::from(limit & 0xf_0000) << 32 | u64::from(limit & 0xffff)
}

/// The same as the vCPU holds it.
fn segment(index: u8, flags: u16, limit: u32) -> kvm_segment {
    let bit = |n: u8| (flags >> n & 1) as u8;
    // With page granularity the limit counts pages.
    let limit = if bit(15) == 1 { limit << 12 | 0xfff } else { limit };
    kvm_segment {
        base: 0,
        limit,
        selector: u16::from(index) * 8,
        type_: (flags & 0xf) as u8,
        s: bit(4),
        dpl: (flags >> 5 & 3) as u8,
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        unusable: 0,
        padding: 0,
    }
}

/// Writes the GDT that [`set_registers`] points to.
///
/// # Errors
/// When guest memory does not take it.
pub fn write_gdt(ram: &GuestRam) -> Result<(), BootError> {
    let table = [0, 0, descriptor(CODE_FLAGS, 0xf_ffff), descriptor(DATA_FLAGS, 0xf_ffff), descriptor(TSS_FLAGS, 0x67)];
    for (index, entry) in (0..).zip(table) {
        ram.write_obj(entry, GuestAddress(layout::BOOT_GDT + index * 8)).map_err(BootError::Write)?;
    }
    ram.write_obj(0_u64, GuestAddress(layout::BOOT_IDT)).map_err(BootError::Write)
}

/// Writes what stands for a BIOS: code at the reset vector that resets by the keyboard controller. Linux
/// takes this way when ACPI is hardware-reduced, as it then only knows EFI's reset and the BIOS.
///
/// # Errors
/// When guest memory does not take it.
pub fn write_reset_vector(ram: &GuestRam) -> Result<(), BootError> {
    // mov al, 0xfe; out 0x64, al; hlt; jmp back to hlt
    const CODE: [u8; 7] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];
    ram.write_slice(&CODE, GuestAddress(layout::RESET_VECTOR)).map_err(BootError::Write)
}

/// Sets the boot vCPU to enter the kernel.
///
/// # Errors
/// When KVM refuses a register.
pub fn set_registers(vcpu: &VcpuFd, entry: &Entry) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    sregs.gdt.base = layout::BOOT_GDT;
    sregs.gdt.limit = (u16::from(TSS_INDEX) + 1) * 8 - 1;
    sregs.idt.base = layout::BOOT_IDT;
    sregs.idt.limit = 7;
    sregs.cs = segment(CODE_INDEX, CODE_FLAGS, 0xf_ffff);
    let data = segment(DATA_INDEX, DATA_FLAGS, 0xf_ffff);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(TSS_INDEX, TSS_FLAGS, 0x67);
    sregs.cr0 = CR0_PROTECTED | CR0_ET;
    sregs.cr4 = 0;
    sregs.efer = 0;
    vcpu.set_sregs(&sregs)?;
    let mut fpu = vcpu.get_fpu()?;
    (fpu.fcw, fpu.mxcsr) = (FPU_CONTROL, MXCSR);
    vcpu.set_fpu(&fpu)?;
    let regs = match entry {
        Entry::Pvh { address } => kvm_regs { rip: *address, rbx: layout::PVH_INFO, ..Default::default() },
        Entry::Linux { address, .. } => kvm_regs {
            rip: *address,
            rsi: layout::ZERO_PAGE,
            rsp: layout::BOOT_STACK,
            rbp: layout::BOOT_STACK,
            ..Default::default()
        },
    };
    vcpu.set_regs(&kvm_regs { rflags: RFLAGS_FIXED, ..regs })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory::guest::RamOptions;

    #[test]
    fn the_map_leaves_the_hole_and_the_tables_out() {
        let memory = GuestMemory::new(&RamOptions { size: 4 << 30, ..Default::default() }).unwrap();
        let expected = [
            (0, 0xa_0000, RAM),
            (1 << 20, (3 << 30) - (1 << 20), RAM),
            (0xe800_0000, 0x1000_0000, RESERVED),
            (4 << 30, 1 << 30, RAM),
        ];
        assert_eq!(memory_map(&memory), expected);
    }

    #[test]
    fn descriptors_are_flat() {
        assert_eq!(descriptor(CODE_FLAGS, 0xf_ffff), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(DATA_FLAGS, 0xf_ffff), 0x00cf_9300_0000_ffff);
        let code = segment(CODE_INDEX, CODE_FLAGS, 0xf_ffff);
        assert_eq!((code.selector, code.limit, code.type_, code.db, code.g), (0x10, u32::MAX, 0xb, 1, 1));
    }
}
