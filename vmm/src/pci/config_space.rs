//! The 256 bytes of configuration space of one PCI function, with a write mask for every byte.
//!
//! In: reads and writes of any width. Out: the current bytes. Never: a side effect; whoever owns the function
//! looks at the command register, the BARs and its capabilities after a write and acts.

use serde::{Deserialize, Serialize};

/// Bytes of configuration space that exist; the extended space above reads as zeros.
pub const CONFIG_SIZE: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAPABILITY_POINTER: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const FIRST_CAPABILITY: usize = 0x40;

/// Command register: the function answers at its memory BARs.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command register bits that a driver may change: memory, bus master, parity, SERR, INTx disable.
const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | 1 << 2 | 1 << 6 | 1 << 8 | 1 << 10;
/// Status register: there is a capability list.
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// BAR bits that say "64-bit memory".
const BAR_MEMORY64: u32 = 0b100;

/// What a function is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, sub-class and programming interface, as 0xccssii.
    pub class: u32,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// Why a capability or a saved image does not fit.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigSpaceError {
    /// No room is left for a capability.
    #[error("no room for a PCI capability of {0} bytes")]
    Full(usize),
    /// The saved image belongs to another function.
    #[error("saved PCI configuration differs from this function at offset {0:#x}")]
    Differs(usize),
}

/// The bytes and their masks.
#[derive(Clone)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_SIZE],
    /// Bits that a write changes.
    writable: [u8; CONFIG_SIZE],
    /// The bytes after power-on.
    initial: [u8; CONFIG_SIZE],
    last_capability: Option<usize>,
    free: usize,
}

/// A function's saved configuration space.
#[derive(Serialize, Deserialize)]
pub struct SavedConfig<'a>(#[serde(borrow)] &'a [u8]);

