//! What a run is made of: our binaries and the guest image, copied to where reading them is fast.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, Result};

/// Programs under test.
const PROGRAMS: [&str; 4] = ["pollux-vmm", "pollux", "vhost-user-blk-repl", "vhost-user-net-buffer"];
const GUEST_FILES: [&str; 4] = ["vmlinuz", "vmlinux", "initramfs.gz", "root.img"];

/// Files of one run, in a private folder that is removed on drop.
#[derive(Debug)]
pub struct Artifacts {
    dir: tempfile::TempDir,
    guest_tree: PathBuf,
}

impl Artifacts {
    /// Copies the programs (from `POLLUX_BIN`, or beside this one) and the guest (from `POLLUX_GUEST`, or the
    /// cache of the scripts).
    ///
    /// # Errors
    /// When something is missing or cannot be copied.
    pub fn gather() -> Result<Self> {
        Self::with_guest(guest_dir("POLLUX_GUEST", "guest"))
    }

    /// As [`Self::gather`], with the guest that has PostgreSQL too (from `POLLUX_GUEST_POSTGRES`, or the
    /// cache of the scripts).
    ///
    /// # Errors
    /// As `gather`.
    pub fn gather_with_postgres() -> Result<Self> {
        Self::with_guest(guest_dir("POLLUX_GUEST_POSTGRES", "guest-postgres"))
    }

    fn with_guest(guest: PathBuf) -> Result<Self> {
        let programs = programs_dir()?;
        let dir = tempfile::Builder::new()
            .prefix("pollux-")
            .tempdir()
            .map_err(Error::io("cannot make a temporary folder"))?;
        for name in PROGRAMS {
            copy(&programs.join(name), &dir.path().join(name), "cargo build --release makes it")?;
        }
        for name in GUEST_FILES {
            copy(&guest.join(name), &dir.path().join(name), "scripts/guest-image makes it")?;
        }
        pair(dir.path())?;
        let mut guest_tree = guest.into_os_string();
        guest_tree.push("-tree");
        Ok(Self { dir, guest_tree: guest_tree.into() })
    }

    /// A file of the run: a program, a guest file, or one the run makes.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The guest's files as they were before they became an image; its tools can be run there with chroot.
    #[must_use]
    pub fn guest_tree(&self) -> &Path {
        &self.guest_tree
    }

    /// Size of the guest's disk in bytes.
    ///
    /// # Errors
    /// When the image is gone.
    pub fn disk_size(&self) -> Result<u64> {
        let path = self.path("root.img");
        Ok(fs::metadata(&path).map_err(Error::file("look at", &path))?.len())
    }
}

fn programs_dir() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("POLLUX_BIN") {
        return Ok(dir.into());
    }
    let own = env::current_exe().map_err(Error::io("cannot find this program"))?;
    // Test binaries lie one folder below the programs.
    let beside = own.ancestors().skip(1).take(2).find(|dir| dir.join(PROGRAMS[0]).exists());
    beside
        .map(Path::to_owned)
        .ok_or(Error::Missing { path: own.with_file_name(PROGRAMS[0]), hint: "cargo build makes it" })
}

fn guest_dir(variable: &str, folder: &str) -> PathBuf {
    if let Some(dir) = env::var_os(variable) {
        return dir.into();
    }
    let cache = env::var_os("POLLUX_CACHE").map(PathBuf::from);
    cache.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/lab")).join(folder)
}

/// `cp` keeps the holes of an image, which [`fs::copy`] would fill.
pub(crate) fn copy(from: &Path, to: &Path, hint: &'static str) -> Result<()> {
    if !from.exists() {
        return Err(Error::Missing { path: from.to_owned(), hint });
    }
    finish(Command::new("cp").arg("--sparse=always").arg(from).arg(to))
}

/// Makes the pair that both hosts of the run are of, in a folder beside its programs.
fn pair(dir: &Path) -> Result<()> {
    let (program, folder) = (dir.join("pollux"), dir.join("pairs/e2e"));
    finish(Command::new(program).args(["pair", "init", "e2e", "--offline", "--dir"]).arg(folder))
}

fn finish(command: &mut Command) -> Result<()> {
    let output = command.output().map_err(Error::io(format!("cannot run {}", command.get_program().display())))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command: format!("{command:?}"),
        status: output.status.to_string(),
        output: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
