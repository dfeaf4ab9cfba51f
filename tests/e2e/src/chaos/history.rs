//! What clients saw, and whether a store that never loses, repeats or takes back anything can have answered
//! so. Pure.
//!
//! In: every operation of every client, with its times on one clock, and what was in the store at the end.
//! Out: each contradiction. An operation without an answer may or may not have taken effect; either is right.
//! Never: I/O, a clock.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// One append-only row of entries 1, 2, 3, …, written by one client and read by any.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Ledger {
    /// The number that Redis counts up.
    Counter,
    /// Keys in Redis.
    Keys,
    /// A client's rows in the PostgreSQL table.
    Rows(u8),
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Counter => f.write_str("the Redis counter"),
            Self::Keys => f.write_str("the Redis keys"),
            Self::Rows(client) => write!(f, "the PostgreSQL rows of client {client}"),
        }
    }
}

/// What a client asked for, and the answer if there was one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// Counts up by one; the answer is the new number.
    Increment {
        /// The answer, 0 while there is none.
        reply: u64,
    },
    /// Reads how far the ledger goes.
    Read {
        /// The highest entry seen.
        highest: u64,
        /// How many entries were seen.
        count: u64,
    },
    /// Appends an entry.
    Write {
        /// Its number.
        seq: u64,
    },
}

/// One operation of a client. Times count from the beginning of the run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Operation {
    /// Where.
    pub ledger: Ledger,
    /// What.
    pub action: Action,
    /// When it was sent.
    pub invoked: Duration,
    /// When the answer was there; `None`: the outcome is unknown.
    pub answered: Option<Duration>,
}

/// An entry as it was found at the end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Its number.
    pub seq: u64,
    /// Whether its value is the one that was written.
    pub intact: bool,
}

/// What was in the store at the end. The counter at n has the entries 1 to n.
pub type Contents = BTreeMap<Ledger, Vec<Entry>>;

/// A contradiction between what clients were told and what the store held.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Violation {
    /// Another value than was written.
    #[error("{ledger}: entry {seq} is not what was written")]
    Altered {
        /// Where.
        ledger: Ledger,
        /// Which.
        seq: u64,
    },
    /// Acknowledged, and not there at the end.
    #[error("{ledger}: entry {seq} was acknowledged at {:.3} s and is missing", at.as_secs_f64())]
    Lost {
        /// Where.
        ledger: Ledger,
        /// Which.
        seq: u64,
        /// When it was acknowledged.
        at: Duration,
    },
    /// There, though nobody wrote it.
    #[error("{ledger}: entry {seq} was never written by anybody")]
    NeverWritten {
        /// Where.
        ledger: Ledger,
        /// Which.
        seq: u64,
    },
    /// A read saw what nobody had asked for yet.
    #[error("{ledger}: a read at {:.3} s saw {saw}, but only {invoked} was ever sent by then", at.as_secs_f64())]
    ReadAhead {
        /// Where.
        ledger: Ledger,
        /// When the read was answered.
        at: Duration,
        /// What it saw.
        saw: u64,
        /// The highest that was possible.
        invoked: u64,
    },
    /// A read did not see what somebody had seen, or been told is safe, before it began.
    #[error("{ledger}: a read at {:.3} s saw {saw}, after {known} was known", at.as_secs_f64())]
    ReadWentBack {
        /// Where.
        ledger: Ledger,
        /// When the read began.
        at: Duration,
        /// What it saw.
        saw: u64,
        /// What was known.
        known: u64,
    },
    /// A read saw fewer or more entries than its highest one allows.
    #[error("{ledger}: a read at {:.3} s saw {count} entries up to {highest}", at.as_secs_f64())]
    ReadWithHoles {
        /// Where.
        ledger: Ledger,
        /// When the read was answered.
        at: Duration,
        /// How many it saw.
        count: u64,
        /// Their highest.
        highest: u64,
    },
    /// The counter gave a number again.
    #[error("{ledger}: the answer {reply} came at {:.3} s, after {last}", at.as_secs_f64())]
    Repeated {
        /// Where.
        ledger: Ledger,
        /// When.
        at: Duration,
        /// The answer.
        reply: u64,
        /// The one before.
        last: u64,
    },
    /// The counter left a number out.
    #[error("{ledger}: the answer {reply} came at {:.3} s, right after {last}", at.as_secs_f64())]
    Skipped {
        /// Where.
        ledger: Ledger,
        /// When.
        at: Duration,
        /// The answer.
        reply: u64,
        /// The one before.
        last: u64,
    },
    /// There more than once.
    #[error("{ledger}: entry {seq} is there {times} times")]
    Twice {
        /// Where.
        ledger: Ledger,
        /// Which.
        seq: u64,
        /// How often.
        times: usize,
    },
}

/// Every contradiction in a history. `operations` of one client are in the order in which it sent them.
#[must_use]
pub fn check(operations: &[Operation], contents: &Contents) -> Vec<Violation> {
    let ledgers: BTreeSet<Ledger> = operations.iter().map(|op| op.ledger).chain(contents.keys().copied()).collect();
    let mut violations = vec![];
    for ledger in ledgers {
        let own: Vec<&Operation> = operations.iter().filter(|op| op.ledger == ledger).collect();
        let entries = contents.get(&ledger).map_or(&[][..], Vec::as_slice);
        let one = History { ledger, writes: numbered(&own), operations: own };
        one.check_answers(&mut violations);
        one.check_reads(&mut violations);
        one.check_end(entries, &mut violations);
    }
    violations
}

