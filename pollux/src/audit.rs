//! `pollux audit`: whether the lines of an audit log are those that were written.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

use pollux_api::audit::{Summary, verify};

use crate::args::{AuditCommand, Verify};
use crate::client::ClientError;
use crate::error::{AuditError, CommandError};
use crate::plain;
use crate::print::show;

/// Runs it.
///
/// # Errors
/// Why it was not done.
pub fn run(command: &AuditCommand) -> Result<(), CommandError> {
    let AuditCommand::Verify(Verify { files, contains, json }) = command;
    let open = |path: &PathBuf| match File::open(path) {
        Ok(file) => Ok(BufReader::new(file)),
        Err(source) => Err(AuditError::Open { path: path.clone(), source }),
    };
    let logs = files.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let mut is_there = false;
    let seen = |hash: &str| is_there |= contains.as_ref().is_some_and(|wanted| wanted.eq_ignore_ascii_case(hash));
    let summary = verify(logs, seen).map_err(|broken| AuditError::Broken { place: names(files), broken })?;
    if let Some(wanted) = contains.as_ref().filter(|_| !is_there) {
        return Err(AuditError::Missing(wanted.clone()).into());
    }
    if *json {
        return show(&serde_json::to_value(summary).map_err(ClientError::from)?);
    }
    Ok(writeln!(io::stdout(), "{}", plain::lines(&in_words(&summary)))?)
}

fn names(files: &[PathBuf]) -> String {
    files.iter().map(|path| Path::display(path).to_string()).collect::<Vec<_>>().join(" + ")
}

fn in_words(summary: &Summary) -> String {
    let Summary { entries, first, last, time, hash, lost, torn, is_cut } = summary;
    if *entries == 0 {
        return "there is no entry".to_owned();
    }
    let mut text = format!("the chain is whole: {entries} entries, {first} to {last}; the last of {time}, hash {hash}");
    let mut add = |line: String| text.push_str(&format!("\n  {line}"));
    if *first > 1 {
        add(format!("entry {first} follows others, which are in no file that was given"));
    }
    if *lost > 0 {
        add(format!("{lost} entries could not be written: see the `lost` ones"));
    }
    if *torn > 0 {
        add(format!("{torn} entries are incomplete: the VMM or its host died when it wrote them"));
    }
    if *is_cut {
        add("the last entry is incomplete: it is being written, or the VMM or its host died then".to_owned());
    }
    text
}