impl ConfigSpace {
    /// A type 0 header. Memory decoding is on from the start, as firmware would have left it.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        let mut space = Self {
            bytes: [0; CONFIG_SIZE],
            writable: [0; CONFIG_SIZE],
            initial: [0; CONFIG_SIZE],
            last_capability: None,
            free: FIRST_CAPABILITY,
        };
        space.set(0x00, &identity.vendor.to_le_bytes());
        space.set(0x02, &identity.device.to_le_bytes());
        space.set(0x08, &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes());
        space.set(0x2c, &identity.subsystem_vendor.to_le_bytes());
        space.set(0x2e, &identity.subsystem.to_le_bytes());
        space.set(COMMAND, &COMMAND_MEMORY.to_le_bytes());
        space.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        space.allow(INTERRUPT_LINE, &[0xff]);
        // Cache line size and latency timer mean nothing here, but drivers expect to read back what they
        // wrote.
        space.allow(0x0c, &[0xff, 0xff]);
        space
    }

    /// Adds a 64-bit memory BAR of `size` bytes (a power of two) at register pair `index`, placed at `base`.
    pub fn add_bar64(&mut self, index: usize, base: u64, size: u64) {
        debug_assert!(size.is_power_of_two() && size >= 16 && index < 5);
        let at = BAR0 + 4 * index;
        self.set(at, &(base | u64::from(BAR_MEMORY64)).to_le_bytes());
        self.allow(at, &(!(size - 1)).to_le_bytes());
    }

    /// Where the 64-bit BAR at register pair `index` is now.
    #[must_use]
    pub fn bar64(&self, index: usize) -> u64 {
        let at = BAR0 + 4 * index;
        let mut raw = [0; 8];
        raw.copy_from_slice(&self.bytes[at..at + 8]);
        u64::from_le_bytes(raw) & !0xf
    }

    /// Appends a capability: `body` follows the id and the next pointer; `writable` masks the first bytes of
    /// the body.
    ///
    /// # Errors
    /// When the 256 bytes are used up.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<usize, ConfigSpaceError> {
        let at = self.free;
        let end = at + 2 + body.len();
        if end > CONFIG_SIZE {
            return Err(ConfigSpaceError::Full(body.len()));
        }
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.allow(at + 2, writable);
        // Below 256: checked above.
        let pointer = at as u8;
        match self.last_capability {
            Some(last) => self.set(last + 1, &[pointer]),
            None => {
                self.set(CAPABILITY_POINTER, &[pointer]);
                self.set(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
            }
        }
        self.last_capability = Some(at);
        self.free = end.next_multiple_of(4);
        Ok(at)
    }

    /// Whether the function answers at its memory BARs.
    #[must_use]
    pub fn memory_enabled(&self) -> bool {
        self.u16_at(COMMAND) & COMMAND_MEMORY != 0
    }

    /// The little-endian word at `offset`, which must be inside.
    #[must_use]
    pub fn u16_at(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    /// The little-endian double word at `offset`, which must be inside.
    #[must_use]
    pub fn u32_at(&self, offset: usize) -> u32 {
        u32::from(self.u16_at(offset)) | u32::from(self.u16_at(offset + 2)) << 16
    }

    /// Guest read. Beyond the space: zeros.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(offset.saturating_add(i)).copied().unwrap_or(0);
        }
    }

    /// Guest write: changes writable bits only.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, value) in (offset..CONFIG_SIZE).zip(data) {
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | value & mask;
        }
    }

    /// Changes bytes as the function itself, whatever the masks say.
    pub fn overwrite(&mut self, offset: usize, data: &[u8]) {
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
    }

    /// Back to power-on.
    pub fn reset(&mut self) {
        self.bytes = self.initial;
    }

    /// What goes into a checkpoint.
    #[must_use]
    pub fn save(&self) -> SavedConfig<'_> {
        SavedConfig(&self.bytes)
    }

    /// Becomes `saved`.
    ///
    /// # Errors
    /// When a read-only byte differs: the other function is not built like this one.
    pub fn load(&mut self, saved: &SavedConfig<'_>) -> Result<(), ConfigSpaceError> {
        if saved.0.len() != CONFIG_SIZE {
            return Err(ConfigSpaceError::Differs(saved.0.len()));
        }
        for (at, (value, mask)) in saved.0.iter().zip(&self.writable).enumerate() {
            if (value ^ self.initial[at]) & !mask != 0 {
                return Err(ConfigSpaceError::Differs(at));
            }
        }
        self.bytes.copy_from_slice(saved.0);
        Ok(())
    }

    fn set(&mut self, at: usize, data: &[u8]) {
        self.bytes[at..at + data.len()].copy_from_slice(data);
        self.initial[at..at + data.len()].copy_from_slice(data);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(&Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: 0x01_8000,
            subsystem_vendor: 0x1af4,
            subsystem: 2,
        })
    }

    fn u32_at(space: &ConfigSpace, offset: usize) -> u32 {
        let mut data = [0; 4];
        space.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn identity_is_read_only() {
        let mut space = space();
        assert_eq!(u32_at(&space, 0), 0x1042_1af4);
        assert_eq!(u32_at(&space, 8), 0x0180_0001);
        space.write(0, &[0xff; 4]);
        space.write(8, &[0xff; 4]);
        assert_eq!(u32_at(&space, 0), 0x1042_1af4);
        assert_eq!(u32_at(&space, 8), 0x0180_0001);
    }

    #[test]
    fn bar_tells_its_size_and_moves() {
        let mut space = space();
        space.add_bar64(0, 0x1_0000_0000, 512 << 10);
        assert_eq!((u32_at(&space, 0x10), u32_at(&space, 0x14)), (4, 1));
        space.write(0x10, &[0xff; 4]);
        space.write(0x14, &[0xff; 4]);
        assert_eq!((u32_at(&space, 0x10), u32_at(&space, 0x14)), (0xfff8_0004, 0xffff_ffff));
        space.write(0x10, &0x0080_0000_u32.to_le_bytes());
        space.write(0x14, &0x12_u32.to_le_bytes());
        assert_eq!(space.bar64(0), 0x12_0080_0000);
        space.reset();
        assert_eq!(space.bar64(0), 0x1_0000_0000);
    }

    #[test]
    fn capabilities_form_a_list_and_run_out() {
        let mut space = space();
        assert_eq!(space.u16_at(6) & STATUS_CAPABILITIES, 0);
        let first = space.add_capability(9, &[1, 2, 3], &[]).unwrap();
        let second = space.add_capability(0x11, &[0; 10], &[0, 0xc0]).unwrap();
        assert_eq!(space.bytes[CAPABILITY_POINTER], first as u8);
        assert_eq!(space.bytes[first + 1], second as u8);
        assert_eq!(space.bytes[second + 1], 0);
        space.write(second, &[0xff; 12]);
        assert_eq!(space.bytes[second..second + 4], [0x11, 0, 0, 0xc0]);
        assert_eq!(space.add_capability(9, &[0; 200], &[]), Err(ConfigSpaceError::Full(200)));
    }

    #[test]
    fn reads_and_writes_past_the_end_are_harmless() {
        let mut space = space();
        let mut data = [0xaa; 4];
        space.read(254, &mut data);
        assert_eq!(data, [0; 4]);
        space.read(usize::MAX, &mut data);
        space.write(254, &[1; 4]);
        space.write(4000, &[1; 4]);
    }

    #[test]
    fn saved_image_comes_back_but_not_into_another_function() {
        let mut a = space();
        a.add_bar64(0, 0x1_0000_0000, 512 << 10);
        let mut b = a.clone();
        a.write(0x10, &0x0080_0000_u32.to_le_bytes());
        a.write(4, &6_u16.to_le_bytes());
        b.load(&a.save()).unwrap();
        assert_eq!((b.bar64(0), b.u16_at(4)), (a.bar64(0), 6));
        let mut other = space();
        assert_eq!(other.load(&a.save()), Err(ConfigSpaceError::Differs(0x10)));
        assert_eq!(other.load(&SavedConfig(&[0; 3])), Err(ConfigSpaceError::Differs(3)));
    }
}
