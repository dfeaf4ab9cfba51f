//! The state of one image: its record, its part in replication, and on whose decision the VM runs from it.
//! Pure.
//!
//! ```text
//!   part:   Nothing ──begin_source──► Source ──end_source──► Nothing        a primary's session
//!           any ─────begin_replica──► Replica ──run_alone──► Nothing        a standby's stream
//!
//!   claim:  Elected ──run_alone, on a command or at the first write──► Settled
//!           Forced ───own──► Settled
//! ```

use std::time::Instant;

use ft_proto::{Epoch, Term, VmId};
use ft_wire::mirror::{Begin, Greeting};

use crate::image::range::Range;
use crate::image::regions::Regions;
use crate::record::{Base, Purpose, Record, Refuse, Role, new_id};
use crate::tracker::journal::{Journal, Ticket};
use crate::tracker::replica::Replica;
use crate::tracker::source::Source;

/// An image that must not be used for a VM.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WrongImage {
    /// It is another one's.
    #[error(
        "this image is of VM {image}, by its record, not of VM {vm}: give the VM its own image, or remove the record"
    )]
    Vm {
        /// By the record.
        image: VmId,
        /// The VM that is to use it.
        vm: VmId,
    },
    /// It has been used in a later term.
    #[error("this image was last used in term {image}, by its record, so term {term} is over")]
    Term {
        /// By the record.
        image: Term,
        /// The term that it is to be used in.
        term: Term,
    },
}

/// The image's part in replication.
enum Part {
    Nothing,
    Source(Source),
    Replica(Replica),
}

/// On whose decision the VM runs from the image.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Claim {
    /// The record's; or it does not run here.
    Settled,
    /// This host was elected, but the term is not known yet.
    Elected,
    /// An operator's: this is the copy to continue with.
    Forced,
}

/// The state of one image.
pub struct State {
    journal: Journal,
    size: u64,
    part: Part,
    /// Number of sessions and streams so far.
    numbers: u64,
    claim: Claim,
    /// The change that the guest's writes and flushes wait for.
    gate: Ticket,
}

impl State {
    /// State of an image of `size` bytes with this record, to be used for `purpose`; and the change, if any,
    /// that must be on stable storage before the image is used.
    #[must_use]
    pub fn new(mut record: Option<Record>, purpose: Purpose, size: u64, kept: bool) -> (Self, Option<Ticket>) {
        let (mut claim, mut first, mut copy) = (Claim::Settled, false, false);
        if let (Some(record), Purpose::Serve(refuse)) = (&mut record, purpose)
            && record.role != Role::Alone
        {
            if refuse == Refuse::Half {
                // An elected host is told its term later.
                claim = Claim::Elected;
            } else {
                copy = is_copy(record);
                run_from(record);
                record.term = Term(0);
                first = true;
            }
        }
        if purpose == Purpose::Serve(Refuse::Nothing) {
            claim = Claim::Forced;
        }
        let mut journal = Journal::new(record, size, kept);
        // For a proof that names this process.
        journal.change(|_| {});
        if copy {
            journal.sync_before();
        }
        let first = first.then(|| journal.ticket());
        (Self { journal, size, part: Part::Nothing, numbers: 0, claim, gate: Ticket::default() }, first)
    }

