//! Whether the lines of an audit log are those that were written.

use std::io::{self, BufRead, Read};

use serde::Serialize;

use super::{Entry, Event, LINE_MAX, NO_LINE, hash};

/// What a whole chain has.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// How many entries.
    pub entries: u64,
    /// The number of the first one: those before it are in earlier files.
    pub first: u64,
    /// The number of the last one.
    pub last: u64,
    /// When the last one was written.
    pub time: String,
    /// The hash of the last line.
    pub hash: String,
    /// Entries that could not be written, as the log itself says.
    pub lost: u64,
    /// Entries that were not completed, and followed by one that says so.
    pub torn: u64,
    /// The last entry is not complete: it is being written, or was when the VMM or its host died.
    pub is_cut: bool,
}

/// Where a chain breaks.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct Broken {
    /// The first line that is wrong, from 1, over all that was read.
    pub line: u64,
    /// What is wrong with it.
    pub reason: Reason,
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// It is not JSON, or not an entry, and no next one says that it was not completed.
    #[error("it is not an entry")]
    NotAnEntry,
    /// It is the first one, and says that it is not.
    #[error("entry {0} names a line before it, and there is none")]
    NoBeginning(u64),
    /// Its hash is not that of the line before.
    #[error(
        "it does not follow from the line before: that line was changed, or lines between them were removed or added"
    )]
    Hash,
    /// It is not the next one.
    #[error("its number is {found}, and {expected} would be next")]
    Number {
        /// Its number.
        found: u64,
        /// The next one.
        expected: u64,
    },
    /// It says something else of what is behind the entry before it than what is there.
    #[error("it does not say how much of an incomplete entry is before it")]
    Torn,
    /// The log cannot be read.
    #[error("it cannot be read: {0}")]
    Read(#[source] io::Error),
}

/// What the next entry follows: the last one, and what is behind it.
#[derive(Debug, Default)]
struct Before {
    /// From the beginning of the entry on, without the last line end.
    bytes: Vec<u8>,
    /// How many of those are behind it.
    torn: Option<usize>,
}

impl Before {
    fn entry(line: Vec<u8>) -> Self {
        Self { bytes: line, torn: None }
    }

    /// Another line that is not an entry.
    fn add(&mut self, line: &[u8], is_first: bool) {
        if !is_first {
            self.bytes.push(b'\n');
        }
        self.bytes.extend_from_slice(line);
        self.torn = Some(self.torn.map_or(line.len(), |torn| torn + 1 + line.len()));
    }
}

/// Reads a log to its end, file after file. `seen` is called with the hash of every entry's line.
///
/// # Errors
/// Where the chain breaks first.
pub fn verify(logs: impl IntoIterator<Item = impl BufRead>, mut seen: impl FnMut(&str)) -> Result<Summary, Broken> {
    let (mut summary, mut before, mut number) = (Summary::default(), Before::default(), 0);
    // The first of the lines that are not entries.
    let mut wrong = None;
    for mut log in logs {
        if let Some(wrong) = wrong {
            // Only the last entry of all may be incomplete.
            return Err(at(wrong, Reason::NotAnEntry));
        }
        while let Some((line, is_whole)) = next_line(&mut log).map_err(|error| at(number + 1, Reason::Read(error)))? {
            number += 1;
            if let Some(entry) = Entry::read(&line) {
                check(&entry, &before, &summary).map_err(|reason| at(number, reason))?;
                let hash = hash(&line);
                seen(&hash);
                summary = with(summary, entry, hash);
                (before, wrong) = (Before::entry(line), None);
            } else {
                before.add(&line, number == 1);
                wrong = wrong.or(Some(number));
                summary.is_cut = !is_whole;
                if before.torn > Some(LINE_MAX) {
                    break;
                }
            }
        }
    }
    match wrong {
        Some(line) if !summary.is_cut || before.torn > Some(LINE_MAX) => Err(at(line, Reason::NotAnEntry)),
        _ => Ok(summary),
    }
}

fn at(line: u64, reason: Reason) -> Broken {
    Broken { line, reason }
}

/// What there is with one more entry.
fn with(summary: Summary, entry: Entry, hash: String) -> Summary {
    let lost = if let Event::Lost { entries, .. } = entry.event { entries } else { 0 };
    Summary {
        entries: summary.entries + 1,
        first: if summary.entries == 0 { entry.seq } else { summary.first },
        last: entry.seq,
        time: entry.time,
        hash,
        lost: summary.lost.saturating_add(lost),
        torn: summary.torn + u64::from(entry.torn.is_some()),
        is_cut: false,
    }
}

fn check(entry: &Entry, before: &Before, summary: &Summary) -> Result<(), Reason> {
    if before.bytes.is_empty() && before.torn.is_none() {
        let is_first = entry.seq == 1 && entry.prev == NO_LINE && entry.torn.is_none();
        // Those before it may be in a file that was put away.
        return if is_first || entry.seq > 1 { Ok(()) } else { Err(Reason::NoBeginning(entry.seq)) };
    }
    if entry.prev != hash(&before.bytes) {
        return Err(Reason::Hash);
    }
    if entry.torn != before.torn {
        return Err(Reason::Torn);
    }
    let expected = summary.last.saturating_add(1);
    if entry.seq != expected {
        return Err(Reason::Number { found: entry.seq, expected });
    }
    Ok(())
}

