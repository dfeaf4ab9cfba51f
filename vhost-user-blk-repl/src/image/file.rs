//! The raw disk image: open with a lock, read, write, zero, sync. Errors name the path and the remedy.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use nix::libc;
use nix::unistd::{Whence, lseek};

use crate::image::buffer::Buffer;
use crate::image::stamp::{self, Moment, Stamp};
use crate::image::storage::Image;

const ZERO_CHUNK: u64 = 1 << 20;
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// Why an image was refused.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No file there.
    #[error("--path {0}: no such file; create an empty disk with `truncate -s SIZE {0}`")]
    Missing(String),
    /// The kernel refused.
    #[error("--path {0}: cannot open the image")]
    Open(String, #[source] io::Error),
    /// Neither a regular file nor a block device.
    #[error("--path {0}: not a disk image: need a regular file or a block device")]
    Kind(String),
    /// A size that virtio cannot express.
    #[error("--path {0}: size is {1} bytes, need a multiple of {2}, at least one; resize with `truncate -s SIZE {0}`")]
    Size(String, u64, u32),
    /// Not a raw image.
    #[error("--path {0}: is a qcow2 image, only raw images are served; convert with `qemu-img convert -O raw {0} RAW`")]
    Qcow2(String),
    /// Someone else has it.
    #[error("--path {0}: image is in use by {1}; stop that process, or give this disk its own image")]
    InUse(String, String),
}

/// A raw image in a file or on a block device, locked for as long as it is open.
pub struct FileImage {
    file: File,
    /// A block device cannot be truncated.
    is_file: bool,
    size: u64,
    block: u32,
}

impl FileImage {
    /// Opens and locks the image at `path`: exclusively, or shared when `read_only`.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing is changed then.
    pub fn open(path: &Path, read_only: bool, direct: bool) -> Result<Self, OpenError> {
        let name = || path.display().to_string();
        let fail = |e| match e {
            e if io::Error::kind(&e) == io::ErrorKind::NotFound => OpenError::Missing(name()),
            e => OpenError::Open(name(), e),
        };
        let kind = std::fs::metadata(path).map_err(fail)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenError::Kind(name()));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(!read_only);
        // Whatever is there by now: opening it does not wait.
        options.custom_flags(OFlag::O_NONBLOCK.bits() | if direct { OFlag::O_DIRECT.bits() } else { 0 });
        let file = options.open(path).map_err(fail)?;
        let kind = file.metadata().map_err(fail)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenError::Kind(name()));
        }
        lock(&file, path, read_only)?;
        let size = lseek(&file, 0, Whence::SeekEnd).map_err(|e| fail(e.into()))?.unsigned_abs();
        let block = if direct { direct_block(&file).map_err(fail)? } else { 512 };
        if size == 0 || !size.is_multiple_of(u64::from(block)) {
            return Err(OpenError::Size(name(), size, block));
        }
        let image = Self { file, is_file: kind.is_file(), size, block };
        let mut head = Buffer::zeroed(block as usize);
        image.read_at(0, &mut head).map_err(fail)?;
        if head.starts_with(&QCOW2_MAGIC) {
            return Err(OpenError::Qcow2(name()));
        }
        Ok(image)
    }

    /// Smallest unit of I/O in bytes: 512, or what direct I/O on this file asks for.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.block
    }

    /// Checks that the file was not truncated: a write would extend it again, and hide that data is missing.
    fn is_whole(&self) -> io::Result<()> {
        let len = if self.is_file { self.file.metadata()?.len() } else { self.size };
        if len < self.size {
            let message = format!("the image has only {len} of its {} bytes left: it was truncated", self.size);
            return Err(io::Error::other(message));
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        let zeroes = Buffer::zeroed(len.min(ZERO_CHUNK) as usize);
        let mut done = 0;
        while done < len {
            let part = (len - done).min(ZERO_CHUNK);
            self.write_at(offset + done, &zeroes[..part as usize])?;
            done += part;
        }
        Ok(())
    }
}

impl Image for FileImage {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match self.file.read_exact_at(buf, offset) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => self.is_whole().and(Err(e)),
            result => result,
        }
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.is_whole()?;
        self.file.write_all_at(data, offset)
    }

    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.is_whole()?;
        let how = if unmap { FallocateFlags::FALLOC_FL_PUNCH_HOLE } else { FallocateFlags::FALLOC_FL_ZERO_RANGE };
        let mode = how | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(&self.file, mode, offset.cast_signed(), len.cast_signed()) {
            Ok(()) => Ok(()),
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENODEV | Errno::EINVAL) => self.write_zeroes(offset, len),
            Err(e) => Err(e.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.is_whole()?;
        self.file.sync_data()
    }

    fn hole_end(&self, offset: u64) -> Option<u64> {
        // What is cut off is no hole: reading it is an error.
        self.is_whole().ok()?;
        match lseek(&self.file, offset.cast_signed(), Whence::SeekData) {
            Ok(data) if data.unsigned_abs() > offset => Some(data.unsigned_abs().min(self.size)),
            Ok(_) => None,
            Err(Errno::ENXIO) => Some(self.size),
            Err(_) => None,
        }
    }

    fn stamp(&self) -> io::Result<Option<Stamp>> {
        stamp::stamp(&self.file)
    }

    fn changed(&self) -> io::Result<Option<Moment>> {
        if self.is_file { stamp::changed(&self.file).map(Some) } else { Ok(None) }
    }
}

/// Block size that direct I/O needs: found by trying, because not every file system reports it.
fn direct_block(file: &File) -> io::Result<u32> {
    for block in [512, 4096] {
        match file.read_at(&mut Buffer::zeroed(block as usize), 0) {
            Ok(_) => return Ok(block),
            Err(e) if e.raw_os_error() == Some(Errno::EINVAL as i32) => {}
            Err(e) => return Err(e),
        }
    }
    Err(Errno::EINVAL.into())
}

/// Takes an open-file-description lock on the whole file, which also conflicts with the byte locks of QEMU.
fn lock(file: &File, path: &Path, shared: bool) -> Result<(), OpenError> {
    let name = || path.display().to_string();
    let kind = if shared { libc::F_RDLCK } else { libc::F_WRLCK };
    let mut lock = libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&lock)) {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => {
            let told = fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).is_ok() && lock.l_pid > 0;
            let holders = if told { vec![process_name(lock.l_pid.unsigned_abs())] } else { holders(file) };
            let text = if holders.is_empty() { "another process".to_owned() } else { holders.join(", ") };
            Err(OpenError::InUse(name(), text))
        }
        Err(e) => Err(OpenError::Open(name(), e.into())),
    }
}

/// Other processes that have the file open: the kernel does not report the owner of a lock of this kind.
fn holders(file: &File) -> Vec<String> {
    let Ok(wanted) = file.metadata() else { return Vec::new() };
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    // As the others are numbered there, whatever this process calls itself.
    let own = std::fs::read_link("/proc/self").ok().and_then(|pid| pid.to_str()?.parse::<u32>().ok());
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|&pid| {
        let Ok(fds) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        fds.flatten().any(|fd| {
            let ours = Some(pid) == own && fd.file_name().to_str() == Some(&file.as_raw_fd().to_string());
            !ours && std::fs::metadata(fd.path()).is_ok_and(|m| m.dev() == wanted.dev() && m.ino() == wanted.ino())
        })
    })
    .map(process_name)
    .collect()
}

fn process_name(pid: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("process {pid} ({})", name.trim())
}
