//! A page of counters under /run that a process leaves behind for each image it writes to. It survives the
//! process, but not a reboot. The next process uses it to find out whether another program has written since:
//! see [`super::proof`].

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::OFlag;
use tracing::warn;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::image::stamp::{FileId, Moment, Stamp, read_bounded};
use crate::record::proof::Trace;

/// Where pages are: in memory, gone with the boot.
const PAGES: &str = "/run/pollux";
const PAGE_LEN: usize = 4096;

/// Numbers in a page.
const RUN: [usize; 2] = [0, 1];
const BEGUN: usize = 2;
const DONE: usize = 3;
const NOTED: usize = 4;
const CHANGED: usize = 5;
const BEGAN: usize = 6;
const RECORDED: usize = 7;
const NUMBERS: usize = 8;

/// The page of an image's file.
fn page_of(file: &FileId) -> PathBuf {
    Path::new(PAGES).join(format!("disk-{:032x}-{}-{}", file.system, file.inode, file.generation))
}

/// The page that the last process of this boot left for `file`.
#[must_use]
pub fn trace_of(file: &FileId) -> Option<Trace> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW).bits());
    let bytes = options.open(page_of(file)).and_then(|page| read_bounded(&page, PAGE_LEN)).ok()?;
    let numbers: Vec<u64> = bytes
        .chunks_exact(8)
        .take(NUMBERS)
        .filter_map(|word| Some(u64::from_ne_bytes(word.try_into().ok()?)))
        .collect();
    let get = |at: usize| numbers.get(at).copied();
    Some(Trace {
        run: u128::from(get(RUN[0])?) | u128::from(get(RUN[1])?) << 64,
        begun: get(BEGUN)?,
        done: get(DONE)?,
        noted: get(NOTED)?,
        changed: Moment(get(CHANGED)?.cast_signed()),
        began: Moment(get(BEGAN)?.cast_signed()),
        recorded: get(RECORDED)?,
    })
}

/// The page of this process.
pub struct TracePage {
    page: MmapRegion,
    /// `None`: the page is private memory.
    path: Option<PathBuf>,
}

impl TracePage {
    /// A page for an image with this `stamp`, by the process with the identity `run`. Without a stamp, or
    /// when the page cannot be created, it is private.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new(stamp: Option<&Stamp>, run: u128) -> io::Result<Self> {
        let made = stamp.map(|stamp| make_page(&stamp.file)).transpose().unwrap_or_else(|e| {
            warn!("{PAGES}: {e}; if this process is killed, changes of the image by other programs are detected less reliably");
            None
        });
        let (page, path) = match made {
            Some((page, path)) => (page, Some(path)),
            None => (MmapRegion::new(PAGE_LEN).map_err(io::Error::other)?, None),
        };
        let page = Self { page, path };
        let changed = stamp.map_or(Moment::default(), |stamp| stamp.changed);
        page.number(CHANGED).store(changed.0.cast_unsigned(), Ordering::SeqCst);
        page.number(RUN[1]).store((run >> 64) as u64, Ordering::SeqCst);
        page.number(RUN[0]).store(run as u64, Ordering::SeqCst);
        Ok(page)
    }

    fn number(&self, at: usize) -> &AtomicU64 {
        self.page.get_atomic_ref(at * size_of::<u64>()).expect("a page has room for all numbers")
    }

    /// A write begins.
    pub fn begin_write(&self, now: Moment) {
        self.number(BEGAN).store(now.0.cast_unsigned(), Ordering::SeqCst);
        self.number(BEGUN).fetch_add(1, Ordering::SeqCst);
    }

    /// A write is done, or was not: how many that makes.
    pub fn end_write(&self) -> u64 {
        self.number(DONE).fetch_add(1, Ordering::SeqCst) + 1
    }

    /// How many writes have begun.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.number(BEGUN).load(Ordering::SeqCst)
    }

    /// Whether no write is under way.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let done = self.number(DONE).load(Ordering::SeqCst);
        self.begun() == done
    }

    /// The image was last changed at `changed` when `done` writes were done and none was under way.
    pub fn note(&self, done: u64, changed: Moment) {
        self.number(CHANGED).store(changed.0.cast_unsigned(), Ordering::SeqCst);
        self.number(NOTED).store(done, Ordering::SeqCst);
    }

    /// Records before this one do not describe the image any more. Before a write that relies on it.
    pub fn note_record(&self, sequence: u64) {
        self.number(RECORDED).store(sequence, Ordering::SeqCst);
    }

    /// Removes the page: a closed record needs none.
    pub fn remove(&self) {
        if let Some(path) = &self.path {
            // If it stays, it is ignored: the record is closed.
            let _ = fs::remove_file(path);
        }
    }
}

/// Where pages are made.
pub fn pages() -> PathBuf {
    // What is wrong is said when a page is made.
    let _ = make_directory();
    PAGES.into()
}

fn make_directory() -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(PAGES)
}

fn make_page(file: &FileId) -> io::Result<(MmapRegion, PathBuf)> {
    make_directory()?;
    let path = page_of(file);
    // A new one: the page of the process before has been read.
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let page = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    page.set_len(PAGE_LEN as u64)?;
    Ok((map(page)?, path))
}

fn map(page: File) -> io::Result<MmapRegion> {
    MmapRegion::from_file(FileOffset::new(page, 0), PAGE_LEN).map_err(io::Error::other)
}
