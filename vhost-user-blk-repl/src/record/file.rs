//! The file with an image's record: located beside the image, checked before the image is used, updated in
//! place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use host_kit::file::folder;
use host_kit::landlock::{Access, Place};
use nix::fcntl::OFlag;
use tracing::warn;

use crate::image::Image;
use crate::image::stamp::{BOOT_ID, Stamp, boot, no_file, read_bounded};
use crate::record::contents::{Record, RecordFault, Role};
use crate::record::format::{FILE_MAX, decode, is_of_this_version};
use crate::record::proof::{Reason, Verdict, judge};
use crate::record::slot::{encode, slot_len};
use crate::record::trace::{pages, trace_of};

/// Where records of block devices are kept, because nothing in /dev lasts.
const STATE_DIR: &str = "/var/lib/pollux";

/// What the image is going to be used for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Purpose {
    /// Serve a guest from it.
    Serve(Refuse),
    /// Receive a primary's disk; serve a guest only after a takeover.
    StandBy,
}

/// Which images are refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refuse {
    /// Those that may be older than another copy.
    Stale,
    /// Only those that are not known to be a complete disk: that no copy is newer has been decided elsewhere.
    Half,
    /// None.
    Nothing,
}

/// An image that must not be used, because of its record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The kernel refused.
    #[error("{}: cannot read the image's record", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// Another copy may be newer, or this one is not a whole disk.
    #[error(
        "--path {}: {why}; start it as a standby (pollux-vmm --ft role=standby, or --standby), or, if this is the copy to \
         go on with, with --force (pollux-vmm --disk path=…,force=on)",
        image.display()
    )]
    Stale {
        /// The image.
        image: PathBuf,
        /// The reason.
        why: String,
    },
    /// Nothing is known about the image.
    #[error(
        "--path {}: whether this copy is current is not known, because of its record {}: {fault}; start it as a standby, or, \
         if this is the copy to go on with, with --force (pollux-vmm --disk path=…,force=on)",
        image.display(), record.display()
    )]
    Unusable {
        /// The image.
        image: PathBuf,
        /// The record's file.
        record: PathBuf,
        /// What is wrong with it.
        #[source]
        fault: RecordFault,
    },
}

/// The record of an image that may be used.
pub struct Opened {
    file: RecordFile,
    record: Option<Record>,
    purpose: Purpose,
}

impl Opened {
    /// See [`RecordFile::places`].
    #[must_use]
    pub fn places(&self) -> Vec<Place> {
        self.file.places()
    }

    /// What the image is going to be used for.
    #[must_use]
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// The file, the record in it, if there is one, and the purpose.
    #[must_use]
    pub fn into_parts(self) -> (RecordFile, Option<Record>, Purpose) {
        (self.file, self.record, self.purpose)
    }
}

/// The file.
pub struct RecordFile {
    path: PathBuf,
    file: Option<File>,
    sequence: u64,
}

/// Where the record of `image` is.
#[must_use]
pub fn beside(image: &Path) -> PathBuf {
    // One record, whichever path the image is named by.
    let image = &fs::canonicalize(image).unwrap_or_else(|_| image.to_owned());
    let is_device = fs::metadata(image).is_ok_and(|meta| meta.file_type().is_block_device());
    if is_device {
        let name = image.to_string_lossy().trim_start_matches('/').replace('/', "-");
        return Path::new(STATE_DIR).join(name + ".pollux");
    }
    let mut path = image.as_os_str().to_owned();
    path.push(".pollux");
    path.into()
}

