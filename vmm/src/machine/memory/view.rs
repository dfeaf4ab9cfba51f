//! Whole pages of guest memory, copied out of it and into it.
//!
//! In: page numbers (gfn = guest-physical address / 4096). Out: bytes. Never: a mark in a dirty log; the
//! caller knows what it writes (a standby's image of its primary).

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::guest::GuestMemory;
use super::layout::PAGE_SIZE;

const PAGE: usize = PAGE_SIZE as usize;

struct Slot {
    first_gfn: u64,
    pages: u64,
    host: *mut u8,
}

/// Access to guest memory by page. Clones share the memory; it may be used from several threads, each on
/// pages of its own.
pub struct MemoryView {
    slots: Vec<Slot>,
    /// Keeps the mappings.
    memory: GuestMemory,
}

// SAFETY: the pointers are those of mappings that `memory` keeps; pages are copied as raw bytes, which is all
// that guest memory ever is, so that a race (with a vCPU, or a second writer of the same page) gives mixed
// bytes and nothing worse.
unsafe impl Send for MemoryView {}
// SAFETY: as above.
unsafe impl Sync for MemoryView {}

impl Clone for MemoryView {
    fn clone(&self) -> Self {
        Self::new(&self.memory)
    }
}

impl MemoryView {
    /// A view of `memory`.
    #[must_use]
    pub fn new(memory: &GuestMemory) -> Self {
        let slots = memory.ram().iter().map(|region| Slot {
            first_gfn: region.start_addr().0 / PAGE_SIZE,
            pages: region.len() / PAGE_SIZE,
            host: region.as_ptr(),
        });
        Self { slots: slots.collect(), memory: memory.clone() }
    }

    /// Pages of RAM.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.slots.iter().map(|slot| slot.pages).sum()
    }

    /// RAM as ranges (first gfn, number of pages), in order.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.slots.iter().map(|slot| (slot.first_gfn, slot.pages))
    }

    /// Whether there is RAM at `gfn`.
    #[must_use]
    pub fn contains(&self, gfn: u64) -> bool {
        self.host_page(gfn).is_some()
    }

    /// Copies the pages `gfns`, in that order, to `into`.
    ///
    /// # Panics
    /// When `into` is not 4096 bytes for each page, or a page is not RAM.
    pub fn copy_out(&self, gfns: &[u64], into: &mut [u8]) {
        assert_eq!(gfns.len() * PAGE, into.len(), "buffer for {} pages", gfns.len());
        for (gfn, page) in gfns.iter().zip(into.as_chunks_mut::<PAGE>().0) {
            let host = self.host_page(*gfn).unwrap_or_else(|| panic!("page {gfn:#x} is not RAM"));
            // SAFETY: `host` points to a whole mapped page, `page` is one of our own.
            unsafe { std::ptr::copy_nonoverlapping(host, page.as_mut_ptr(), PAGE) };
        }
    }

    /// Overwrites a page. False when `gfn` is not RAM; nothing is written then.
    ///
    /// # Panics
    /// When `page` is not 4096 bytes.
    #[must_use]
    pub fn write_page(&self, gfn: u64, page: &[u8]) -> bool {
        assert_eq!(page.len(), PAGE, "a page is {PAGE} bytes");
        let Some(host) = self.host_page(gfn) else { return false };
        // SAFETY: `host` points to a whole mapped page, `page` is not guest memory.
        unsafe { std::ptr::copy_nonoverlapping(page.as_ptr(), host, PAGE) };
        true
    }

    /// Fills a page with zeroes. False when `gfn` is not RAM.
    #[must_use]
    pub fn zero_page(&self, gfn: u64) -> bool {
        let Some(host) = self.host_page(gfn) else { return false };
        // SAFETY: `host` points to a whole mapped page.
        unsafe { std::ptr::write_bytes(host, 0, PAGE) };
        true
    }

    fn host_page(&self, gfn: u64) -> Option<*mut u8> {
        let slot = self.slots.iter().find(|slot| gfn.wrapping_sub(slot.first_gfn) < slot.pages)?;
        let offset = (gfn - slot.first_gfn) as usize * PAGE;
        // SAFETY: the page lies inside the slot's mapping.
        Some(unsafe { slot.host.add(offset) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::guest::RamOptions;
    use super::*;

    fn view(size: u64) -> MemoryView {
        MemoryView::new(&GuestMemory::new(&RamOptions { size, ..Default::default() }).unwrap())
    }

    #[test]
    fn pages_come_back_in_the_order_asked_for() {
        let view = view(4 << 30);
        let (low, high) = (3, (1 << 20) + 5);
        assert!(view.write_page(low, &[1; PAGE]) && view.write_page(high, &[2; PAGE]));
        let mut out = vec![9; 3 * PAGE];
        view.copy_out(&[high, low, 4], &mut out);
        assert_eq!((out[0], out[PAGE - 1], out[PAGE], out[2 * PAGE]), (2, 2, 1, 0));
        assert!(view.zero_page(high));
        view.copy_out(&[high], &mut out[..PAGE]);
        assert_eq!(out[0], 0);
    }

    #[test]
    fn the_hole_and_the_end_are_not_ram() {
        let view = view(4 << 30);
        assert_eq!(view.pages(), 1 << 20);
        let hole = (3 << 30) / PAGE_SIZE;
        let end = (5 << 30) / PAGE_SIZE;
        assert!(view.contains(hole - 1) && view.contains(1 << 20) && view.contains(end - 1));
        for gfn in [hole, (1 << 20) - 1, end, u64::MAX] {
            assert!(!view.contains(gfn) && !view.write_page(gfn, &[0; PAGE]) && !view.zero_page(gfn));
        }
    }
}
