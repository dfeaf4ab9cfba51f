//! Which pages have changed: KVM's log, the VMM's own writes and the device processes' logs as one set.
//!
//! In: those three, and sets that were taken but not used. Out: a [`DirtySet`] per harvest. Never: a page
//! lost; reading the logs clears them, so a set that does not reach the standby must come back by
//! [`DirtyTracker::put_back`]. No allocation in a harvest once the set has grown to its size.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES;
use kvm_ioctls::VmFd;
use vm_memory::GuestMemoryBackend;

use super::foresight::{Foresight, Prices, Seen};
use super::guest::{GuestMemory, MemoryError};
use super::layout::PAGE_SIZE;
use crate::machine::kvm;

/// Runs of dirty words with at most this many clean ones between them are cleared by one call: a call costs
/// more than that.
const CLEAR_GAP: usize = 64;

/// Why changed pages cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum DirtyError {
    /// KVM does not log.
    #[error("cannot switch dirty logging")]
    Switch(#[source] MemoryError),
    /// The log cannot be read.
    #[error("cannot read the dirty log of memory slot {slot}")]
    Read {
        /// Which.
        slot: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The log cannot be cleared.
    #[error("cannot clear the dirty log of memory slot {slot}")]
    Clear {
        /// Which.
        slot: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Logging is off.
    #[error("dirty logging is off")]
    Off,
}

/// Which pages are watched from a harvest on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// All of them: the next harvest names what was written since this one.
    All,
    /// Not those that will be written anyway, see `foresight`: the next harvest names them in any case.
    Foresee,
}

/// Words of a log that are looked at together: most of a large memory is clean.
const BLOCK: usize = 8;

/// A set of pages, kept and refilled from harvest to harvest.
#[derive(Debug, Default)]
pub struct DirtySet {
    gfns: Vec<u64>,
    bits: Vec<u64>,
    /// Bit i of word j: `bits[64 * j + i]` may be non-zero. So that a set costs what it has, not what memory
    /// there is.
    summary: Vec<u64>,
}

impl DirtySet {
    /// An empty set for `memory`.
    #[must_use]
    pub fn new(memory: &GuestMemory) -> Self {
        let mut set = Self::default();
        set.resize(words(memory));
        set
    }

    /// The pages, in ascending order.
    #[must_use]
    pub fn gfns(&self) -> &[u64] {
        &self.gfns
    }

    /// Number of pages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.gfns.len()
    }

    /// Whether there is no page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.gfns.is_empty()
    }

    /// Whether `gfn` is in the set.
    #[must_use]
    pub fn contains(&self, gfn: u64) -> bool {
        self.bits.get((gfn / 64) as usize).is_some_and(|word| word & 1 << (gfn % 64) != 0)
    }

    /// One bit a page of the address space; bit i of word j is page 64 * j + i.
    #[must_use]
    pub fn bits(&self) -> &[u64] {
        &self.bits
    }

    /// Makes the set empty; keeps its memory.
    pub fn clear(&mut self) {
        for gfn in self.gfns.drain(..) {
            self.bits[(gfn / 64) as usize] = 0;
        }
    }

    fn resize(&mut self, words: usize) {
        self.bits.resize(words, 0);
        self.summary.resize(words.div_ceil(64), 0);
    }

    fn add_word(&mut self, first_gfn: u64, bits: u64) {
        debug_assert!(first_gfn.is_multiple_of(64));
        let index = (first_gfn / 64) as usize;
        if let Some(word) = self.bits.get_mut(index) {
            *word |= bits;
            self.summary[index / 64] |= 1 << (index % 64);
        }
    }

    /// Lists the set bits that are RAM; drops the others.
    fn list(&mut self, slots: &[Slot]) {
        self.gfns.clear();
        for (i, summary) in self.summary.iter_mut().enumerate() {
            let mut dirty = std::mem::take(summary);
            while dirty != 0 {
                let index = i * 64 + dirty.trailing_zeros() as usize;
                dirty &= dirty - 1;
                let mut bits = self.bits[index] & slots.iter().fold(0, |mask, slot| mask | slot.mask(index));
                self.bits[index] = bits;
                while bits != 0 {
                    self.gfns.push(index as u64 * 64 + u64::from(bits.trailing_zeros()));
                    bits &= bits - 1;
                }
            }
        }
    }
}

