//! The machine under a Linux guest: ports, a huge page, BARs by sysfs, other addresses by /dev/mem.

use std::arch::asm;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Instant;

use hostile::{MEMORY, Machine, Width};

const SERIAL: u16 = 0x3f8;
/// The transmitter is empty.
const EMPTY: u8 = 0x20;

/// Physical addresses that are mapped.
struct Mapping {
    address: u64,
    len: u64,
    at: *mut u8,
}

/// The machine.
pub struct Linux {
    /// The first is the memory of the cases.
    mappings: Vec<Mapping>,
    end: u64,
    addresses: [[u8; 4]; 2],
    began: Instant,
}

/// Lets this process use all ports.
pub fn open_ports() -> io::Result<()> {
    // SAFETY: changes what this process may do, nothing else.
    if unsafe { libc::iopl(3) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Prints a line.
pub fn print(line: &str) {
    for byte in line.bytes().chain([b'\n']) {
        for _ in 0..1000 {
            if input(SERIAL + 5, Width::Byte) as u8 & EMPTY != 0 {
                break;
            }
        }
        output(SERIAL, Width::Byte, byte.into());
    }
}

impl Linux {
    /// Finds memory; a guest with the first of these addresses, and somebody with the other.
    pub fn new(own: [u8; 4], peer: [u8; 4]) -> io::Result<Self> {
        let at = map(None, 0, MEMORY, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB)?;
        // SAFETY: just mapped, and nobody else has it. Touched, it has a place.
        unsafe { at.write_bytes(0, MEMORY as usize) };
        let address = physical(at as u64)?;
        let end = end_of_memory(address)?;
        let memory = Mapping { address, len: MEMORY, at };
        Ok(Self { mappings: vec![memory], end, addresses: [own, peer], began: Instant::now() })
    }

    /// Where a physical address is mapped.
    fn at(&self, address: u64) -> *mut u8 {
        let found =
            self.mappings.iter().find(|mapping| (mapping.address..mapping.address + mapping.len).contains(&address));
        // A case that reaches beyond what it asked for is a mistake of ours.
        let mapping = found.unwrap_or_else(|| panic!("{address:#x} is not mapped"));
        mapping.at.wrapping_add((address - mapping.address) as usize)
    }
}

fn map(file: Option<&File>, offset: u64, len: u64, flags: libc::c_int) -> io::Result<*mut u8> {
    let fd = file.map_or(-1, AsRawFd::as_raw_fd);
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, wherever there is room.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len as usize, access, flags, fd, offset as libc::off_t) };
    if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(at.cast()) }
}

/// The physical address of a mapped one.
fn physical(at: u64) -> io::Result<u64> {
    const PRESENT: u64 = 1 << 63;
    let mut entry = [0; 8];
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, at / 4096 * 8)?;
    let entry = u64::from_le_bytes(entry);
    let frame = entry & ((1 << 55) - 1);
    if entry & PRESENT == 0 || frame == 0 { Err(io::Error::other("no page frame is told")) } else { Ok(frame * 4096) }
}

/// Where the RAM ends that an address is in.
fn end_of_memory(address: u64) -> io::Result<u64> {
    let text = fs::read_to_string("/proc/iomem")?;
    let mut ends = text.lines().filter(|line| line.ends_with(": System RAM")).filter_map(|line| {
        let (start, end) = line.trim().split_once(' ')?.0.split_once('-')?;
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16));
        let (start, end) = (start.ok()?, end.ok()?);
        (start..=end).contains(&address).then_some(end + 1)
    });
    ends.next_back().ok_or_else(|| io::Error::other("no RAM around the memory"))
}

/// The file of the BAR that starts at `address`.
fn bar(address: u64) -> Option<File> {
    let start = format!("{address:#018x} ");
    let entries = fs::read_dir("/sys/bus/pci/devices").ok()?.flatten();
    let folder = entries
        .map(|entry| entry.path())
        .find(|path| fs::read_to_string(path.join("resource")).is_ok_and(|text| text.starts_with(&start)))?;
    OpenOptions::new().read(true).write(true).open(folder.join("resource0")).ok()
}

