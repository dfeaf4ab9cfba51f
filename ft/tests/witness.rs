//! The witness's file as operators can have it: behind links, on file systems that come and go, in the way of
//! other things.
//!
//! What mounts has a mount namespace of its own, and needs root.
#![allow(clippy::unwrap_used)] // Helpers of tests panic as tests do.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ft::witness::{FileWitness, Witness, WitnessError};
use ft_proto::witness::{Claim, Record, Replicas, Verdict};
use ft_proto::{NodeId, Term, VmId};
use host_kit::error::chain;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{geteuid, mkfifo};
use tempfile::TempDir;

const A: NodeId = NodeId::numbered(1, 1);
const B: NodeId = NodeId::numbered(2, 1);
const T: Term = Term(1);
const VM: VmId = VmId(7);
const OWN: Claim = Claim::Own { node: A, term: Term(0), first: true };
const REGISTER: Claim = Claim::Register { primary: A, standby: B, term: T };
const ALONE: Claim = Claim::GoAlone { primary: A, in_sync: Replicas::one(B), term: T };
const OVER: Claim = Claim::TakeOver { primary: A, standby: B, term: T };

/// Whatever a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(60);
/// So many grants has a race.
const GRANTS: u64 = 1000;

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    (folder, path)
}

fn granted(witness: &mut FileWitness, claim: Claim) -> bool {
    matches!(witness.ask(VM, claim).unwrap(), Verdict::Granted(_))
}

fn protect(path: &Path) -> FileWitness {
    let mut witness = FileWitness::new(path);
    assert!(granted(&mut witness, OWN) && granted(&mut witness, REGISTER));
    witness
}

/// The reasons why a file is no witness, for a look and for a claim.
fn reasons(path: &Path) -> [String; 2] {
    let asked = Instant::now();
    let look = FileWitness::new(path).read().unwrap_err();
    let claim = FileWitness::new(path).ask(VM, OWN).unwrap_err();
    assert!(asked.elapsed() < PATIENCE / 2);
    [chain(&look), chain(&claim)]
}

