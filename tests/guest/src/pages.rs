//! A working set: pages with a checkable pattern, rewritten in turn and checked all the time.

use pollux_guest::pattern::{WORDS, check_page, fill_page, page_digest};

use crate::machine::Memory;
use crate::println;

/// Pages, and for each the generation that was written last.
pub struct WorkingSet {
    words: &'static mut [u64],
    generations: &'static mut [u64],
    fill: usize,
    /// First page number, so that no two sets share a pattern.
    base: u64,
    cursor: usize,
    check_cursor: usize,
    /// Rewrites so far.
    pub rewrites: u64,
    /// Sum of [`page_digest`] over all pages.
    pub digest: u64,
    /// Pages checked so far.
    pub checked: u64,
    /// Pages found wrong.
    pub violations: u64,
}

impl WorkingSet {
    /// `pages` pages at generation 1; `fill` words of each are written, the others keep something that does
    /// not compress.
    pub fn new(memory: &mut Memory, pages: usize, fill: usize, base: u64) -> Self {
        let mut set = Self {
            words: memory.words(pages * WORDS),
            generations: memory.words(pages),
            fill,
            base,
            cursor: 0,
            check_cursor: 0,
            rewrites: 0,
            digest: 0,
            checked: 0,
            violations: 0,
        };
        for page in 0..pages {
            fill_page(&mut set.words[page * WORDS..][..WORDS], base + page as u64, 0);
            set.write(page, 1);
        }
        set
    }

    /// Bytes of memory that [`Self::new`] takes at most.
    pub fn size(pages: usize) -> u64 {
        (pages * (8 * WORDS + 8) + 8192) as u64
    }

    /// How many pages there are.
    pub fn len(&self) -> usize {
        self.generations.len()
    }

    fn write(&mut self, page: usize, generation: u64) {
        let number = self.base + page as u64;
        fill_page(&mut self.words[page * WORDS..][..self.fill], number, generation);
        self.generations[page] = generation;
        self.digest = self.digest.wrapping_add(page_digest(number, generation));
    }

    /// Move the next page on by a generation, after a check of what is there.
    pub fn rewrite_next(&mut self) {
        let page = self.cursor;
        self.cursor = (page + 1) % self.len();
        self.check(page);
        let old = self.generations[page];
        self.digest = self.digest.wrapping_sub(page_digest(self.base + page as u64, old));
        self.write(page, old + 1);
        self.rewrites += 1;
    }

    /// Check the next page.
    pub fn check_next(&mut self) {
        let page = self.check_cursor;
        self.check_cursor = (page + 1) % self.len();
        self.check(page);
    }

    fn check(&mut self, page: usize) {
        self.checked += 1;
        let words = &self.words[page * WORDS..][..self.fill];
        let (number, generation) = (self.base + page as u64, self.generations[page]);
        if !check_page(words, number, generation) {
            self.violations += 1;
            if self.violations <= 8 {
                println!(
                    "memory: page {number} is not generation {generation}: {:x} {:x}",
                    words[0],
                    words[self.fill - 1]
                );
            }
        }
    }
}
