//! Sets of regions of an image: equal parts of at least 1 MiB, numbered from 0. Pure.

use crate::image::range::Range;

/// No image has more regions: a set fits into 32 KiB.
const MOST: u64 = 1 << 18;
const SMALLEST_SHIFT: u32 = 20;

/// A set of regions of an image of a certain size.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Regions {
    size: u64,
    shift: u32,
    words: Vec<u64>,
}

impl Regions {
    /// The empty set for an image of `size` bytes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        let mut shift = SMALLEST_SHIFT;
        while size.div_ceil(1 << shift) > MOST {
            shift += 1;
        }
        let words = vec![0; size.div_ceil(1 << shift).div_ceil(64) as usize];
        Self { size, shift, words }
    }

    /// Size of the image.
    #[must_use]
    pub fn image_size(&self) -> u64 {
        self.size
    }

    /// How many regions the image has.
    #[must_use]
    pub fn total(&self) -> usize {
        self.size.div_ceil(1 << self.shift) as usize
    }

    /// Numbers of the regions that `range` overlaps.
    pub fn overlapping(&self, range: &Range) -> std::ops::Range<usize> {
        let first = (range.offset >> self.shift) as usize;
        let end = (range.end().min(self.size).div_ceil(1 << self.shift)) as usize;
        first..if range.len == 0 { first } else { end }
    }

    /// Whether region `index` is in the set.
    #[must_use]
    pub fn contains(&self, index: usize) -> bool {
        self.words.get(index / 64).is_some_and(|word| word & 1 << (index % 64) != 0)
    }

    /// Adds region `index`; whether it was not in the set before.
    pub fn insert(&mut self, index: usize) -> bool {
        let new = !self.contains(index);
        if let Some(word) = self.words.get_mut(index / 64) {
            *word |= 1 << (index % 64);
        }
        new
    }

    /// Removes region `index`.
    pub fn remove(&mut self, index: usize) {
        if let Some(word) = self.words.get_mut(index / 64) {
            *word &= !(1 << (index % 64));
        }
    }

    /// Adds every region of `other`.
    pub fn union_with(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(word, more)| *word |= more);
    }

    /// Keeps only regions that `other` has too.
    pub fn intersect_with(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(word, more)| *word &= more);
    }

    /// Number of regions in the set.
    #[must_use]
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Their numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        (0..self.total()).filter(|index| self.contains(*index))
    }

    /// The bytes they cover, ascending, neighbours joined.
    #[must_use]
    pub fn ranges(&self) -> Vec<Range> {
        let mut ranges: Vec<Range> = Vec::new();
        for index in self.iter() {
            let offset = (index as u64) << self.shift;
            let len = (1 << self.shift).min(self.size - offset);
            match ranges.last_mut() {
                Some(last) if last.end() == offset => last.len += len,
                _ => ranges.push(Range::new(offset, len)),
            }
        }
        ranges
    }

    /// As bytes, for [`Regions::from_bytes`].
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// What [`Regions::to_bytes`] made of a set of the same image; `None` when it cannot be one.
    #[must_use]
    pub fn from_bytes(size: u64, bytes: &[u8]) -> Option<Self> {
        let mut set = Self::new(size);
        let words: Vec<u64> =
            bytes.chunks_exact(8).filter_map(|word| Some(u64::from_le_bytes(word.try_into().ok()?))).collect();
        let inside = |set: &Self| (set.total()..set.words.len() * 64).all(|index| !set.contains(index));
        if bytes.len() != set.words.len() * 8 {
            return None;
        }
        set.words = words;
        inside(&set).then_some(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn ranges_touch_regions_and_regions_join_to_ranges() {
        let mut set = Regions::new(10 * MIB + 512);
        assert_eq!(set.total(), 11);
        assert_eq!(set.overlapping(&Range::new(MIB - 512, 512)), 0..1);
        assert_eq!(set.overlapping(&Range::new(MIB - 512, 1024)), 0..2);
        assert_eq!(set.overlapping(&Range::new(10 * MIB, 512)), 10..11);
        assert_eq!(set.overlapping(&Range::new(3 * MIB, 0)).count(), 0);
        assert!([1, 2, 10].into_iter().all(|index| set.insert(index)) && !set.insert(2));
        assert_eq!(set.ranges(), [Range::new(MIB, 2 * MIB), Range::new(10 * MIB, 512)]);
        set.remove(1);
        assert_eq!((set.count(), set.contains(1), set.contains(2)), (2, false, true));
    }

    #[test]
    fn sets_unite_and_intersect() {
        let set = |members: &[usize]| {
            let mut set = Regions::new(200 * MIB);
            for index in members {
                set.insert(*index);
            }
            set
        };
        let mut a = set(&[1, 100]);
        a.union_with(&set(&[2, 100]));
        assert_eq!(a, set(&[1, 2, 100]));
        a.intersect_with(&set(&[0, 2]));
        assert_eq!(a, set(&[2]));
    }

    #[test]
    fn bytes_come_back_or_are_refused() {
        let size = 100 * MIB;
        let mut set = Regions::new(size);
        set.insert(99);
        let mut bytes = set.to_bytes();
        assert_eq!(Regions::from_bytes(size, &bytes), Some(set));
        assert_eq!(Regions::from_bytes(size * 2, &bytes), None);
        bytes[12] |= 1 << 4;
        assert_eq!(Regions::from_bytes(size, &bytes), None, "region 100 of 100");
    }

    #[test]
    fn huge_images_have_larger_regions() {
        for size in [1, MIB, 1 << 38, 1 << 40, 1 << 60] {
            let set = Regions::new(size);
            assert!(set.to_bytes().len() <= 32 * 1024);
            assert_eq!(set.overlapping(&Range::new(0, size)).len(), set.total());
        }
    }
}
