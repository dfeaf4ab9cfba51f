//! The machine as the cases need it.

use core::fmt;

/// Bytes of memory that the cases use.
pub const MEMORY: u64 = 2 << 20;

/// Bytes of an access.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Width {
    /// 1.
    Byte,
    /// 2.
    Word,
    /// 4.
    Double,
    /// 8; ports have none of these.
    Quad,
}

impl Width {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Byte, Self::Word, Self::Double, Self::Quad];
    /// Those that ports have.
    pub const PORTS: [Self; 3] = [Self::Byte, Self::Word, Self::Double];

    /// As a number.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Double => 4,
            Self::Quad => 8,
        }
    }
}

/// How the program around the cases reaches what a guest can reach. Addresses are physical.
pub trait Machine {
    /// Where [`MEMORY`] bytes of RAM are, in one piece, aligned to 64 KiB, that belong to the cases.
    fn memory(&self) -> u64;
    /// Where the RAM ends that they are in.
    fn memory_end(&self) -> u64;
    /// Addresses of this guest, and of somebody on its network who answers ARP.
    fn addresses(&self) -> [[u8; 4]; 2];
    /// Reads from that memory, or from what [`Machine::reach`] has said can be reached.
    fn read(&mut self, address: u64, width: Width) -> u64;
    /// Writes there.
    fn write(&mut self, address: u64, width: Width, value: u64);
    /// Reads a port.
    fn input(&mut self, port: u16, width: Width) -> u32;
    /// Writes a port.
    fn output(&mut self, port: u16, width: Width, value: u32);
    /// Writes so many bytes to a port, in as few instructions as there are.
    fn output_string(&mut self, port: u16, bytes: &[u8]);
    /// Whether these addresses can be reached; makes it so if possible.
    fn reach(&mut self, address: u64, len: u64) -> bool;
    /// Time that has passed, in milliseconds.
    fn milliseconds(&mut self) -> u64;
    /// Prints a line on the console.
    fn say(&mut self, line: fmt::Arguments<'_>);
    /// A case has done its worst, and nothing is repaired yet.
    fn attacked(&mut self, number: usize, case: fmt::Arguments<'_>);
}
