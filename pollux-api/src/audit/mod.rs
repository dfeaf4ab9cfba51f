//! The audit log of the API: who had a VMM do what, one line of JSON for each entry, each with the hash of
//! the line before it.
//!
//! In: what happened. Out: its line ([`Chain`]), and whether lines that were read are still those that were
//! written ([`verify`]). Never: files or clocks.
//!
//! Whoever can write the file can also compute all hashes anew. The chain shows that lines were changed,
//! removed or added to anyone who has kept one later hash in another place.

mod verify;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

pub use self::verify::{Broken, Reason, Summary, verify};

/// The hash that the first line names.
pub const NO_LINE: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Longest line, in bytes: what an entry has of a client is cut to far less.
pub const LINE_MAX: usize = 64 << 10;
/// So many bytes of the first line are the same in every log: `{"seq":1,`.
const FIRST_BYTES: usize = 9;

/// A line.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Entry {
    /// Counts up from 1, over restarts.
    pub seq: u64,
    /// When it was written, RFC 3339.
    pub time: String,
    /// SHA-256 of the entry before it, without its line end; [`NO_LINE`] in the first.
    pub prev: String,
    /// Behind that entry are so many bytes of one that was not completed. `prev` is the hash of both, from
    /// the beginning of the one to the end of the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub torn: Option<usize>,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What can happen.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A VMM begins to write to the log.
    Opened {
        /// Its process.
        vmm: u32,
        /// Its version.
        version: String,
    },
    /// A call that changes something begins to be performed.
    Begun(Call),
    /// It has been performed, or has failed.
    Ended {
        /// The call.
        #[serde(flatten)]
        call: Call,
        /// How it ended.
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// A request that was not performed at all.
    Refused {
        /// The request.
        #[serde(flatten)]
        call: Call,
        /// Why.
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// Entries could not be written.
    Lost {
        /// How many.
        entries: u64,
        /// Why the last of them was not.
        reason: String,
    },
    /// The VMM has ended in order.
    Closed,
}

/// A request, and who has sent it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Call {
    /// Numbers the requests since the log was opened: `begun` and `ended` of one call have the same.
    #[serde(rename = "call")]
    pub number: u64,
    /// The client.
    #[serde(flatten)]
    pub client: Client,
    /// Method of HTTP.
    pub method: String,
    /// Path, without a query.
    pub path: String,
    /// Its parameters, without secrets; text if they are too long, or not JSON.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub parameters: Value,
}

/// A process at the other end of a connection, as it was when it connected.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Client {
    /// Its number; 0 if it is in another namespace.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its name, if it could be read. A process chooses it freely.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
}

/// How a request ended.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Outcome {
    /// Status of HTTP.
    pub status: u16,
    /// What programs know the error by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// How long it took, in microseconds.
    pub duration_us: u64,
}

/// The hash of a line without its line end, in hexadecimal.
#[must_use]
pub fn hash(line: &[u8]) -> String {
    Sha256::digest(line).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The end of a log that is being written.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain {
    seq: u64,
    prev: String,
    torn: Option<usize>,
}

impl Default for Chain {
    /// The end of an empty log.
    fn default() -> Self {
        Self { seq: 0, prev: NO_LINE.to_owned(), torn: None }
    }
}

impl Chain {
    /// The end of a log, from its last bytes: all of it, or more than two of its longest lines. `None`: it is
    /// not one.
    #[must_use]
    pub fn after(tail: &[u8]) -> Option<Self> {
        if tail.is_empty() {
            return Some(Self::default());
        }
        let tail = tail.strip_suffix(b"\n").unwrap_or(tail);
        let mut end = tail.len();
        for line in tail.rsplit(|byte| *byte == b'\n') {
            let begin = end - line.len();
            if let Some(entry) = Entry::read(line) {
                let torn = tail.len().checked_sub(end + 1);
                return Some(Self { seq: entry.seq, prev: hash(&tail[begin..]), torn });
            }
            end = begin.saturating_sub(1);
        }
        // The very first entry may be the one that was not completed.
        let first = Self::default().entry("", Event::Closed);
        let is_first = tail.starts_with(&first[..tail.len().min(FIRST_BYTES)]);
        is_first.then(|| Self { seq: 0, prev: hash(tail), torn: Some(tail.len()) })
    }

    /// The line of a next entry, without its line end.
    #[must_use]
    pub fn entry(&self, time: &str, event: Event) -> Vec<u8> {
        let Self { seq, prev, torn } = self.clone();
        let entry = Entry { seq: seq.saturating_add(1), time: time.to_owned(), prev, torn, event };
        // Nothing in it can fail to be JSON.
        serde_json::to_vec(&entry).unwrap_or_default()
    }

    /// A line that [`Self::entry`] made is written.
    pub fn written(&mut self, line: &[u8]) {
        *self = Self { seq: self.seq.saturating_add(1), prev: hash(line), torn: None };
    }

    /// How many bytes follow the last entry that are none.
    #[must_use]
    pub fn torn(&self) -> Option<usize> {
        self.torn
    }

    /// The number of the last entry.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.seq
    }
}

impl Entry {
    /// `None`: the line is not an entry.
    fn read(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> Call {
        let client = Client { pid: 7, uid: 0, gid: 0, comm: Some("pollux".to_owned()) };
        let path = "/api/v1/vm.pause".to_owned();
        Call { number: 1, client, method: "PUT".to_owned(), path, parameters: Value::Null }
    }

    #[test]
    fn an_entry_is_one_flat_object() {
        let outcome = Outcome { status: 500, code: Some("not-running".to_owned()), duration_us: 3 };
        let line = Chain::default().entry("t", Event::Ended { call: call(), outcome });
        let expected = format!(
            "{{\"seq\":1,\"time\":\"t\",\"prev\":\"{NO_LINE}\",\"event\":\"ended\",\"call\":1,\"pid\":7,\"uid\":0,\"gid\":0,\
             \"comm\":\"pollux\",\"method\":\"PUT\",\"path\":\"/api/v1/vm.pause\",\"status\":500,\"code\":\"not-running\",\
             \"duration_us\":3}}"
        );
        assert_eq!(String::from_utf8(line).unwrap(), expected);
    }

    #[test]
    fn a_chain_continues_after_what_is_there() {
        let mut chain = Chain::default();
        let mut log = Vec::new();
        for _ in 0..2 {
            let line = chain.entry("t", Event::Begun(call()));
            assert!(Entry::read(&line).is_some());
            chain.written(&line);
            log.extend([&line[..], b"\n"].concat());
        }
        assert_eq!(Chain::after(&log), Some(chain.clone()));
        // All of its last line but the line end.
        assert_eq!(Chain::after(&log[..log.len() - 1]), Some(chain.clone()));
        let first = log.iter().position(|byte| *byte == b'\n').unwrap();
        for (cut, seq, torn) in
            [(log.len() - 2, 1, log.len() - 3 - first), (first + 3, 1, 2), (first - 1, 0, first - 1), (1, 0, 1)]
        {
            let after = Chain::after(&log[..cut]).unwrap();
            assert_eq!((after.seq(), after.torn()), (seq, Some(torn)), "{cut}");
        }
        for other in ["root:x:0:0:root:/root:/bin/bash\n", "\n\n", "{}", "{\"seq\":2,"] {
            assert_eq!(Chain::after(other.as_bytes()), None);
        }
    }
}
