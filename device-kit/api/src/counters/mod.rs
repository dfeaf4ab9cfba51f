//! Counters of a device process, in a page of memory that it shares with its VMM.
//!
//! In: what the device has done, from its one worker thread. Out: names and values as `vm.counters` shows them, read at any
//! time by another process, at the cost of neither a message nor a lock. Never: state; a new page counts from zero.

mod disk;
mod net;

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

pub use disk::{DiskCounters, Transfer};
pub use net::NetCounters;

/// Bytes of the page.
const SIZE: usize = 4096;

/// Largest value that is shown: clients read it into a signed number.
const SHOWN_MAX: u64 = i64::MAX as u64;

/// A counter's name and value.
pub type Counter = (&'static str, u64);

/// The shared memory: 64-bit counters, written by one thread of one process.
#[derive(Debug)]
pub struct Page(MmapRegion);

impl Page {
    /// A page in a file of its own, to be handed to the device process. The file cannot be made smaller, which would be the
    /// end of whoever reads it.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn create() -> io::Result<(Self, File)> {
        let file = File::from(memfd_create("pollux-counters", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
        file.set_len(SIZE as u64)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok((Self::map(file.try_clone()?)?, file))
    }

    /// The page in the file at `path`.
    ///
    /// # Errors
    /// When there is none, or it is too small.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::map(OpenOptions::new().read(true).write(true).open(path)?)
    }

    /// A page that nobody else sees.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn private() -> io::Result<Self> {
        MmapRegion::new(SIZE).map(Self).map_err(io::Error::other)
    }

    fn map(file: File) -> io::Result<Self> {
        if file.metadata()?.len() < SIZE as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("has fewer than {SIZE} bytes")));
        }
        MmapRegion::from_file(FileOffset::new(file, 0), SIZE).map(Self).map_err(io::Error::other)
    }

    fn counter(&self, index: usize) -> &AtomicU64 {
        self.0.get_atomic_ref(index * size_of::<u64>()).expect("a page has room for all counters")
    }

    fn get(&self, index: usize) -> u64 {
        self.counter(index).load(Ordering::Relaxed)
    }

    // There is one writer: nothing can come between the two.
    fn set(&self, index: usize, value: u64) {
        self.counter(index).store(value, Ordering::Relaxed);
    }

    fn add(&self, index: usize, amount: u64) {
        self.set(index, self.get(index).wrapping_add(amount));
    }

    fn show(&self, name: &'static str, index: usize) -> Counter {
        (name, self.get(index).min(SHOWN_MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn both_ends_see_the_same_page() {
        let (page, file) = Page::create().unwrap();
        let far = Page::open(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd()))).unwrap();
        far.add(3, 7);
        far.add(3, 1);
        assert_eq!((page.get(3), page.get(2)), (8, 0));
        assert!(file.set_len(0).is_err(), "a reader would get SIGBUS");
    }

    #[test]
    fn what_is_shown_fits_a_signed_number() {
        let page = Page::private().unwrap();
        page.set(0, u64::MAX);
        assert_eq!(page.show("x", 0), ("x", i64::MAX as u64));
    }

    #[test]
    fn a_file_that_is_too_small_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(100).unwrap();
        assert!(Page::open(file.path()).unwrap_err().to_string().contains("4096"));
        assert!(Page::open(Path::new("/nonexistent/counters")).is_err());
    }
}
