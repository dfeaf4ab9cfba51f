//! Who keeps the witness's record: the trait, a locked file, and the thread that asks.
//!
//! Asking may block for as long as a dead file server likes, so it has a thread of its own.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use ft_proto::WitnessAnswer;
use ft_proto::witness::{Claim, Record, Verdict, judge};

/// The witness could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    /// The file or its lock failed.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{} is not a witness record: remove it if no host runs the VM", path.display())]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// Why it does not parse.
        #[source]
        source: serde_json::Error,
    },
}

/// Keeper of the record of one VM. Implementations compare and swap with `ft_proto::witness::judge`.
pub trait Witness: Send {
    /// The record, if there is one.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&mut self) -> Result<Option<Record>, WitnessError>;
    /// Judges a claim and makes the new record durable before it says that it is granted.
    ///
    /// # Errors
    /// When the keeper cannot be reached: whether the claim took effect is unknown then.
    fn ask(&mut self, claim: Claim) -> Result<Verdict, WitnessError>;
}

/// A record in a file that both hosts see, under a lock in the file beside it (`PATH.lock`).
///
/// The record is replaced by rename, so a reader never sees half of one.
#[derive(Debug)]
pub struct FileWitness {
    path: PathBuf,
}

impl FileWitness {
    /// Uses `path`; nothing is touched yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    fn error(&self, what: &'static str) -> impl FnOnce(io::Error) -> WitnessError + use<> {
        let path = self.path.clone();
        move |source| WitnessError::File { what, path, source }
    }

    fn lock(&self) -> Result<File, WitnessError> {
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.path.with_added_extension("lock"))
            .map_err(self.error("open the lock of"))?;
        lock.lock().map_err(self.error("lock"))?;
        Ok(lock)
    }

    fn load(&self) -> Result<Option<Record>, WitnessError> {
        match fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| WitnessError::Corrupt { path: self.path.clone(), source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.error("read")(error)),
        }
    }

    fn store(&self, record: Record) -> Result<(), WitnessError> {
        let path = &self.path;
        let corrupt = |source| WitnessError::Corrupt { path: path.clone(), source };
        let bytes = serde_json::to_vec(&record).map_err(corrupt)?;
        let new = path.with_added_extension("new");
        let write = || -> io::Result<()> {
            let mut file = File::create(&new)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&new, path)?;
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(folder)?.sync_all()
        };
        write().map_err(self.error("write"))
    }
}

impl Witness for FileWitness {
    fn read(&mut self) -> Result<Option<Record>, WitnessError> {
        let _lock = self.lock()?;
        self.load()
    }

    fn ask(&mut self, claim: Claim) -> Result<Verdict, WitnessError> {
        let _lock = self.lock()?;
        let before = self.load()?;
        let verdict = judge(before, claim);
        if let Verdict::Granted(record) = verdict
            && before != Some(record)
        {
            self.store(record)?;
        }
        Ok(verdict)
    }
}

/// How long the last claims may take when the asker is dropped: a file server that hangs must not keep a process alive.
const FAREWELL: Duration = Duration::from_secs(2);

/// The thread that asks. Dropping it waits until what was asked for is asked, within reason.
#[derive(Debug)]
pub struct Asker {
    /// For people.
    pub name: String,
    claims: Option<Sender<Claim>>,
    ended: Receiver<()>,
}

impl Asker {
    /// Has `claim` judged; the answer comes by itself.
    pub fn ask(&self, claim: Claim) {
        if let Some(claims) = &self.claims {
            // The thread ends only after the sender is gone.
            let _ = claims.send(claim);
        }
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.claims = None;
        // Nothing is ever sent here; the thread drops its end when it is through.
        let _ = self.ended.recv_timeout(FAREWELL);
    }
}

/// Starts the thread that asks the file witness at `path` and hands each answer to `answer`.
///
/// # Errors
/// When the thread cannot be started.
pub fn spawn(path: &Path, answer: impl Fn(WitnessAnswer) + Send + 'static) -> io::Result<Asker> {
    let mut witness = FileWitness::new(path);
    let (sender, claims) = unbounded();
    let (ending, ended) = bounded(0);
    thread::Builder::new().name("ft-witness".to_owned()).spawn(move || {
        let _ending = ending;
        for claim in claims {
            answer(match witness.ask(claim) {
                Ok(verdict) => WitnessAnswer::Judged(claim, verdict),
                Err(error) => WitnessAnswer::Unreachable(claim, chain(&error)),
            });
        }
    })?;
    Ok(Asker { name: path.display().to_string(), claims: Some(sender), ended })
}

/// An error with all of its sources, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use ft_proto::{NodeId, Term};

    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const T: Term = Term(1);

    #[test]
    fn of_two_racing_hosts_one_is_granted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm");
        let mut setup = FileWitness::new(&path);
        for claim in [Claim::Own { node: A, term: Term(0) }, Claim::Register { primary: A, standby: B, term: T }] {
            assert!(matches!(setup.ask(claim), Ok(Verdict::Granted(_))));
        }
        let claims =
            [Claim::GoAlone { primary: A, standby: B, term: T }, Claim::TakeOver { primary: A, standby: B, term: T }];
        let granted: usize = thread::scope(|scope| {
            let asks = claims.map(|claim| {
                let mut witness = FileWitness::new(&path);
                scope.spawn(move || usize::from(matches!(witness.ask(claim), Ok(Verdict::Granted(_)))))
            });
            asks.into_iter().map(|ask| ask.join().unwrap()).sum()
        });
        assert_eq!(granted, 1);
        let Ok(Some(Record::Solo { term, .. })) = FileWitness::new(&path).read() else { panic!("no solo record") };
        assert_eq!(term, T.next());
    }

    #[test]
    fn errors_name_the_file_and_a_foreign_file_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("no/such/folder/vm");
        let error = FileWitness::new(&missing).read().unwrap_err();
        assert!(chain(&error).contains("no/such/folder/vm"), "{error}");
        let foreign = folder.path().join("foreign");
        fs::write(&foreign, "hello").unwrap();
        assert!(matches!(
            FileWitness::new(&foreign).ask(Claim::Own { node: A, term: T }),
            Err(WitnessError::Corrupt { .. })
        ));
        assert_eq!(fs::read(&foreign).unwrap(), b"hello");
    }
}
