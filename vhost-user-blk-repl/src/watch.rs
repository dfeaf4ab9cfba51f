//! Watches the writes to an image, so that the next process can tell whether somebody else wrote after this one.
//!
//! Every write is counted in a page of memory that outlives the process ([`Trace`]), and none is begun after the time that the
//! record on stable storage names: see `proof`. In: an image. Out: the same image, watched; what its record should note. Never
//! changes what is written.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::OFlag;
use tracing::warn;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::image::Image;
use crate::lock;
use crate::proof::{FileId, Moment, Proof, Stamp, Trace};
use crate::stamp::{boot, now, read_bounded};

/// How far ahead the record allows writes: the least that can be told after the host died.
const ALLOWED: Duration = Duration::from_secs(4);
/// Storage that takes longer than this to write a record has failed.
const SLOWEST: Duration = Duration::from_secs(30);
/// A write that takes longer is not waited for at the end.
const HANGS: Duration = Duration::from_secs(2);
/// With less than this left, more is asked for.
const SPARE: Duration = Duration::from_secs(2);
/// An inode on stable storage lags behind by less than this.
const LAG: Duration = Duration::from_secs(120);
/// No clock that files are stamped with is coarser.
const TICK: Duration = Duration::from_millis(20);
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
const NUMBERS: usize = 7;

/// Asked when the record should allow more writes.
type Ask = Box<dyn Fn() + Send + Sync>;

struct Allowed {
    until: Moment,
    /// Why it cannot be extended, if that is so.
    trouble: Option<String>,
    /// No write begins any more.
    shut: bool,
    /// How long it took the last time.
    took: Duration,
    ask: Option<Ask>,
}

struct Floor {
    /// No later than what stable storage has of the file's last change.
    since: Moment,
    /// What the file said at that time: the next `since`.
    next: (Moment, Moment),
}

/// The watch over one image.
pub struct Watch {
    image: Arc<dyn Image>,
    page: MmapRegion,
    path: Option<PathBuf>,
    file: Option<FileId>,
    run: u128,
    /// As in `allowed`, for who only looks.
    until: AtomicI64,
    allowed: Mutex<Allowed>,
    extended: Condvar,
    noting: Mutex<()>,
    floor: Mutex<Floor>,
}

/// An image whose writes are watched.
pub struct Watched(pub Arc<Watch>);

/// The page of an image's file.
fn page_of(file: &FileId) -> PathBuf {
    Path::new(PAGES).join(format!("disk-{:032x}-{}-{}", file.system, file.inode, file.generation))
}

/// What the last process of this boot that wrote to `file` has left.
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
    })
}

fn make_page(file: &FileId) -> io::Result<(MmapRegion, PathBuf)> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(PAGES)?;
    let path = page_of(file);
    // A new one: what an earlier process has left has been read.
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

