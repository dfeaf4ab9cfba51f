//! The bare machine: ports, device memory, page tables, time, RAM, power. All `unsafe` but boot's is here.

use core::arch::asm;
use core::fmt::{self, Write};
use core::ptr::{read_volatile, write_volatile};
use core::sync::atomic::{AtomicU64, Ordering, fence};

const SERIAL: u16 = 0x3f8;
const ACPI_CONTROL: u16 = 0x600;
/// PM1a control register of an ACPI machine that is not hardware-reduced (QEMU).
const PM1_CONTROL: u16 = 0x604;
const PM_TIMER: u16 = 0x608;
const PM_TIMER_HZ: u64 = 3_579_545;

unsafe extern "C" {
    static mut pml4: [u64; 512];
    static mut idt: [[u64; 2]; 256];
    static mut ap_number: u32;
    static kvmclock: [u64; 4];
    static exception_stubs: u8;
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
    static mut bss_start: u8;
    static mut bss_end: u8;
    static image_end: u8;
}

/// A value that a port can take.
pub trait PortValue: Copy {
    /// Write to `port`.
    fn output(self, port: u16);
    /// Read from `port`.
    fn input(port: u16) -> Self;
}

macro_rules! port_value {
    ($type:ty, $register:tt) => {
        impl PortValue for $type {
            fn output(self, port: u16) {
                // SAFETY: port I/O touches no memory of ours.
                unsafe { asm!(concat!("out dx, ", $register), in("dx") port, in($register) self, options(nostack, preserves_flags)) }
            }
            fn input(port: u16) -> Self {
                let value;
                // SAFETY: as above.
                unsafe { asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value, options(nostack, preserves_flags)) }
                value
            }
        }
    };
}
port_value!(u8, "al");
port_value!(u16, "ax");
port_value!(u32, "eax");

/// Read a little-endian value from device memory (or RAM that a device writes).
///
/// # Safety
/// `address` must be mapped and aligned.
pub unsafe fn read<T: Copy>(address: u64) -> T {
    // SAFETY: the caller's promise.
    unsafe { read_volatile(address as *const T) }
}

/// Write a little-endian value to device memory (or RAM that a device reads).
///
/// # Safety
/// `address` must be mapped, aligned, and not be memory that Rust objects live in.
pub unsafe fn write<T: Copy>(address: u64, value: T) {
    // SAFETY: the caller's promise.
    unsafe { write_volatile(address as *mut T, value) }
}

/// Clear .bss (a reset leaves what was there) and send exceptions to the stubs in `boot`.
///
/// # Safety
/// Once, first thing on vCPU 0, before any static variable is used.
pub unsafe fn init() {
    let (start, end) = (&raw mut bss_start, &raw mut bss_end);
    // SAFETY: the linker script says what lies between, and nobody uses it yet.
    unsafe {
        let len = end as usize - start as usize;
        asm!("rep stosb", inout("rdi") start => _, inout("rcx") len => _, in("al") 0u8, options(nostack));
    }
    for vector in 0..32u64 {
        let handler = (&raw const exception_stubs) as u64 + 16 * vector;
        let low = (handler & 0xffff) | 0x10 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
        // SAFETY: `boot` defines this table; it is only read by the processor.
        unsafe { write_volatile((&raw mut idt).cast::<[u64; 2]>().add(vector as usize), [low, handler >> 32]) };
    }
}

/// The serial line.
pub struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // A host that never reports an empty transmitter must not hang the guest.
            for _ in 0..1000 {
                if u8::input(SERIAL + 5) & 0x20 != 0 {
                    break;
                }
            }
            byte.output(SERIAL);
        }
        Ok(())
    }
}

/// Print a line on the serial port.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => {{
        use core::fmt::Write;
        // The serial port takes everything.
        let _ = writeln!($crate::machine::Serial, $($arg)*);
    }};
}

/// Time stamp counter, never reordered with what is before it.
pub fn tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a register.
    unsafe { asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nostack)) }
    u64::from(high) << 32 | u64::from(low)
}

/// What KVM says about time (struct `pvclock_vcpu_time_info`).
struct KvmClock {
    /// The time stamp counter when it was read. Another host may go on from any instruction, with another
    /// clock: what was read before that does not go with a counter that is read after it.
    now: u64,
    tsc: u64,
    nanoseconds: u64,
    multiplier: u32,
    shift: i8,
}