struct Slot {
    number: u32,
    first_gfn: u64,
    pages: u64,
    log: Vec<u64>,
    /// What of the log is to be cleared, in words.
    runs: Vec<Range<usize>>,
}

impl Slot {
    /// The bits of word `index` of the address space that are pages of the slot.
    fn mask(&self, index: usize) -> u64 {
        let Some(before) = (index as u64 * 64).checked_sub(self.first_gfn) else { return 0 };
        match self.pages.saturating_sub(before) {
            pages @ 0..64 => (1 << pages) - 1,
            _ => u64::MAX,
        }
    }
}

/// Where dirty words of device processes come from: called with a function that takes (first gfn of 64,
/// bits).
pub type DeviceLogs<'a> = &'a mut dyn FnMut(&mut dyn FnMut(u64, u64));

/// Watches the memory of one VM.
pub struct DirtyTracker {
    vm: Arc<VmFd>,
    memory: GuestMemory,
    slots: Vec<Slot>,
    /// Pages of sets that came back.
    pending: Vec<u64>,
    has_pending: bool,
    manual: bool,
    on: bool,
    foresight: Foresight,
    prices: Prices,
}

impl DirtyTracker {
    /// Switched off. Must be made before logging is first switched on, as it chooses how KVM logs.
    #[must_use]
    pub fn new(vm: Arc<VmFd>, memory: &GuestMemory) -> Self {
        let slots = (0..).zip(memory.ranges()).map(|(number, (start, len))| Slot {
            number,
            first_gfn: start / PAGE_SIZE,
            pages: len / PAGE_SIZE,
            log: vec![0; (len / PAGE_SIZE).div_ceil(64) as usize],
            runs: Vec::new(),
        });
        Self {
            manual: kvm::enable_manual_dirty_log(&vm),
            slots: slots.collect(),
            pending: vec![0; words(memory)],
            memory: memory.clone(),
            vm,
            has_pending: false,
            on: false,
            foresight: Foresight::default(),
            prices: Prices::default(),
        }
    }

    /// What pages cost here that are foreseen in vain. Takes effect at the next start.
    pub fn weigh(&mut self, prices: Prices) {
        self.prices = prices;
    }

