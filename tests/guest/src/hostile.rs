//! The cases of `hostile` on the bare machine, one after the other, instead of anything else.
//!
//! If it is told to, the guest stands still before the first case, and after the attack of every so many,
//! with the devices as that has left them: it says "hold at ADDRESS", and goes on when somebody has written
//! to that word of its memory.

use core::arch::asm;
use core::fmt;

use hostile::{MEMORY, Width};

use crate::config::Config;
use crate::machine::{self, Memory, PortValue, relax};
use crate::println;

/// Of a client on the network; it answers ARP.
const CLIENT: [u8; 4] = [192, 168, 77, 1];
/// Pages that the cases can map are below this: beyond are addresses that the processor may not have.
const REACH: u64 = 1 << 46;

struct Bare<'a> {
    memory: &'a mut Memory,
    base: u64,
    end: u64,
    own: [u8; 4],
    tsc_khz: u64,
    /// Stands still after every so many cases.
    hold: usize,
    /// Where somebody writes to have it go on.
    word: u64,
}

impl hostile::Machine for Bare<'_> {
    fn memory(&self) -> u64 {
        self.base
    }

    fn memory_end(&self) -> u64 {
        self.end
    }

    fn addresses(&self) -> [[u8; 4]; 2] {
        [self.own, CLIENT]
    }

    fn read(&mut self, address: u64, width: Width) -> u64 {
        let value: u64;
        // SAFETY: the cases' own memory, or device memory that `reach` has mapped; one instruction of that
        // width.
        unsafe {
            match width {
                Width::Byte => asm!("movzx {:e}, byte ptr [{}]", out(reg) value, in(reg) address, options(nostack)),
                Width::Word => asm!("movzx {:e}, word ptr [{}]", out(reg) value, in(reg) address, options(nostack)),
                Width::Double => asm!("mov {:e}, dword ptr [{}]", out(reg) value, in(reg) address, options(nostack)),
                Width::Quad => asm!("mov {}, qword ptr [{}]", out(reg) value, in(reg) address, options(nostack)),
            }
        }
        value
    }

    fn write(&mut self, address: u64, width: Width, value: u64) {
        // SAFETY: as above.
        unsafe {
            match width {
                Width::Byte => asm!("mov byte ptr [{}], al", in(reg) address, in("al") value as u8, options(nostack)),
                Width::Word => asm!("mov word ptr [{}], {:x}", in(reg) address, in(reg) value, options(nostack)),
                Width::Double => asm!("mov dword ptr [{}], {:e}", in(reg) address, in(reg) value, options(nostack)),
                Width::Quad => asm!("mov qword ptr [{}], {}", in(reg) address, in(reg) value, options(nostack)),
            }
        }
    }

    fn input(&mut self, port: u16, width: Width) -> u32 {
        match width {
            Width::Byte => u8::input(port).into(),
            Width::Word => u16::input(port).into(),
            Width::Double | Width::Quad => u32::input(port),
        }
    }

    fn output(&mut self, port: u16, width: Width, value: u32) {
        match width {
            Width::Byte => (value as u8).output(port),
            Width::Word => (value as u16).output(port),
            Width::Double | Width::Quad => value.output(port),
        }
    }

    fn output_string(&mut self, port: u16, bytes: &[u8]) {
        // SAFETY: reads `bytes`, and writes a port.
        unsafe {
            asm!("rep outsb", in("dx") port, inout("rsi") bytes.as_ptr() => _, inout("rcx") bytes.len() => _,
                options(nostack, readonly));
        }
    }

    fn reach(&mut self, address: u64, len: u64) -> bool {
        let reachable = address.checked_add(len).is_some_and(|end| end <= REACH);
        if reachable {
            self.memory.map_device(address, len);
        }
        reachable
    }

    fn milliseconds(&mut self) -> u64 {
        machine::tsc() / self.tsc_khz
    }

    fn say(&mut self, line: fmt::Arguments<'_>) {
        println!("{line}");
    }

    fn attacked(&mut self, number: usize, case: fmt::Arguments<'_>) {
        if self.hold > 0 && (number + 1).is_multiple_of(self.hold) {
            self.stand_still(format_args!("case {number} {case}"));
        }
    }
}

impl Bare<'_> {
    fn stand_still(&mut self, at: fmt::Arguments<'_>) {
        use hostile::Machine;
        self.write(self.word, Width::Double, 0);
        println!("hold at {:#x}: {at}", self.word);
        while self.read(self.word, Width::Double) == 0 {
            relax();
        }
    }
}

/// Runs the cases that the command line asks for, and says how many failed.
pub fn run(memory: &mut Memory, config: &Config, numbers: (usize, usize), tsc_khz: u64, end: u64) {
    // Aligned as the cases want it.
    let base = memory.allocate(MEMORY + (64 << 10)).next_multiple_of(64 << 10);
    let word = memory.allocate(4096);
    let own = config.ip.octets();
    let mut bare = Bare { memory, base, end, own, tsc_khz, hold: config.hold, word };
    if bare.hold > 0 {
        bare.stand_still(format_args!("the start"));
    }
    let failed = hostile::run(&mut bare, numbers.0..numbers.1, 1);
    println!("hostile: {failed} failed");
}
