//! Whether an image is still the one that its record describes, by its file's identity and change time. Pure.
//!
//! The kernel updates a file's change time (ctime) at every write, and no program can set it. So the record's
//! copy of it shows whether another program has written: exactly, after a clean shutdown; after a process was
//! killed, with the page that it left in memory (see [`super::trace`]); after a host failed, by the lease
//! within which the process may have written.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::image::stamp::{FileId, Moment, Stamp};

/// What a record contains about its image's file.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Proof {
    /// Its process shut down cleanly and left this.
    Closed(Stamp),
    /// Its process may be writing to it.
    Open {
        /// The file.
        file: FileId,
        /// The boot of the host.
        boot: u128,
        /// The process.
        run: u128,
        /// The change time on stable storage is not before this, however far it lags behind.
        since: Moment,
        /// End of the lease: the process does not write after this, unless the record names a later time
        /// first.
        until: Moment,
    },
}

/// What a process leaves in memory: survives the process, but not a reboot.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Trace {
    /// The process.
    pub run: u128,
    /// Writes that were started.
    pub begun: u64,
    /// Writes that were done.
    pub done: u64,
    /// Writes that were done when `changed` was read, with none in progress.
    pub noted: u64,
    /// The file's last change then.
    pub changed: Moment,
    /// When the last write was begun.
    pub began: Moment,
    /// Sequence number of the last record that the process has written.
    pub recorded: u64,
}

/// Whether an image is the one that its record describes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It is.
    Same,
    /// There is no evidence either way.
    Unknown(Reason),
    /// It is not.
    Changed(Reason),
}

/// Why an image is not known to be the one that its record describes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    /// The record has no proof: an older version wrote it.
    NotNoted,
    /// A device, or a file system without reliable change times.
    NoTimes,
    /// The size differs.
    Size,
    /// Another file.
    File,
    /// Changed after its process ended.
    Later,
    /// Changed while its process ended, or soon after; these cannot be told apart.
    Meanwhile,
    /// Older than it can be.
    Earlier,
    /// The record is not the last one.
    Record,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotNoted => "its record does not say which file it is about",
            Self::NoTimes => "it is on a device or a file system that does not tell when it was changed",
            Self::Size => "its size has changed",
            Self::File => "it is another file than the one its record is about",
            Self::Later => "it was changed after its process had ended",
            Self::Meanwhile => "it was changed when its process ended, or soon after",
            Self::Earlier => "it is older than its record",
            Self::Record => "its record is older than the last one that its process wrote",
        })
    }
}

/// How long after a write was begun the file's change time may be that of the write.
pub const WRITE_TAKES: std::time::Duration = std::time::Duration::from_millis(50);

/// Compares the proof of the record with this `sequence` number with the stamp that is `found`, on a host in
/// its boot `boot`, and with what a process has left.
#[must_use]
pub fn judge(
    (sequence, proof): (u64, Option<&Proof>),
    found: Option<&Stamp>,
    boot: u128,
    trace: Option<&Trace>,
) -> Verdict {
    let Some(proof) = proof else { return Verdict::Unknown(Reason::NotNoted) };
    let Some(found) = found else { return Verdict::Unknown(Reason::NoTimes) };
    match proof {
        Proof::Closed(stamp) if stamp.file != found.file => Verdict::Changed(Reason::File),
        Proof::Closed(stamp) if stamp == found => Verdict::Same,
        Proof::Closed(_) => Verdict::Changed(Reason::Later),
        Proof::Open { file, .. } if *file != found.file => Verdict::Changed(Reason::File),
        Proof::Open { until, .. } if found.changed > *until => Verdict::Changed(Reason::Later),
        Proof::Open { boot: then, run, until, .. } if *then == boot => {
            let trace = trace.filter(|trace| trace.run == *run);
            match trace {
                // What was written since is not marked in it.
                Some(trace) if sequence < trace.recorded => Verdict::Changed(Reason::Record),
                Some(trace) => by_trace(trace, found.changed, *until),
                None => Verdict::Unknown(Reason::Meanwhile),
            }
        }
        Proof::Open { since, .. } if found.changed < *since => Verdict::Unknown(Reason::Earlier),
        Proof::Open { .. } => Verdict::Same,
    }
}

