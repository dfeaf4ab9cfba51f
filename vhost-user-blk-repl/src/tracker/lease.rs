//! The lease under which this process writes to the image: no write begins after the time that the record on
//! stable storage names.
//!
//! So if the image changes after the end of its lease, another program wrote to it; that holds even if this
//! host fails. Every write is also counted in a page that survives the process ([`TracePage`]). In: an image.
//! Out: the same image, with its writes under the lease; the proof for its record. Never changes the data
//! that is written.
//!
//! ```text
//!   unlimited            no record is kept, or the file cannot prove anything
//!   until T ──► until T'  the record that names T' is on stable storage; requested when T is near
//!        └────► closed    no write begins any more
//! ```

use std::io;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use host_kit::sync::lock;

use crate::image::Image;
use crate::image::stamp::{FileId, Moment, Stamp, boot, now};
use crate::record::proof::Proof;
use crate::record::trace::TracePage;

/// How long a lease is. After a host failure, changes within it cannot be attributed.
const LEASE: Duration = Duration::from_secs(4);
/// With less than this left, a longer one is requested.
const RENEW_BELOW: Duration = Duration::from_secs(2);
/// Storage that takes longer than this to write a record has failed.
const SLOWEST: Duration = Duration::from_secs(30);
/// A write that takes longer is not waited for at the end.
const HANGS: Duration = Duration::from_secs(2);
/// An inode on stable storage lags behind by less than this.
const LAG: Duration = Duration::from_secs(120);
/// No clock that files are stamped with is coarser.
const TICK: Duration = Duration::from_millis(20);

/// A lease without an end.
pub const UNLIMITED: Moment = Moment(i64::MAX);
/// A lease that is over for good.
pub const CLOSED: Moment = Moment(i64::MIN);

/// Called when the record should name a later time.
type Renew = Box<dyn Fn() + Send + Sync>;

struct Terms {
    until: Moment,
    /// Why it cannot be renewed, if that is so.
    trouble: Option<String>,
    /// No write begins any more.
    closed: bool,
    /// How long the last renewal took.
    took: Duration,
    renew: Option<Renew>,
}

struct Floor {
    /// No later than what stable storage has of the file's last change.
    since: Moment,
    /// What the file said at that time: the next `since`.
    next: (Moment, Moment),
}

/// The lease on one image.
pub struct WriteLease {
    image: Arc<dyn Image>,
    page: TracePage,
    file: Option<FileId>,
    run: u128,
    /// As in `terms`, for reading without the lock.
    until: AtomicI64,
    terms: Mutex<Terms>,
    changed: Condvar,
    noting: Mutex<()>,
    floor: Mutex<Floor>,
}

/// An image that is written under a lease.
pub struct LeasedImage(pub Arc<WriteLease>);

