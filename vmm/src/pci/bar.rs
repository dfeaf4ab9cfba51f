//! Places for 64-bit memory BARs, from the window above RAM.

use vm_allocator::{AddressAllocator, AllocPolicy};

/// BARs start on this boundary, in bytes, so that a guest can map each with large pages.
const BAR_ALIGN: u64 = 8 << 20;

/// The window cannot hold another BAR.
#[derive(Debug, thiserror::Error)]
#[error("no room for a PCI BAR of {size:#x} bytes in the 64-bit device memory")]
pub struct BarSpaceError {
    /// Bytes asked for.
    size: u64,
    /// The allocator's reason.
    #[source]
    source: vm_allocator::Error,
}

/// The 64-bit device memory window.
pub struct BarSpace(AddressAllocator);

impl BarSpace {
    /// A window of `size` bytes from `start`, all free.
    ///
    /// # Errors
    /// When it is empty or wraps.
    pub fn new(start: u64, size: u64) -> Result<Self, BarSpaceError> {
        let allocator = AddressAllocator::new(start, size).map_err(|source| BarSpaceError { size, source })?;
        Ok(Self(allocator))
    }

    /// The lowest free place for `size` bytes; it is never given back.
    ///
    /// # Errors
    /// When the window is full.
    pub fn allocate(&mut self, size: u64) -> Result<u64, BarSpaceError> {
        let range = self
            .0
            .allocate(size, size.max(BAR_ALIGN), AllocPolicy::FirstMatch)
            .map_err(|source| BarSpaceError { size, source })?;
        Ok(range.start())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_apart_and_aligned() {
        let mut space = BarSpace::new((4 << 30) + 4096, 64 << 20).unwrap();
        let a = space.allocate(512 << 10).unwrap();
        let b = space.allocate(512 << 10).unwrap();
        assert_eq!((a % BAR_ALIGN, b % BAR_ALIGN), (0, 0));
        assert!(b >= a + (512 << 10));
    }

    #[test]
    fn a_full_or_empty_window_is_an_error() {
        let mut space = BarSpace::new(4 << 30, 8 << 20).unwrap();
        space.allocate(512 << 10).unwrap();
        assert!(space.allocate(512 << 10).is_err());
        assert!(BarSpace::new(4 << 30, 0).is_err());
    }
}
