//! The guest's RAM: one shared memfd, mapped below the 32-bit hole and above it.
//!
//! In: a size. Out: mapped regions for the VMM, the kernel and the device processes. Never: a page that is
//! touched before somebody uses it, unless prefault was asked for.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::bitmap::{Bitmap, RefSlice, WithBitmapSlice};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use super::layout::{self, PAGE_SIZE};

/// The guest's RAM as the rust-vmm crates see it. What the VMM writes through it is marked in its
/// [`WriteLog`].
pub type GuestRam = vm_memory::GuestMemoryMmap<WriteLog>;

/// Why RAM could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A size no guest can have.
    #[error("memory size {size} bytes must be a multiple of {unit} bytes and at least 1 MiB plus one such unit")]
    Size {
        /// Bytes asked for.
        size: u64,
        /// What it must be a multiple of, in bytes.
        unit: u64,
    },
    /// Not a size of huge pages.
    #[error("memory hugepage_size {0} must be 2M or 1G")]
    HugepageSize(u64),
    /// The memfd could not be made as large as asked.
    #[error("cannot create {size} bytes of guest memory{}", if *.hugepages { " (are enough huge pages reserved? see /proc/meminfo)" } else { "" })]
    Memfd {
        /// Bytes asked for.
        size: u64,
        /// Whether of huge pages.
        hugepages: bool,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The memory could not be mapped here.
    #[error("cannot map guest memory")]
    Map(#[source] vm_memory::mmap::MmapRegionError),
    /// Regions do not fit together; a mistake in the layout.
    #[error("guest memory regions overlap")]
    Regions(#[source] vm_memory::GuestRegionCollectionError),
    /// Prefault failed, most likely for lack of memory.
    #[error("cannot prefault guest memory")]
    Prefault(#[source] io::Error),
    /// KVM did not take the memory.
    #[error("KVM refuses memory slot {slot}")]
    Slot {
        /// Which.
        slot: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// How RAM is backed.
#[derive(Clone, Debug, Default)]
pub struct RamOptions {
    /// Bytes of guest RAM.
    pub size: u64,
    /// Backed by huge pages of `hugepage_size`.
    pub hugepages: bool,
    /// Bytes of a huge page; 2 MiB if not given.
    pub hugepage_size: Option<u64>,
    /// Populate all of it at once.
    pub prefault: bool,
    /// Ask for transparent huge pages where the system offers them for shared memory.
    pub thp: bool,
}

/// Marks of the pages that the VMM itself has written, one bit a page, with a summary so that an idle log
/// costs nothing.
#[derive(Debug, Default)]
pub struct WriteLog {
    words: Box<[AtomicU64]>,
    /// Bit i of word j: `words[64 * j + i]` may be non-zero.
    summary: Box<[AtomicU64]>,
}

impl WriteLog {
    /// A clean log for `bytes` of memory.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let words = bytes.div_ceil(PAGE_SIZE).div_ceil(64);
        let zeroes = |n: u64| (0..n).map(|_| AtomicU64::new(0)).collect();
        Self { words: zeroes(words), summary: zeroes(words.div_ceil(64)) }
    }

    /// Hands every word with marks to `take` as (first page, bits) and cleans it. Allocates nothing.
    pub fn harvest(&self, mut take: impl FnMut(u64, u64)) {
        for (i, summary) in self.summary.iter().enumerate() {
            if summary.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut dirty = summary.swap(0, Ordering::AcqRel);
            while dirty != 0 {
                let index = i * 64 + dirty.trailing_zeros() as usize;
                dirty &= dirty - 1;
                let bits = self.words.get(index).map_or(0, |word| word.swap(0, Ordering::AcqRel));
                if bits != 0 {
                    take(index as u64 * 64, bits);
                }
            }
        }
    }

    fn mark_page(&self, page: usize) {
        let Some(word) = self.words.get(page / 64) else { return };
        // Word before summary: a harvest in between leaves a summary bit too many, never a mark without one.
        word.fetch_or(1 << (page % 64), Ordering::AcqRel);
        self.summary[page / 4096].fetch_or(1 << (page / 64 % 64), Ordering::AcqRel);
    }
}

impl<'a> WithBitmapSlice<'a> for WriteLog {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for WriteLog {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        let page = PAGE_SIZE as usize;
        for page in offset / page..=offset.saturating_add(len - 1) / page {
            self.mark_page(page);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / PAGE_SIZE as usize;
        self.words.get(page / 64).is_some_and(|word| word.load(Ordering::Acquire) & (1 << (page % 64)) != 0)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

/// The guest's RAM. Clones share the memory.
#[derive(Clone)]
pub struct GuestMemory {
    ram: GuestRam,
    size: u64,
    prefault: bool,
    file: Arc<File>,
}

impl GuestMemory {
    /// Creates RAM of `options.size` bytes.
    ///
    /// # Errors
    /// When the size is not possible or the system does not give that much.
    pub fn new(options: &RamOptions) -> Result<Self, MemoryError> {
        let unit = page_unit(options)?;
        if !options.size.is_multiple_of(unit) || options.size < layout::HIGH_RAM_START + unit {
            return Err(MemoryError::Size { size: options.size, unit });
        }
        let file = Arc::new(memfd(options, unit)?);
        let below = options.size.min(layout::HOLE_START);
        let mut regions = vec![map_region(&file, 0, 0, below, options)?];
        if options.size > below {
            regions.push(map_region(&file, below, layout::HOLE_END, options.size - below, options)?);
        }
        let ram = GuestRam::from_regions(regions).map_err(MemoryError::Regions)?;
        let memory = Self { ram, size: options.size, prefault: options.prefault, file };
        if options.thp && !options.hugepages {
            // Only a hint; a kernel without huge pages for shared memory is fine.
            let _ = memory.advise(libc::MADV_HUGEPAGE);
        }
        memory.prefault().map_err(MemoryError::Prefault)?;
        Ok(memory)
    }

    /// The mapped RAM; a clone of it is cheap.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Bytes of RAM.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The memfd: the region below the hole at offset 0, the one above right after it.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The guest's RAM as (guest address, length in bytes), in order; the index is the KVM slot.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ram.iter().map(|region| (region.start_addr().0, region.len()))
    }

    /// The pages that were ever touched, as ranges of guest page numbers, in order; all others read as zeroes
    /// and cost nothing.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn populated(&self) -> io::Result<Vec<Range<u64>>> {
        let mut populated = Vec::new();
        for region in self.ram.iter() {
            let start = region.file_offset().map_or(0, FileOffset::start);
            let first_gfn = region.start_addr().0 / PAGE_SIZE;
            let gfn = |offset: u64| first_gfn + (offset - start) / PAGE_SIZE;
            let end = start + region.len();
            let mut at = start;
            while let Some(data) = seek(&self.file, at, libc::SEEK_DATA)?.filter(|data| *data < end) {
                at = seek(&self.file, data, libc::SEEK_HOLE)?.unwrap_or(end).min(end);
                populated.push(gfn(data)..gfn(at));
                if at == end {
                    break;
                }
            }
        }
        Ok(populated)
    }

    fn prefault(&self) -> io::Result<()> {
        if self.prefault { self.advise(libc::MADV_POPULATE_WRITE) } else { Ok(()) }
    }

    /// Makes all memory zero and gives it back to the host, unless it is to be populated up front.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn clear(&self) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: a system call on a descriptor of ours; the mappings stay and read as zeroes afterwards.
        match unsafe { libc::fallocate(self.file.as_raw_fd(), mode, 0, self.size as libc::off_t) } {
            0 => self.prefault(),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Gives all regions to KVM, as slots 0 and up, with `flags` (such as `KVM_MEM_LOG_DIRTY_PAGES`).
    ///
    /// # Errors
    /// When KVM refuses one.
    pub fn set_slots(&self, vm: &VmFd, flags: u32) -> Result<(), MemoryError> {
        for (slot, region) in (0..).zip(self.ram.iter()) {
            let kvm_region = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the mapping is as long as the region and lives as long as `self.ram`; the VM keeps a
            // clone of it until its last vCPU is gone.
            unsafe { vm.set_user_memory_region(kvm_region) }
                .map_err(|e| MemoryError::Slot { slot, source: e.into() })?;
        }
        Ok(())
    }

    fn advise(&self, advice: i32) -> io::Result<()> {
        for region in self.ram.iter() {
            // SAFETY: the range is exactly one mapping of ours; none of the advice given changes its
            // contents.
            let result = unsafe { libc::madvise(region.as_ptr().cast(), region.size(), advice) };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

/// Where data or a hole begins, from `offset` on; `None` = nowhere.
pub(crate) fn seek(file: &File, offset: u64, whence: i32) -> io::Result<Option<u64>> {
    // SAFETY: a system call on a descriptor of ours. Nobody uses its position.
    match unsafe { libc::lseek(file.as_raw_fd(), offset as libc::off_t, whence) } {
        position @ 0.. => Ok(Some(position as u64)),
        _ => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            e => Err(e),
        },
    }
}

fn page_unit(options: &RamOptions) -> Result<u64, MemoryError> {
    match (options.hugepages, options.hugepage_size) {
        (false, _) => Ok(PAGE_SIZE),
        (true, None) => Ok(2 << 20),
        (true, Some(size)) if size == 2 << 20 || size == 1 << 30 => Ok(size),
        (true, Some(size)) => Err(MemoryError::HugepageSize(size)),
    }
}

fn memfd(options: &RamOptions, unit: u64) -> Result<File, MemoryError> {
    const NAME: &CStr = c"pollux-guest-memory";
    let error = |source| MemoryError::Memfd { size: options.size, hugepages: options.hugepages, source };
    let mut flags = libc::MFD_CLOEXEC;
    if options.hugepages {
        flags |= libc::MFD_HUGETLB | unit.trailing_zeros() << libc::MFD_HUGE_SHIFT;
    }
    // SAFETY: the name is a C string; a descriptor of our own comes back.
    let fd = unsafe { libc::memfd_create(NAME.as_ptr(), flags) };
    if fd < 0 {
        return Err(error(io::Error::last_os_error()));
    }
    // SAFETY: just created, owned by nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(options.size).map_err(error)?;
    Ok(file)
}

fn map_region(
    file: &Arc<File>,
    offset: u64,
    base: u64,
    len: u64,
    options: &RamOptions,
) -> Result<GuestRegionMmap<WriteLog>, MemoryError> {
    // Huge pages are reserved at mmap, so that a lack of them is an error now and not a SIGBUS later.
    let reserve = if options.hugepages { 0 } else { libc::MAP_NORESERVE };
    let mapping = MmapRegionBuilder::new_with_bitmap(len as usize, WriteLog::new(len))
        .with_file_offset(FileOffset::from_arc(file.clone(), offset))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED | reserve)
        .with_hugetlbfs(options.hugepages)
        .build()
        .map_err(MemoryError::Map)?;
    // SAFETY: the range is the mapping just made, and what it holds stays as it is.
    if unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), libc::MADV_DONTDUMP) } < 0 {
        tracing::warn!("core dumps have the guest's memory in them: {}", io::Error::last_os_error());
    }
    GuestRegionMmap::new(mapping, GuestAddress(base)).ok_or(MemoryError::Size { size: options.size, unit: PAGE_SIZE })
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestMemoryBackend};

    use super::*;

    fn memory(size: u64) -> GuestMemory {
        GuestMemory::new(&RamOptions { size, ..Default::default() }).unwrap()
    }

    #[test]
    fn ram_goes_around_the_hole() {
        assert_eq!(memory(512 << 20).ranges().collect::<Vec<_>>(), [(0, 512 << 20)]);
        let big = memory(5 << 30);
        assert_eq!(big.ranges().collect::<Vec<_>>(), [(0, 3 << 30), (4 << 30, 2 << 30)]);
        let offsets: Vec<_> = big.ram().iter().map(|r| r.file_offset().unwrap().start()).collect();
        assert_eq!(offsets, [0, 3 << 30]);
    }

    #[test]
    fn memory_costs_nothing_until_it_is_used() {
        use std::os::unix::fs::MetadataExt;
        let big = memory(16 << 30);
        assert_eq!(big.file().metadata().unwrap().blocks(), 0);
        big.ram().write_obj(1_u8, GuestAddress(10 << 30)).unwrap();
        assert_eq!(big.file().metadata().unwrap().blocks(), 8);
    }

    #[test]
    fn touched_pages_are_known_and_can_be_given_back() {
        let memory = memory(5 << 30);
        assert_eq!(memory.populated().unwrap(), []);
        for address in [0, 4096, 100 << 12, (3 << 30) - 1, 4 << 30, (6 << 30) - 1] {
            memory.ram().write_obj(1_u8, GuestAddress(address)).unwrap();
        }
        let last_low = (3 << 18) - 1;
        let last = (6 << 18) - 1;
        let expected = [0..2, 100..101, last_low..last_low + 1, 1 << 20..(1 << 20) + 1, last..last + 1];
        assert_eq!(memory.populated().unwrap(), expected);
        memory.clear().unwrap();
        assert_eq!(memory.populated().unwrap(), []);
        assert_eq!(memory.ram().read_obj::<u8>(GuestAddress(4096)).unwrap(), 0);
    }

    #[test]
    fn memory_that_is_populated_up_front_stays_so() {
        let memory = GuestMemory::new(&RamOptions { size: 4 << 20, prefault: true, ..Default::default() }).unwrap();
        memory.ram().write_obj(1_u8, GuestAddress(4096)).unwrap();
        memory.clear().unwrap();
        assert_eq!(memory.populated().unwrap().first(), Some(&(0..1024)));
        assert_eq!(memory.ram().read_obj::<u8>(GuestAddress(4096)).unwrap(), 0);
    }

    #[test]
    fn odd_sizes_are_refused() {
        for size in [0, 1 << 20, (1 << 30) + 1] {
            let result = GuestMemory::new(&RamOptions { size, ..Default::default() });
            assert!(matches!(result, Err(MemoryError::Size { .. })), "{size}");
        }
        let options = RamOptions { size: 3 << 20, hugepages: true, ..Default::default() };
        assert!(matches!(GuestMemory::new(&options), Err(MemoryError::Size { .. })));
    }

    #[test]
    fn the_vmms_own_writes_are_marked_once() {
        let memory = memory(64 << 20);
        let take = || {
            let mut words = Vec::new();
            for region in memory.ram().iter() {
                region.get_mmap().bitmap().harvest(|first, bits| words.push((first, bits)));
            }
            words
        };
        assert_eq!(take(), []);
        memory.ram().write_obj(1_u32, GuestAddress(0x1ffe)).unwrap();
        memory.ram().write_obj(1_u32, GuestAddress(63 << 20)).unwrap();
        assert_eq!(take(), [(0, 0b110), ((63 << 20) / 4096, 1)]);
        assert_eq!(take(), []);
    }
}
