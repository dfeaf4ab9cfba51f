//! Bad images: each has one clear error.

use std::io::Write;

use tempfile::NamedTempFile;

use super::*;
use crate::machine::memory::guest::RamOptions;

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn config(kernel: &NamedTempFile) -> PayloadConfig {
    PayloadConfig { kernel: Some(kernel.path().to_owned()), ..Default::default() }
}

fn memory(size: u64) -> GuestMemory {
    GuestMemory::new(&RamOptions { size, ..Default::default() }).unwrap()
}

/// Why these bytes are not a kernel.
fn refusal(bytes: &[u8]) -> String {
    let kernel = file(bytes);
    let error = Payload::open(&config(&kernel)).err().expect("accepted").to_string();
    let prefix = format!("payload.kernel {}: ", kernel.path().display());
    error.strip_prefix(&prefix).unwrap_or_else(|| panic!("{error}")).to_owned()
}

/// Notes with a name of "Xen" and four bytes of value.
fn notes(list: &[(u32, u32)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, value) in list {
        bytes.extend_from_slice(&[4, 4, *kind].map(u32::to_le_bytes).concat());
        bytes.extend_from_slice(b"Xen\0");
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// An ELF image: segments as (type, address, bytes, memory size).
fn elf(segments: &[(u32, u64, &[u8], u64)]) -> Vec<u8> {
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    image.extend_from_slice(&[2_u16, 62].map(u16::to_le_bytes).concat());
    image.extend_from_slice(&1_u32.to_le_bytes());
    image.extend_from_slice(&[0x10_0000_u64, 64, 0].map(u64::to_le_bytes).concat());
    image.extend_from_slice(&0_u32.to_le_bytes());
    image.extend_from_slice(&[64, 56, segments.len() as u16, 0, 0, 0].map(u16::to_le_bytes).concat());
    let mut offset = image.len() + 56 * segments.len();
    for (kind, address, bytes, memory) in segments {
        image.extend_from_slice(&[*kind, 7].map(u32::to_le_bytes).concat());
        let fields = [offset as u64, *address, *address, bytes.len() as u64, *memory, 4];
        image.extend_from_slice(&fields.map(u64::to_le_bytes).concat());
        offset += bytes.len();
    }
    segments.iter().for_each(|(_, _, bytes, _)| image.extend_from_slice(bytes));
    image
}

fn good_elf() -> Vec<u8> {
    let other = notes(&[(1, 7)]);
    let entry = notes(&[(6, 0), (18, 0x10_0004)]);
    elf(&[(4, 0, &entry, 40), (1, 0x10_0000, &[0x90; 100], 5000), (4, 0, &other, 20)])
}

/// A bzImage of protocol 2.15 with `code` after one sector of setup.
fn bzimage(code: &[u8]) -> Vec<u8> {
    let header = setup_header {
        setup_sects: 1,
        syssize: code.len().div_ceil(16) as u32,
        header: 0x5372_6448,
        version: 0x20f,
        loadflags: 1,
        code32_start: 0x10_0000,
        initrd_addr_max: 0x7fff_ffff,
        cmdline_size: 2047,
        pref_address: 0x100_0000,
        init_size: 0x40_0000,
        ..Default::default()
    };
    let mut image = vec![0; 1024];
    image[0x1f1..0x1f1 + size_of::<setup_header>()].copy_from_slice(header.as_slice());
    image.extend_from_slice(code);
    image
}

#[test]
fn an_elf_image_is_loaded_and_its_bss_cleared() {
    let kernel = file(&good_elf());
    let initramfs = file(&[7; 5000]);
    let config = PayloadConfig {
        initramfs: Some(initramfs.path().to_owned()),
        cmdline: Some("console=ttyS0".to_owned()),
        ..config(&kernel)
    };
    let memory = memory(64 << 20);
    memory.ram().write_obj(u64::MAX, GuestAddress(0x10_0000 + 4000)).unwrap();
    let loaded = Payload::open(&config).unwrap().load(&memory).unwrap();
    assert_eq!(loaded.entry, Entry::Pvh { address: 0x10_0004 });
    let place = Initramfs { address: (64 << 20) - 8192, size: 5000 };
    assert_eq!(loaded.initramfs, Some(place));
    let read = |address| memory.ram().read_obj::<u8>(GuestAddress(address)).unwrap();
    assert_eq!((read(0x10_0063), read(0x10_0064), read(0x10_0000 + 4000)), (0x90, 0, 0));
    assert_eq!((read(place.address), read(place.address + 4999), read(place.address + 5000)), (7, 7, 0));
    let mut text = [0; 14];
    memory.ram().read_slice(&mut text, GuestAddress(layout::CMDLINE)).unwrap();
    assert_eq!(&text, b"console=ttyS0\0");
}

#[test]
fn a_uefi_image_is_loaded_though_it_says_i386() {
    let mut image = good_elf();
    image[18] = 3;
    let firmware = file(&image);
    let config = PayloadConfig { firmware: Some(firmware.path().to_owned()), ..Default::default() };
    let loaded = Payload::open(&config).unwrap().load(&memory(64 << 20)).unwrap();
    assert_eq!(loaded.entry, Entry::Pvh { address: 0x10_0004 });
    // A real one of 32 bits is another format.
    image[4] = 1;
    assert!(refusal(&image).contains("not one for x86-64"));
}

#[test]
fn a_bzimage_is_loaded_where_it_says() {
    let kernel = file(&bzimage(&[0xcc; 4000]));
    let memory = memory(64 << 20);
    let loaded = Payload::open(&config(&kernel)).unwrap().load(&memory).unwrap();
    assert!(matches!(loaded.entry, Entry::Linux { address: 0x10_0000, .. }));
    assert_eq!(memory.ram().read_obj::<u8>(GuestAddress(0x10_0f9f)).unwrap(), 0xcc);
}

#[test]
fn no_truncation_is_accepted() {
    for image in [good_elf(), bzimage(&[0xcc; 4000])] {
        for len in (0..image.len()).step_by(7) {
            let text = refusal(&image[..len]);
            assert!(text.contains("is truncated"), "{len} bytes: {text}");
        }
    }
}

#[test]
fn what_is_wrong_is_said() {
    assert_eq!(refusal(&[b'x'; 8192]), "is neither an ELF image (vmlinux) nor a bzImage (vmlinuz)");
    assert!(refusal(&elf(&[(1, 0x10_0000, &[0; 16], 16)])).contains("without a PVH entry"));
    let entry = notes(&[(18, 0x20_0000)]);
    let outside = elf(&[(4, 0, &entry, 20), (1, 0x10_0000, &[0; 16], 16)]);
    assert!(refusal(&outside).contains("0x200000, outside of all its segments"));
    let low = elf(&[(4, 0, &entry, 20), (1, 0x1000, &[0; 16], 16)]);
    assert!(refusal(&low).contains("must be above 1 MiB"));
    let wrap = elf(&[(4, 0, &entry, 20), (1, u64::MAX - 4, &[0; 16], 16)]);
    assert!(refusal(&wrap).contains("cannot be loaded"));
    let mut arm = good_elf();
    arm[18] = 183;
    assert!(refusal(&arm).contains("not one for x86-64"));
    let mut old = bzimage(&[0; 16]);
    old[0x206] = 0;
    assert!(refusal(&old).contains("older than Linux 2.6.31"));
}

#[test]
fn missing_files_are_named() {
    assert!(matches!(Payload::open(&PayloadConfig::default()), Err(BootError::NoPayload)));
    let config = PayloadConfig { kernel: Some("/nowhere/vmlinux".into()), ..Default::default() };
    let error = Payload::open(&config).err().unwrap().to_string();
    assert_eq!(error, "payload.kernel /nowhere/vmlinux: cannot be read");
    let directory = PayloadConfig { firmware: Some("/".into()), ..Default::default() };
    let error = Payload::open(&directory).err().unwrap().to_string();
    assert_eq!(error, "payload.firmware /: is not a file");
    // One that nobody writes is not waited for.
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let config = PayloadConfig { kernel: Some(fifo.clone()), ..Default::default() };
    let error = Payload::open(&config).err().unwrap().to_string();
    assert_eq!(error, format!("payload.kernel {}: is not a file", fifo.display()));
}

#[test]
fn too_little_memory_is_an_error_before_anything_is_loaded() {
    let kernel = file(&bzimage(&[0xcc; 4000]));
    let small = memory(16 << 20);
    let error = Payload::open(&config(&kernel)).unwrap().load(&small).err().unwrap();
    assert!(matches!(error, BootError::Memory { needed: 0x140_0000, .. }));
    assert_eq!(small.populated().unwrap(), []);
    let initramfs = file(&vec![0; 13 << 20]);
    let config = PayloadConfig { initramfs: Some(initramfs.path().to_owned()), ..config(&kernel) };
    let error = Payload::open(&config).unwrap().place(&memory(32 << 20)).err().unwrap();
    assert!(matches!(error, BootError::Memory { field: "initramfs", .. }));
}

#[test]
fn command_lines_have_the_kernels_limit() {
    let kernel = file(&bzimage(&[0; 16]));
    let with = |cmdline: String| Payload::open(&PayloadConfig { cmdline: Some(cmdline), ..config(&kernel) }).err();
    assert!(with("x".repeat(2047)).is_none());
    assert!(matches!(with("x".repeat(2048)), Some(BootError::Cmdline { len: 2048, max: 2047 })));
    assert!(matches!(with("a\nb".to_owned()), Some(BootError::CmdlineText)));
}
