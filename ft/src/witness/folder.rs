//! The folder that a record's files are in: found once, held by descriptor, and compared with what its path
//! leads to now.
//!
//! A path is not a place: a file system can be mounted over it or be gone, a link can be turned. What is done
//! to the files is done relative to the descriptor; nothing here waits for what is not a regular file, or
//! reads more of one than a record can have.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use super::WitnessError;
use super::kept::SIZE_MAX;

/// How a file is opened that may be anything.
const READING: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_NOFOLLOW).union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);

/// Which folder: the number of its file system and its own.
pub(super) type FolderId = (u64, u64);

/// A folder that is held, and the name of the record in it.
#[derive(Debug)]
pub(super) struct Folder {
    held: OwnedFd,
    id: FolderId,
    name: OsString,
}

/// What a name in the folder stands for.
pub(super) enum Found {
    Nothing,
    Bytes(Vec<u8>),
    /// Something that no record is kept in.
    Unfit(&'static str),
}

impl Folder {
    /// The folder of the file that `path` leads to, or is to be made at.
    pub(super) fn find(path: &Path) -> Result<Self, WitnessError> {
        let error = |what| move |source| WitnessError::File { what, path: path.to_owned(), source };
        let real = real(path)?;
        let name = real.file_name().ok_or(Errno::EISDIR.into()).map_err(error("use"))?;
        let folder = host_kit::file::folder(&real);
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let find = || -> nix::Result<_> {
            let held = open(folder, flags, Mode::empty())?;
            let stat = fstat(&held)?;
            Ok((held, (stat.st_dev, stat.st_ino)))
        };
        let (held, id) = find().map_err(io::Error::from).map_err(error("find the folder of"))?;
        Ok(Self { held, id, name: name.to_owned() })
    }

    /// Which one it is.
    pub(super) fn id(&self) -> FolderId {
        self.id
    }

    /// The record's name, with all links resolved.
    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }

    /// The record's name with something after it.
    pub(super) fn beside(&self, suffix: &str) -> OsString {
        let mut name = self.name.clone();
        name.push(suffix);
        name
    }

    /// What is in a file, if it can be a record's.
    pub(super) fn read(&self, name: &OsStr) -> io::Result<Found> {
        // Looked at before it is opened: that alone would do something to a device.
        let stat = match fstatat(&self.held, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => return Ok(Found::Nothing),
            stat => stat?,
        };
        if let Some(why) = unfit(&stat) {
            return Ok(Found::Unfit(why));
        }
        let file = match openat(&self.held, name, READING, Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(Found::Nothing),
            file => file?,
        };
        if let Some(why) = unfit(&fstat(&file)?) {
            return Ok(Found::Unfit(why));
        }
        let mut bytes = Vec::new();
        // One byte more, so that a file that grows meanwhile is seen to.
        File::from(file).take(SIZE_MAX as u64 + 1).read_to_end(&mut bytes)?;
        Ok(Found::Bytes(bytes))
    }

    /// A file that nobody else has made.
    pub(super) fn create(&self, name: &OsStr) -> io::Result<File> {
        self.open_for_writing(name, OFlag::O_EXCL)
    }

    /// Locks the record for whoever writes it.
    pub(super) fn lock(&self) -> io::Result<File> {
        let lock = regular(self.open_for_writing(&self.beside(".lock"), OFlag::O_NONBLOCK)?)?;
        lock.lock()?;
        Ok(lock)
    }

    /// Waits for whoever writes the record; `None`: nobody has written one, and nothing is made for a look.
    pub(super) fn lock_to_read(&self) -> io::Result<Option<File>> {
        match openat(&self.held, &*self.beside(".lock"), READING, Mode::empty()) {
            Err(Errno::ENOENT) => Ok(None),
            file => {
                let lock = regular(file?.into())?;
                lock.lock_shared()?;
                Ok(Some(lock))
            }
        }
    }

    fn open_for_writing(&self, name: &OsStr, how: OFlag) -> io::Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | how;
        Ok(openat(&self.held, name, flags, Mode::from_bits_truncate(0o600))?.into())
    }

    /// Gives a file another name beside its own; `false`: there is no such file any more, or that name is
    /// taken.
    pub(super) fn link(&self, file: &OsStr, name: &OsStr) -> io::Result<bool> {
        match linkat(&self.held, file, &self.held, name, AtFlags::empty()) {
            Err(Errno::EEXIST | Errno::ENOENT) => Ok(false),
            Err(Errno::EPERM | Errno::EOPNOTSUPP) => {
                Err(io::Error::other("the file system has no hard links; use another one, or etcd"))
            }
            done => Ok(done.map(|()| true)?),
        }
    }

    /// Has a name stand for another file.
    pub(super) fn rename(&self, file: &OsStr, name: &OsStr) -> io::Result<()> {
        Ok(renameat(&self.held, file, &self.held, name)?)
    }

    /// Takes a name away, if it is there.
    pub(super) fn remove(&self, name: &OsStr) -> io::Result<()> {
        match unlinkat(&self.held, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            done => Ok(done?),
        }
    }

    /// Whether a name stands for this very file.
    pub(super) fn is(&self, name: &OsStr, file: &File) -> io::Result<bool> {
        let stat = match fstatat(&self.held, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => return Ok(false),
            stat => stat?,
        };
        let this = fstat(file)?;
        Ok((stat.st_dev, stat.st_ino) == (this.st_dev, this.st_ino))
    }

    /// Makes names durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        File::from(self.reopened()?).sync_all()
    }

    /// What follows the record's name in the names of the folder.
    pub(super) fn suffixes(&self) -> io::Result<Vec<String>> {
        let mut suffixes = Vec::new();
        for entry in Dir::from_fd(self.reopened()?)?.iter() {
            let entry = entry?;
            let suffix = entry.file_name().to_bytes().strip_prefix(self.name.as_bytes());
            suffixes.extend(suffix.and_then(|suffix| Some(std::str::from_utf8(suffix).ok()?.to_owned())));
        }
        Ok(suffixes)
    }

    fn reopened(&self) -> io::Result<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(openat(&self.held, ".", flags, Mode::empty())?)
    }
}

/// Where the last of the links from `path` on leads. That of the file itself is followed too, so that the
/// record is not made where the link is.
fn real(path: &Path) -> Result<PathBuf, WitnessError> {
    let error = |what| move |source| WitnessError::File { what, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() => fs::canonicalize(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => WitnessError::Dangling { path: path.to_owned() },
            _ => error("follow the link")(source),
        }),
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(error("find")(source)),
        _ => Ok(path.to_owned()),
    }
}

fn unfit(stat: &FileStat) -> Option<&'static str> {
    if !is_regular(stat) {
        Some("not a regular file")
    } else if u64::try_from(stat.st_size).is_ok_and(|size| size <= SIZE_MAX as u64) {
        None
    } else {
        Some("too large")
    }
}

fn regular(file: File) -> io::Result<File> {
    if is_regular(&fstat(&file)?) { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
}

fn is_regular(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
}
