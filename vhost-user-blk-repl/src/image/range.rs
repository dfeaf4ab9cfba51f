//! Byte ranges of the image: overlap and difference. Pure.

/// `offset .. offset + len`, in bytes. Constructors elsewhere have checked that the end does not overflow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Range {
    /// A range of `len` bytes at `offset`.
    #[must_use]
    pub fn new(offset: u64, len: u64) -> Self {
        Self { offset, len }
    }

    /// First byte after the range.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    /// Whether the two share a byte.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.len > 0 && other.len > 0 && self.offset < other.end() && other.offset < self.end()
    }

    /// What is left of this range without the bytes in `holes`, in ascending order.
    #[must_use]
    pub fn without(&self, holes: &[Self]) -> Vec<Self> {
        let mut holes: Vec<Self> = holes.iter().copied().filter(|hole| hole.overlaps(self)).collect();
        holes.sort_unstable_by_key(|hole| hole.offset);
        let mut left = Vec::new();
        let mut at = self.offset;
        for hole in holes {
            if hole.offset > at {
                left.push(Self::new(at, hole.offset - at));
            }
            at = at.max(hole.end());
        }
        if at < self.end() {
            left.push(Self::new(at, self.end() - at));
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touching_ranges_do_not_overlap() {
        let range = Range::new(10, 10);
        assert!(!range.overlaps(&Range::new(0, 10)));
        assert!(!range.overlaps(&Range::new(20, 5)));
        assert!(!range.overlaps(&Range::new(15, 0)));
        assert!(range.overlaps(&Range::new(19, 1)));
        assert!(range.overlaps(&Range::new(0, 100)));
    }

    #[test]
    fn difference_keeps_what_no_hole_covers() {
        let range = Range::new(10, 10);
        assert_eq!(range.without(&[]), [range]);
        assert_eq!(range.without(&[Range::new(0, 100)]), []);
        assert_eq!(
            range.without(&[Range::new(17, 9), Range::new(12, 2), Range::new(13, 2), Range::new(30, 1)]),
            [Range::new(10, 2), Range::new(15, 2)]
        );
    }
}
