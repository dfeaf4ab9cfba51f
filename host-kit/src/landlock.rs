//! Which files the calling thread, and those that it starts from then on, can still open by name (Landlock).
//!
//! In: places. Out: a thread to which no other file can be opened, made, removed or executed. What is open
//! stays open. A kernel that has no Landlock, or an earlier one, does what it can, and the log
//! says so.

use std::io;
use std::path::{Path, PathBuf};

use ::landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use crate::file::folder;

/// What of Landlock is used, where the kernel has it.
const NEWEST: ABI = ABI::V6;

/// What may be done at a place, and at all that is below it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Opening for reading.
    Read,
    /// Opening for reading and writing, making, renaming and removing.
    Write,
    /// Opening for reading, and executing.
    Execute,
}

/// A file, or a directory with all that is in it. One that does not exist is left out.
pub type Place = (PathBuf, Access);

/// Whether there are others than this process and those that are connected to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Others {
    /// They can be reached.
    Reachable,
    /// No TCP connections can be made or waited for, and other processes get no signals.
    OutOfReach,
}

/// Leaves the calling thread these `places`. Limits add up: what an earlier call has not left stays out.
///
/// # Errors
/// When the kernel refuses. That it has no Landlock is not an error.
pub fn limit(places: &[Place], others: Others) -> io::Result<()> {
    let status = enforce(places, others).map_err(io::Error::other)?;
    match status {
        RulesetStatus::FullyEnforced => tracing::debug!("files are limited to {places:?}"),
        RulesetStatus::PartiallyEnforced => {
            tracing::info!("files are limited, as far as this kernel's Landlock does that");
        }
        RulesetStatus::NotEnforced => tracing::info!("files are not limited: this kernel has no Landlock"),
    }
    Ok(())
}

fn enforce(places: &[Place], others: Others) -> Result<RulesetStatus, RulesetError> {
    let mut rules = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
    rules = rules.handle_access(AccessFs::from_all(NEWEST))?;
    if others == Others::OutOfReach {
        rules = rules.handle_access(AccessNet::from_all(NEWEST))?.scope(Scope::from_all(NEWEST))?;
    }
    let mut rules = rules.create()?;
    for (path, access) in places {
        let Ok(opened) = PathFd::new(path) else {
            tracing::debug!("{} is not there to be left open to us", path.display());
            continue;
        };
        let wanted = flags(*access);
        let allowed = if path.is_dir() { wanted } else { wanted & AccessFs::from_file(NEWEST) };
        rules = rules.add_rule(PathBeneath::new(opened, allowed))?;
    }
    Ok(rules.restrict_self()?.ruleset)
}

fn flags(access: Access) -> BitFlags<AccessFs> {
    match access {
        Access::Read => AccessFs::ReadFile | AccessFs::ReadDir,
        Access::Execute => AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::Execute,
        Access::Write => AccessFs::from_all(NEWEST) & !BitFlags::from(AccessFs::Execute),
    }
}

/// The directory that `path` is in, where files are made and removed.
#[must_use]
pub fn around(path: &Path) -> PathBuf {
    folder(path).to_owned()
}

/// The folder that `path` is in, and that of the file that it leads to. For a file that is opened again
/// later: whoever renews it puts another one in its place.
pub fn folders(path: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let real = path.canonicalize().ok();
    [Some(around(path)), real.as_deref().map(around)].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use std::fs::{File, read_dir, remove_file};

    use super::*;

    /// On a thread of its own, which alone is limited.
    fn limited<T: Send>(places: &[Place], body: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                nix::sys::prctl::set_no_new_privs().unwrap();
                limit(places, Others::OutOfReach).unwrap();
                body()
            });
            thread.join().unwrap()
        })
    }

    /// Whether this kernel enforces anything.
    fn is_enforced() -> bool {
        limited(&[], || File::open("/proc/self/status").is_err())
    }

    #[test]
    fn only_what_is_left_can_be_opened() {
        if !is_enforced() {
            return println!("SKIPPED: this kernel has no Landlock");
        }
        let (ours, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mine, read, other) = (ours.path().join("a"), others.path().join("r"), others.path().join("o"));
        for path in [&mine, &read, &other] {
            File::create(path).unwrap();
        }
        let open = File::open(&other).unwrap();
        let places = [(ours.path().to_owned(), Access::Write), (read.clone(), Access::Read)];
        limited(&places, || {
            File::create(&mine).unwrap();
            File::create(ours.path().join("new")).unwrap();
            remove_file(&mine).unwrap();
            File::open(&read).unwrap();
            assert!(File::options().write(true).open(&read).is_err());
            assert!(File::open(&other).is_err() && remove_file(&other).is_err() && read_dir(others.path()).is_err());
            assert!(open.metadata().is_ok(), "what is open stays so");
        });
    }

    #[test]
    fn what_is_not_there_is_no_error() {
        assert_eq!(limited(&[("/nowhere".into(), Access::Write)], || 7), 7);
    }

    #[test]
    fn a_file_is_in_a_directory() {
        assert_eq!((around(Path::new("/a/b")), around(Path::new("b"))), ("/a".into(), ".".into()));
    }
}
