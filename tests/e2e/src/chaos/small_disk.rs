//! A small file system of its own for a host's image, so that it can be full while the rest of the machine is
//! not.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, Result};

/// Room beside what the guest's image has at the beginning, in MiB: enough for what a run writes.
const ROOM_MIB: u64 = 64;
const MIB: u64 = 1 << 20;

/// A mounted tmpfs; unmounted on drop, with everything in it.
#[derive(Debug)]
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// Mounts one at `folder`, with room for what is allocated of `image` and a little more.
    ///
    /// # Errors
    /// When it cannot be mounted (not root).
    pub fn mount(folder: PathBuf, image: &Path) -> Result<Self> {
        use std::os::unix::fs::MetadataExt as _;
        fs::create_dir(&folder).map_err(Error::file("create", &folder))?;
        let used = fs::metadata(image).map_err(Error::file("look at", image))?.blocks() * 512 / MIB;
        let options = format!("size={}m,mode=755", used + ROOM_MIB);
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "pollux-disk"]).arg(&folder))?;
        Ok(Self { folder })
    }

    /// Path of a file on it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Takes all the room that is left.
    ///
    /// # Errors
    /// When there is an end to it that is not the disk's.
    pub fn fill(&self) -> Result<()> {
        let path = self.path("filler");
        let mut file = fs::File::create(&path).map_err(Error::file("create", &path))?;
        let block = vec![1; 4096];
        loop {
            match file.write_all(&block) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(Error::file("fill", &path)(error)),
            }
        }
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// When it cannot.
    pub fn empty(&self) -> Result<()> {
        let path = self.path("filler");
        fs::remove_file(&path).map_err(Error::file("remove", &path))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that was just killed may still be letting go of its image.
        if let Err(error) = run(Command::new("umount").arg("-l").arg(&self.folder)) {
            eprintln!("{} stays mounted: {}", self.folder.display(), error.chain());
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().map_err(Error::io(format!("cannot run {:?}", command.get_program())))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Command { command: format!("{command:?}"), status: output.status.to_string(), output: text })
}