impl KvmClock {
    fn read() -> Option<Self> {
        let at = (&raw const kvmclock) as u64;
        loop {
            // SAFETY: `boot` defines this memory and gives it to KVM, which writes it; an odd version means
            // that it does.
            let [version, tsc, nanoseconds, scale] = [0, 8, 16, 24].map(|offset| unsafe { read::<u64>(at + offset) });
            let now = self::tsc();
            fence(Ordering::SeqCst);
            // SAFETY: as above.
            if version & 1 == 0 && unsafe { read::<u64>(at) } == version {
                let (multiplier, shift) = (scale as u32, (scale >> 32) as i8);
                return (multiplier != 0).then_some(Self { now, tsc, nanoseconds, multiplier, shift });
            }
            relax();
        }
    }
}

/// Nanoseconds since boot by kvmclock; 0 if there is none.
pub fn nanoseconds() -> u64 {
    let Some(clock) = KvmClock::read() else { return 0 };
    let ticks = u128::from(clock.now.saturating_sub(clock.tsc));
    let ticks = if clock.shift < 0 { ticks >> -clock.shift } else { ticks << clock.shift };
    clock.nanoseconds + ((ticks * u128::from(clock.multiplier)) >> 32) as u64
}

/// Frequency of the time stamp counter in kHz: from kvmclock, or measured against the ACPI timer.
pub fn tsc_khz() -> u64 {
    let Some(clock) = KvmClock::read() else { return measure_tsc_khz() };
    // Nanoseconds are ticks << shift * multiplier >> 32.
    let shift = 32 - i32::from(clock.shift) - 1;
    ((1_000_000u128 << shift << 1) / u128::from(clock.multiplier)) as u64
}

/// Measured for 10 ms.
fn measure_tsc_khz() -> u64 {
    let span = PM_TIMER_HZ / 100;
    let (start, first) = (u32::input(PM_TIMER), tsc());
    for _ in 0..10_000_000 {
        let (now, last) = (u32::input(PM_TIMER), tsc());
        // 24 bits count on all of them.
        let elapsed = u64::from(now.wrapping_sub(start) & 0xff_ffff);
        if elapsed >= span && now != u32::MAX {
            return (last - first) * PM_TIMER_HZ / elapsed / 1000;
        }
        if now == u32::MAX {
            break;
        }
    }
    1_000_000
}

/// Spin for a moment.
pub fn relax() {
    core::hint::spin_loop();
}

/// Power off: ACPI S5 as in a hardware-reduced machine, then as in a classic one.
pub fn power_off() -> ! {
    0x34u8.output(ACPI_CONTROL);
    0x2000u16.output(PM1_CONTROL);
    loop {
        relax();
    }
}

/// How to reset.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reset {
    /// ACPI reset register.
    Acpi,
    /// Command 0xfe of the keyboard controller.
    Keyboard,
    /// An exception that cannot be delivered.
    TripleFault,
}

/// Reset.
pub fn reset(how: Reset) -> ! {
    match how {
        Reset::Acpi => 1u8.output(ACPI_CONTROL),
        Reset::Keyboard => 0xfeu8.output(0x64),
        Reset::TripleFault => {
            for vector in 0..32 {
                // SAFETY: as in `init`; an entry that is not present is what we want.
                unsafe { write_volatile((&raw mut idt).cast::<[u64; 2]>().add(vector), [0; 2]) };
            }
            // SAFETY: raises an exception and does not come back.
            unsafe { asm!("ud2") }
        }
    }
    loop {
        relax();
    }
}

/// Load from where nothing is mapped.
pub fn fault() {
    // SAFETY: it is not: the exception is the purpose, and does not come back here.
    unsafe { asm!("mov rax, [{}]", in(reg) 0x6ead_0000_0000u64, out("rax") _, options(nostack, readonly)) }
}

/// A page table entry that is in use: present, writable, user, accessed.
const TABLE: u64 = 0x27;
/// Likewise for a 2 MiB page, dirty too.
const LARGE: u64 = 0xe7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// RAM that belongs to nobody yet, handed out from the bottom; nothing is ever given back.
pub struct Memory {
    next: u64,
    end: u64,
}

impl Memory {
    /// RAM from the end of our image to `end`, which is below 3 GiB.
    pub fn new(end: u64) -> Self {
        Self { next: ((&raw const image_end) as u64).next_multiple_of(4096), end }
    }