impl WriteLease {
    /// On `image`, for the process that calls itself `run`. Without a record (`kept`) nothing is left in
    /// memory, and the lease is unlimited.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new(image: Arc<dyn Image>, run: u128, kept: bool) -> io::Result<Arc<Self>> {
        let stamp = image.stamp().unwrap_or_default().filter(|_| kept);
        let page = TracePage::new(stamp.as_ref(), run)?;
        let changed = stamp.map_or(Moment::default(), |stamp| stamp.changed);
        let until = if kept { CLOSED } else { UNLIMITED };
        Ok(Arc::new(Self {
            image,
            page,
            file: stamp.map(|stamp| stamp.file),
            run,
            until: AtomicI64::new(until.0),
            terms: Mutex::new(Terms { until, trouble: None, closed: false, took: Duration::ZERO, renew: None }),
            changed: Condvar::new(),
            noting: Mutex::new(()),
            floor: Mutex::new(Floor { since: changed, next: (now(), changed) }),
        }))
    }

    /// What is called when the lease should be renewed; the answer is [`WriteLease::extend`].
    pub fn on_renewal(&self, renew: Renew) {
        lock(&self.terms).renew = Some(renew);
    }

    /// The proof that the record should hold now, and how long the lease is by that.
    pub fn proof(&self) -> (Option<Proof>, Moment) {
        let now = now();
        // A longer lease where stable storage is slow.
        let until = now.plus(LEASE + 2 * lock(&self.terms).took.min(SLOWEST));
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
        // Without a proof there is no need for a lease.
        (proof, if proof.is_some() { until } else { UNLIMITED })
    }

    /// Extends the lease to `until`: the record on stable storage says so, and writing it `took` so long; or
    /// there is no record.
    pub fn extend(&self, until: Moment, took: Duration) {
        let mut terms = lock(&self.terms);
        (terms.trouble, terms.took) = (None, took);
        if terms.closed {
            return;
        }
        terms.until = until;
        self.until.store(until.0, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Records before this one do not describe the image any more.
    pub fn note_record(&self, sequence: u64) {
        self.page.note_record(sequence);
    }

    /// The record cannot be written.
    pub fn cannot_extend(&self, why: &str) {
        lock(&self.terms).trouble = Some(why.to_owned());
        self.changed.notify_all();
    }

    /// No write begins any more. Waits for those that have, but not for a disk that hangs.
    pub fn close(&self) {
        let mut terms = lock(&self.terms);
        terms.closed = true;
        self.until.store(CLOSED.0, Ordering::SeqCst);
        self.changed.notify_all();
        let end = Instant::now() + HANGS;
        while !self.page.is_quiet() && Instant::now() < end {
            terms = self.changed.wait_timeout(terms, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// After [`WriteLease::close`]: the last proof; `None` while a write is in progress, or when another
    /// program writes.
    ///
    /// A write of the same tick of the clock as the last one would leave the same time: waits until that is
    /// over.
    #[must_use]
    pub fn last_proof(&self) -> Option<Proof> {
        let stamp = || self.image.stamp().ok().flatten().filter(|_| self.page.is_quiet());
        let before = stamp()?;
        let fresh = before.changed.plus(TICK).0.saturating_sub(now().0);
        if let Some(wait) = u64::try_from(fresh).ok().map(Duration::from_nanos).filter(|wait| *wait <= TICK) {
            std::thread::sleep(wait);
        }
        let after: Stamp = stamp()?;
        (after == before && Some(after.file) == self.file).then_some(Proof::Closed(after))
    }

    /// Removes the page in memory: a closed record needs none.
    pub fn remove_page(&self) {
        self.page.remove();
    }

    /// A write begins, once the lease allows it.
    fn begin(&self) -> io::Result<()> {
        let mut time = now();
        let until = Moment(self.until.load(Ordering::SeqCst));
        // Further ahead than any lease: the clock was set back.
        let ahead = until > time.plus(LEASE + 2 * SLOWEST) && until != UNLIMITED;
        if until < time.plus(RENEW_BELOW) || ahead {
            self.renew(until < time)?;
            time = now();
        }
        self.page.begin_write(time);
        if self.until.load(Ordering::SeqCst) == CLOSED.0 {
            self.page.end_write();
            return Err(closed());
        }
        Ok(())
    }

    /// Requests a longer lease, and waits for it if this one is over.
    fn renew(&self, wait: bool) -> io::Result<()> {
        let mut terms = lock(&self.terms);
        loop {
            if terms.closed {
                return Err(closed());
            }
            let Some(renew) = &terms.renew else { return Ok(()) };
            renew();
            if !wait || terms.until >= now() {
                return Ok(());
            }
            if let Some(why) = &terms.trouble {
                return Err(io::Error::other(format!("cannot write the image's record: {why}")));
            }
            // Even the new lease may be over by then.
            let waited = self.changed.wait_timeout(terms, RENEW_BELOW).unwrap_or_else(PoisonError::into_inner);
            terms = waited.0;
        }
    }

    /// A write is done, or has failed.
    fn end(&self) {
        let done = self.page.end_write();
        if self.file.is_none() || self.page.begun() != done {
            return;
        }
        let _noting = lock(&self.noting);
        let Ok(Some(changed)) = self.image.changed() else { return };
        if self.page.begun() == done {
            self.page.note(done, changed);
        }
    }

    fn write(&self, write: impl FnOnce(&dyn Image) -> io::Result<()>) -> io::Result<()> {
        self.begin()?;
        let result = write(&*self.image);
        self.end();
        result
    }
}

fn closed() -> io::Error {
    io::Error::other("the image is being closed")
}

impl Image for LeasedImage {
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
