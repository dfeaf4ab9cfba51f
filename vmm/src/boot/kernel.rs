//! Kernel and initramfs: checked when the VM is built, loaded at every boot.
//!
//! In: the files of the payload. Out: an [`Entry`], and the initramfs' place. Never: a half-loaded guest;
//! sizes, offsets and addresses are all checked before the first byte is written, and files that changed
//! meanwhile are an error.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use linux_loader::bootparam::setup_header;
use linux_loader::elf::{ELFMAG0, Elf64_Ehdr, Elf64_Nhdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::Elf;
use linux_loader::loader::{KernelLoader, load_cmdline};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use crate::config::PayloadConfig;
use crate::machine::memory::guest::{GuestMemory, GuestRam};
use crate::machine::memory::layout::{self, PAGE_SIZE};

/// Why there is nothing to boot.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Nothing to boot is named.
    #[error("payload is missing: give a kernel or a firmware")]
    NoPayload,
    /// A file cannot be read.
    #[error("payload.{field} {path}: cannot be read")]
    Read {
        /// Which field.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what it must be.
    #[error("payload.{field} {path}: {what}")]
    Image {
        /// Which field.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The guest is too small for what it is to boot.
    #[error("memory.size {size} bytes is too small: payload.{field} {path} needs {needed} bytes below the 32-bit hole")]
    Memory {
        /// Bytes there are.
        size: u64,
        /// Which field.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// Bytes there must be.
        needed: u64,
    },
    /// The command line is too long.
    #[error("payload.cmdline is {len} bytes long, this kernel takes {max}")]
    Cmdline {
        /// Bytes.
        len: usize,
        /// The kernel's limit.
        max: u64,
    },
    /// The command line is not printable text.
    #[error("payload.cmdline contains a byte that is not printable ASCII")]
    CmdlineText,
    /// Guest memory did not take it; a mistake in the layout.
    #[error("cannot write boot data to guest memory")]
    Write(#[source] vm_memory::GuestMemoryError),
    /// The boot vCPU did not take its registers.
    #[error("cannot set the boot registers")]
    Registers(#[source] crate::machine::cpu::CpuError),
}

/// How the guest is entered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Entry {
    /// The PVH protocol: 32-bit protected mode without paging, start info in ebx.
    Pvh {
        /// First instruction.
        address: u64,
    },
    /// Linux' 32-bit boot protocol: the same mode, zero page in esi.
    Linux {
        /// First instruction.
        address: u64,
        /// The image's own header, to go into the zero page.
        header: setup_header,
    },
}

/// The initramfs' place in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initramfs {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// What [`Payload::load`] has put where.
#[derive(Clone, Copy, Debug)]
pub struct Loaded {
    /// How to enter it.
    pub entry: Entry,
    /// Where the initramfs is.
    pub initramfs: Option<Initramfs>,
}

enum Image {
    Pvh {
        address: u64,
        end: u64,
        /// Ranges (start, length) that the file has no bytes for.
        bss: Vec<(u64, u64)>,
    },
    Linux {
        header: setup_header,
        end: u64,
    },
}

struct Source {
    field: &'static str,
    path: PathBuf,
    file: File,
    size: u64,
}

impl Source {
    fn open(field: &'static str, path: &Path) -> Result<Self, BootError> {
        let error = |source| BootError::Read { field, path: path.to_owned(), source };
        let file = host_kit::file::open_nonblocking(path).map_err(error)?;
        let metadata = file.metadata().map_err(error)?;
        let source = Self { field, path: path.to_owned(), file, size: metadata.len() };
        if !metadata.is_file() {
            return Err(source.wrong("is not a file"));
        }
        Ok(source)
    }

    fn wrong(&self, what: impl Into<String>) -> BootError {
        BootError::Image { field: self.field, path: self.path.clone(), what: what.into() }
    }

    fn structure<T: ByteValued + Default>(&mut self, offset: u64, what: &str) -> Result<T, BootError> {
        let mut value = T::default();
        self.file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.file.read_exact(value.as_mut_slice()))
            .map_err(|_| self.wrong(format!("is truncated: no {what} at byte {offset}, it has {} bytes", self.size)))?;
        Ok(value)
    }

    fn too_large(&self, memory: &GuestMemory, needed: u64) -> BootError {
        BootError::Memory { size: memory.size(), field: self.field, path: self.path.clone(), needed }
    }
}

/// A payload whose files are open and have been checked.
pub struct Payload {
    kernel: Source,
    image: Image,
    initramfs: Option<Source>,
    cmdline: String,
}

impl Payload {
    /// Opens and checks the files of `config`.
    ///
    /// # Errors
    /// One that names the field and the file, and says what is wrong with it.
    pub fn open(config: &PayloadConfig) -> Result<Self, BootError> {
        let mut kernel = match (&config.kernel, &config.firmware) {
            (Some(path), _) => Source::open("kernel", path)?,
            (None, Some(path)) => Source::open("firmware", path)?,
            (None, None) => return Err(BootError::NoPayload),
        };
        let image = check_image(&mut kernel)?;
        let initramfs = config.initramfs.as_deref().map(|path| Source::open("initramfs", path)).transpose()?;
        let cmdline = config.cmdline.clone().unwrap_or_default();
        check_cmdline(&cmdline, &image)?;
        Ok(Self { kernel, image, initramfs, cmdline })
    }

    /// Checks that everything fits into `memory`; the initramfs' place comes back.
    ///
    /// # Errors
    /// When the guest is too small.
    pub fn place(&self, memory: &GuestMemory) -> Result<Option<Initramfs>, BootError> {
        let low_end = memory.size().min(layout::HOLE_START);
        let kernel_end = match &self.image {
            Image::Pvh { end, .. } | Image::Linux { end, .. } => *end,
        };
        if kernel_end > low_end {
            return Err(self.kernel.too_large(memory, kernel_end));
        }
        let Some(source) = &self.initramfs else { return Ok(None) };
        let limit = match &self.image {
            Image::Pvh { .. } => low_end,
            Image::Linux { header, .. } => low_end.min(u64::from(header.initrd_addr_max) + 1),
        };
        let address = limit.saturating_sub(source.size) / PAGE_SIZE * PAGE_SIZE;
        if source.size > limit || address < kernel_end {
            return Err(source.too_large(memory, kernel_end + source.size.next_multiple_of(PAGE_SIZE)));
        }
        Ok(Some(Initramfs { address, size: source.size }))
    }

    /// Loads kernel, initramfs and command line.
    ///
    /// # Errors
    /// When the guest is too small or a file is not any more what it was when it was checked.
    pub fn load(&mut self, memory: &GuestMemory) -> Result<Loaded, BootError> {
        let initramfs = self.place(memory)?;
        let ram = memory.ram();
        let kernel = &mut self.kernel;
        let entry = match &self.image {
            Image::Pvh { address, bss, .. } => {
                for (start, len) in bss {
                    zero(ram, *start, *len).map_err(BootError::Write)?;
                }
                Elf::load(ram, None, &mut kernel.file, None)
                    .map_err(|e| kernel.wrong(format!("does not load: {e}")))?;
                Entry::Pvh { address: *address }
            }
            Image::Linux { .. } => {
                let loaded = BzImage::load(ram, None, &mut kernel.file, Some(GuestAddress(layout::HIGH_RAM_START)))
                    .map_err(|e| kernel.wrong(format!("does not load: {e}")))?;
                let header = loaded.setup_header.ok_or_else(|| kernel.wrong("has no setup header"))?;
                Entry::Linux { address: loaded.kernel_load.0, header }
            }
        };
        if let (Some(place), Some(source)) = (initramfs, &mut self.initramfs) {
            let read = source.file.rewind().map_err(|e| e.to_string()).and_then(|()| {
                ram.read_exact_volatile_from(GuestAddress(place.address), &mut source.file, place.size as usize)
                    .map_err(|e| e.to_string())
            });
            read.map_err(|e| source.wrong(format!("does not load: {e}")))?;
        }
        let mut text =
            linux_loader::cmdline::Cmdline::new(layout::CMDLINE_MAX as usize).map_err(|_| BootError::CmdlineText)?;
        if !self.cmdline.is_empty() {
            text.insert_str(&self.cmdline).map_err(|_| BootError::CmdlineText)?;
        }
        load_cmdline(ram, GuestAddress(layout::CMDLINE), &text).map_err(|_| BootError::CmdlineText)?;
        Ok(Loaded { entry, initramfs })
    }
}

/// Memory of an earlier boot must not shine through where the image counts on zeroes.
fn zero(ram: &GuestRam, start: u64, len: u64) -> Result<(), vm_memory::GuestMemoryError> {
    const ZEROES: [u8; 4096] = [0; 4096];
    let mut done = 0;
    while done < len {
        let part = (len - done).min(ZEROES.len() as u64);
        ram.write_slice(&ZEROES[..part as usize], GuestAddress(start + done))?;
        done += part;
    }
    Ok(())
}

fn check_cmdline(cmdline: &str, image: &Image) -> Result<(), BootError> {
    let max = match image {
        Image::Pvh { .. } => layout::CMDLINE_MAX - 1,
        Image::Linux { header, .. } => u64::from(header.cmdline_size).min(layout::CMDLINE_MAX - 1),
    };
    if cmdline.len() as u64 > max {
        return Err(BootError::Cmdline { len: cmdline.len(), max });
    }
    if cmdline.bytes().any(|byte| !(b' '..=b'~').contains(&byte)) {
        return Err(BootError::CmdlineText);
    }
    Ok(())
}

fn check_image(kernel: &mut Source) -> Result<Image, BootError> {
    let mut magic = [0; 4];
    if kernel.file.read_exact(&mut magic).is_err() {
        return Err(kernel.wrong(format!("is truncated: it has {} bytes", kernel.size)));
    }
    match magic {
        [ELFMAG0, b'E', b'L', b'F'] => check_elf(kernel),
        // The first four bytes of a bzImage are code; its mark is further on.
        _ => check_bzimage(kernel),
    }
}

/// A bzImage: its header, and that all of what the header counts is in the file.
fn check_bzimage(kernel: &mut Source) -> Result<Image, BootError> {
    const HEADER_AT: u64 = 0x1f1;
    const MAGIC: u32 = 0x5372_6448; // "HdrS"
    const LOADED_HIGH: u8 = 1;
    /// The first protocol that says how much memory the kernel needs.
    const PROTOCOL: u16 = 0x020a;
    let neither = "is neither an ELF image (vmlinux) nor a bzImage (vmlinuz)";
    if kernel.size < HEADER_AT + size_of::<setup_header>() as u64 {
        return Err(kernel.wrong(format!("{neither}, or is truncated: it has {} bytes", kernel.size)));
    }
    let header: setup_header = kernel.structure(HEADER_AT, "setup header")?;
    if header.header != MAGIC {
        return Err(kernel.wrong(neither));
    }
    if header.version < PROTOCOL || header.loadflags & LOADED_HIGH == 0 {
        return Err(kernel.wrong("is a kernel older than Linux 2.6.31, which cannot be booted"));
    }
    let setup = (u64::from(header.setup_sects.max(1)).max(if header.setup_sects == 0 { 4 } else { 1 }) + 1) * 512;
    let code = u64::from(header.syssize) * 16;
    if kernel.size < setup + code {
        let expected = setup + code;
        return Err(kernel.wrong(format!("is truncated: its header counts {expected} bytes, it has {}", kernel.size)));
    }
    let start = u64::from(header.code32_start);
    if start < layout::HIGH_RAM_START {
        return Err(kernel.wrong(format!("is to be loaded at {start:#x}, below 1 MiB")));
    }
    // It unpacks itself to where it prefers to be, or where it is, whichever is higher.
    let unpacked = start.max(header.pref_address).checked_add(u64::from(header.init_size));
    let loaded = start + (kernel.size - setup);
    let end = unpacked.ok_or_else(|| kernel.wrong("is to be unpacked beyond the address space"))?.max(loaded);
    Ok(Image::Linux { header, end })
}

/// An ELF image: that its segments are in the file and above 1 MiB, and that it has a PVH entry.
fn check_elf(kernel: &mut Source) -> Result<Image, BootError> {
    const CLASS_64: u8 = 2;
    const LITTLE_ENDIAN: u8 = 1;
    const X86_64: u16 = 62;
    /// UEFI images for PVH say so though they have 64 bits: they begin in 32-bit mode.
    const I386: u16 = 3;
    let header: Elf64_Ehdr = kernel.structure(0, "ELF header")?;
    let machine = matches!(header.e_machine, X86_64 | I386);
    if header.e_ident[4] != CLASS_64 || header.e_ident[5] != LITTLE_ENDIAN || !machine {
        return Err(kernel.wrong("is an ELF image, but not one for x86-64"));
    }
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() || header.e_phnum == 0 {
        return Err(kernel.wrong("is an ELF image without program headers, so not a kernel"));
    }
    let mut entry = None;
    let mut loads = Vec::new();
    for index in 0..u64::from(header.e_phnum) {
        let at = header.e_phoff.saturating_add(index * size_of::<Elf64_Phdr>() as u64);
        let segment: Elf64_Phdr = kernel.structure(at, "program header")?;
        let file_end = segment.p_offset.checked_add(segment.p_filesz);
        if file_end.is_none_or(|end| end > kernel.size) {
            let want = file_end.map_or("too many".to_owned(), |end| end.to_string());
            return Err(kernel.wrong(format!("is truncated: segment {index} ends at byte {want} of {}", kernel.size)));
        }
        match segment.p_type {
            PT_LOAD if segment.p_memsz > 0 => loads.push((index, segment)),
            PT_NOTE => entry = entry.or(pvh_entry(kernel, &segment)?),
            _ => {}
        }
    }
    let Some(address) = entry else {
        let what = "is an ELF image without a PVH entry (note XEN_ELFNOTE_PHYS32_ENTRY); build the kernel with \
                    CONFIG_PVH=y or boot its bzImage (vmlinuz)";
        return Err(kernel.wrong(what));
    };
    let (mut end, mut inside, mut bss) = (0, false, Vec::new());
    for (index, segment) in loads {
        let segment_end = check_segment(kernel, index, &segment)?;
        end = end.max(segment_end);
        inside |= (segment.p_paddr..segment_end).contains(&address);
        let file_end = segment.p_paddr + segment.p_filesz;
        if file_end < segment_end {
            bss.push((file_end, segment_end - file_end));
        }
    }
    if !inside {
        return Err(kernel.wrong(format!("has its PVH entry at {address:#x}, outside of all its segments")));
    }
    Ok(Image::Pvh { address, end, bss })
}

/// Where a segment ends in guest memory.
fn check_segment(kernel: &Source, index: u64, segment: &Elf64_Phdr) -> Result<u64, BootError> {
    let end = segment.p_paddr.checked_add(segment.p_memsz);
    match end {
        Some(end) if segment.p_memsz >= segment.p_filesz && segment.p_paddr >= layout::HIGH_RAM_START => Ok(end),
        _ => Err(kernel.wrong(format!(
            "cannot be loaded: segment {index} has {} bytes for {} bytes of memory at {:#x} (must be above 1 MiB)",
            segment.p_filesz, segment.p_memsz, segment.p_paddr
        ))),
    }
}

/// The PVH entry among the notes of one segment, all of which lies in the file.
fn pvh_entry(kernel: &mut Source, segment: &Elf64_Phdr) -> Result<Option<u64>, BootError> {
    const PHYS32_ENTRY: u32 = 18;
    const XEN: [u8; 4] = *b"Xen\0";
    const HEADER: u64 = size_of::<Elf64_Nhdr>() as u64;
    let end = segment.p_offset + segment.p_filesz;
    let mut at = segment.p_offset;
    while at + HEADER <= end {
        let note: Elf64_Nhdr = kernel.structure(at, "note")?;
        let name_len = u64::from(note.n_namesz).next_multiple_of(4);
        let body = at + HEADER + name_len;
        if note.n_type == PHYS32_ENTRY
            && note.n_namesz == 4
            && kernel.structure::<u32>(at + HEADER, "note")? == u32::from_le_bytes(XEN)
        {
            return match note.n_descsz {
                4 => Ok(Some(kernel.structure::<u32>(body, "PVH entry")?.into())),
                8 => Ok(Some(kernel.structure::<u64>(body, "PVH entry")? & 0xffff_ffff)),
                size => Err(kernel.wrong(format!("has a PVH entry of {size} bytes, not 4 or 8"))),
            };
        }
        at = body + u64::from(note.n_descsz).next_multiple_of(4);
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
