//! The primary's memory of what it has sent: pages as the standby will know them when it has read the stream
//! so far.
//!
//! **Why a delta to the last version sent is right**, whether or not the standby has applied, staged or
//! acknowledged it. The stream is one ordered sequence. The standby writes what it brings to memory in this
//! order: pages of the first copy as they come, epochs one after the other and each whole (the core commits
//! them in order). So when it applies an epoch, its memory is what all frames before it made of it, however
//! many epochs lay staged in between. An aborted capture never reaches the stream, and so never this memory.
//! A stream that breaks ends the session; so does a standby that drops an epoch. The next session begins with
//! a new history, which knows nothing of what an earlier session left at the standby.
//!
//! Of a page that is sent whole it knows by a digest whether it is what was sent of it before. That only says
//! whether it was worth sending, and may be wrong once in a while.
//!
//! The memory is bounded. Each guest page learns by itself whether it is worth a place: one that was
//! rewritten as a whole, or lost its place before it was of use, is not looked at for a while, which becomes
//! longer each time.

use std::ops::Range;

use ft_wire::delta;
use ft_wire::pages::{PAGE, Page};

use crate::guest::Form;

/// A page that was not worth it is left alone for so many appearances, and up to twice as many: not all of
/// them come back in the same epoch.
const PAUSES: [u16; 4] = [0, 16, 64, 256];
const NONE: u32 = u32::MAX;
/// Stands for the digest of a page of zeroes. No digest is even.
const ZEROES: u32 = 2;

/// What is known of a guest page.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Where its last version is.
    slot: u32,
    /// For how many appearances more it is left alone.
    pause: u16,
    /// How often it was not worth it in a row; up to the last of [`PAUSES`].
    failures: u8,
}

/// A place for a page.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// Index of the page that it holds.
    owner: u32,
    /// Used since the hand came by.
    recent: bool,
    /// Was of use at all.
    useful: bool,
}

/// Versions of pages, by page number.
#[derive(Debug, Default)]
pub struct History {
    /// Page numbers that are RAM, and the index that each range begins at.
    ranges: Vec<(Range<u64>, usize)>,
    known: Vec<Known>,
    /// Of what was last sent whole, or as zeroes; 0: nothing was.
    digests: Vec<u32>,
    slots: Vec<Slot>,
    pages: Vec<Page>,
    /// Slots that were never used begin here.
    fresh: usize,
    /// Where a slot is looked for next.
    hand: usize,
}

impl History {
    /// A history of pages in `ram` that takes `bytes` of memory. With none every page is sent whole.
    #[must_use]
    pub fn new(ram: &[Range<u64>], bytes: u64) -> Self {
        let mut count = 0;
        let mut ranges = Vec::with_capacity(ram.len());
        for range in ram {
            ranges.push((range.clone(), count));
            count += usize::try_from(range.end - range.start).unwrap_or(0);
        }
        let slots = usize::try_from(bytes).unwrap_or(usize::MAX).div_euclid(PAGE).min(count).min(NONE as usize);
        let unused = Slot { owner: NONE, recent: false, useful: false };
        Self {
            ranges,
            known: vec![Known { slot: NONE, pause: 0, failures: 0 }; count],
            digests: vec![0; count],
            slots: vec![unused; slots],
            // Not zeroes: those would be mapped, one fault a page, on the epoch path.
            pages: vec![[0xff; PAGE]; slots],
            fresh: 0,
            hand: 0,
        }
    }

    /// The page is about to be sent as zeroes, which is shorter than any delta. Returns whether it was zeroes
    /// when it was last sent whole.
    pub fn zero(&mut self, page: u64) -> bool {
        let Some(index) = self.index(page) else { return false };
        self.forget(index);
        std::mem::replace(&mut self.digests[index], ZEROES) == ZEROES
    }