    /// The record.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// As [`State::journal`], to write it or to wait for that.
    pub fn journal_mut(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// The record as it should be; a new one when none is kept.
    #[must_use]
    pub fn record(&self) -> Record {
        self.journal.record().cloned().unwrap_or_else(|| Record::new(new_id(), self.size))
    }

    /// Whether the record is dispensable: without it, no other copy can be mistaken for equal to this one.
    #[must_use]
    pub fn can_do_without_record(&self) -> bool {
        !matches!(self.part, Part::Source(_)) && self.journal.says_alone()
    }

    /// Whether the guest may be told of what is on stable storage: not before it is on record that the VM
    /// runs from this image.
    #[must_use]
    pub fn may_flush(&self) -> bool {
        self.journal.is_written(self.gate)
    }

    /// Whether a guest's write to `ranges` in `epoch` may go to the image and the peer now.
    pub fn may_write(&mut self, ranges: &[Range], epoch: Epoch) -> bool {
        let mirrored = matches!(self.part, Part::Source(_));
        if self.claim == Claim::Elected && !mirrored {
            // The term was never announced, so it cannot be a late one.
            self.run_alone(Some(Term(0)));
        }
        if !self.journal.is_written(self.gate) {
            return false;
        }
        let Some(record) = self.journal.record().filter(|record| mirrored || record.base.is_some()) else {
            return true;
        };
        let touched: Vec<usize> = ranges.iter().flat_map(|range| record.marks.overlapping(range)).collect();
        let ready = self.journal.mark(&touched);
        if let (true, Part::Source(source)) = (ready, &mut self.part) {
            source.stamp(&touched, epoch);
        }
        ready
    }

    /// Standby: marks the regions of writes that are going to come.
    pub fn mark_ahead(&mut self, ranges: impl Iterator<Item = Range>) {
        let Some(record) = self.journal.record().filter(|record| record.base.is_some()) else { return };
        let touched: Vec<usize> = ranges.flat_map(|range| record.marks.overlapping(&range)).collect();
        self.journal.mark(&touched);
    }

    /// Standby: marks the regions of the next write. The change to wait for, if the marks are not on stable
    /// storage yet.
    pub fn mark_for_write(&mut self, range: Range) -> Option<Ticket> {
        let record = self.journal.record()?;
        let touched: Vec<usize> = record.marks.overlapping(&range).collect();
        let has_base = record.base.is_some();
        if let Part::Replica(replica) = &mut self.part {
            replica.touch(&touched);
        }
        let ready = !has_base || self.journal.mark(&touched);
        if ready { None } else { Some(self.journal.ticket()) }
    }

    /// A primary's session begins: its number.
    pub fn begin_source(&mut self) -> u64 {
        self.journal.create(new_id);
        self.numbers += 1;
        self.part = Part::Source(Source::new(self.numbers, Regions::new(self.size).total()));
        self.numbers
    }

    /// The session is over: no marks are removed any more.
    pub fn end_source(&mut self, number: u64) {
        if matches!(&self.part, Part::Source(source) if source.is(number)) {
            self.part = Part::Nothing;
        }
    }

    /// See [`Source::settle_is_due`].
    pub fn settle_is_due(&mut self, now: Instant) -> bool {
        let marks = self.journal.record().map_or(0, |record| record.marks.count());
        match &mut self.part {
            Part::Source(source) => source.settle_is_due(marks, now),
            Part::Nothing | Part::Replica(_) => false,
        }
    }

    /// See [`Source::settled`]; `None` when the session is over.
    #[must_use]
    pub fn settled(&self, number: u64, epoch: Epoch, busy: &[Range]) -> Option<Vec<usize>> {
        match (&self.part, self.journal.record()) {
            (Part::Source(source), Some(record)) if source.is(number) => Some(source.settled(record, epoch, busy)),
            _ => None,
        }
    }

    /// See [`Source::settle`]; the change to wait for, or `None` when the session is over.
    pub fn settle(&mut self, number: u64, epoch: Epoch, base: Base, settled: Vec<usize>) -> Option<Ticket> {
        self.journal.record()?;
        let Part::Source(source) = &self.part else { return None };
        if !source.is(number) {
            return None;
        }
        source.settle(&mut self.journal, epoch, base, settled);
        Some(self.journal.ticket())
    }

    /// A standby's stream begins: its number, and the change to wait for. `None` when its plan is not for
    /// this image.
    pub fn begin_replica(&mut self, greeting: &Greeting, begin: &Begin) -> Option<(u64, Ticket)> {
        self.numbers += 1;
        self.part = Part::Nothing;
        let replica = Replica::begin(&mut self.journal, self.numbers, self.size, greeting, begin)?;
        self.part = Part::Replica(replica);
        Some((self.numbers, self.journal.ticket()))
    }

    /// See [`Replica::begin_renaming`].
    pub fn begin_renaming(&mut self, number: u64) {
        if let Part::Replica(replica) = &mut self.part
            && replica.is(number)
        {
            replica.begin_renaming();
        }
    }

    /// See [`Replica::rename`]; nothing happens if the image has become something else meanwhile.
    pub fn rename(&mut self, number: u64, base: Base) -> Ticket {
        if let Part::Replica(replica) = &self.part
            && replica.is(number)
        {
            replica.rename(&mut self.journal, base);
        }
        self.journal.ticket()
    }

    /// See [`Replica::renamed`].
    pub fn renamed(&mut self, number: u64) {
        if let Part::Replica(replica) = &self.part
            && replica.is(number)
        {
            replica.renamed(&mut self.journal);
        }
    }

    /// The VM runs from the image from now on, in `term` if it is known. The guest's writes and flushes wait
    /// until that is on record. Of a copy it is recorded only once all of it is on stable storage: the guest
    /// has been told so on the host that it ran on.
    pub fn run_alone(&mut self, term: Option<Term>) {
        if let Part::Replica(_) = self.part {
            self.part = Part::Nothing;
        }
        if self.claim == Claim::Elected {
            self.claim = Claim::Settled;
        }
        let Some(record) = self.journal.record() else { return };
        let (copy, term) = (is_copy(record), term.unwrap_or(record.term));
        let news = (record.role, record.term) != (Role::Alone, term);
        self.journal.amend(|record| {
            run_from(record);
            record.term = term;
        });
        if news || !self.journal.is_written(self.journal.newest()) {
            self.journal.change(|_| {});
            self.gate = self.journal.newest();
        }
        if copy {
            self.journal.sync_before();
        }
    }

    /// As [`State::run_alone`]; the VM ran elsewhere, in the term before.
    pub fn take_over(&mut self) {
        let next = self.journal.record().filter(|record| is_copy(record)).map(|record| record.term.next());
        self.run_alone(next);
    }

    /// `vm` runs from this image in `term`, and no copy can be newer: the change to wait for.
    ///
    /// # Errors
    /// When the image is another VM's, or has been used later.
    pub fn own(&mut self, vm: VmId, term: Term) -> Result<Ticket, WrongImage> {
        self.journal.create(new_id);
        let forced = self.claim == Claim::Forced;
        if let Some(record) = self.journal.record() {
            if let Some(image) = record.vm.filter(|image| *image != vm && !forced) {
                return Err(WrongImage::Vm { image, vm });
            }
            if term < record.term && !forced {
                return Err(WrongImage::Term { image: record.term, term });
            }
            if (record.vm, record.ended) != (Some(vm), Term(0)) {
                self.journal.change(|record| (record.vm, record.ended) = (Some(vm), Term(0)));
            }
        }
        self.claim = Claim::Settled;
        self.run_alone(Some(term));
        Ok(self.journal.ticket())
    }

    /// The standby of session `number` may take over from here on: the change to wait for, or `None` when the
    /// session is over.
    pub fn protected(&mut self, number: u64) -> Option<Ticket> {
        if !matches!(&self.part, Part::Source(source) if source.is(number)) {
            return None;
        }
        self.journal.change(|record| record.role = Role::Protected);
        Some(self.journal.ticket())
    }

    /// The VM is shut down in `term`, and this is its newest image: the change to wait for, if a record is
    /// kept.
    pub fn end(&mut self, term: Term) -> Option<Ticket> {
        self.journal.create(new_id);
        let kept = self.journal.change(|record| (record.term, record.ended) = (record.term.max(term), term));
        kept.then(|| self.journal.ticket())
    }
}

/// Whether the image is a standby's: written for a guest that ran elsewhere, and synced when this host likes.
fn is_copy(record: &Record) -> bool {
    matches!(record.role, Role::Standby | Role::Syncing)
}

/// The VM runs from the image of this record, and no copy can be newer.
fn run_from(record: &mut Record) {
    if record.role != Role::Alone {
        (record.role, record.generation) = (Role::Alone, record.generation.saturating_add(1));
    }
    record.altered = false;
}

#[cfg(test)]
mod tests {
    use ft_wire::mirror::ResyncKind;

