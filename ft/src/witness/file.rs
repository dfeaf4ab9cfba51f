//! The record in a file on storage that both hosts see, under a lock.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ft_proto::witness::{Claim, Record, Verdict, judge};

use super::{Witness, WitnessError};

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
                .map_err(|source| WitnessError::Corrupt { place: self.path.display().to_string(), source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.error("read")(error)),
        }
    }

    fn store(&self, record: Record) -> Result<(), WitnessError> {
        let path = &self.path;
        let corrupt = |source| WitnessError::Corrupt { place: path.display().to_string(), source };
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
        let verdict = judge(self.load()?, claim);
        if let Verdict::Granted(record) = verdict {
            self.store(record)?;
        }
        Ok(verdict)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use ft_proto::{NodeId, Term};

    use super::*;
    use crate::witness::chain;

    const A: NodeId = NodeId::numbered(1, 1);
    const B: NodeId = NodeId::numbered(2, 1);
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
    fn a_record_of_before_there_were_disks_in_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm");
        fs::write(&path, r#"{"state":"stopped","term":7}"#).unwrap();
        let mut witness = FileWitness::new(&path);
        assert_eq!(witness.read().unwrap(), Some(Record::Stopped { term: Term(7), disks: Term(0) }));
        assert!(matches!(witness.ask(Claim::Start { node: A, disks: Term(0) }), Ok(Verdict::Granted(_))));
        let stop = Claim::Stop { node: A, term: Term(8), disks: Term(8) };
        assert!(matches!(witness.ask(stop), Ok(Verdict::Granted(_))));
        assert!(matches!(witness.ask(Claim::Start { node: B, disks: Term(7) }), Ok(Verdict::Refused(_))));
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
