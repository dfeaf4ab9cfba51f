//! A guest's memory as the engine sees it: a few pages in two ranges.

use std::ops::Range;
use std::sync::Mutex;

use ft::guest::{GuestError, Memory};
use ft_wire::pages::{PAGE, Page};

/// Pages below the hole, and above it.
const LOW: Range<u64> = 0..16;
const HIGH: Range<u64> = 0x10_0000..0x10_0004;

/// The memory.
pub(crate) struct Ram(Mutex<Vec<Page>>);

impl Default for Ram {
    fn default() -> Self {
        Self(Mutex::new(vec![[0; PAGE]; (LOW.end + HIGH.end - HIGH.start) as usize]))
    }
}

impl Ram {
    /// A page number for any number.
    pub(crate) fn page(number: u8) -> u64 {
        let at = u64::from(number) % (LOW.end + HIGH.end - HIGH.start);
        if at < LOW.end { at } else { HIGH.start + at - LOW.end }
    }

    pub(crate) fn contents(&self) -> Vec<Page> {
        self.0.lock().unwrap().clone()
    }

    fn with<T>(&self, page: u64, act: impl FnOnce(&mut Page) -> T) -> Result<T, GuestError> {
        let at = match page {
            page if LOW.contains(&page) => page,
            page if HIGH.contains(&page) => LOW.end + page - HIGH.start,
            page => return Err(GuestError::plain(format!("page {page} is not RAM"))),
        };
        Ok(act(&mut self.0.lock().unwrap()[at as usize]))
    }
}

impl Memory for Ram {
    fn ranges(&self) -> Vec<Range<u64>> {
        vec![LOW, HIGH]
    }

    fn populated(&self) -> Result<Vec<Range<u64>>, GuestError> {
        Ok(self.ranges())
    }

    fn copy_out(&self, page: u64, into: &mut [u8]) -> Result<(), GuestError> {
        self.with(page, |page| into.copy_from_slice(page))
    }

    fn copy_in(&self, page: u64, from: &[u8]) -> Result<(), GuestError> {
        self.with(page, |page| page.copy_from_slice(from))
    }

    fn zero(&self, page: u64) -> Result<(), GuestError> {
        self.with(page, |page| page.fill(0))
    }

    fn clear(&self) -> Result<(), GuestError> {
        self.0.lock().unwrap().iter_mut().for_each(|page| page.fill(0));
        Ok(())
    }
}