    /// How to send `content` of `page`; a delta is appended to `out`. What this says must be what is sent.
    pub fn form(&mut self, page: u64, content: &Page, out: &mut Vec<u8>) -> Form {
        let Some(index) = self.index(page) else { return Form::Whole };
        let form = self.form_of(index, content, out);
        if form != Form::Whole {
            return form;
        }
        let digest = digest(content);
        let again = std::mem::replace(&mut self.digests[index], digest) == digest;
        if again { Form::WholeAgain } else { Form::Whole }
    }

    fn form_of(&mut self, index: usize, content: &Page, out: &mut Vec<u8>) -> Form {
        let known = &mut self.known[index];
        if known.slot == NONE {
            match known.pause.checked_sub(1) {
                Some(left) => known.pause = left,
                None => self.remember(index, content),
            }
            return Form::Whole;
        }
        let slot = known.slot as usize;
        let (start, before) = (out.len(), &mut self.pages[slot]);
        if !delta::encode(before, content, out) {
            self.forget(index);
            self.pause(index);
            return Form::Whole;
        }
        known.failures = 0;
        (self.slots[slot].recent, self.slots[slot].useful) = (true, true);
        if out[start..] == [0] {
            out.truncate(start);
            return Form::Same;
        }
        *before = *content;
        Form::Delta
    }

    /// Whether the page's last version is kept.
    #[cfg(test)]
    pub fn is_known(&self, page: u64) -> bool {
        self.index(page).is_some_and(|index| self.known[index].slot != NONE)
    }

    fn index(&self, page: u64) -> Option<usize> {
        let (range, first) = self.ranges.iter().find(|(range, _)| range.contains(&page))?;
        usize::try_from(page - range.start).ok().map(|at| first + at)
    }

    fn remember(&mut self, index: usize, content: &Page) {
        let (Some(slot), Ok(owner)) = (self.free_slot(), u32::try_from(index)) else { return };
        self.slots[slot] = Slot { owner, recent: true, useful: false };
        self.pages[slot] = *content;
        self.known[index].slot = u32::try_from(slot).unwrap_or(NONE);
    }

    fn forget(&mut self, index: usize) {
        let slot = std::mem::replace(&mut self.known[index].slot, NONE);
        if let Some(slot) = self.slots.get_mut(slot as usize) {
            *slot = Slot { owner: NONE, recent: false, useful: false };
        }
    }

    fn pause(&mut self, index: usize) {
        let known = &mut self.known[index];
        known.failures = (known.failures + 1).min(PAUSES.len() as u8 - 1);
        let pause = PAUSES[usize::from(known.failures)];
        // Scattered by the page's number, without a pattern that guest memory could have as well.
        let scattered = (index as u32).wrapping_mul(0x9e37_79b9) >> 16;
        known.pause = pause + scattered as u16 % pause;
    }

    /// A slot to use: a fresh one, else the first that nobody used since the hand came by the last time.
    fn free_slot(&mut self) -> Option<usize> {
        if self.fresh < self.slots.len() {
            self.fresh += 1;
            return Some(self.fresh - 1);
        }
        // The hand goes around once at most before it finds one.
        for _ in 0..=self.slots.len() {
            let at = self.hand;
            let Slot { owner, recent, useful } = *self.slots.get(at)?;
            self.hand = (at + 1) % self.slots.len();
            if owner != NONE && recent {
                self.slots[at].recent = false;
                continue;
            }
            if owner != NONE {
                self.forget(owner as usize);
                if !useful {
                    self.pause(owner as usize);
                }
            }
            return Some(at);
        }
        None
    }
}

/// Of one word in sixteen: pages that are sent whole were rewritten as a whole, or nearly.
fn digest(page: &Page) -> u32 {
    // Four chains, which the processor follows at the same time.
    let mut chains = [0_u64; 4];
    for (at, [word, ..]) in page.as_chunks::<8>().0.as_chunks::<16>().0.iter().enumerate() {
        let chain = &mut chains[at % 4];
        *chain = (*chain ^ u64::from_le_bytes(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
    let sum = chains.iter().fold(0_u64, |sum, chain| (sum ^ chain).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (sum >> 32) as u32 | 1
}
