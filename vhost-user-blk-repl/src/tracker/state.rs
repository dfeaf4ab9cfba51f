//! What a tracker knows: the record, what the image is part of, and who may run the VM from it. Pure.
//!
//! ```text
//!   part:   Nothing ──begin_source──► Source ──end_source──► Nothing        a primary's session
//!           any ─────begin_replica──► Replica ──run_alone──► Nothing        a standby's stream
//!
//!   claim:  Elected ──run_alone, by whoever says so or by the first write──► Settled
//!           Forced ───own──► Settled
//! ```

use std::time::Instant;

use ft_proto::{Epoch, Term, VmId};

use crate::image::range::Range;
use crate::image::regions::Regions;
use crate::mirror_wire::{Begin, Greeting};
use crate::record::{Base, Purpose, Record, Refuse, Role, new_id};
use crate::tracker::journal::{Journal, RecordLost, Ticket};
use crate::tracker::replica::Replica;
use crate::tracker::source::Source;

/// An image that must not be used for a VM.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotOurs {
    /// It is another one's.
    #[error(
        "this image is of VM {image}, by its record, not of VM {vm}: give the VM its own image, or remove the record"
    )]
    Vm {
        /// By the record.
        image: VmId,
        /// Who asks.
        vm: VmId,
    },
    /// It has been used in a later term.
    #[error("this image was last used in term {image}, by its record, so term {term} is over")]
    Term {
        /// By the record.
        image: Term,
        /// Who asks.
        term: Term,
    },
    /// It cannot be noted.
    #[error(transparent)]
    Record(#[from] RecordLost),
}

/// What the image is part of.
enum Part {
    Nothing,
    Source(Source),
    Replica(Replica),
}

/// On whose word the VM runs from the image.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Claim {
    /// The record's, or nobody runs it.
    Settled,
    /// The VM is to run here, but in which term has not been said.
    Elected,
    /// An operator's, who says that this is the copy to go on with.
    Forced,
}

/// Everything about one image.
pub struct State {
    journal: Journal,
    size: u64,
    part: Part,
    /// Sessions and streams that there were.
    numbers: u64,
    claim: Claim,
    /// The change that the guest's writes wait for.
    gate: Ticket,
}