impl Watch {
    /// Over `image`, by the process that calls itself `run`. Without a record nothing is left in memory, and all writes are
    /// allowed.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new(image: Arc<dyn Image>, run: u128, kept: bool) -> io::Result<Arc<Self>> {
        let stamp = image.stamp().unwrap_or_default().filter(|_| kept);
        let made = stamp.map(|stamp| make_page(&stamp.file)).transpose().unwrap_or_else(|e| {
            warn!("{PAGES}: {e}; what others do to the image is found less exactly if this process is killed");
            None
        });
        let (page, path) = match made {
            Some((page, path)) => (page, Some(path)),
            None => (MmapRegion::new(PAGE_LEN).map_err(io::Error::other)?, None),
        };
        let changed = stamp.map_or(Moment::default(), |stamp| stamp.changed);
        let until = if kept { Moment(i64::MIN) } else { Moment(i64::MAX) };
        let watch = Self {
            image,
            page,
            path,
            file: stamp.map(|stamp| stamp.file),
            run,
            until: AtomicI64::new(until.0),
            allowed: Mutex::new(Allowed { until, trouble: None, shut: false, took: Duration::ZERO, ask: None }),
            extended: Condvar::new(),
            noting: Mutex::new(()),
            floor: Mutex::new(Floor { since: changed, next: (now(), changed) }),
        };
        watch.number(CHANGED).store(changed.0.cast_unsigned(), Ordering::SeqCst);
        watch.number(RUN[1]).store((run >> 64) as u64, Ordering::SeqCst);
        watch.number(RUN[0]).store(run as u64, Ordering::SeqCst);
        Ok(Arc::new(watch))
    }

    /// Who is asked to have the record allow more; see [`Watch::allow`].
    pub fn asks(&self, ask: Ask) {
        lock(&self.allowed).ask = Some(ask);
    }

    fn number(&self, at: usize) -> &AtomicU64 {
        self.page.get_atomic_ref(at * size_of::<u64>()).expect("a page has room for all numbers")
    }

    /// What the record should note now, and until when it allows writes by that.
    pub fn proof(&self) -> (Option<Proof>, Moment) {
        let now = now();
        // Where stable storage is slow, it is asked earlier and for longer.
        let until = now.plus(ALLOWED + 2 * lock(&self.allowed).took.min(SLOWEST));
        let proof = self.file.map(|file| {
            let mut floor = lock(&self.floor);
            let set_back = now < floor.next.0;
            if set_back || now > floor.next.0.plus(LAG) {
                let changed = self.image.changed().ok().flatten().unwrap_or(floor.since);
                floor.since = if set_back { floor.since.min(changed) } else { floor.next.1 };
                floor.next = (now, changed);
            }
            Proof::Open { file, boot: boot(), run: self.run, since: floor.since, until }
        });
        // Where nothing can be proven there is nothing to keep to.
        (proof, if proof.is_some() { until } else { Moment(i64::MAX) })
    }

    /// Writes are allowed until then: that is on stable storage, which took so long, or there is no record.
    pub fn allow(&self, until: Moment, took: Duration) {
        let mut allowed = lock(&self.allowed);
        (allowed.trouble, allowed.took) = (None, took);
        if allowed.shut {
            return;
        }
        allowed.until = until;
        self.until.store(until.0, Ordering::SeqCst);
        self.extended.notify_all();
    }

    /// The record cannot be written.
    pub fn trouble(&self, why: &str) {
        lock(&self.allowed).trouble = Some(why.to_owned());
        self.extended.notify_all();
    }

    /// No write begins any more. Waits for those that have, but not for a disk that hangs.
    pub fn shut(&self) {
        let mut allowed = lock(&self.allowed);
        allowed.shut = true;
        self.until.store(i64::MIN, Ordering::SeqCst);
        self.extended.notify_all();
        let end = std::time::Instant::now() + HANGS;
        while !self.is_quiet() && std::time::Instant::now() < end {
            allowed = self.extended.wait_timeout(allowed, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn is_quiet(&self) -> bool {
        let done = self.number(DONE).load(Ordering::SeqCst);
        self.number(BEGUN).load(Ordering::SeqCst) == done
    }

    /// After [`Watch::shut`]: what the record should note; `None` when something is still being written, or others write.
    ///
    /// A write of the same tick of the clock as the last one would leave the same time: waits until that is over.
    #[must_use]
    pub fn close(&self) -> Option<Proof> {
        let stamp = || self.image.stamp().ok().flatten().filter(|_| self.is_quiet());
        let before = stamp()?;
        let fresh = before.changed.plus(TICK).0.saturating_sub(now().0);
        if let Some(wait) = u64::try_from(fresh).ok().map(Duration::from_nanos).filter(|wait| *wait <= TICK) {
            std::thread::sleep(wait);
        }
        let after: Stamp = stamp()?;
        (after == before && Some(after.file) == self.file).then_some(Proof::Closed(after))
    }

    /// Removes the page: the record tells everything now.
    pub fn forget(&self) {
        if let Some(path) = &self.path {
            // One that stays says nothing about a record that is closed.
            let _ = fs::remove_file(path);
        }
    }

    /// A write begins, once the record allows it.
    fn begin(&self) -> io::Result<()> {
        let mut time = now();
        let until = Moment(self.until.load(Ordering::SeqCst));
        // Further ahead than ever: the clock was set back.
        let ahead = until > time.plus(ALLOWED + 2 * SLOWEST) && until != Moment(i64::MAX);
        if until < time.plus(SPARE) || ahead {
            self.extend(until < time)?;
            time = now();
        }
        self.number(BEGAN).store(time.0.cast_unsigned(), Ordering::SeqCst);
        self.number(BEGUN).fetch_add(1, Ordering::SeqCst);
        if self.until.load(Ordering::SeqCst) == i64::MIN {
            self.number(DONE).fetch_add(1, Ordering::SeqCst);
            return Err(shut());
        }
        Ok(())
    }

    /// Asks for more, and waits for it if nothing is left.
    fn extend(&self, wait: bool) -> io::Result<()> {
        let mut allowed = lock(&self.allowed);
        loop {
            if allowed.shut {
                return Err(shut());
            }
            let Some(ask) = &allowed.ask else { return Ok(()) };
            ask();
            if !wait || allowed.until >= now() {
                return Ok(());
            }
            if let Some(why) = &allowed.trouble {
                return Err(io::Error::other(format!("cannot write the image's record: {why}")));
            }
            // What comes may be of the past already.
            let waited = self.extended.wait_timeout(allowed, SPARE).unwrap_or_else(PoisonError::into_inner);
            allowed = waited.0;
        }
    }

    /// A write is done, or has failed.
    fn end(&self) {
        let done = self.number(DONE).fetch_add(1, Ordering::SeqCst) + 1;
        if self.file.is_none() || self.number(BEGUN).load(Ordering::SeqCst) != done {
            return;
        }
        let _noting = lock(&self.noting);
        let Ok(Some(changed)) = self.image.changed() else { return };
        if self.number(BEGUN).load(Ordering::SeqCst) == done {
            self.number(CHANGED).store(changed.0.cast_unsigned(), Ordering::SeqCst);
            self.number(NOTED).store(done, Ordering::SeqCst);
        }
    }

    fn write(&self, write: impl FnOnce(&dyn Image) -> io::Result<()>) -> io::Result<()> {
        self.begin()?;
        let result = write(&*self.image);
        self.end();
        result
    }
}

fn shut() -> io::Error {
    io::Error::other("the image is being closed")
}

impl Image for Watched {
    fn size(&self) -> u64 {
        self.0.image.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.image.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(|image| image.write_at(offset, data))
    }

    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.0.write(|image| image.zero(offset, len, unmap))
    }

    fn sync(&self) -> io::Result<()> {
        self.0.image.sync()
    }

    fn hole_end(&self, offset: u64) -> Option<u64> {
        self.0.image.hole_end(offset)
    }

    fn stamp(&self) -> io::Result<Option<Stamp>> {
        self.0.image.stamp()
    }

    fn changed(&self) -> io::Result<Option<Moment>> {
        self.0.image.changed()
    }
}
