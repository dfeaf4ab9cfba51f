//! Identity and change times of an image's file, as the kernel reports them, and the identity of this boot of
//! the host.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::statfs::fstatfs;
use serde::{Deserialize, Serialize};

/// A moment by the host's clock, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Moment(pub i64);

impl Moment {
    /// From seconds and nanoseconds.
    #[must_use]
    pub fn new(seconds: i64, nanos: i64) -> Self {
        Self(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    }

    /// This much later.
    #[must_use]
    pub fn plus(self, time: std::time::Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)))
    }
}

/// Identifies a file: no other one has the same, not even one that reuses its inode.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct FileId {
    /// The file system.
    pub system: u128,
    /// Its number there.
    pub inode: u64,
    /// How often that number was reused, if the file system counts.
    pub generation: u64,
    /// When it was created.
    pub born: Moment,
}

/// Identity and times of a file, from its inode.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Stamp {
    /// Which file.
    pub file: FileId,
    /// Its last change of any kind.
    pub changed: Moment,
    /// Its last write, or whatever `utimes` has set that to.
    pub written: Moment,
}

/// Tells one boot of this host from another.
pub const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What a file system calls itself.
#[derive(Clone, Copy)]
#[repr(C)]
struct SystemId {
    len: u8,
    id: [u8; 16],
}

mod ioctl {
    use nix::libc::c_long;

    nix::ioctl_read!(
        /// `FS_IOC_GETFSUUID`.
        system_id, 0x15, 0, super::SystemId
    );
    nix::ioctl_read!(
        /// `FS_IOC_GETVERSION`.
        generation, b'v', 1, c_long
    );
}

/// File systems that set a file's change time on this host, at every change, and keep it: ext4, XFS, btrfs,
/// f2fs, tmpfs.
const KEEP_TIMES: [u32; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994];

/// The stamp of `file` now; `None` for a device, or on a file system whose times prove nothing.
///
/// # Errors
/// Of the kernel.
pub fn stamp(file: &File) -> io::Result<Option<Stamp>> {
    let meta = file.metadata()?;
    // Magic numbers have 32 bits, whatever the type that a C library keeps them in.
    if !meta.is_file() || !KEEP_TIMES.contains(&(fstatfs(file)?.filesystem_type().0 as u32)) {
        return Ok(None);
    }
    let mut system = SystemId { len: 0, id: [0; 16] };
    // SAFETY: the kernel writes a `fsuuid2`, which `SystemId` is, and the descriptor is open.
    let named = unsafe { ioctl::system_id(file.as_raw_fd(), &raw mut system) }.is_ok();
    let mut generation = 0;
    // SAFETY: the kernel writes an int, which a long has room for, and the descriptor is open.
    let counted = unsafe { ioctl::generation(file.as_raw_fd(), &raw mut generation) }.is_ok();
    let file = FileId {
        // Without a name it is what it is mounted as: after a reboot perhaps another, and then nothing is
        // proven.
        system: if named { u128::from_le_bytes(system.id) } else { u128::from(meta.dev()) },
        inode: meta.ino(),
        generation: if counted { u64::from(generation as u32) } else { 0 },
        born: meta.created().map_or(Moment(0), moment),
    };
    let changed = Moment::new(meta.ctime(), meta.ctime_nsec());
    Ok(Some(Stamp { file, changed, written: Moment::new(meta.mtime(), meta.mtime_nsec()) }))
}

/// When `file` was last changed.
///
/// # Errors
/// Of the kernel.
pub fn changed(file: &File) -> io::Result<Moment> {
    let meta = file.metadata()?;
    Ok(Moment::new(meta.ctime(), meta.ctime_nsec()))
}

/// The time by the clock that files are stamped with.
#[must_use]
pub fn now() -> Moment {
    moment(SystemTime::now())
}

fn moment(time: SystemTime) -> Moment {
    let nanos = |time: std::time::Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Moment(nanos(since)),
        Err(before) => Moment(-nanos(before.duration())),
    }
}

/// Identifies this boot of the host; 0, which no boot has, if the kernel does not report it.
#[must_use]
pub fn boot() -> u128 {
    let text = fs::read_to_string(BOOT_ID).unwrap_or_default();
    u128::from_str_radix(&text.trim().replace('-', ""), 16).unwrap_or(0)
}

/// The path leads to something other than a regular file.
#[must_use]
pub fn no_file() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")
}

/// The first `limit` bytes of a regular file, or all of it if it is not longer; never waits for a writer.
///
/// # Errors
/// Of the kernel; when it is not a regular file, or longer.
pub fn read_bounded(file: &File, limit: usize) -> io::Result<Vec<u8>> {
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(no_file());
    }
    if meta.len() > limit as u64 {
        let message = format!("it has {} bytes, more than the {limit} that any such file has", meta.len());
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    let mut bytes = vec![0; meta.len() as usize];
    let mut len = 0;
    while len < bytes.len() {
        match file.read_at(&mut bytes[len..], len as u64)? {
            0 => break,
            more => len += more,
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}