    /// Starts watching; nothing is dirty at first.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn start(&mut self) -> Result<(), DirtyError> {
        self.memory.set_slots(&self.vm, KVM_MEM_LOG_DIRTY_PAGES).map_err(DirtyError::Switch)?;
        self.on = true;
        self.foresight = Foresight::new(64 * self.pending.len(), self.prices);
        for region in self.memory.ram().iter() {
            region.get_mmap().bitmap().harvest(|_, _| ());
        }
        self.forget_pending();
        Ok(())
    }

    /// Stops watching and forgets everything.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn stop(&mut self) -> Result<(), DirtyError> {
        self.forget_pending();
        self.on = false;
        self.foresight = Foresight::default();
        self.memory.set_slots(&self.vm, 0).map_err(DirtyError::Switch)
    }

    /// Whether it watches.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Fills `set` with what has changed since the last harvest (or start), and what was put back. The vCPUs
    /// are parked and the device processes sealed, or changes made meanwhile may come in this set or the
    /// next.
    ///
    /// # Errors
    /// When KVM's log cannot be read or cleared. What was read is then kept for the next harvest; `set` is
    /// empty.
    pub fn harvest(&mut self, set: &mut DirtySet, watch: Watch, devices: DeviceLogs<'_>) -> Result<(), DirtyError> {
        if !self.on {
            return Err(DirtyError::Off);
        }
        set.clear();
        set.resize(self.pending.len());
        let mut result = Ok(());
        self.foresight.next_harvest();
        for slot in &mut self.slots {
            let foresight = (watch == Watch::Foresee).then_some(&mut self.foresight);
            result = harvest_kvm(&self.vm, slot, self.manual, set, foresight);
            if result.is_err() {
                break;
            }
        }
        for (slot, region) in self.slots.iter().zip(self.memory.ram().iter()) {
            region.get_mmap().bitmap().harvest(|page, bits| set.add_word(slot.first_gfn + page, bits));
        }
        devices(&mut |gfn, bits| set.add_word(gfn, bits));
        if self.has_pending {
            for (gfn, pending) in (0..).step_by(64).zip(&mut self.pending).filter(|(_, pending)| **pending != 0) {
                set.add_word(gfn, std::mem::take(pending));
            }
            self.has_pending = false;
        }
        set.list(&self.slots);
        if result.is_err() {
            self.put_back(set);
            set.clear();
        }
        result
    }

    /// Gives back a set whose pages did not reach the standby: they are in the next harvest again.
    pub fn put_back(&mut self, set: &DirtySet) {
        self.put_back_pages(&set.gfns);
    }

    /// As [`DirtyTracker::put_back`], for pages in any order. Numbers that are not RAM are ignored.
    pub fn put_back_pages(&mut self, gfns: &[u64]) {
        for gfn in gfns {
            if let Some(word) = self.pending.get_mut((gfn / 64) as usize) {
                *word |= 1 << (gfn % 64);
                self.has_pending = true;
            }
        }
    }

    /// What was seen of a page of an epoch's set, later.
    pub fn seen(&mut self, gfn: u64, seen: Seen) {
        self.foresight.seen(gfn, seen);
    }

    fn forget_pending(&mut self) {
        self.pending.fill(0);
        self.has_pending = false;
    }
}

fn words(memory: &GuestMemory) -> usize {
    let end = memory.ranges().map(|(start, len)| start + len).max().unwrap_or(0);
    (end / PAGE_SIZE).div_ceil(64) as usize
}

/// Reads the log of one slot into `set`, and clears and re-arms what it read, but for what foresight says.
fn harvest_kvm(
    vm: &VmFd,
    slot: &mut Slot,
    manual: bool,
    set: &mut DirtySet,
    mut foresight: Option<&mut Foresight>,
) -> Result<(), DirtyError> {
    let number = slot.number;
    kvm::get_dirty_log(vm, number, slot.pages, &mut slot.log)
        .map_err(|source| DirtyError::Read { slot: number, source })?;
    slot.runs.clear();
    for (block, words) in slot.log.chunks_mut(BLOCK).enumerate() {
        if words.iter().fold(0, |all, word| all | *word) == 0 {
            continue;
        }
        for (index, bits) in (block * BLOCK..).zip(words).filter(|(_, bits)| **bits != 0) {
            let first_gfn = slot.first_gfn + index as u64 * 64;
            // Into the set before clearing: what a failed clear leaves behind is then reported twice, not
            // lost.
            set.add_word(first_gfn, *bits);
            if let Some(foresight) = &mut foresight {
                *bits &= !foresight.unwatched(first_gfn, *bits);
            }
            if *bits != 0 {
                add_to_runs(&mut slot.runs, index);
            }
        }
    }
    if !manual {
        return Ok(());
    }
    for run in &slot.runs {
        let first_page = run.start as u64 * 64;
        let pages = (run.len() as u64 * 64).min(slot.pages - first_page);
        kvm::clear_dirty_log(vm, number, first_page, pages as u32, &slot.log[run.clone()])
            .map_err(|source| DirtyError::Clear { slot: number, source })?;
    }
    Ok(())
}

