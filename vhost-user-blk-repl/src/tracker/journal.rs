//! The image's record as it should be, and how much of that is on stable storage. Pure.
//!
//! Each change has a [`Ticket`]. The thread in `recorder` takes [`Job`]s and reports their results; changes
//! that are made while it writes are combined into one job.
//!
//! ```text
//!   Open ──close──► Closing ──end──► Ended { closed: true }      the last record is that of a closed image
//!     └──────────────────────end──► Ended { closed: false }
//! ```

use crate::image::regions::Regions;
use crate::record::{Record, Role};

/// Regions that are marked together with one that is written in sequence.
const AHEAD: usize = 4;

/// The record cannot be kept.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot write the record of the image: {0}")]
pub struct RecordWriteError(String);

/// A change of the record; later ones are greater.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Ticket(u64);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Open,
    Closing,
    Ended { closed: bool },
}

/// What the recording thread is to do next.
#[derive(Debug, Eq, PartialEq)]
pub enum Job {
    /// Write this record, which has all changes up to the ticket.
    Write {
        /// It, but for its proof.
        record: Box<Record>,
        /// Its newest change.
        ticket: Ticket,
        /// The image is closed.
        last: bool,
        /// The image must be on stable storage before.
        sync: bool,
    },
    /// There is no record, so the image may be written without.
    Without,
    /// Stop.
    End {
        /// The record is complete, or there is none: the page in memory is not needed.
        complete: bool,
    },
}

/// The record, wanted and written.
pub struct Journal {
    /// `None` for a disk that was never protected.
    record: Option<Record>,
    /// Whether there is a file to keep one in.
    kept: bool,
    size: u64,
    /// Marks on stable storage.
    durable: Regions,
    newest: Ticket,
    written: Ticket,
    /// The last change of a record that was given up because it could not be written, and the reason.
    given_up: Option<(Ticket, RecordWriteError)>,
    /// The last change that says more of the image than is known to be on stable storage.
    sync_before: Option<Ticket>,
    /// Why the last attempt to write failed, until that is reported.
    trouble: Option<RecordWriteError>,
    phase: Phase,
}

impl Journal {
    /// Of an image of `size` bytes whose file, if any is `kept`, has `record`.
    #[must_use]
    pub fn new(record: Option<Record>, size: u64, kept: bool) -> Self {
        Self {
            durable: record.as_ref().map_or_else(|| Regions::new(size), |record| record.marks.clone()),
            record,
            kept,
            size,
            newest: Ticket(0),
            written: Ticket(0),
            given_up: None,
            sync_before: None,
            trouble: None,
            phase: Phase::Open,
        }
    }