    use super::*;
    use crate::tracker::journal::Job;

    const MIB: u64 = 1 << 20;
    const SIZE: u64 = 64 * MIB;
    const VM: VmId = VmId(7);

    fn record(role: Role) -> Record {
        Record { role, term: Term(4), vm: Some(VM), base: Some(Base(5)), ..Record::new(1, SIZE) }
    }

    fn state(role: Role, purpose: Purpose) -> State {
        State::new(Some(record(role)), purpose, SIZE, true).0
    }

    /// Does all jobs, as storage that works does. Whether the image was synced before one of them.
    fn write(state: &mut State) -> bool {
        let mut synced = false;
        while let Some(job) = state.journal_mut().next_job() {
            let Job::Write { record, ticket, sync, .. } = job else { panic!("{job:?}") };
            synced |= sync;
            state.journal_mut().set_written(ticket, record.marks);
        }
        synced
    }

    fn role_and_term(state: &State) -> (Role, Term) {
        (state.record().role, state.record().term)
    }

    fn begin(kind: ResyncKind) -> Begin {
        let marks = crate::image::regions::Regions::new(SIZE).to_bytes();
        Begin { kind, disk: 1, common: Some(5), marks, base: 9, generation: 4 }
    }

    fn greeting() -> Greeting {
        Greeting { serial: String::new(), vm: Some(VM), term: Term(6) }
    }

