//! The file of the audit log: entries are added to its end, and nothing in it is ever changed.
//!
//! In: entries. Out: lines, and what an earlier process has left there. Never: a line of which only the
//! beginning is written while the process lives: its rest is written before anything else.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use host_kit::warn_limited;
use host_kit::whole_writer::WholeWriter;
use nix::fcntl::OFlag;
use pollux_api::audit::{Chain, Event, LINE_MAX};

/// Why there is no audit log.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The file cannot be opened, read or written.
    #[error("the audit log {path} cannot be used")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is something else.
    #[error("the audit log {0} exists and is not one: give another file, or move it away")]
    NotALog(PathBuf),
    /// Another VMM writes to it.
    #[error("the audit log {0} is in use by another process: each VMM needs its own")]
    InUse(PathBuf),
}

/// A log that is written.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    out: WholeWriter<File>,
    chain: Chain,
}

impl LogFile {
    /// Goes on with the log at `path`, or begins one.
    ///
    /// # Errors
    /// When it cannot be used, or is something else.
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        let named = |source| AuditError::File { path: path.to_owned(), source };
        let mut file = open(path).map_err(named)?;
        if !file.metadata().map_err(named)?.is_file() {
            return Err(AuditError::NotALog(path.to_owned()));
        }
        if !lock(&file).map_err(named)? {
            return Err(AuditError::InUse(path.to_owned()));
        }
        let tail = tail(&mut file).map_err(named)?;
        let chain = Chain::after(&tail).ok_or_else(|| AuditError::NotALog(path.to_owned()))?;
        if let Some(bytes) = chain.torn() {
            tracing::warn!("the audit log {} ends with {bytes} bytes of an incomplete entry", path.display());
        }
        // A line end for what has none.
        let rest = if tail.last().is_none_or(|last| *last == b'\n') { Vec::new() } else { vec![b'\n'] };
        Ok(Self { path: path.to_owned(), out: WholeWriter::with_rest(file, rest), chain })
    }

    /// Adds an entry to the end.
    ///
    /// # Errors
    /// When nothing of it was written, nor ever will be.
    pub fn add(&mut self, event: Event) -> io::Result<()> {
        if !self.out.catch_up()? {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.follow_name();
        let mut line = self.chain.entry(&jiff::Timestamp::now().to_string(), event);
        line.push(b'\n');
        self.out.write(&line)?;
        line.pop();
        self.chain.written(&line);
        Ok(())
    }

    /// Returns when what was added is on stable storage.
    ///
    /// # Errors
    /// When the storage does not take it.
    pub fn sync(&self) -> io::Result<()> {
        self.out.get_ref().sync_data()
    }

    /// If the file was renamed or removed, as programs do that keep logs small, the chain goes on in a new
    /// one.
    fn follow_name(&mut self) {
        let identity = |metadata: &std::fs::Metadata| (metadata.dev(), metadata.ino());
        let own = self.out.get_ref().metadata().map(|own| identity(&own)).ok();
        let named = std::fs::metadata(&self.path).map(|named| identity(&named));
        let is_same = match &named {
            Ok(named) => own.as_ref() == Some(named),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        };
        if is_same {
            return;
        }
        match self.successor() {
            Ok(file) => self.out.redirect(file),
            Err(error) => {
                warn_limited!(
                    "the audit log {} was put away, and still written: no new one can be made: {error}",
                    self.path.display()
                );
            }
        }
    }

    fn successor(&self) -> io::Result<File> {
        let file = open(&self.path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() > 0 {
            return Err(io::Error::other("there is a file of that name"));
        }
        if lock(&file)? { Ok(file) } else { Err(io::Error::other("it is in use by another process")) }
    }
}

/// To read it, and to write to its end only. A FIFO in its place is not waited for.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).custom_flags(flags.bits()).open(path)
}

/// Whether we have it for ourselves; for as long as it is open.
fn lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The last bytes of a file, as many as [`Chain::after`] needs.
fn tail(file: &mut File) -> io::Result<Vec<u8>> {
    let most = u64::try_from(4 * LINE_MAX).unwrap_or(u64::MAX);
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut tail = Vec::new();
    file.take(most).read_to_end(&mut tail)?;
    Ok(tail)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use std::io::BufReader;

    use pollux_api::audit::{Summary, verify};

    use super::*;

    fn check(paths: &[&Path]) -> Summary {
        verify(paths.iter().map(|path| BufReader::new(File::open(path).unwrap())), |_| {}).unwrap()
    }

    fn opened() -> Event {
        Event::Opened { vmm: 1, version: "v".to_owned() }
    }

    #[test]
    fn a_log_goes_on_after_a_restart_even_if_its_end_is_torn() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for _ in 0..3 {
            let mut log = LogFile::open(&path).unwrap();
            log.add(opened()).unwrap();
            log.add(Event::Closed).unwrap();
        }
        assert_eq!(check(&[&path]).last, 6);
        let length = std::fs::metadata(&path).unwrap().len();
        File::options().write(true).open(&path).unwrap().set_len(length - 10).unwrap();
        LogFile::open(&path).unwrap().add(opened()).unwrap();
        let summary = check(&[&path]);
        assert_eq!((summary.last, summary.torn), (6, 1));
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_log_that_is_put_away_goes_on_in_a_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let [path, old] = ["log", "log.1"].map(|name| dir.path().join(name));
        let mut log = LogFile::open(&path).unwrap();
        log.add(opened()).unwrap();
        std::fs::rename(&path, &old).unwrap();
        log.add(Event::Closed).unwrap();
        drop(log);
        LogFile::open(&path).unwrap().add(opened()).unwrap();
        assert_eq!((check(&[&old]).last, check(&[&path]).first, check(&[&old, &path]).entries), (1, 2, 3));
        // Something else has its name: what there is of the log is still written.
        let mut log = LogFile::open(&path).unwrap();
        std::fs::rename(&path, &old).unwrap();
        std::fs::write(&path, "something else").unwrap();
        log.add(Event::Closed).unwrap();
        assert_eq!(check(&[&old]).last, 4);
    }

    #[test]
    fn what_is_no_log_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "precious\n").unwrap();
        assert!(matches!(LogFile::open(&path), Err(AuditError::NotALog(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious\n");
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(LogFile::open(&fifo), Err(AuditError::NotALog(_))));
        let ours = dir.path().join("ours");
        let _first = LogFile::open(&ours).unwrap();
        assert!(matches!(LogFile::open(&ours), Err(AuditError::InUse(_))));
        assert!(matches!(LogFile::open(&dir.path().join("no/log")), Err(AuditError::File { .. })));
    }

    #[test]
    fn a_line_that_was_begun_is_finished_before_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogFile::open(&path).unwrap();
        log.add(opened()).unwrap();
        // As if the file system had taken only a part of it.
        let mut line = log.chain.entry("t", Event::Closed);
        let mut file = log.out.get_ref().try_clone().unwrap();
        file.write_all(&line[..10]).unwrap();
        let full = File::options().append(true).open("/dev/full").unwrap();
        log.out = WholeWriter::with_rest(full, [&line[10..], b"\n"].concat());
        log.chain.written(&std::mem::take(&mut line));
        assert!(log.out.catch_up().is_err());
        log.out.redirect(file);
        log.add(opened()).unwrap();
        assert_eq!(check(&[&path]).last, 3);
    }
}