#[test]
fn a_link_on_each_host_leads_to_one_record() {
    let (shared, path) = folder();
    fs::write(&path, r#"{"state":"stopped","term":0}"#).unwrap();
    let (host_a, host_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    symlink(&path, host_a.path().join("vm1")).unwrap();
    // A link to a link, and another one in the folder's path.
    symlink(shared.path(), host_b.path().join("shared")).unwrap();
    symlink("shared/vm", host_b.path().join("there")).unwrap();
    symlink("there", host_b.path().join("vm1")).unwrap();
    let mut a = protect(&host_a.path().join("vm1"));
    let mut b = FileWitness::new(&host_b.path().join("vm1"));
    assert!(granted(&mut b, OVER));
    assert!(!granted(&mut a, ALONE));
    assert!(fs::symlink_metadata(host_a.path().join("vm1")).unwrap().is_symlink());
    assert_eq!(fs::read_dir(host_a.path()).unwrap().count(), 1, "nothing is made beside a link");
}

#[test]
fn a_link_to_nothing_is_an_error_with_a_way_out() {
    let (_folder, path) = folder();
    symlink("/not/mounted/vm1", &path).unwrap();
    for reason in reasons(&path) {
        assert!(reason.contains("link to nothing: is the file system mounted"), "{reason}");
    }
}

#[test]
fn what_is_no_small_file_is_an_error_at_once() {
    for suffix in ["", ".~1~"] {
        let (_folder, path) = folder();
        let there = PathBuf::from(format!("{}{suffix}", path.display()));
        mkfifo(&there, Mode::S_IRWXU).unwrap();
        assert!(reasons(&path).iter().all(|reason| reason.contains("not a regular file")));
        fs::remove_file(&there).unwrap();
        fs::create_dir(&there).unwrap();
        assert!(reasons(&path).iter().all(|reason| reason.contains("not a regular file")));
        fs::remove_dir(&there).unwrap();
        File::create(&there).unwrap().set_len(1 << 30).unwrap();
        assert!(reasons(&path).iter().all(|reason| reason.contains("too large")));
    }
    assert!(reasons(Path::new("/dev/zero")).iter().all(|reason| reason.contains("not a regular file")));
    let (_folder, path) = folder();
    mkfifo(&path.with_added_extension("lock"), Mode::S_IRWXU).unwrap();
    assert!(reasons(&path).iter().all(|reason| reason.contains("cannot lock")));
}

#[test]
fn a_place_that_has_become_another_one_is_not_asked() {
    let (parent, _) = folder();
    let folder = parent.path().join("shared");
    let path = folder.join("vm");
    fs::create_dir(&folder).unwrap();
    let mut witness = protect(&path);
    let refuses = |witness: &mut FileWitness| {
        for error in [witness.read().unwrap_err(), witness.ask(VM, ALONE).unwrap_err()] {
            assert!(error.to_string().contains("is not the witness it was: was its file system unmounted"), "{error}");
        }
    };
    // The folder is away, another one is in its place, with nothing or with a record of its own.
    let away = parent.path().join("away");
    fs::rename(&folder, &away).unwrap();
    assert!(witness.read().is_err() && witness.ask(VM, ALONE).is_err());
    fs::create_dir(&folder).unwrap();
    refuses(&mut witness);
    protect(&path);
    refuses(&mut witness);
    // It is back.
    fs::remove_dir_all(&folder).unwrap();
    fs::rename(&away, &folder).unwrap();
    assert!(witness.read().unwrap().is_some());
    // The same folder, but the files are another witness's.
    for entry in fs::read_dir(&folder).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    protect(&path);
    refuses(&mut witness);
}

#[test]
fn a_backup_of_the_record_is_not_the_record() {
    let (folder, path) = folder();
    let mut b = protect(&path);
    let files = || fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    let backup: Vec<_> = files().map(|path| (fs::read(&path).unwrap(), path)).collect();
    assert!(granted(&mut b, OVER));
    files().for_each(|path| fs::remove_file(path).unwrap());
    backup.iter().for_each(|(bytes, path)| fs::write(path, bytes).unwrap());
    let error = b.ask(VM, OVER).unwrap_err();
    assert!(matches!(error, WitnessError::Older { .. }), "{error}");
}

/// Where a race is; the test of that name is one of the racers then.
const RACE: &str = "WITNESS_RACE";

#[test]
fn racer() {
    let Some(path) = std::env::var_os(RACE).map(PathBuf::from) else { return };
    let me = NodeId::numbered(std::process::id().into(), 1);
    let mut witness = FileWitness::new(&path);
    loop {
        let term = witness.read().unwrap().unwrap().record.term();
        if term >= Term(GRANTS) {
            return;
        }
        match witness.ask(VM, Claim::Force { node: me, term }) {
            Ok(Verdict::Granted(record)) => println!("granted {}", record.term()),
            Ok(Verdict::Refused(_)) => {}
            Err(error) => println!("not asked: {}", chain(&error)),
        }
    }
}

/// Two processes ask for each term; nobody is told of a term that the other one was given.
fn race(path: &Path) {
    assert!(granted(&mut FileWitness::new(path), OWN));
    let start = || {
        let mut racer = Command::new(std::env::current_exe().unwrap());
        racer.args(["--exact", "racer", "--nocapture"]).env(RACE, path).stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut terms = BTreeSet::new();
    for racer in [start(), start()].map(|racer| thread::spawn(|| racer.wait_with_output().unwrap())) {
        let output = racer.join().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        for term in text.lines().filter_map(|line| line.split_once("granted ")?.1.parse::<u64>().ok()) {
            assert!(terms.insert(term), "term {term} was given twice");
        }
    }
    assert_eq!(terms.len() as u64, GRANTS - 1, "each term was given");
}

#[test]
fn of_two_processes_one_is_granted_each_time() {
    let (_folder, path) = folder();
    race(&path);
}

#[test]
fn of_two_processes_one_is_granted_also_when_the_lock_is_lost() {
    let (_folder, path) = folder();
    let (lock, over) = (path.with_added_extension("lock"), AtomicBool::new(false));
    thread::scope(|scope| {
        // Each claim has another file to lock.
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let _ = fs::remove_file(&lock);
                thread::yield_now();
            }
        });
        let done = std::panic::catch_unwind(|| race(&path));
        over.store(true, Ordering::Relaxed);
        done.unwrap();
    });
}

