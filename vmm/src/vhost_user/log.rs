//! The dirty log: one bitmap, one bit a guest page, that all backends of the VM set bits in.
//!
//! In: bits set by other processes through shared memory. Out: the words with bits, each handed out once.
//! Made once and kept for the life of the VM, so that a backend is told of it once and a harvest is nothing
//! but atomic swaps.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use vhost::VhostUserDirtyLogRegion;

use crate::machine::memory::guest::seek;
use crate::machine::memory::layout::PAGE_SIZE;

/// Guest pages that one word stands for.
const PAGES_PER_WORD: u64 = 64;

/// Words that are looked at together: a cache line of them, most often clean.
const BLOCK: usize = 8;

/// The bitmap.
pub struct DirtyLog {
    file: File,
    map: NonNull<AtomicU64>,
    words: usize,
    /// Words that stand for RAM; the rest is the hole below 4 GiB.
    in_ram: Vec<Range<usize>>,
}

// SAFETY: the mapping is owned by this value and only accessed through atomics.
unsafe impl Send for DirtyLog {}
// SAFETY: as above.
unsafe impl Sync for DirtyLog {}

impl DirtyLog {
    /// A clean log for RAM at `ranges` of (guest address, bytes).
    ///
    /// # Errors
    /// When the shared memory cannot be made.
    pub fn new(ranges: impl Iterator<Item = (u64, u64)>) -> io::Result<Self> {
        let word_of = |address: u64| address / PAGE_SIZE / PAGES_PER_WORD;
        let in_ram: Vec<_> = ranges
            .filter(|(_, len)| *len > 0)
            .map(|(base, len)| word_of(base) as usize..word_of(base + len - 1) as usize + 1)
            .collect();
        let words = in_ram.iter().map(|range| range.end).max().unwrap_or(1);
        let file = sealed_memfd(words as u64 * 8)?;
        // SAFETY: a new mapping of a file of exactly this length, which is sealed against shrinking.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                words * 8,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        let map = NonNull::new(address.cast::<AtomicU64>()).filter(|_| address != libc::MAP_FAILED);
        let map = map.ok_or_else(io::Error::last_os_error)?;
        Ok(Self { file, map, words, in_ram })
    }

    /// How backends are told of it.
    #[must_use]
    pub fn region(&self) -> VhostUserDirtyLogRegion {
        VhostUserDirtyLogRegion { mmap_size: self.words as u64 * 8, mmap_offset: 0, mmap_handle: self.file.as_raw_fd() }
    }

    /// Hands every word with bits to `take` as (first guest frame number, bits) and cleans it. Allocates
    /// nothing.
    pub fn harvest(&self, take: &mut dyn FnMut(u64, u64)) {
        for range in &self.in_ram {
            let mut at = range.start;
            while let Some(part) = self.next_part(at..range.end) {
                at = part.end;
                self.harvest_part(part, take);
            }
        }
    }

    /// The first words of `range` whose page of the bitmap exists. Nobody has ever set a bit in the others,
    /// which are most of a large memory's, and reading them would allocate them.
    fn next_part(&self, range: Range<usize>) -> Option<Range<usize>> {
        if range.is_empty() {
            return None;
        }
        // If the kernel cannot tell, scan everything.
        let Ok(data) = seek(&self.file, range.start as u64 * 8, libc::SEEK_DATA) else { return Some(range) };
        let start = range.start.max(data? as usize / 8);
        let hole = seek(&self.file, start as u64 * 8, libc::SEEK_HOLE).ok().flatten();
        let end = hole.map_or(range.end, |hole| range.end.min(hole as usize / 8));
        (start < end).then_some(start..end)
    }

    fn harvest_part(&self, part: Range<usize>, take: &mut dyn FnMut(u64, u64)) {
        for (block, words) in self.words()[part.clone()].chunks(BLOCK).enumerate() {
            // Plain loads first: swapping every word would pull all of them into this CPU's cache for
            // writing.
            if words.iter().fold(0, |all, word| all | word.load(Ordering::Relaxed)) == 0 {
                continue;
            }
            for (i, word) in (part.start + block * BLOCK..).zip(words) {
                let bits = word.swap(0, Ordering::AcqRel);
                if bits != 0 {
                    take(i as u64 * PAGES_PER_WORD, bits);
                }
            }
        }
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has `words` words, lives as long as `self`, and is page aligned. Other
        // processes change it too, with atomic instructions, which is what `AtomicU64` is for.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr(), self.words) }
    }
}

impl Drop for DirtyLog {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; nobody borrows it any more.
        unsafe { libc::munmap(self.map.as_ptr().cast(), self.words * 8) };
    }
}

/// A memfd of `len` bytes that nobody can resize: a backend that shrank it would make our access fault.
fn sealed_memfd(len: u64) -> io::Result<File> {
    const NAME: &CStr = c"pollux-dirty-log";
    // SAFETY: the name is a C string; a descriptor of our own comes back.
    let fd = unsafe { libc::memfd_create(NAME.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just created, owned by nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: no memory is passed.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    fn harvest(log: &DirtyLog) -> Vec<(u64, u64)> {
        let mut words = Vec::new();
        log.harvest(&mut |first, bits| words.push((first, bits)));
        words
    }

    #[test]
    fn bits_of_other_processes_are_taken_once() {
        let log = DirtyLog::new([(0, 1 << 30)].into_iter()).unwrap();
        assert_eq!(log.region().mmap_size, (1 << 30) / 4096 / 8);
        // Bytes of the file, as a backend sees it: page 3, page 65, last page.
        log.file.write_all_at(&[1 << 3], 0).unwrap();
        log.file.write_all_at(&[1 << 1], 8).unwrap();
        log.file.write_all_at(&[1 << 7], (1 << 15) - 1).unwrap();
        assert_eq!(harvest(&log), [(0, 8), (64, 2), ((1 << 18) - 64, 1 << 63)]);
        assert_eq!(harvest(&log), []);
    }

    #[test]
    fn the_hole_is_not_looked_at() {
        let log = DirtyLog::new([(0, 3 << 30), (4 << 30, 4096)].into_iter()).unwrap();
        assert_eq!(log.region().mmap_size, ((4 << 30) / 4096 / 64 + 1) * 8);
        let word = |address: u64| address / 4096 / 8;
        log.file.write_all_at(&[1], word(7 << 29)).unwrap();
        log.file.write_all_at(&[1], word(4 << 30)).unwrap();
        assert_eq!(harvest(&log), [((4 << 30) / 4096, 1)]);
    }

    #[test]
    fn a_harvest_makes_no_pages_of_the_bitmap() {
        let log = DirtyLog::new([(0, 3 << 30), (4 << 30, 13 << 30)].into_iter()).unwrap();
        let word = |address: u64| address / 4096 / 8;
        log.file.write_all_at(&[1], word(9 << 30)).unwrap();
        log.file.write_all_at(&[1], word((17 << 30) - (64 << 12))).unwrap();
        let blocks = log.file.metadata().unwrap().blocks();
        assert_eq!(harvest(&log), [((9 << 30) / 4096, 1), ((17 << 30) / 4096 - 64, 1)]);
        assert_eq!(harvest(&log), []);
        assert_eq!(log.file.metadata().unwrap().blocks(), blocks);
    }

    #[test]
    fn nobody_can_resize_it() {
        let log = DirtyLog::new([(0, 1 << 20)].into_iter()).unwrap();
        assert!(log.file.set_len(0).is_err());
        assert!(log.file.set_len(1 << 20).is_err());
    }
}