    #[test]
    fn a_write_waits_for_its_marks_while_there_is_a_base_or_a_session() {
        let write_at = |state: &mut State| state.may_write(&[Range::new(3 * MIB, 512)], Epoch(1));
        let mut with_base = state(Role::Alone, Purpose::Serve(Refuse::Stale));
        assert!(!write_at(&mut with_base));
        write(&mut with_base);
        assert!(write_at(&mut with_base));
        let mut fresh = State::new(Some(Record::new(1, SIZE)), Purpose::Serve(Refuse::Stale), SIZE, true).0;
        assert!(write_at(&mut fresh), "nothing to compare with");
        fresh.begin_source();
        assert!(!write_at(&mut fresh));
        let mut without = State::new(None, Purpose::Serve(Refuse::Stale), SIZE, false).0;
        without.begin_source();
        assert!(write_at(&mut without), "no record is kept");
    }

    #[test]
    fn after_a_takeover_the_first_write_waits_until_the_record_says_so() {
        let mut state = state(Role::Standby, Purpose::StandBy);
        write(&mut state);
        state.mark_ahead([Range::new(0, 512)].into_iter());
        write(&mut state);
        state.take_over();
        assert_eq!(role_and_term(&state), (Role::Alone, Term(5)));
        assert_eq!(state.record().generation, 1);
        assert!(!state.may_write(&[Range::new(0, 512)], Epoch(1)), "marked, but not on record as this host's");
        assert!(!state.may_flush());
        write(&mut state);
        assert!(state.may_write(&[Range::new(0, 512)], Epoch(1)) && state.may_flush());
    }

    #[test]
    fn the_image_of_a_copy_is_synced_before_it_is_on_record_that_the_vm_runs_from_it() {
        let own = |state: &mut State| {
            state.own(VM, Term(9)).unwrap();
        };
        let write_elected = |state: &mut State| {
            state.may_write(&[Range::new(0, 512)], Epoch(1));
        };
        let (stands_by, elected) = (Purpose::StandBy, Purpose::Serve(Refuse::Half));
        for role in [Role::Syncing, Role::Standby, Role::Protected, Role::Alone] {
            let copy = matches!(role, Role::Syncing | Role::Standby);
            let ways: [(Purpose, &dyn Fn(&mut State)); 4] = [
                (stands_by, &State::take_over),
                (stands_by, &|state| state.run_alone(None)),
                (elected, &own),
                (elected, &write_elected),
            ];
            for (number, (purpose, way)) in ways.into_iter().enumerate() {
                let mut state = state(role, purpose);
                assert!(!write(&mut state));
                way(&mut state);
                // Whatever the record says by the time it is written.
                state.begin_source();
                state.protected(1);
                assert_eq!(write(&mut state), copy, "{role:?}, way {number}");
                state.end(Term(9));
                assert!(!write(&mut state), "once is enough");
            }
            assert_eq!(
                write(&mut super::tests::state(role, Purpose::Serve(Refuse::Nothing))),
                copy,
                "{role:?}, forced"
            );
        }
    }

    #[test]
    fn a_takeover_does_not_wait_for_the_record_of_the_stream_and_overrides_it() {
        let mut state = state(Role::Standby, Purpose::StandBy);
        let (number, begun) = state.begin_replica(&greeting(), &begin(ResyncKind::Incremental)).unwrap();
        assert_eq!(role_and_term(&state), (Role::Syncing, Term(6)));
        state.take_over();
        write(&mut state);
        assert!(state.journal().is_written(begun));
        state.rename(number, Base(8));
        state.renamed(number);
        assert_eq!((role_and_term(&state), state.record().base), ((Role::Alone, Term(7)), Some(Base(5))));
    }