fn input(port: u16, width: Width) -> u32 {
    let value: u32;
    // SAFETY: ports are open, and touch no memory of ours.
    unsafe {
        match width {
            Width::Byte => {
                let byte: u8;
                asm!("in al, dx", in("dx") port, out("al") byte, options(nostack));
                value = byte.into();
            }
            Width::Word => {
                let word: u16;
                asm!("in ax, dx", in("dx") port, out("ax") word, options(nostack));
                value = word.into();
            }
            Width::Double | Width::Quad => asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack)),
        }
    }
    value
}

fn output(port: u16, width: Width, value: u32) {
    // SAFETY: as above.
    unsafe {
        match width {
            Width::Byte => asm!("out dx, al", in("dx") port, in("al") value as u8, options(nostack)),
            Width::Word => asm!("out dx, ax", in("dx") port, in("ax") value as u16, options(nostack)),
            Width::Double | Width::Quad => asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack)),
        }
    }
}

impl Machine for Linux {
    fn memory(&self) -> u64 {
        self.mappings[0].address
    }

    fn memory_end(&self) -> u64 {
        self.end
    }

    fn addresses(&self) -> [[u8; 4]; 2] {
        self.addresses
    }

    fn read(&mut self, address: u64, width: Width) -> u64 {
        let at = self.at(address);
        let value: u64;
        // SAFETY: mapped; one instruction of that width.
        unsafe {
            match width {
                Width::Byte => asm!("movzx {:e}, byte ptr [{}]", out(reg) value, in(reg) at, options(nostack)),
                Width::Word => asm!("movzx {:e}, word ptr [{}]", out(reg) value, in(reg) at, options(nostack)),
                Width::Double => asm!("mov {:e}, dword ptr [{}]", out(reg) value, in(reg) at, options(nostack)),
                Width::Quad => asm!("mov {}, qword ptr [{}]", out(reg) value, in(reg) at, options(nostack)),
            }
        }
        value
    }

    fn write(&mut self, address: u64, width: Width, value: u64) {
        let at = self.at(address);
        // SAFETY: as above.
        unsafe {
            match width {
                Width::Byte => asm!("mov byte ptr [{}], al", in(reg) at, in("al") value as u8, options(nostack)),
                Width::Word => asm!("mov word ptr [{}], {:x}", in(reg) at, in(reg) value, options(nostack)),
                Width::Double => asm!("mov dword ptr [{}], {:e}", in(reg) at, in(reg) value, options(nostack)),
                Width::Quad => asm!("mov qword ptr [{}], {}", in(reg) at, in(reg) value, options(nostack)),
            }
        }
    }

    fn input(&mut self, port: u16, width: Width) -> u32 {
        input(port, width)
    }

    fn output(&mut self, port: u16, width: Width, value: u32) {
        output(port, width, value);
    }

    fn output_string(&mut self, port: u16, bytes: &[u8]) {
        // SAFETY: reads `bytes`, and writes a port.
        unsafe {
            asm!("rep outsb", in("dx") port, inout("rsi") bytes.as_ptr() => _, inout("rcx") bytes.len() => _,
                options(nostack, readonly));
        }
    }

    fn reach(&mut self, address: u64, len: u64) -> bool {
        let len = len.next_multiple_of(4096);
        let memory = || OpenOptions::new().read(true).write(true).custom_flags(libc::O_SYNC).open("/dev/mem");
        let mapped = match bar(address) {
            Some(file) => map(Some(&file), 0, len, libc::MAP_SHARED),
            None => memory().and_then(|file| map(Some(&file), address, len, libc::MAP_SHARED)),
        };
        // The kernel does not show everything.
        let reached = mapped.map(|at| self.mappings.push(Mapping { address, len, at }));
        reached.is_ok()
    }

    fn milliseconds(&mut self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn say(&mut self, line: fmt::Arguments<'_>) {
        print(&line.to_string());
    }

    fn attacked(&mut self, _: usize, _: fmt::Arguments<'_>) {}
}