    /// `len` bytes of RAM above 4 GiB, which is `high`, as memory of its own.
    ///
    /// # Panics
    /// If there is not as much.
    pub fn above_4g(&mut self, high: Option<(u64, u64)>, len: u64) -> Self {
        let (next, end) = high.map_or((0, 0), |(start, all)| (start, start + all));
        assert!(len <= end - next, "{len} bytes wanted above 4 GiB, there are {}", end - next);
        self.map_device(next, len);
        Self { next, end: next + len }
    }

    /// Bytes left.
    pub fn left(&self) -> u64 {
        self.end.saturating_sub(self.next)
    }

    /// Physical address of `len` cleared bytes, page aligned.
    ///
    /// # Panics
    /// If there is not enough.
    pub fn allocate(&mut self, len: u64) -> u64 {
        let len = len.next_multiple_of(4096);
        assert!(len <= self.left(), "out of memory: {len} bytes wanted, {} left", self.left());
        let start = self.next;
        self.next += len;
        // SAFETY: RAM that the loader reported, above our image, identity mapped, handed out once.
        unsafe { core::ptr::write_bytes(start as *mut u8, 0, len as usize) };
        start
    }

    /// `count` zeros.
    pub fn words(&mut self, count: usize) -> &'static mut [u64] {
        let start = self.allocate(8 * count as u64);
        // SAFETY: as above; nobody else refers to it.
        unsafe { core::slice::from_raw_parts_mut(start as *mut u64, count) }
    }

    /// `count` zero bytes.
    pub fn bytes(&mut self, count: usize) -> &'static mut [u8] {
        let start = self.allocate(count as u64);
        // SAFETY: as above.
        unsafe { core::slice::from_raw_parts_mut(start as *mut u8, count) }
    }

    /// Put `value` into memory of its own, for ever.
    pub fn place<T>(&mut self, value: T) -> *mut T {
        let place = self.allocate(size_of::<T>() as u64) as *mut T;
        // SAFETY: as above; a page is aligned enough for everything.
        unsafe { place.write(value) };
        place
    }

    /// As [`Self::place`], for a value that only its owner refers to.
    pub fn keep<T>(&mut self, value: T) -> &'static mut T {
        // SAFETY: just placed, never given back, and nobody else has the address.
        unsafe { &mut *self.place(value) }
    }

    /// Map device memory or RAM above 4 GiB; below it everything is mapped from the start.
    pub fn map_device(&mut self, address: u64, len: u64) {
        let mut page = address & !0x1f_ffff;
        while page < address + len {
            if page >= 1 << 32 {
                self.map_large(page);
            }
            page += 0x20_0000;
        }
    }

    fn map_large(&mut self, page: u64) {
        let mut table = (&raw mut pml4) as u64;
        for shift in [39, 30] {
            let entry = table + 8 * (page >> shift & 511);
            // SAFETY: `table` is one of our page tables, identity mapped.
            let mut value: u64 = unsafe { read(entry) };
            if value & 1 == 0 {
                value = self.allocate(4096) | TABLE;
                // SAFETY: as above. Nothing was mapped here: no translation to flush.
                unsafe { write(entry, value) };
            }
            table = value & ADDRESS;
        }
        // SAFETY: as above.
        unsafe { write(table + 8 * (page >> 21 & 511), page | LARGE) };
    }
}

/// What the boot loader says, checked.
pub struct StartInfo {
    /// The command line.
    pub command_line: &'static str,
    /// End of the RAM that our image is in.
    pub ram_end: u64,
    /// RAM above 4 GiB: start and length.
    pub high: Option<(u64, u64)>,
}