/// Runs `job` where it can mount what nobody else sees; `false`: it cannot.
fn with_mounts(job: impl FnOnce() + Send) -> bool {
    if !geteuid().is_root() {
        eprintln!("skipped: only root mounts");
        return false;
    }
    thread::scope(|scope| {
        let own = || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
            job();
        };
        scope.spawn(own).join().unwrap();
    });
    true
}

fn tmpfs(at: &Path, options: &str) {
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
}

#[test]
fn a_file_system_that_is_not_mounted_any_more_is_not_an_empty_witness() {
    let (folder, path) = folder();
    with_mounts(|| {
        tmpfs(folder.path(), "size=1m");
        let mut witness = protect(&path);
        // A plain umount fails while the witness is in use.
        assert!(umount2(folder.path(), MntFlags::empty()).is_err());
        umount2(folder.path(), MntFlags::MNT_DETACH).unwrap();
        for error in [witness.read().unwrap_err(), witness.ask(VM, ALONE).unwrap_err()] {
            assert!(matches!(error, WitnessError::NotTheSame { .. }), "{error}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is made there");
    });
}

#[test]
fn a_bind_mount_that_comes_over_a_folder_is_another_place() {
    let (folder, path) = folder();
    with_mounts(|| {
        let mut witness = protect(&path);
        let other = tempfile::tempdir().unwrap();
        mount(Some(other.path()), folder.path(), None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        assert!(matches!(witness.ask(VM, ALONE), Err(WitnessError::NotTheSame { .. })));
        umount2(folder.path(), MntFlags::empty()).unwrap();
        assert!(granted(&mut witness, ALONE));
    });
}

#[test]
fn a_file_system_that_cannot_be_written_refuses_nothing_and_grants_nothing() {
    let (folder, path) = folder();
    with_mounts(|| {
        tmpfs(folder.path(), "size=1m");
        let mut witness = protect(&path);
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, folder.path(), None::<&str>, read_only, None::<&str>).unwrap();
        let record = Record::Protected { primary: A, in_sync: Replicas::one(B), term: T };
        assert_eq!(witness.read().unwrap().map(|stored| stored.record), Some(record), "it can still be read");
        let error = witness.ask(VM, ALONE).unwrap_err();
        assert!(chain(&error).contains("Read-only file system"), "{}", chain(&error));
        mount(None::<&str>, folder.path(), None::<&str>, MsFlags::MS_REMOUNT, None::<&str>).unwrap();
        assert!(granted(&mut witness, ALONE));
    });
}

#[test]
fn a_full_file_system_is_named_and_changes_nothing() {
    let (folder, path) = folder();
    with_mounts(|| {
        tmpfs(folder.path(), "size=64k");
        let mut witness = protect(&path);
        let filler = folder.path().join("filler");
        let full = loop {
            use std::io::Write;
            let mut file = File::options().create(true).append(true).open(&filler).unwrap();
            if let Err(error) = file.write_all(&[1; 4096]) {
                break error;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        let error = witness.ask(VM, ALONE).unwrap_err();
        assert!(chain(&error).contains("No space left on device"), "{}", chain(&error));
        let record = Record::Protected { primary: A, in_sync: Replicas::one(B), term: T };
        assert_eq!(FileWitness::new(&path).read().unwrap().map(|stored| stored.record), Some(record));
        fs::remove_file(&filler).unwrap();
        assert!(granted(&mut witness, ALONE));
    });
}