/// The process ended and the host did not.
fn by_trace(trace: &Trace, changed: Moment, until: Moment) -> Verdict {
    if trace.noted == trace.begun && trace.noted == trace.done {
        return if changed == trace.changed { Verdict::Same } else { Verdict::Changed(Reason::Later) };
    }
    match changed {
        _ if changed < trace.changed => Verdict::Changed(Reason::Earlier),
        _ if changed <= trace.began.plus(WRITE_TAKES).min(until) => Verdict::Same,
        _ => Verdict::Unknown(Reason::Meanwhile),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileId = FileId { system: 1, inode: 2, generation: 3, born: Moment(4) };
    const BOOT: u128 = 8;
    const RUN: u128 = 9;
    const RECORD: u64 = 10;
    const SECOND: i64 = 1_000_000_000;

    fn found(changed: i64) -> Stamp {
        Stamp { file: FILE, changed: Moment(changed), written: Moment(changed) }
    }

    fn open() -> Proof {
        Proof::Open { file: FILE, boot: BOOT, run: RUN, since: Moment(100 * SECOND), until: Moment(300 * SECOND) }
    }

    fn trace(done: u64) -> Trace {
        let (changed, began) = (Moment(200 * SECOND), Moment(201 * SECOND));
        Trace { run: RUN, begun: 7, done, noted: done, changed, began, recorded: RECORD }
    }

    #[test]
    fn after_an_orderly_end_nothing_may_differ() {
        let proof = Proof::Closed(found(500));
        let judge = |found: Stamp| judge((RECORD, Some(&proof)), Some(&found), BOOT, None);
        assert_eq!(judge(found(500)), Verdict::Same);
        // Either side of it: clocks are set back, too.
        assert_eq!([499, 501].map(|changed| judge(found(changed))), [Verdict::Changed(Reason::Later); 2]);
        assert_eq!(judge(Stamp { written: Moment(3), ..found(500) }), Verdict::Changed(Reason::Later));
        for file in [
            FileId { system: 0, ..FILE },
            FileId { inode: 0, ..FILE },
            FileId { generation: 0, ..FILE },
            FileId { born: Moment(0), ..FILE },
        ] {
            assert_eq!(judge(Stamp { file, ..found(500) }), Verdict::Changed(Reason::File), "{file:?}");
        }
    }

    #[test]
    fn after_the_end_of_a_process_its_trace_tells() {
        let judge = |changed, trace: &Trace| judge((RECORD, Some(&open())), Some(&found(changed)), BOOT, Some(trace));
        let quiet = trace(7);
        assert_eq!(judge(200 * SECOND, &quiet), Verdict::Same);
        for changed in [200 * SECOND - 1, 200 * SECOND + 1] {
            assert_eq!(judge(changed, &quiet), Verdict::Changed(Reason::Later));
        }
        let busy = trace(6);
        let last = 201 * SECOND + 50_000_000;
        assert_eq!([200 * SECOND, last].map(|changed| judge(changed, &busy)), [Verdict::Same; 2]);
        assert_eq!(judge(last + 1, &busy), Verdict::Unknown(Reason::Meanwhile));
        assert_eq!(judge(301 * SECOND, &busy), Verdict::Changed(Reason::Later));
        assert_eq!(judge(199 * SECOND, &busy), Verdict::Changed(Reason::Earlier));
        // One that was written after that counts, as its process may have been killed before it noted it.
        let recorded = |sequence| Trace { recorded: sequence, ..quiet };
        assert_eq!(judge(200 * SECOND, &recorded(RECORD - 1)), Verdict::Same);
        assert_eq!(judge(200 * SECOND, &recorded(RECORD + 1)), Verdict::Changed(Reason::Record));
        // Of another process: no evidence about this one.
        let other = Trace { run: 1, ..quiet };
        assert_eq!(judge(200 * SECOND, &other), Verdict::Unknown(Reason::Meanwhile));
    }

    #[test]
    fn after_the_end_of_a_host_the_times_on_record_tell() {
        let judge = |changed| judge((RECORD, Some(&open())), Some(&found(changed)), BOOT + 1, Some(&trace(7)));
        assert_eq!([100, 200, 300].map(|at| judge(at * SECOND)), [Verdict::Same; 3]);
        assert_eq!(judge(301 * SECOND), Verdict::Changed(Reason::Later));
        assert_eq!(judge(99 * SECOND), Verdict::Unknown(Reason::Earlier));
    }

    #[test]
    fn where_nothing_is_noted_or_kept_nothing_is_known() {
        assert_eq!(judge((RECORD, None), Some(&found(1)), BOOT, None), Verdict::Unknown(Reason::NotNoted));
        assert_eq!(judge((RECORD, Some(&open())), None, BOOT, None), Verdict::Unknown(Reason::NoTimes));
        assert_eq!(judge((RECORD, Some(&open())), Some(&found(200)), BOOT, None), Verdict::Unknown(Reason::Meanwhile));
    }
}
