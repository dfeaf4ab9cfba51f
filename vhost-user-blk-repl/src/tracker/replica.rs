//! The standby's side of a stream, for the record: which regions were written since the image was last given
//! a name. Pure.

use ft_proto::Term;
use ft_wire::mirror::{Begin, Greeting, ResyncKind};

use crate::image::regions::Regions;
use crate::record::{Base, Record, Role};
use crate::tracker::journal::Journal;

/// The image is a replica of a primary's.
pub struct Replica {
    number: u64,
    /// Regions written since [`Replica::begin_renaming`].
    fresh: Regions,
}

impl Replica {
    /// Records that the image is becoming the copy of stream `number`, if the plan in `begin` fits the
    /// record; otherwise `None`, and nothing has changed.
    #[must_use]
    pub fn begin(journal: &mut Journal, number: u64, size: u64, greeting: &Greeting, begin: &Begin) -> Option<Self> {
        let common = begin.common.map(Base).filter(|_| begin.kind == ResyncKind::Incremental);
        let theirs = common.and_then(|_| Regions::from_bytes(size, &begin.marks));
        let names = journal.record().map_or([None; 2], |record| [record.base, record.former]);
        let known = theirs.is_some() && names.contains(&common);
        if journal.is_kept() && begin.kind == ResyncKind::Incremental && !known {
            return None;
        }
        journal.create(|| begin.disk);
        journal.change(|record| become_copy(record, greeting, begin, common.zip(theirs)));
        Some(Self { number, fresh: Regions::new(size) })
    }

    /// Whether this is stream `number`.
    #[must_use]
    pub fn is(&self, number: u64) -> bool {
        self.number == number
    }

    /// Regions are about to be written.
    pub fn touch(&mut self, touched: &[usize]) {
        touched.iter().for_each(|&index| {
            self.fresh.insert(index);
        });
    }

    /// Between two writes: the image's state at this point gets a new name. Later writes are marked relative
    /// to it.
    pub fn begin_renaming(&mut self) {
        self.fresh = Regions::new(self.fresh.image_size());
    }

    /// The state at [`Replica::begin_renaming`] is on stable storage, and its name is `base`.
    pub fn rename(&self, journal: &mut Journal, base: Base) {
        journal.change(|record| {
            // The primary may fail before it knows the new name; then it still has the former one.
            record.former = record.base.replace(base);
            record.role = Role::Standby;
            record.marks.union_with(&self.fresh);
        });
    }

    /// The primary has the new name on stable storage, too: earlier writes need no marks any more.
    pub fn renamed(&self, journal: &mut Journal) {
        journal.keep_marks(&self.fresh);
        journal.change(|record| record.former = None);
    }
}

fn become_copy(record: &mut Record, greeting: &Greeting, begin: &Begin, common: Option<(Base, Regions)>) {
    match common {
        Some((base, marks)) => {
            (record.base, record.former) = (Some(base), None);
            record.marks.union_with(&marks);
        }
        None => record.forget_base(),
    }
    (record.disk, record.generation, record.role) = (begin.disk, begin.generation, Role::Syncing);
    (record.vm, record.term) = (greeting.vm.or(record.vm), greeting.term);
    (record.ended, record.altered) = (Term(0), false);
}

#[cfg(test)]
mod tests {
    use ft_proto::VmId;

    use super::*;

    const MIB: u64 = 1 << 20;
    const SIZE: u64 = 64 * MIB;

    fn greeting() -> Greeting {
        Greeting { serial: String::new(), vm: Some(VmId(3)), term: Term(7) }
    }

    fn begin(kind: ResyncKind, common: Option<u128>, marked: usize) -> Begin {
        let mut marks = Regions::new(SIZE);
        marks.insert(marked);
        Begin { kind, disk: 1, common, marks: marks.to_bytes(), base: 9, generation: 4 }
    }

    fn journal(base: Option<u128>, marked: usize) -> Journal {
        let mut record = Record { base: base.map(Base), altered: true, ..Record::new(1, SIZE) };
        record.marks.insert(marked);
        Journal::new(Some(record), SIZE, true)
    }

    fn marks(journal: &Journal) -> Vec<usize> {
        journal.record().unwrap().marks.iter().collect()
    }

    #[test]
    fn an_incremental_copy_is_marked_where_either_image_may_differ() {
        let mut journal = journal(Some(5), 2);
        let replica = Replica::begin(&mut journal, 8, SIZE, &greeting(), &begin(ResyncKind::Incremental, Some(5), 3));
        assert!(replica.is_some_and(|replica| replica.is(8) && !replica.is(7)));
        let record = journal.record().unwrap();
        assert_eq!((record.role, record.vm, record.term), (Role::Syncing, Some(VmId(3)), Term(7)));
        assert_eq!((record.base, record.generation, record.altered), (Some(Base(5)), 4, false));
        assert_eq!(marks(&journal), [2, 3]);
    }

    #[test]
    fn a_full_copy_has_no_base_until_it_is_complete() {
        let mut journal = journal(Some(5), 2);
        assert!(Replica::begin(&mut journal, 8, SIZE, &greeting(), &begin(ResyncKind::Compare, None, 3)).is_some());
        assert_eq!(journal.record().unwrap().base, None);
        assert!(marks(&journal).is_empty());
    }

    #[test]
    fn a_base_that_is_not_on_record_is_refused_and_nothing_changes() {
        let refused = |mut journal: Journal, begin: &Begin| {
            let before = (journal.newest(), journal.record().cloned());
            assert!(Replica::begin(&mut journal, 8, SIZE, &greeting(), begin).is_none());
            assert_eq!((journal.newest(), journal.record().cloned()), before);
        };
        let incremental = |common| begin(ResyncKind::Incremental, common, 3);
        refused(journal(Some(5), 2), &incremental(Some(6)));
        refused(journal(None, 2), &incremental(None));
        refused(journal(Some(5), 2), &Begin { marks: vec![1], ..incremental(Some(5)) });
        refused(Journal::new(None, SIZE, true), &incremental(Some(5)));
    }

    #[test]
    fn a_name_covers_what_was_written_before_it() {
        let mut journal = journal(Some(5), 2);
        let replica = Replica::begin(&mut journal, 8, SIZE, &greeting(), &begin(ResyncKind::Incremental, Some(5), 3));
        let mut replica = replica.unwrap();
        replica.touch(&[10]);
        replica.begin_renaming();
        replica.touch(&[11]);
        journal.mark(&[11]);
        replica.rename(&mut journal, Base(6));
        let record = journal.record().unwrap();
        assert_eq!((record.role, record.base, record.former), (Role::Standby, Some(Base(6)), Some(Base(5))));
        assert_eq!(marks(&journal), [2, 3, 11]);
        replica.renamed(&mut journal);
        assert_eq!((marks(&journal), journal.record().unwrap().former), (vec![11], None));
    }
}
