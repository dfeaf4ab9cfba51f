//! PCI configuration space of bus 0, by ports 0xcf8 and 0xcfc.

use crate::machine::{Machine, Width};

/// Configuration address port.
pub(crate) const ADDRESS: u16 = 0xcf8;
/// Configuration data ports.
pub(crate) const DATA: u16 = 0xcfc;
/// Offset of the command register.
pub(crate) const COMMAND: u16 = 4;
/// Offset of BAR 0.
pub(crate) const BAR0: u16 = 0x10;
/// Command: memory decoding and bus mastering.
pub(crate) const COMMAND_ON: u64 = 6;

/// Function 0 of a slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function(pub(crate) u32);

impl Function {
    /// Makes the data ports show the register at `offset`.
    pub(crate) fn select(self, machine: &mut dyn Machine, offset: u16) {
        machine.output(ADDRESS, Width::Double, 1 << 31 | self.0 << 11 | u32::from(offset & 0xfc));
    }

    /// Reads up to four bytes; a register's, or across its end.
    pub(crate) fn read(self, machine: &mut dyn Machine, offset: u16, width: Width) -> u64 {
        self.select(machine, offset);
        machine.input(DATA + (offset & 3), width).into()
    }

    /// As [`Function::read`].
    pub(crate) fn write(self, machine: &mut dyn Machine, offset: u16, width: Width, value: u64) {
        self.select(machine, offset);
        machine.output(DATA + (offset & 3), width, value as u32);
    }

    /// Vendor and device.
    pub(crate) fn id(self, machine: &mut dyn Machine) -> (u16, u16) {
        let id = self.read(machine, 0, Width::Double);
        (id as u16, (id >> 16) as u16)
    }

    /// Where BAR 0 is, which has 64 bits.
    pub(crate) fn bar(self, machine: &mut dyn Machine) -> u64 {
        let low = self.read(machine, BAR0, Width::Double);
        self.read(machine, BAR0 + 4, Width::Double) << 32 | low & !0xf
    }

    /// Puts BAR 0 somewhere.
    pub(crate) fn set_bar(self, machine: &mut dyn Machine, base: u64) {
        self.write(machine, BAR0, Width::Double, base & 0xffff_ffff);
        self.write(machine, BAR0 + 4, Width::Double, base >> 32);
    }

    /// Sets the command register.
    pub(crate) fn set_command(self, machine: &mut dyn Machine, command: u64) {
        self.write(machine, COMMAND, Width::Word, command);
    }

    /// Offsets of the capabilities; a list in a loop ends, too.
    pub(crate) fn capabilities(self, machine: &mut dyn Machine) -> ([u16; 48], usize) {
        let (mut found, mut count) = ([0; 48], 0);
        let mut next = self.read(machine, 0x34, Width::Byte) as u16 & 0xfc;
        while next != 0 && count < found.len() {
            found[count] = next;
            count += 1;
            next = self.read(machine, next + 1, Width::Byte) as u16 & 0xfc;
        }
        (found, count)
    }
}