    #[test]
    fn a_stream_that_is_over_does_not_rename_the_image_of_the_next_one() {
        let mut state = state(Role::Standby, Purpose::StandBy);
        let (old, _) = state.begin_replica(&greeting(), &begin(ResyncKind::Incremental)).unwrap();
        let (new, _) = state.begin_replica(&greeting(), &begin(ResyncKind::Compare)).unwrap();
        state.rename(old, Base(8));
        assert_eq!((state.record().base, state.record().role), (None, Role::Syncing));
        state.rename(new, Base(9));
        assert_eq!((state.record().base, state.record().role), (Some(Base(9)), Role::Standby));
        let refused = Begin { common: Some(77), ..begin(ResyncKind::Incremental) };
        assert!(state.begin_replica(&greeting(), &refused).is_none());
        state.rename(new, Base(10));
        assert_eq!(state.record().base, Some(Base(9)));
    }

    #[test]
    fn an_elected_host_runs_the_vm_in_the_term_that_it_is_told_or_else_in_none() {
        for (owns, expected) in [(true, (Role::Alone, Term(9))), (false, (Role::Alone, Term(0)))] {
            let mut state = state(Role::Protected, Purpose::Serve(Refuse::Half));
            assert_eq!(role_and_term(&state), (Role::Protected, Term(4)));
            if owns {
                state.own(VM, Term(9)).unwrap();
            }
            state.may_write(&[Range::new(0, 512)], Epoch(1));
            assert_eq!(role_and_term(&state), expected);
        }
    }

    #[test]
    fn an_image_of_another_vm_or_of_a_later_term_is_not_owned_but_by_force() {
        for (vm, term) in [(VmId(8), Term(9)), (VM, Term(3))] {
            let refused = state(Role::Alone, Purpose::Serve(Refuse::Stale)).own(vm, term);
            assert!(refused.is_err(), "{vm} {term}");
            let mut forced = state(Role::Standby, Purpose::Serve(Refuse::Nothing));
            forced.own(vm, term).unwrap();
            assert_eq!((role_and_term(&forced), forced.record().vm), ((Role::Alone, term), Some(vm)));
            assert!(forced.own(VmId(1), term).is_err(), "only once");
        }
    }

    #[test]
    fn a_copy_that_is_forced_must_be_on_record_before_it_is_used() {
        let first = |role, purpose| State::new(Some(record(role)), purpose, SIZE, true).1;
        assert!(first(Role::Standby, Purpose::Serve(Refuse::Nothing)).is_some());
        assert_eq!(first(Role::Alone, Purpose::Serve(Refuse::Nothing)), None);
        assert_eq!(first(Role::Standby, Purpose::StandBy), None);
        assert_eq!(first(Role::Standby, Purpose::Serve(Refuse::Half)), None);
    }

    #[test]
    fn a_session_that_is_over_settles_nothing_and_needs_no_record() {
        let mut state = state(Role::Alone, Purpose::Serve(Refuse::Stale));
        assert!(state.can_do_without_record());
        let number = state.begin_source();
        assert!(!state.can_do_without_record());
        let settled = state.settled(number, Epoch(1), &[]).unwrap();
        state.end_source(number + 1);
        assert!(state.settled(number, Epoch(1), &[]).is_some());
        state.end_source(number);
        assert!(state.settle(number, Epoch(1), Base(9), settled).is_none());
        assert_eq!(state.record().base, Some(Base(5)));
    }

    #[test]
    fn a_session_that_is_over_protects_nothing() {
        let mut state = state(Role::Alone, Purpose::Serve(Refuse::Stale));
        let over = state.begin_source();
        assert!(state.protected(over).is_some());
        state.end_source(over);
        state.run_alone(None);
        assert_eq!(state.protected(over), None);
        let next = state.begin_source();
        assert_eq!((state.protected(over), state.record().role), (None, Role::Alone));
        assert!(state.protected(next).is_some());
        assert_eq!(state.record().role, Role::Protected);
    }
}