impl StartInfo {
    /// Read `hvm_start_info` (PVH boot protocol).
    ///
    /// # Safety
    /// `address` must come from the boot loader.
    pub unsafe fn parse(address: u64) -> Self {
        // SAFETY: the boot protocol's structures lie in low RAM, which is mapped.
        unsafe {
            assert!(read::<u32>(address) == 0x336e_c578, "no PVH start info at {address:#x}");
            let text = read::<u64>(address + 24);
            let len = if text == 0 { 0 } else { (0..4096).find(|i| read::<u8>(text + i) == 0).unwrap_or(0) };
            let bytes = core::slice::from_raw_parts(if text == 0 { 1 } else { text } as *const u8, len as usize);
            let command_line = core::str::from_utf8(bytes).unwrap_or("");
            let image = (&raw const image_end) as u64;
            let (map, entries) = (read::<u64>(address + 40), u64::from(read::<u32>(address + 48)));
            let ram = |wanted: &dyn Fn(u64, u64) -> bool| {
                (0..entries)
                    .map(|i| map + 24 * i)
                    .filter(|entry| read::<u32>(entry + 16) == 1)
                    .map(|entry| (read::<u64>(entry), read::<u64>(entry + 8)))
                    .find(|(start, len)| wanted(*start, *len))
            };
            let Some((start, len)) = ram(&|start, len| (start..start + len).contains(&image)) else {
                panic!("no RAM around {image:#x}: {entries} entries in the map")
            };
            let high = ram(&|start, _| start >= 1 << 32);
            Self { command_line, ram_end: (start + len).min(1 << 32), high }
        }
    }
}

/// Start vCPU `number` (its LAPIC id too) at `boot`'s trampoline. The caller waits until it has come up.
pub fn start_vcpu(number: u32) {
    const LAPIC: u64 = 0xfee0_0000;
    let (start, end) = (&raw const ap_trampoline, &raw const ap_trampoline_end);
    // SAFETY: the trampoline page is free RAM below 1 MiB, `ap_number` is read by the one vCPU that is
    // starting, and the LAPIC is mapped.
    unsafe {
        core::ptr::copy_nonoverlapping(start, crate::boot::TRAMPOLINE as *mut u8, end as usize - start as usize);
        write_volatile(&raw mut ap_number, number);
        fence(Ordering::SeqCst);
        write(LAPIC + 0xf0, 0x1ffu32);
        for command in [0x4500, 0x4600 | (crate::boot::TRAMPOLINE >> 12) as u32] {
            write(LAPIC + 0x310, number << 24);
            write(LAPIC + 0x300, command);
        }
    }
}

/// The vCPU's view of passing time: every look at the clock is compared with the one before.
pub struct Clock {
    last: AtomicU64,
    stall_max: AtomicU64,
    stalls: AtomicU64,
    backwards: AtomicU64,
    threshold: AtomicU64,
    last_ns: AtomicU64,
}

/// The clock of vCPU 0.
pub static CLOCK: Clock = Clock {
    last: AtomicU64::new(0),
    stall_max: AtomicU64::new(0),
    stalls: AtomicU64::new(0),
    backwards: AtomicU64::new(0),
    threshold: AtomicU64::new(u64::MAX),
    last_ns: AtomicU64::new(0),
};

impl Clock {
    /// Start to watch; a stall is what lasts longer than `threshold` ticks of the time stamp counter.
    pub fn start(&self, threshold: u64) {
        self.last.store(tsc(), Ordering::Relaxed);
        self.threshold.store(threshold, Ordering::Relaxed);
    }

    /// Nanoseconds by kvmclock. Only vCPU 0 may look.
    pub fn nanoseconds(&self) -> u64 {
        let now = nanoseconds();
        if now < self.last_ns.load(Ordering::Relaxed) {
            self.backwards.store(self.backwards.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
        self.last_ns.store(now, Ordering::Relaxed);
        now
    }

    /// Look at the time stamp counter. Only vCPU 0 may.
    pub fn tick(&self) -> u64 {
        let now = tsc();
        let last = self.last.load(Ordering::Relaxed);
        self.last.store(now, Ordering::Relaxed);
        if now < last {
            self.backwards.store(self.backwards.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            return now;
        }
        if now - last > self.stall_max.load(Ordering::Relaxed) {
            self.stall_max.store(now - last, Ordering::Relaxed);
        }
        if now - last > self.threshold.load(Ordering::Relaxed) {
            self.stalls.store(self.stalls.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
        now
    }

    /// Longest stall, number of stalls, steps backwards.
    pub fn stalls(&self) -> (u64, u64, u64) {
        (
            self.stall_max.load(Ordering::Relaxed),
            self.stalls.load(Ordering::Relaxed),
            self.backwards.load(Ordering::Relaxed),
        )
    }

    /// Forget the stalls.
    pub fn clear(&self) {
        self.stall_max.store(0, Ordering::Relaxed);
        self.stalls.store(0, Ordering::Relaxed);
    }
}