    /// As it should be.
    #[must_use]
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// Whether there is a file to keep a record in.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.kept
    }

    /// There is a record from here on, if there is a file for it; `disk` names the disk in a new one.
    pub fn create(&mut self, disk: impl FnOnce() -> u128) {
        if self.record.is_none() && self.kept {
            self.record = Some(Record::new(disk(), self.size));
            self.bump();
        }
    }

    /// Changes the record; whether there is one.
    pub fn change(&mut self, how: impl FnOnce(&mut Record)) -> bool {
        let Some(record) = &mut self.record else { return false };
        how(record);
        self.bump();
        true
    }

    /// As [`Journal::change`], but without requesting a write: the next one includes it.
    pub fn amend(&mut self, how: impl FnOnce(&mut Record)) {
        if let Some(record) = &mut self.record {
            how(record);
        }
    }

    /// Requests another write of the record, for its proof, unless one is due anyway.
    pub fn rewrite(&mut self) {
        if self.newest == self.written {
            self.bump();
        }
    }

    fn bump(&mut self) {
        self.newest.0 += 1;
    }

    /// The newest change.
    #[must_use]
    pub fn newest(&self) -> Ticket {
        self.newest
    }

    /// The newest change is true only of an image that is on stable storage: it must be, before the record is
    /// written again.
    pub fn sync_before(&mut self) {
        self.sync_before = Some(self.newest);
    }

    /// The newest change, to wait for: errors before now are forgotten.
    pub fn ticket(&mut self) -> Ticket {
        self.trouble = None;
        self.newest
    }

    /// Whether a change is on stable storage.
    #[must_use]
    pub fn is_written(&self, ticket: Ticket) -> bool {
        ticket <= self.written
    }

    /// Marks regions, and some that will probably be written next. Whether they were marked on stable storage
    /// before.
    pub fn mark(&mut self, touched: &[usize]) -> bool {
        let Some(record) = &mut self.record else { return true };
        let mut new = false;
        for &index in touched {
            if record.marks.insert(index) {
                new = true;
                // A write to the region before this one was probably the start of a sequence.
                let sequential = index > 0 && record.marks.contains(index - 1);
                let ahead = if sequential { index + 1..(index + 1 + AHEAD).min(record.marks.total()) } else { 0..0 };
                ahead.for_each(|index| {
                    record.marks.insert(index);
                });
            }
        }
        if new {
            self.bump();
        }
        !new && touched.iter().all(|&index| self.durable.contains(index))
    }

    /// Removes marks. They do not count as being on stable storage from here on, although they still are.
    pub fn unmark(&mut self, regions: impl Iterator<Item = usize>) {
        let Some(record) = &mut self.record else { return };
        for index in regions {
            record.marks.remove(index);
            self.durable.remove(index);
        }
        self.bump();
    }

    /// Removes all other marks, as [`Journal::unmark`] does.
    pub fn keep_marks(&mut self, kept: &Regions) {
        let Some(record) = &mut self.record else { return };
        record.marks.intersect_with(kept);
        self.durable.intersect_with(kept);
        self.bump();
    }

    /// The result of waiting for a change; `None`: keep waiting.
    #[must_use]
    pub fn outcome(&self, ticket: Ticket) -> Option<Result<(), RecordWriteError>> {
        let ended = matches!(self.phase, Phase::Ended { .. });
        match (&self.trouble, &self.given_up) {
            (None, _) if !self.is_written(ticket) && !ended => None,
            (_, Some((last, why))) if ticket <= *last => Some(Err(why.clone())),
            (Some(trouble), _) if !self.is_written(ticket) => Some(Err(trouble.clone())),
            _ => Some(Ok(())),
        }
    }

    /// Why the record cannot be written, if that was not reported before.
    pub fn take_trouble(&mut self) -> Option<RecordWriteError> {
        self.trouble.take()
    }

    /// The next record is the last one, that of a closed image: the change to wait for, if a record is kept.
    pub fn close(&mut self) -> Option<Ticket> {
        self.phase = Phase::Closing;
        self.change(|_| {}).then(|| self.ticket())
    }

    /// No record is written any more.
    pub fn end(&mut self) {
        if !matches!(self.phase, Phase::Ended { .. }) {
            self.phase = Phase::Ended { closed: self.phase == Phase::Closing };
        }
    }

    /// Whether [`Journal::end`] was called.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended { .. })
    }

    /// The next job for the recording thread; `None`: nothing to do.
    pub fn next_job(&mut self) -> Option<Job> {
        let up_to_date = self.newest == self.written;
        match (self.phase, &self.record) {
            (Phase::Ended { closed }, record) => Some(Job::End { complete: record.is_none() || closed && up_to_date }),
            _ if up_to_date => None,
            (_, None) => {
                self.written = self.newest;
                Some(Job::Without)
            }
            (phase, Some(record)) => {
                // A mark that this write removes does not count any more.
                self.durable.intersect_with(&record.marks);
                let (last, sync) = (phase == Phase::Closing, self.sync_before.is_some());
                Some(Job::Write { record: Box::new(record.clone()), ticket: self.newest, last, sync })
            }
        }
    }

    /// A record with everything up to `ticket`, and these `marks`, is on stable storage.
    pub fn set_written(&mut self, ticket: Ticket, marks: Regions) {
        (self.written, self.durable, self.trouble) = (ticket, marks, None);
        self.sync_before = self.sync_before.filter(|change| *change > ticket);
    }

    /// The last attempt to write failed.
    pub fn set_trouble(&mut self, why: &str) {
        self.trouble = Some(RecordWriteError(why.to_owned()));
    }

    /// The record could not be written, and its file was removed: there is none any more.
    pub fn give_up(&mut self, why: &str) {
        self.record = None;
        self.durable = Regions::new(self.size);
        self.written = self.newest;
        self.given_up = Some((self.newest, RecordWriteError(why.to_owned())));
        self.set_trouble(why);
    }

    /// The file was removed: no mark is on stable storage.
    pub fn forget_durable(&mut self) {
        self.durable = Regions::new(self.size);
    }

    /// Whether the record, if there is one, says that no other copy can be newer.
    #[must_use]
    pub fn says_alone(&self) -> bool {
        self.record.as_ref().is_none_or(|record| record.role == Role::Alone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn journal() -> Journal {
        Journal::new(Some(Record::new(1, 64 * MIB)), 64 * MIB, true)
    }

    /// Does the next job as storage that works does.
    fn write(journal: &mut Journal) {
        let Some(Job::Write { record, ticket, .. }) = journal.next_job() else { panic!("nothing to write") };
        journal.set_written(ticket, record.marks);
    }

    #[test]
    fn a_mark_counts_once_it_is_written_and_until_it_is_removed() {
        let mut journal = journal();
        assert!(!journal.mark(&[7]));
        assert!(!journal.mark(&[7]), "asked for, and not written");
        write(&mut journal);
        assert!(journal.mark(&[7]));
        assert_eq!(journal.next_job(), None);
        journal.unmark([7].into_iter());
        assert!(!journal.mark(&[7]), "what is being removed does not count");
    }

    #[test]
    fn a_mark_that_is_made_while_one_is_written_needs_another_write() {
        let mut journal = journal();
        journal.mark(&[1]);
        let Some(Job::Write { record, ticket, .. }) = journal.next_job() else { panic!("nothing to write") };
        assert!(!journal.mark(&[40]));
        journal.set_written(ticket, record.marks);
        assert!(journal.mark(&[1]) && !journal.mark(&[40]));
        write(&mut journal);
        assert!(journal.mark(&[40]));
    }

    #[test]
    fn a_sequence_is_marked_ahead() {
        let mut journal = journal();
        journal.mark(&[3]);
        assert_eq!(journal.record().unwrap().marks.count(), 1);
        journal.mark(&[4]);
        assert_eq!(journal.record().unwrap().marks.iter().collect::<Vec<_>>(), [3, 4, 5, 6, 7, 8]);
        journal.mark(&[62, 63]);
        assert_eq!(journal.record().unwrap().marks.count(), 8, "not beyond the image's end");
    }

    #[test]
    fn whoever_waits_hears_of_trouble_from_then_on() {
        let mut journal = journal();
        journal.set_trouble("before");
        journal.change(|_| {});
        let ticket = journal.ticket();
        assert!(journal.outcome(ticket).is_none());
        journal.set_trouble("full");
        assert!(journal.outcome(ticket).unwrap().unwrap_err().to_string().ends_with("full"));
        write(&mut journal);
        assert!(journal.outcome(ticket).unwrap().is_ok());
        assert!(journal.take_trouble().is_none());
    }

    #[test]
    fn a_record_that_is_given_up_was_never_written() {
        let mut journal = journal();
        journal.change(|_| {});
        let ticket = journal.ticket();
        assert!(journal.says_alone());
        journal.give_up("gone");
        assert!(journal.outcome(ticket).unwrap().is_err());
        assert!(journal.mark(&[1]), "nothing to mark in");
        assert_eq!(journal.next_job(), None);
    }

    #[test]
    fn the_image_is_synced_before_the_change_that_needs_it_and_until_that_is_written() {
        let mut journal = journal();
        let syncs = |journal: &mut Journal| match journal.next_job() {
            Some(Job::Write { ticket, record, sync, .. }) => (sync, ticket, record.marks),
            job => panic!("{job:?}"),
        };
        journal.change(|_| {});
        let (sync, before, marks) = syncs(&mut journal);
        assert!(!sync);
        journal.change(|record| record.role = Role::Alone);
        journal.sync_before();
        journal.set_written(before, marks);
        journal.mark(&[7]);
        let (sync, ticket, marks) = syncs(&mut journal);
        assert!(sync, "that write does not have the change");
        journal.set_trouble("full");
        assert!(syncs(&mut journal).0, "as if it had not been synced");
        journal.set_written(ticket, marks);
        journal.change(|_| {});
        assert!(!syncs(&mut journal).0);
    }

    #[test]
    fn only_a_record_that_was_closed_and_written_is_complete() {
        for (closes, writes, complete) in [(true, true, true), (true, false, false), (false, true, false)] {
            let mut journal = journal();
            journal.change(|_| {});
            if closes {
                journal.close();
            }
            if writes {
                write(&mut journal);
            }
            journal.end();
            assert_eq!(journal.next_job(), Some(Job::End { complete }), "{closes} {writes}");
        }
    }
}
