//! How two images are made equal: which regions are compared or copied, decided from the records of both.
//! Pure.

use ft_wire::mirror::{Answer, Begin, ResyncKind};

use crate::image::range::Range;
use crate::image::regions::Regions;
use crate::record::{Base, Record};

/// How a primary makes its standby's image equal to its own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plan {
    /// What is sent to the standby.
    pub begin: Begin,
    /// What is compared or copied.
    pub ranges: Vec<Range>,
}

impl Plan {
    /// For a primary whose image has the record `ours`, and a standby that answered with `theirs`. `fresh` is
    /// the name of the state that they will have in common.
    #[must_use]
    pub fn new(ours: &Record, theirs: &Answer, fresh: Base) -> Self {
        let size = ours.marks.image_size();
        let begin = |kind, common, marks| {
            let (disk, generation) = (ours.disk, ours.generation);
            Begin { kind, disk, common, marks, base: fresh.0, generation }
        };
        let names = [ours.base, ours.former].into_iter().flatten().map(|base| base.0);
        let mut shared = names.filter(|base| [theirs.base, theirs.former].contains(&Some(*base)));
        let shared = shared.next().filter(|_| theirs.disk == ours.disk);
        if let (Some(base), Some(mut marks)) = (shared, Regions::from_bytes(size, &theirs.marks)) {
            marks.union_with(&ours.marks);
            let begin = begin(ResyncKind::Incremental, Some(base), ours.marks.to_bytes());
            return Self { begin, ranges: marks.ranges() };
        }
        // Everything differs from an image without data, except holes, which cost nothing.
        let kind = if theirs.empty { ResyncKind::Full } else { ResyncKind::Compare };
        Self { begin: begin(kind, None, vec![]), ranges: vec![Range::new(0, size)] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 8 << 20;

    fn ours(base: Option<u128>, marked: usize) -> Record {
        let mut record = Record { base: base.map(Base), generation: 4, ..Record::new(1, SIZE) };
        record.marks.insert(marked);
        record
    }

    fn theirs(base: Option<u128>, marked: usize, empty: bool) -> Answer {
        let mut marks = Regions::new(SIZE);
        marks.insert(marked);
        Answer { disk: 1, vm: None, base, former: None, generation: 3, marks: marks.to_bytes(), empty }
    }

    #[test]
    fn a_common_base_leaves_what_either_side_has_marked() {
        let marks = ours(None, 1).marks.to_bytes();
        for (ours_former, theirs_base, theirs_former, common) in
            [(None, 9, None, 9), (None, 8, Some(9), 9), (Some(7), 7, None, 7), (Some(7), 6, Some(7), 7)]
        {
            let ours = Record { former: ours_former.map(Base), ..ours(Some(9), 1) };
            let theirs = Answer { former: theirs_former, ..theirs(Some(theirs_base), 4, false) };
            let plan = Plan::new(&ours, &theirs, Base(5));
            let (kind, common, marks) = (ResyncKind::Incremental, Some(common), marks.clone());
            assert_eq!(plan.begin, Begin { kind, disk: 1, common, marks, base: 5, generation: 4 });
            assert_eq!(plan.ranges, [Range::new(1 << 20, 1 << 20), Range::new(4 << 20, 1 << 20)]);
        }
    }

    #[test]
    fn anything_else_is_compared_or_copied_as_a_whole() {
        let other_disk = Answer { disk: 2, ..theirs(Some(9), 1, false) };
        let short = Answer { marks: vec![], ..theirs(Some(9), 1, false) };
        for (ours, theirs, kind) in [
            (ours(Some(9), 1), theirs(Some(8), 1, false), ResyncKind::Compare),
            (ours(None, 1), theirs(None, 1, false), ResyncKind::Compare),
            (ours(Some(9), 1), theirs(None, 1, true), ResyncKind::Full),
            (ours(Some(9), 1), other_disk, ResyncKind::Compare),
            (ours(Some(9), 1), short, ResyncKind::Compare),
        ] {
            let plan = Plan::new(&ours, &theirs, Base(5));
            assert_eq!((plan.begin.kind, plan.begin.base, plan.begin.common), (kind, 5, None));
            assert_eq!(plan.ranges, [Range::new(0, SIZE)]);
        }
    }
}
