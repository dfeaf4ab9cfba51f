//! What a keeper stores: the record, the identity of the witness that it belongs to, and its place in the
//! order of records.
//!
//! A place (a path, a key) can come to hold something else: another file system, a restored backup, a file of
//! another VM. So a record carries an identity, drawn when the first one is made at a place and kept in all
//! later ones, and a number that each change raises. A keeper remembers both and refuses what is not the
//! witness that it knows, or what that was before. A record that was lost may be made anew by whoever
//! remembers it, under the same identity; then numbers begin again, in the next generation.

use std::fmt;
use std::str::FromStr;

use ft_proto::NodeId;
use ft_proto::witness::Replicas;
use serde::{Deserialize, Serialize};

use super::{Stored, WitnessError};

/// No record is larger, so nothing larger is read.
pub(super) const SIZE_MAX: usize = 64 << 10;
/// The highest number that is believed. One change a millisecond would reach it in 8,900 years.
const NUMBER_MAX: u64 = 1 << 48;
/// Tells one witness from another, wherever it is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct WitnessId(u128);

impl fmt::Display for WitnessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for WitnessId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = u128::from_str_radix(text, 16).ok().filter(|_| digits);
        id.map(Self).ok_or("a witness's identity is 32 hexadecimal digits")
    }
}

impl TryFrom<String> for WitnessId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<WitnessId> for String {
    fn from(id: WitnessId) -> Self {
        id.to_string()
    }
}

impl WitnessId {
    fn draw() -> Result<Self, WitnessError> {
        host_kit::random::bytes().map(u128::from_le_bytes).map(Self).map_err(WitnessError::Local)
    }
}

/// A record as it is stored.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Kept {
    /// The witness; `None`: written by a release whose witnesses had no identity.
    #[serde(default)]
    pub(super) witness: Option<WitnessId>,
    /// How many records there were up to this one; 0: as above.
    #[serde(default)]
    pub(super) n: u64,
    /// How often all of them were lost before.
    #[serde(default)]
    pub(super) generation: u64,
    /// The record.
    #[serde(flatten)]
    pub(super) stored: Stored,
}

impl Kept {
    /// Reads what is stored at `place`.
    pub(super) fn decode(bytes: &[u8], place: &str) -> Result<Self, WitnessError> {
        if bytes.len() > SIZE_MAX {
            return Err(WitnessError::Unfit { place: place.to_owned(), why: "too large" });
        }
        let corrupt = |source| match replicas(bytes) {
            count if count > Replicas::MAX => WitnessError::TooManyReplicas { place: place.to_owned(), count },
            _ => WitnessError::Corrupt { place: place.to_owned(), source },
        };
        let kept: Self = serde_json::from_slice(bytes).map_err(corrupt)?;
        let numbered = kept.n.max(kept.generation) <= NUMBER_MAX && (kept.n > 0) == kept.witness.is_some();
        if numbered && kept.stored.record.is_plausible() {
            Ok(kept)
        } else {
            Err(WitnessError::Implausible { place: place.to_owned() })
        }
    }

    /// For [`Self::decode`].
    pub(super) fn encode(&self) -> Result<Vec<u8>, WitnessError> {
        serde_json::to_vec(self).map_err(|error| WitnessError::Local(error.into()))
    }
}

/// How many replicas a record names.
fn replicas(bytes: &[u8]) -> usize {
    #[derive(Deserialize)]
    struct Named {
        in_sync: Vec<NodeId>,
    }
    serde_json::from_slice::<Named>(bytes).map_or(0, |named| named.in_sync.len())
}

/// Reads what is stored at a place, whichever it is: for the fuzz target.
#[cfg(feature = "sim")]
#[must_use]
pub fn decode_stored(bytes: &[u8]) -> Option<Stored> {
    Kept::decode(bytes, "").ok().map(|kept| kept.stored)
}

/// What a keeper has seen of its witness.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Memory(Option<Seen>);

#[derive(Clone, Copy, Debug)]
struct Seen {
    witness: WitnessId,
    /// Generation and number of the last record.
    last: (u64, u64),
    /// There has been none at its place since.
    lost: bool,
}

impl Memory {
    /// Remembers what is stored now, if it is of the witness that is known and not of its past. The place
    /// itself was found to be the one it was.
    pub(super) fn accept(&mut self, kept: Option<&Kept>, place: &str) -> Result<(), WitnessError> {
        let Some(kept) = kept else {
            // Not for keepers to judge. Who knows the witness may make the record anew, and so may a human
            // who does not.
            if let Some(seen) = &mut self.0 {
                seen.lost = true;
            }
            return Ok(());
        };
        let last = (kept.generation, kept.n);
        let same = |seen: &Seen| kept.witness == Some(seen.witness);
        match &self.0 {
            Some(seen) if same(seen) && last < seen.last => Err(WitnessError::Older { place: place.to_owned() }),
            Some(seen) if !same(seen) && !seen.lost => Err(WitnessError::NotTheSame { place: place.to_owned() }),
            _ => {
                self.0 = kept.witness.map(|witness| Seen { witness, last, lost: false });
                Ok(())
            }
        }
    }

