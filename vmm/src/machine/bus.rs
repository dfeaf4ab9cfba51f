//! Which device answers at which address, for port I/O and for MMIO.
//!
//! In: accesses of the guest. Out: calls of the device whose range holds the whole access. Never: a lock of
//! the table held while a device runs, so a device may move its own range (a PCI BAR) from inside a write.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// A device that the guest reaches by address.
pub trait BusDevice: Send {
    /// Reads at `offset` from the start of its range; `data` comes filled with ones.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Writes at `offset` from the start of its range.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// Why a range could not be claimed or moved.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// Part of the range belongs to another device.
    #[error("bus range {base:#x}..{end:#x} overlaps the one at {other:#x}")]
    Overlap {
        /// First address asked for.
        base: u64,
        /// First address after the range asked for.
        end: u64,
        /// Start of the range in the way.
        other: u64,
    },
    /// A range of no bytes, or one that passes the end of the address space.
    #[error("bus range at {base:#x} with {len:#x} bytes is not a range")]
    Invalid {
        /// First address asked for.
        base: u64,
        /// Length asked for, in bytes.
        len: u64,
    },
}

struct Range {
    len: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// The table of one address space.
#[derive(Default)]
pub struct Bus {
    ranges: RwLock<BTreeMap<u64, Range>>,
}

impl Bus {
    /// An empty address space.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives `len` bytes from `base` to `device`.
    ///
    /// # Errors
    /// When the range is empty, wraps, or touches another one.
    pub fn insert(&self, device: Arc<Mutex<dyn BusDevice>>, base: u64, len: u64) -> Result<(), BusError> {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        check_free(&ranges, base, len)?;
        ranges.insert(base, Range { len, device });
        Ok(())
    }

    /// Takes away the range that starts at `base`, if there is one.
    pub fn remove(&self, base: u64) {
        self.ranges.write().unwrap_or_else(PoisonError::into_inner).remove(&base);
    }

    /// Reads; false when no device holds the whole access.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        let Some((device, offset)) = self.find(addr, data.len() as u64) else { return false };
        device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
        true
    }

    /// Writes; false when no device holds the whole access.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        let Some((device, offset)) = self.find(addr, data.len() as u64) else { return false };
        device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        true
    }

    fn find(&self, addr: u64, len: u64) -> Option<(Arc<Mutex<dyn BusDevice>>, u64)> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let (base, range) = ranges.range(..=addr).next_back()?;
        let offset = addr - base;
        (offset.checked_add(len)? <= range.len).then(|| (range.device.clone(), offset))
    }
}

fn check_free(ranges: &BTreeMap<u64, Range>, base: u64, len: u64) -> Result<(), BusError> {
    let end = base.checked_add(len).filter(|_| len > 0).ok_or(BusError::Invalid { base, len })?;
    match ranges.range(..end).next_back() {
        Some((&other, range)) if other + range.len > base => Err(BusError::Overlap { base, end, other }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Last(u64);

    impl BusDevice for Last {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&mut self, offset: u64, _data: &[u8]) {
            self.0 = offset;
        }
    }

    fn device() -> Arc<Mutex<Last>> {
        Arc::new(Mutex::new(Last(u64::MAX)))
    }

    #[test]
    fn access_goes_to_the_device_that_holds_all_of_it() {
        let (bus, a) = (Bus::new(), device());
        bus.insert(a.clone(), 0x10, 8).unwrap();
        assert!(bus.write(0x14, &[0; 4]));
        assert_eq!(a.lock().unwrap().0, 4);
        assert!(!bus.write(0x15, &[0; 4]));
        assert!(!bus.write(0xf, &[0; 1]));
        let mut data = [0xff; 2];
        assert!(bus.read(0x11, &mut data));
        assert_eq!(data, [1, 1]);
        assert!(!bus.read(0x18, &mut data));
    }

    #[test]
    fn overlaps_are_refused() {
        let bus = Bus::new();
        bus.insert(device(), 0x10, 0x10).unwrap();
        for (base, len) in [(0x10, 1), (0x1f, 1), (0x8, 9), (0, 0x100)] {
            assert_eq!(bus.insert(device(), base, len), Err(BusError::Overlap { base, end: base + len, other: 0x10 }));
        }
        bus.insert(device(), 0x20, 1).unwrap();
        bus.insert(device(), 0xf, 1).unwrap();
        assert!(matches!(bus.insert(device(), u64::MAX, 2), Err(BusError::Invalid { .. })));
        assert!(matches!(bus.insert(device(), 0x100, 0), Err(BusError::Invalid { .. })));
    }

    /// A PCI device moves its own BAR from inside a configuration write.
    struct Mover(Arc<Bus>);

    impl BusDevice for Mover {
        fn read(&mut self, _offset: u64, _data: &mut [u8]) {}
        fn write(&mut self, _offset: u64, _data: &[u8]) {
            self.0.remove(0);
            self.0.insert(device(), 0x100, 4).unwrap();
        }
    }

    #[test]
    fn a_device_may_move_itself_while_it_is_written() {
        let bus = Arc::new(Bus::new());
        bus.insert(Arc::new(Mutex::new(Mover(bus.clone()))), 0, 4).unwrap();
        assert!(bus.write(0, &[1]));
        assert!(!bus.write(0, &[1]) && bus.write(0x100, &[1]));
    }
}
