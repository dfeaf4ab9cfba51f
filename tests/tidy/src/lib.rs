//! The repository as tidy tests see it: its files, and what they say, with a place for every complaint.
//!
//! Never: a rule. Those are in `tests/`, one file per subject.

pub mod imports;
pub mod structs;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// One text file of the repository.
#[derive(Debug)]
pub struct Source {
    /// Path from the root of the repository, with forward slashes.
    pub path: String,
    /// All of it.
    pub text: String,
}

/// Root of the repository.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All text files of the repository, in order of path; build output and version control are left out.
#[must_use]
pub fn sources() -> Vec<Source> {
    let mut found = vec![];
    collect(&root(), "", &mut found);
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

/// The text files whose name ends in `end`.
#[must_use]
pub fn sources_ending(end: &str) -> Vec<Source> {
    sources().into_iter().filter(|source| source.path.ends_with(end)).collect()
}

/// Fails the test with all complaints at once, if there are any.
///
/// # Panics
/// When there are complaints.
pub fn report(rule: &str, complaints: &[String]) {
    let mut text = String::new();
    for complaint in complaints {
        let _ = writeln!(text, "  {complaint}");
    }
    assert!(complaints.is_empty(), "{rule}:\n{text}");
}

fn collect(dir: &Path, prefix: &str, found: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && name != "target" && name != ".git" {
            collect(&entry.path(), &path, found);
        } else if kind.is_file()
            && name != "Cargo.lock"
            && name != ".git"
            && let Ok(text) = fs::read_to_string(entry.path())
        {
            found.push(Source { path, text });
        }
    }
}