impl State {
    /// Of an image of `size` bytes with this record, to be used for `purpose`; and the change that must be on stable storage before
    /// the image is used, if there is one.
    #[must_use]
    pub fn new(mut record: Option<Record>, purpose: Purpose, size: u64, kept: bool) -> (Self, Option<Ticket>) {
        let (mut claim, mut first) = (Claim::Settled, false);
        if let (Some(record), Purpose::Serve(refuse)) = (&mut record, purpose)
            && record.role != Role::Alone
        {
            if refuse == Refuse::Half {
                // Those that are elected are told their term.
                claim = Claim::Elected;
            } else {
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
        let first = first.then(|| journal.ticket());
        (Self { journal, size, part: Part::Nothing, numbers: 0, claim, gate: Ticket::default() }, first)
    }

    /// The record, wanted and written.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// As [`State::journal`], for whoever writes it or waits for that.
    pub fn journal_mut(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// The record as it should be; a new one when none is kept.
    #[must_use]
    pub fn record(&self) -> Record {
        self.journal.record().cloned().unwrap_or_else(|| Record::new(new_id(), self.size))
    }

    /// Whether the record can be done without: nobody else has a copy that could be taken for equal to this one by it.
    #[must_use]
    pub fn can_do_without_record(&self) -> bool {
        !matches!(self.part, Part::Source(_)) && self.journal.says_alone()
    }

    /// Whether a guest's write to `ranges` in `epoch` may go to the image and the peer now.
    pub fn admits(&mut self, ranges: &[Range], epoch: Epoch) -> bool {
        let mirrored = matches!(self.part, Part::Source(_));
        if self.claim == Claim::Elected && !mirrored {
            // Nobody has said in which term: it cannot be a late one.
            self.run_alone(Some(Term(0)));
        }
        if !self.journal.is_written(self.gate) {
            return false;
        }
        let Some(record) = self.journal.record().filter(|record| mirrored || record.base.is_some()) else {
            return true;
        };
        let touched: Vec<usize> = ranges.iter().flat_map(|range| record.marks.touched(range)).collect();
        let ready = self.journal.mark(&touched);
        if let (true, Part::Source(source)) = (ready, &mut self.part) {
            source.stamp(&touched, epoch);
        }
        ready
    }

    /// Standby: writes to `ranges` are going to come: marks their regions.
    pub fn expect(&mut self, ranges: impl Iterator<Item = Range>) {
        let Some(record) = self.journal.record().filter(|record| record.base.is_some()) else { return };
        let touched: Vec<usize> = ranges.flat_map(|range| record.marks.touched(&range)).collect();
        self.journal.mark(&touched);
    }

    /// Standby: a write to `range` comes next. If its regions are not marked on stable storage, the change to be waited for.
    pub fn admit(&mut self, range: Range) -> Option<Ticket> {
        let record = self.journal.record()?;
        let touched: Vec<usize> = record.marks.touched(&range).collect();
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
        self.part = Part::Source(Source::new(self.numbers, Regions::new(self.size).of_image()));
        self.numbers
    }

    /// The session is over; nothing is settled any more.
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

    /// See [`Source::settle`]; the change to be waited for, or `None` when the session is over.
    pub fn settle(&mut self, number: u64, epoch: Epoch, base: Base, settled: Vec<usize>) -> Option<Ticket> {
        self.journal.record()?;
        let Part::Source(source) = &self.part else { return None };
        if !source.is(number) {
            return None;
        }
        source.settle(&mut self.journal, epoch, base, settled);
        Some(self.journal.ticket())
    }

    /// A standby's stream begins: its number, and the change to be waited for. `None` when its plan is not for this image.
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

    /// The VM runs from the image from now on, in `term` if it is known. The guest's writes wait until that is on record.
    pub fn run_alone(&mut self, term: Option<Term>) {
        if let Part::Replica(_) = self.part {
            self.part = Part::Nothing;
        }
        if self.claim == Claim::Elected {
            self.claim = Claim::Settled;
        }
        let Some(record) = self.journal.record() else { return };
        let term = term.unwrap_or(record.term);
        let news = (record.role, record.term) != (Role::Alone, term);
        self.journal.amend(|record| {
            run_from(record);
            record.term = term;
        });
        if news || !self.journal.is_written(self.journal.newest()) {
            self.journal.change(|_| {});
            self.gate = self.journal.newest();
        }
    }

    /// As [`State::run_alone`]; the VM ran elsewhere, in the term before.
    pub fn take_over(&mut self) {
        let is_copy = |record: &&Record| matches!(record.role, Role::Standby | Role::Syncing);
        let next = self.journal.record().filter(is_copy).map(|record| record.term.next());
        self.run_alone(next);
    }

    /// `vm` runs from this image in `term`, and no copy can be newer: the change to be waited for.
    ///
    /// # Errors
    /// When the image is another VM's, or has been used later.
    pub fn own(&mut self, vm: VmId, term: Term) -> Result<Ticket, NotOurs> {
        self.journal.create(new_id);
        let forced = self.claim == Claim::Forced;
        if let Some(record) = self.journal.record() {
            if let Some(image) = record.vm.filter(|image| *image != vm && !forced) {
                return Err(NotOurs::Vm { image, vm });
            }
            if term < record.term && !forced {
                return Err(NotOurs::Term { image: record.term, term });
            }
            if (record.vm, record.ended) != (Some(vm), Term(0)) {
                self.journal.change(|record| (record.vm, record.ended) = (Some(vm), Term(0)));
            }
        }
        self.claim = Claim::Settled;
        self.run_alone(Some(term));
        Ok(self.journal.ticket())
    }

    /// From here on a standby may take over: the change to be waited for, if a record is kept.
    pub fn protected(&mut self) -> Option<Ticket> {
        self.journal.change(|record| record.role = Role::Protected)
    }

    /// The VM is shut down in `term`, and this is its newest image: the change to be waited for, if a record is kept.
    pub fn end(&mut self, term: Term) -> Option<Ticket> {
        self.journal.create(new_id);
        self.journal.change(|record| (record.term, record.ended) = (record.term.max(term), term))
    }
}

/// The VM runs from the image of this record, and no copy can be newer.
fn run_from(record: &mut Record) {
    if record.role != Role::Alone {
        (record.role, record.generation) = (Role::Alone, record.generation.saturating_add(1));
    }
    record.altered = false;
}
