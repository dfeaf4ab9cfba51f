//! The right to load this machine: guests poll and timing matters, so that engine tests run one at a time.

use std::fs::File;
use std::path::{Path, PathBuf};

use ft_pair::authority::Authority;
use ft_pair::folder::Folder;
use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;

use crate::binaries;

/// Held by a test for as long as it runs.
pub struct Machine {
    dir: TempDir,
    _lock: Flock<File>,
}

impl Machine {
    /// Wait until no other test has the machine, build our programs if needed.
    ///
    /// # Panics
    /// Says what is missing: root, `/dev/kvm`, `ip`.
    #[must_use]
    pub fn claim() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "engine tests need root: they make network namespaces and taps");
        assert!(Path::new("/dev/kvm").exists(), "engine tests need /dev/kvm");
        binaries::build();
        let path = std::env::temp_dir().join("pollux-engine-tests.lock");
        let file = File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let lock = Flock::lock(file, FlockArg::LockExclusive).unwrap_or_else(|(_, error)| panic!("flock: {error}"));
        let dir = tempfile::Builder::new().prefix("pollux-engine-").tempdir().expect("temporary directory");
        let machine = Self { dir, _lock: lock };
        let authority = Authority::create("test").expect("an authority");
        let host = authority.issue("test-host").expect("a certificate");
        Folder::of("test", Some(&machine.pairs().join("test"))).create(&authority, &host).expect("the pair's files");
        machine
    }

    /// The folder with the one pair that all VMMs of a test are of.
    #[must_use]
    pub fn pairs(&self) -> PathBuf {
        self.dir().join("pairs")
    }

    /// A directory for sockets and images that goes with the test.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}