/// Reads the file with a record. Does not block on anything that is not a file, and reads no more than a
/// record. `None`: no such file.
///
/// # Errors
/// Of the file system; when it is no regular file, or too long for a record.
pub fn read(path: &Path, write: bool) -> io::Result<Option<(File, Vec<u8>)>> {
    let mut options = OpenOptions::new();
    options.read(true).write(write).custom_flags(OFlag::O_NONBLOCK.bits());
    // Opening a device or a pipe may have side effects.
    let opened = fs::metadata(path).and_then(|meta| if meta.is_file() { options.open(path) } else { Err(no_file()) });
    match opened {
        Ok(file) => read_bounded(&file, FILE_MAX).map(|bytes| Some((file, bytes))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether an image of `size` bytes with this `stamp` is the one that its record, with this `sequence`
/// number, describes.
#[must_use]
pub fn examine((sequence, record): (u64, &Record), size: u64, stamp: Option<&Stamp>) -> Verdict {
    if record.marks.image_size() != size {
        return Verdict::Changed(Reason::Size);
    }
    let trace = stamp.and_then(|stamp| trace_of(&stamp.file));
    judge((sequence, record.proof.as_ref()), stamp, boot(), trace.as_ref())
}

impl RecordFile {
    /// Reads the record of `image`, which is at `path`, in the file `record`, and decides whether the image
    /// may be used.
    ///
    /// # Errors
    /// See [`RecordError`]; nothing was changed.
    pub fn open(path: &Path, record: PathBuf, image: &dyn Image, purpose: Purpose) -> Result<Opened, RecordError> {
        let size = image.size();
        let read = read(&record, true).map_err(|e| RecordError::Read(record.clone(), e))?;
        // The target of any symbolic link: it is replaced where it is.
        let record = fs::canonicalize(&record).unwrap_or(record);
        let mut found = Self { path: record, file: None, sequence: 0 };
        let Some((file, bytes)) = read else { return Ok(Opened { file: found, record: None, purpose }) };
        let (sequence, mut record) = match decode(&bytes) {
            Ok(decoded) => decoded,
            Err(fault) if matches!(purpose, Purpose::Serve(Refuse::Stale | Refuse::Half)) => {
                return Err(RecordError::Unusable { image: path.to_owned(), record: found.path, fault });
            }
            // As if there were none; but a record is kept from here on.
            Err(_) => (0, Record::new(new_id(), size)),
        };
        // An error means that nothing is known.
        let stamp = image.stamp().ok().flatten();
        let verdict = examine((sequence, &record), size, stamp.as_ref());
        record.altered |= matches!(verdict, Verdict::Changed(_));
        if let Purpose::Serve(refuse) = purpose
            && let Some(why) = stale(&record, refuse)
        {
            return Err(RecordError::Stale { image: path.to_owned(), why });
        }
        if let Verdict::Unknown(reason) | Verdict::Changed(reason) = verdict {
            if record.base.is_some() {
                warn!("{}: {reason}; the next resynchronisation compares all of it", path.display());
            }
            record.forget_base();
        }
        if record.marks.image_size() != size {
            record.marks = Record::new(0, size).marks;
        }
        if bytes.len() == 2 * slot_len(size) && is_of_this_version(&bytes) {
            (found.file, found.sequence) = (Some(file), sequence);
        }
        Ok(Opened { file: found, record: Some(record), purpose })
    }

    /// Makes `record` the newest, on stable storage.
    ///
    /// # Errors
    /// Of the file system; either this record or the one before is read next time.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        let slot = encode(record, self.sequence + 1);
        match &self.file {
            Some(file) => {
                file.write_all_at(&slot, (self.sequence + 1) % 2 * slot.len() as u64)?;
                file.sync_data()?;
            }
            None => self.file = Some(self.create(&slot)?),
        }
        self.sequence += 1;
        Ok(())
    }

    /// The number of the newest record that was written.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The folder that the file is in.
    fn directory(&self) -> &Path {
        folder(&self.path)
    }

    /// Creates the file with the slot twice, so that later writes need no more space.
    fn create(&self, slot: &[u8]) -> io::Result<File> {
        let directory = self.directory();
        if directory == Path::new(STATE_DIR) {
            fs::create_dir_all(directory)?;
        }
        let mut temporary = self.path.as_os_str().to_owned();
        temporary.push(".new");
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&temporary)?;
        file.write_all(slot)?;
        file.write_all(slot)?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        File::open(directory)?.sync_all()?;
        Ok(file)
    }

    /// Removes the record, on stable storage, so that no peer is believed to be in sync.
    ///
    /// # Errors
    /// Of the file system; the record may be there next time then.
    pub fn remove(&mut self) -> io::Result<()> {
        self.file = None;
        let gone = |result: io::Result<()>| {
            result.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
        };
        gone(fs::remove_file(&self.path))?;
        // Also when the file was gone: maybe by an attempt whose sync failed.
        gone(File::open(self.directory()).and_then(|directory| directory.sync_all()))
    }

    /// Where files are needed to keep the record: its own, those beside it that it is made from, the page of
    /// the image, and what tells one boot of this host from another. What else is in their folders is left as
    /// it is.
    #[must_use]
    pub fn places(&self) -> Vec<Place> {
        let directory = self.directory();
        if directory == Path::new(STATE_DIR) {
            // What is wrong is said when the record is written.
            let _ = fs::create_dir_all(directory);
        }
        vec![(directory.to_owned(), Access::Write), (pages(), Access::Write), (BOOT_ID.into(), Access::Read)]
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Why a VM must not be started from an image with this record.
fn stale(record: &Record, refuse: Refuse) -> Option<String> {
    let generation = record.generation;
    let half = record.role == Role::Syncing || record.altered;
    Some(match record.role {
        Role::Alone => return None,
        _ if refuse == Refuse::Nothing || refuse == Refuse::Half && !half => return None,
        _ if record.altered => format!(
            "another program has changed this copy since it was last used (generation {generation}): it is not known to be a \
             whole disk"
        ),
        Role::Protected => format!(
            "the VM was protected when this copy was last used (generation {generation}), so its standby may have taken over \
             and be newer"
        ),
        Role::Syncing => {
            format!("this copy is half-synchronised (a standby's, generation {generation}): it is not a whole disk")
        }
        Role::Standby => {
            format!(
                "this copy was a standby's (generation {generation}): the VM ran elsewhere and may have gone on since"
            )
        }
    })
}

/// A random identifier.
#[must_use]
pub fn new_id() -> u128 {
    let time = || std::time::UNIX_EPOCH.elapsed().map_or(1, |time| time.as_nanos());
    // Linux always has random numbers; if not, the time is at least unlikely to repeat.
    host_kit::random::bytes().map_or_else(|_| time(), u128::from_le_bytes)
}
