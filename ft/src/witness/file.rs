//! The record in a file on storage that both hosts see, under a lock.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ft_proto::VmId;
use ft_proto::witness::{Claim, Verdict};

use super::{Stored, Witness, WitnessError, judge_for};

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

    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn load(&self) -> Result<Option<Stored>, WitnessError> {
        match fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice::<Stored>(&bytes)
                .map_err(|source| WitnessError::Corrupt { place: self.place(), source })?
                .checked(|| self.place())
                .map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.error("read")(error)),
        }
    }

    fn store(&self, record: Stored) -> Result<(), WitnessError> {
        let path = &self.path;
        let corrupt = |source| WitnessError::Corrupt { place: self.place(), source };
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
    fn read(&mut self) -> Result<Option<Stored>, WitnessError> {
        let _lock = self.lock()?;
        self.load()
    }

    fn ask(&mut self, vm: VmId, claim: Claim) -> Result<Verdict, WitnessError> {
        let _lock = self.lock()?;
        let (verdict, next) = judge_for(vm, self.load()?, claim, || self.place())?;
        next.map_or(Ok(()), |next| self.store(next))?;
        Ok(verdict)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use ft_proto::witness::{DiskState, Record};
    use ft_proto::{NodeId, Term};

    use super::*;
    use crate::witness::chain;

    const A: NodeId = NodeId::numbered(1, 1);
    const B: NodeId = NodeId::numbered(2, 1);
    const T: Term = Term(1);
    const VM: VmId = VmId(7);

    #[test]
    fn of_two_racing_hosts_one_is_granted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm");
        let mut setup = FileWitness::new(&path);
        for claim in
            [Claim::Own { node: A, term: Term(0), first: true }, Claim::Register { primary: A, standby: B, term: T }]
        {
            assert!(matches!(setup.ask(VM, claim), Ok(Verdict::Granted(_))));
        }
        let claims =
            [Claim::GoAlone { primary: A, standby: B, term: T }, Claim::TakeOver { primary: A, standby: B, term: T }];
        let granted: usize = thread::scope(|scope| {
            let asks = claims.map(|claim| {
                let mut witness = FileWitness::new(&path);
                scope.spawn(move || usize::from(matches!(witness.ask(VM, claim), Ok(Verdict::Granted(_)))))
            });
            asks.into_iter().map(|ask| ask.join().unwrap()).sum()
        });
        assert_eq!(granted, 1);
        let stored = FileWitness::new(&path).read().unwrap().unwrap();
        assert!(matches!(stored.record, Record::Solo { term, .. } if term == T.next()));
        assert_eq!(stored.vm, Some(VM));
    }

    #[test]
    fn a_record_of_before_there_were_disks_in_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm");
        fs::write(&path, r#"{"state":"stopped","term":7}"#).unwrap();
        let mut witness = FileWitness::new(&path);
        let record = Record::Stopped { term: Term(7), disks: Term(0) };
        assert_eq!(witness.read().unwrap(), Some(Stored { vm: None, record }));
        let start = |node, disks| Claim::Start { node, disks, waited: false };
        assert!(matches!(witness.ask(VM, start(A, DiskState::Fresh)), Ok(Verdict::Granted(_))));
        let stop = Claim::Stop { node: A, term: Term(8), disks: Term(8) };
        assert!(matches!(witness.ask(VM, stop), Ok(Verdict::Granted(_))));
        assert!(matches!(witness.ask(VM, start(B, DiskState::Ended(Term(7)))), Ok(Verdict::Refused(_))));
    }

    #[test]
    fn a_node_of_before_hosts_had_names_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm");
        fs::write(&path, r#"{"state":"solo","owner":77,"term":7}"#).unwrap();
        let mut witness = FileWitness::new(&path);
        assert_eq!(witness.read().unwrap().unwrap().record.term(), Term(7));
        assert!(matches!(witness.ask(VM, Claim::Force { node: A, term: Term(7) }), Ok(Verdict::Granted(_))));
    }

    #[test]
    fn one_vm_does_not_touch_the_record_of_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm");
        let mut witness = FileWitness::new(&path);
        let own = Claim::Own { node: A, term: T, first: true };
        assert!(matches!(witness.ask(VM, own), Ok(Verdict::Granted(_))));
        let error = witness.ask(VmId(8), own).unwrap_err();
        assert!(matches!(error, WitnessError::OtherVm { found: VM, .. }), "{error}");
    }

    #[test]
    fn a_term_that_cannot_be_is_damage() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm");
        let text = format!(r#"{{"state":"stopped","term":{}}}"#, u64::MAX);
        fs::write(&path, &text).unwrap();
        let force = Claim::Force { node: A, term: Term(u64::MAX) };
        assert!(matches!(FileWitness::new(&path).ask(VM, force), Err(WitnessError::Implausible { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
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
            FileWitness::new(&foreign).ask(VM, Claim::Own { node: A, term: T, first: true }),
            Err(WitnessError::Corrupt { .. })
        ));
        assert_eq!(fs::read(&foreign).unwrap(), b"hello");
    }
}