/// The next line without its end, and whether it had one.
fn next_line(log: &mut impl BufRead) -> io::Result<Option<(Vec<u8>, bool)>> {
    let mut line = Vec::new();
    let most = u64::try_from(LINE_MAX).unwrap_or(u64::MAX).saturating_add(1);
    log.by_ref().take(most).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    let is_whole = line.ends_with(b"\n");
    if is_whole {
        line.pop();
    } else if line.len() > LINE_MAX {
        return Err(io::Error::other(format!("the line is longer than {LINE_MAX} bytes")));
    }
    Ok(Some((line, is_whole)))
}

#[cfg(test)]
mod tests {
    use super::super::Chain;
    use super::*;

    fn check_log(log: &[u8]) -> Result<Summary, String> {
        verify([log], |_| {}).map_err(|broken| broken.to_string())
    }

    /// So many lines.
    fn log(chain: &mut Chain, lines: usize) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        for _ in 0..lines {
            let line = chain.entry("2026-01-01T00:00:00Z", Event::Lost { entries: 2, reason: "full".to_owned() });
            chain.written(&line);
            all.push([&line[..], b"\n"].concat());
        }
        all
    }

    #[test]
    fn a_whole_chain_is_summed_up() {
        let mut chain = Chain::default();
        let lines = log(&mut chain, 3);
        let summary = check_log(&lines.concat()).unwrap();
        assert_eq!((summary.entries, summary.first, summary.last, summary.lost), (3, 1, 3, 6));
        let mut seen = Vec::new();
        verify([&lines.concat()[..]], |hash| seen.push(hash.to_owned())).unwrap();
        assert_eq!(seen.last(), Some(&summary.hash));
        assert_eq!(seen[0], hash(lines[0].strip_suffix(b"\n").unwrap()));
        assert_eq!(check_log(b"").unwrap(), Summary::default());
    }

    #[test]
    fn any_change_of_a_line_but_the_last_is_found() {
        let lines = log(&mut Chain::default(), 4);
        let whole = lines.concat();
        let without = |gone: usize| {
            let kept = lines.iter().enumerate().filter(|(at, _)| *at != gone);
            kept.flat_map(|(_, line)| line.clone()).collect::<Vec<_>>()
        };
        let follows = "it does not follow from the line before: that line was changed, or lines between them were removed or added";
        assert_eq!(check_log(&without(1)).unwrap_err(), format!("line 2: {follows}"));
        assert_eq!(check_log(&without(2)).unwrap_err(), format!("line 3: {follows}"));
        // Of the first and the last one only the numbers tell.
        assert_eq!(check_log(&without(0)).unwrap().first, 2);
        assert_eq!(check_log(&without(3)).unwrap().last, 3);
        let unprotected = whole.len() - lines[3].len();
        for at in 0..unprotected {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            assert!(check_log(&changed).is_err(), "{at}");
        }
        assert!(check_log(&[whole.clone(), lines[3].clone()].concat()).is_err(), "an entry twice");
        assert!(check_log(&[&whole[..], b"garbage\n"].concat()).unwrap_err().ends_with("it is not an entry"));
    }

    #[test]
    fn an_incomplete_entry_is_accepted_if_the_next_one_tells() {
        let lines = log(&mut Chain::default(), 2).concat();
        let part = &lines[..20];
        for torn in [part.to_vec(), [part, b"\n", part].concat(), vec![0; 100]] {
            let found = [&lines[..], &torn].concat();
            let summary = check_log(&found).unwrap();
            assert!(summary.is_cut && summary.entries == 2);
            assert!(check_log(&[&found[..], b"\n"].concat()).is_err(), "somebody has ended it and did not tell");
            let mut chain = Chain::after(&found).unwrap();
            assert_eq!((chain.seq(), chain.torn()), (2, Some(torn.len())));
            let whole = [&found[..], b"\n", &log(&mut chain, 2).concat()].concat();
            let summary = check_log(&whole).unwrap();
            assert_eq!((summary.entries, summary.torn, summary.is_cut), (4, 1, false));
            // Neither it nor the entry before it can be changed.
            for at in 0..found.len() {
                let mut changed = whole.clone();
                changed[at] ^= 1;
                assert!(check_log(&changed).is_err(), "{at}");
            }
            let without = [&lines[..], &whole[found.len() + 1..]].concat();
            assert!(check_log(&without).is_err());
        }
    }

    #[test]
    fn the_very_first_entry_may_be_incomplete() {
        let first = &log(&mut Chain::default(), 1).concat()[..30];
        let mut chain = Chain::after(first).unwrap();
        let whole = [first, b"\n", &log(&mut chain, 2).concat()].concat();
        let summary = check_log(&whole).unwrap();
        assert_eq!((summary.first, summary.last, summary.torn), (1, 2, 1));
    }

    #[test]
    fn files_are_one_chain_in_their_order() {
        let mut chain = Chain::default();
        let [first, second] = [log(&mut chain, 2).concat(), log(&mut chain, 2).concat()];
        assert_eq!(verify([&first[..], &second[..]], |_| {}).unwrap().last, 4);
        assert_eq!(verify([&second[..]], |_| {}).unwrap().first, 3);
        assert!(verify([&second[..], &first[..]], |_| {}).is_err());
        let cut = &first[..first.len() - 5];
        assert!(verify([cut, &second[..]], |_| {}).is_err());
        let endless = vec![b'x'; LINE_MAX + 1];
        assert!(check_log(&endless).unwrap_err().ends_with("longer than 65536 bytes"));
        assert_eq!(check_log(&b"x\n".repeat(LINE_MAX)).unwrap_err(), "line 1: it is not an entry");
    }
}
