//! PCI bus 0 through ports 0xcf8 and 0xcfc: find devices, read capabilities and BARs.

use crate::machine::PortValue;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;

/// A function 0 on bus 0.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    device: u32,
}

impl Function {
    /// All that are there.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..32).map(|device| Self { device }).filter(|function| function.read32(0) as u16 != 0xffff)
    }

    fn select(self, offset: u8) {
        (1 << 31 | self.device << 11 | u32::from(offset & 0xfc)).output(ADDRESS);
    }

    /// The aligned 32 bits at `offset` of the configuration space.
    pub fn read32(self, offset: u8) -> u32 {
        self.select(offset);
        u32::input(DATA)
    }

    /// One byte.
    pub fn read8(self, offset: u8) -> u8 {
        (self.read32(offset) >> (8 * (offset & 3))) as u8
    }

    /// Write 32 bits.
    pub fn write32(self, offset: u8, value: u32) {
        self.select(offset);
        value.output(DATA);
    }

    /// Vendor and device id.
    pub fn id(self) -> (u16, u16) {
        let id = self.read32(0);
        (id as u16, (id >> 16) as u16)
    }

    /// Let it answer to memory accesses and do DMA.
    pub fn enable(self) {
        let command = self.read32(4) & 0xffff;
        self.write32(4, command | 0x6);
    }

    /// Offsets of the vendor capabilities.
    pub fn vendor_capabilities(self) -> impl Iterator<Item = u8> {
        let mut next = if self.read32(4) >> 20 & 1 == 1 { self.read8(0x34) & 0xfc } else { 0 };
        // A list in a loop ends too.
        (0..48)
            .map_while(move |_| {
                let at = next;
                (at != 0).then(|| {
                    next = self.read8(at + 1) & 0xfc;
                    at
                })
            })
            .filter(move |at| self.read8(*at) == 0x09)
    }

    /// Address of memory BAR `index`, or `None` if it is not one.
    pub fn bar(self, index: u8) -> Option<u64> {
        if index > 5 {
            return None;
        }
        let low = self.read32(0x10 + 4 * index);
        match low & 7 {
            0 => Some(u64::from(low & !0xf)),
            4 if index < 5 => Some(u64::from(self.read32(0x14 + 4 * index)) << 32 | u64::from(low & !0xf)),
            _ => None,
        }
    }
}