    /// What is stored after `last`, with this in it.
    pub(super) fn follow(&self, last: Option<&Kept>, stored: Stored) -> Result<Kept, WitnessError> {
        let (witness, n, generation) = match (last, self.0) {
            (Some(&Kept { witness: Some(witness), n, generation, .. }), _) => (witness, n + 1, generation),
            // Everybody who finds none makes number 1, so that one of them does.
            (_, Some(seen)) => (seen.witness, 1, seen.last.0 + 1),
            (_, None) => (WitnessId::draw()?, 1, 0),
        };
        Ok(Kept { witness: Some(witness), n, generation, stored })
    }
}

#[cfg(test)]
mod tests {
    use ft_proto::witness::Record;
    use ft_proto::{Term, VmId};

    use super::*;

    const STORED: Stored = Stored { vm: Some(VmId(7)), record: Record::Stopped { term: Term(1), disks: Term(0) } };

    #[test]
    fn another_witness_or_an_earlier_record_is_refused() {
        let mut memory = Memory::default();
        let first = memory.follow(None, STORED).unwrap();
        let second = memory.follow(Some(&first), STORED).unwrap();
        assert_eq!((first.n, second.n, first.witness), (1, 2, second.witness));
        memory.accept(Some(&second), "here").unwrap();
        let other = Memory::default().follow(None, STORED).unwrap();
        let plain = Kept { witness: None, n: 0, ..second };
        for unknown in [other, plain] {
            assert!(matches!(memory.accept(Some(&unknown), "here"), Err(WitnessError::NotTheSame { .. })));
        }
        assert!(matches!(memory.accept(Some(&first), "here"), Err(WitnessError::Older { .. })));
        // When it was lost before everybody's eyes, a human may have made another one. The old one does not
        // come back.
        memory.accept(None, "here").unwrap();
        assert!(matches!(memory.accept(Some(&first), "here"), Err(WitnessError::Older { .. })));
        memory.accept(Some(&other), "here").unwrap();
        assert!(matches!(memory.accept(Some(&second), "here"), Err(WitnessError::NotTheSame { .. })));
    }

    #[test]
    fn a_record_that_is_made_anew_is_of_the_same_witness_to_all_who_know_it() {
        let (mut one, mut other) = (Memory::default(), Memory::default());
        let first = one.follow(None, STORED).unwrap();
        let second = one.follow(Some(&first), STORED).unwrap();
        one.accept(Some(&first), "here").unwrap();
        other.accept(Some(&second), "here").unwrap();
        let anew = one.follow(None, STORED).unwrap();
        assert_eq!((anew.n, anew.generation), (1, 1));
        other.accept(Some(&anew), "here").unwrap();
        assert!(matches!(other.accept(Some(&second), "here"), Err(WitnessError::Older { .. })));
    }

    #[test]
    fn a_record_with_too_many_replicas_is_not_corrupt_but_beyond_this_release() {
        let record = |replicas: u64| {
            let all: Vec<_> = (1..=replicas).map(|host| format!("\"{}\"", NodeId::numbered(host, 1))).collect();
            format!(r#"{{"state":"protected","primary":"a/0000000000000001","in_sync":[{}],"term":7}}"#, all.join(","))
        };
        Kept::decode(record(Replicas::MAX as u64).as_bytes(), "/w").unwrap();
        let error = Kept::decode(record(9).as_bytes(), "/w").unwrap_err();
        assert!(matches!(error, WitnessError::TooManyReplicas { count: 9, .. }), "{error:?}");
        assert!(error.to_string().starts_with("/w names 9 replicas: this release supports 2"), "{error}");
    }

    #[test]
    fn what_no_release_has_written_is_refused() {
        let kept = Memory::default().follow(None, STORED).unwrap();
        let text = String::from_utf8(kept.encode().unwrap()).unwrap();
        assert_eq!(Kept::decode(text.as_bytes(), "here").unwrap(), kept);
        for (from, to) in [
            ("\"n\":1", format!("\"n\":{}", u64::MAX)),
            ("\"n\":1", "\"n\":0".to_owned()),
            ("\"generation\":0", format!("\"generation\":{}", u64::MAX)),
            ("\"witness\"", "\"other\"".to_owned()),
            ("\"term\":1", format!("\"term\":{}", u64::MAX)),
        ] {
            let bad = text.replacen(from, &to, 1);
            assert_ne!(bad, text, "{from}");
            assert!(matches!(Kept::decode(bad.as_bytes(), "here"), Err(WitnessError::Implausible { .. })), "{bad}");
        }
        assert!(matches!(Kept::decode(b"{\"witness\":\"x\"}", "here"), Err(WitnessError::Corrupt { .. })));
        assert!(matches!(Kept::decode(&vec![b' '; SIZE_MAX + 1], "here"), Err(WitnessError::Unfit { .. })));
    }
}