/// Adds word `index`, which is behind all of `runs`, to the last of them if it is near, or begins another.
fn add_to_runs(runs: &mut Vec<Range<usize>>, index: usize) {
    match runs.last_mut() {
        Some(run) if index - run.end <= CLEAR_GAP => run.end = index + 1,
        _ => runs.push(index..index + 1),
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::super::guest::RamOptions;
    use super::*;

    fn tracker(size: u64) -> (GuestMemory, DirtyTracker, DirtySet) {
        let memory = GuestMemory::new(&RamOptions { size, ..Default::default() }).unwrap();
        let vm = Arc::new(kvm::open().unwrap().create_vm().unwrap());
        memory.set_slots(&vm, 0).unwrap();
        let mut tracker = DirtyTracker::new(vm, &memory);
        tracker.start().unwrap();
        let set = DirtySet::new(&memory);
        (memory, tracker, set)
    }

    fn touch(memory: &GuestMemory, gfns: &[u64]) {
        for gfn in gfns {
            memory.ram().write_obj(1_u8, GuestAddress(gfn * PAGE_SIZE)).unwrap();
        }
    }

    #[test]
    fn all_sources_make_one_sorted_set_and_are_clean_afterwards() {
        let (memory, mut tracker, mut set) = tracker(4 << 30);
        let high = 1 << 20;
        touch(&memory, &[high + 7, 5]);
        let mut devices = |take: &mut dyn FnMut(u64, u64)| {
            take(0, 1 << 5 | 1 << 6);
            take(high, 1 << 63);
        };
        tracker.harvest(&mut set, Watch::All, &mut devices).unwrap();
        assert_eq!(set.gfns(), [5, 6, high + 7, high + 63]);
        assert!(set.contains(6) && !set.contains(7));
        tracker.harvest(&mut set, Watch::All, &mut |_| ()).unwrap();
        assert!(set.is_empty() && set.bits().iter().all(|word| *word == 0));
    }

    #[test]
    fn an_aborted_set_is_in_the_next_harvest() {
        let (memory, mut tracker, mut set) = tracker(64 << 20);
        touch(&memory, &[9]);
        tracker.harvest(&mut set, Watch::All, &mut |_| ()).unwrap();
        tracker.put_back(&set);
        touch(&memory, &[3]);
        tracker.harvest(&mut set, Watch::All, &mut |_| ()).unwrap();
        assert_eq!(set.gfns(), [3, 9]);
        tracker.harvest(&mut set, Watch::All, &mut |_| ()).unwrap();
        assert!(set.is_empty());
    }

    #[test]
    fn logs_that_name_pages_outside_of_ram_do_no_harm() {
        let (_memory, mut tracker, mut set) = tracker((64 << 20) + PAGE_SIZE);
        let mut devices = |take: &mut dyn FnMut(u64, u64)| {
            take(64 << 20 >> 12, u64::MAX);
            take(1 << 40, u64::MAX);
        };
        tracker.harvest(&mut set, Watch::All, &mut devices).unwrap();
        assert_eq!(set.gfns(), [64 << 20 >> 12]);
    }

    #[test]
    fn off_is_an_error_and_a_restart_is_clean() {
        let (memory, mut tracker, mut set) = tracker(64 << 20);
        touch(&memory, &[1]);
        tracker.stop().unwrap();
        assert!(matches!(tracker.harvest(&mut set, Watch::All, &mut |_| ()), Err(DirtyError::Off)));
        tracker.start().unwrap();
        tracker.harvest(&mut set, Watch::All, &mut |_| ()).unwrap();
        assert!(set.is_empty());
    }

    #[test]
    fn runs_bridge_small_gaps_only() {
        let mut runs = Vec::new();
        [3, 10, 75, 141, 299].into_iter().for_each(|index| add_to_runs(&mut runs, index));
        assert_eq!(runs, [3..76, 141..142, 299..300]);
    }

    #[test]
    fn a_word_on_the_edge_of_a_slot_is_masked() {
        let slot = |first_gfn, pages| Slot { number: 0, first_gfn, pages, log: Vec::new(), runs: Vec::new() };
        assert_eq!([0, 1, 2].map(|index| slot(0, 65).mask(index)), [u64::MAX, 1, 0]);
        assert_eq!([1, 2, 3, 4].map(|index| slot(128, 128).mask(index)), [0, u64::MAX, u64::MAX, 0]);
    }
}