/// What is known of one entry: (number, when it was sent, when it was acknowledged).
type Write = (u64, Duration, Option<Duration>);

/// The writes with their numbers. That of an increment without an answer is at most the one before it plus
/// one; no smaller bound is safe, as it may have taken effect.
fn numbered(operations: &[&Operation]) -> Vec<Write> {
    let mut highest = 0;
    let mut writes = vec![];
    for op in operations {
        let seq = match (op.action, op.answered) {
            (Action::Write { seq }, _) => seq,
            (Action::Increment { reply }, Some(_)) => reply,
            (Action::Increment { .. }, None) => highest + 1,
            (Action::Read { .. }, _) => continue,
        };
        highest = highest.max(seq);
        writes.push((seq, op.invoked, op.answered));
    }
    writes
}

/// The history of one ledger.
struct History<'a> {
    ledger: Ledger,
    operations: Vec<&'a Operation>,
    writes: Vec<Write>,
}

impl History<'_> {
    /// The counter's answers are 1, 2, 3, …; an increment without an answer may have taken one of the
    /// numbers.
    fn check_answers(&self, violations: &mut Vec<Violation>) {
        let (mut last, mut unknown) = (0, 0);
        for op in &self.operations {
            let Action::Increment { reply } = op.action else { continue };
            let Some(at) = op.answered else {
                unknown += 1;
                continue;
            };
            if reply <= last {
                violations.push(Violation::Repeated { ledger: self.ledger, at, reply, last });
            } else if reply > last + 1 + unknown {
                violations.push(Violation::Skipped { ledger: self.ledger, at, reply, last });
            }
            (last, unknown) = (reply, 0);
        }
    }

    /// A read sees at least what was known before it began, at most what was sent before it was answered, and
    /// no hole.
    fn check_reads(&self, violations: &mut Vec<Violation>) {
        let ledger = self.ledger;
        let sent = Rising::new(self.writes.iter().map(|(seq, invoked, _)| (*invoked, *seq)));
        let acknowledged = self.writes.iter().filter_map(|(seq, _, answered)| Some(((*answered)?, *seq)));
        let reads = || {
            self.operations.iter().filter_map(|op| match (op.action, op.answered) {
                (Action::Read { highest, count }, Some(answered)) => Some((op.invoked, answered, highest, count)),
                _ => None,
            })
        };
        let known = Rising::new(acknowledged.chain(reads().map(|(_, answered, highest, _)| (answered, highest))));
        for (invoked, answered, highest, count) in reads() {
            let (floor, ceiling) = (known.before(invoked), sent.before(answered));
            if highest < floor {
                violations.push(Violation::ReadWentBack { ledger, at: invoked, saw: highest, known: floor });
            }
            if highest > ceiling {
                violations.push(Violation::ReadAhead { ledger, at: answered, saw: highest, invoked: ceiling });
            }
            let unknown = self.writes.iter().filter(|(seq, _, answered)| answered.is_none() && *seq < highest).count();
            if count > highest || count + (unknown as u64) < highest {
                violations.push(Violation::ReadWithHoles { ledger, at: answered, count, highest });
            }
        }
    }

    /// Every acknowledged entry is there, once, as it was written, and no other but those without an answer.
    fn check_end(&self, entries: &[Entry], violations: &mut Vec<Violation>) {
        let ledger = self.ledger;
        let mut found: BTreeMap<u64, usize> = BTreeMap::new();
        for entry in entries {
            *found.entry(entry.seq).or_default() += 1;
            if !entry.intact {
                violations.push(Violation::Altered { ledger, seq: entry.seq });
            }
        }
        let written: BTreeMap<u64, Option<Duration>> = self.writes.iter().map(|(seq, _, at)| (*seq, *at)).collect();
        for (seq, times) in &found {
            if !written.contains_key(seq) {
                violations.push(Violation::NeverWritten { ledger, seq: *seq });
            }
            if *times > 1 {
                violations.push(Violation::Twice { ledger, seq: *seq, times: *times });
            }
        }
        for (seq, at) in written {
            if let Some(at) = at.filter(|_| !found.contains_key(&seq)) {
                violations.push(Violation::Lost { ledger, seq, at });
            }
        }
    }
}

/// A height that only ever rises: the highest number seen up to a time.
struct Rising(Vec<(Duration, u64)>);

impl Rising {
    fn new(marks: impl Iterator<Item = (Duration, u64)>) -> Self {
        let mut marks: Vec<_> = marks.collect();
        marks.sort_unstable();
        let mut highest = 0;
        for mark in &mut marks {
            highest = highest.max(mark.1);
            mark.1 = highest;
        }
        Self(marks)
    }

    /// The height that was reached before `at`.
    fn before(&self, at: Duration) -> u64 {
        let after = self.0.partition_point(|(when, _)| *when < at);
        after.checked_sub(1).map_or(0, |last| self.0[last].1)
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
