//! An image whose operations can be held up or made to fail.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use vhost_user_blk_repl::image::stamp::{Moment, Stamp};
use vhost_user_blk_repl::image::{FileImage, Image};

use super::LIMIT;

/// Which operations wait at the gate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Gate {
    Open,
    All,
    Reads,
    /// And syncs.
    Writes,
    Syncs,
}

/// An image whose operations wait at a gate, and whose writes can be made to fail. A read waits after it has
/// read.
pub struct GatedImage {
    inner: FileImage,
    gate: Mutex<Gate>,
    opened: Condvar,
    waiting: Mutex<usize>,
    arrived: Condvar,
    pub fail_writes: AtomicBool,
    pub fail_reads: AtomicBool,
    /// The next sync fails, as one does that hears of a failed write-back: those after it succeed.
    pub fail_sync: AtomicBool,
    pub syncs: AtomicUsize,
}

impl GatedImage {
    pub fn open(path: &Path) -> Arc<Self> {
        Arc::new(Self {
            inner: FileImage::open(path, false, false).unwrap(),
            gate: Mutex::new(Gate::Open),
            opened: Condvar::new(),
            waiting: Mutex::new(0),
            arrived: Condvar::new(),
            fail_writes: AtomicBool::new(false),
            fail_reads: AtomicBool::new(false),
            fail_sync: AtomicBool::new(false),
            syncs: AtomicUsize::new(0),
        })
    }

    pub fn set(&self, gate: Gate) {
        *self.gate.lock().unwrap() = gate;
        self.opened.notify_all();
    }

    /// Waits until `count` operations stand at the gate.
    pub fn wait_for_waiting(&self, count: usize) {
        let waiting = self.waiting.lock().unwrap();
        let (_waiting, timeout) = self.arrived.wait_timeout_while(waiting, LIMIT, |n| *n < count).unwrap();
        assert!(!timeout.timed_out(), "no {count} operations at the gate");
    }

    fn pass(&self, kind: Gate) {
        *self.waiting.lock().unwrap() += 1;
        self.arrived.notify_all();
        let closed =
            |gate: &mut Gate| *gate == Gate::All || *gate == kind || (*gate, kind) == (Gate::Writes, Gate::Syncs);
        drop(self.opened.wait_while(self.gate.lock().unwrap(), closed).unwrap());
        *self.waiting.lock().unwrap() -= 1;
    }
}

impl Image for GatedImage {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let result = self.inner.read_at(offset, buf);
        self.pass(Gate::Reads);
        if self.fail_reads.load(Ordering::Relaxed) {
            return Err(io::Error::other("made to fail"));
        }
        result
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.pass(Gate::Writes);
        if self.fail_writes.load(Ordering::Relaxed) {
            return Err(io::Error::other("made to fail"));
        }
        self.inner.write_at(offset, data)
    }
    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.pass(Gate::Writes);
        self.inner.zero(offset, len, unmap)
    }
    fn sync(&self) -> io::Result<()> {
        self.pass(Gate::Syncs);
        self.syncs.fetch_add(1, Ordering::Relaxed);
        if self.fail_sync.swap(false, Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.inner.sync()
    }
    fn hole_end(&self, offset: u64) -> Option<u64> {
        self.inner.hole_end(offset)
    }
    fn stamp(&self) -> io::Result<Option<Stamp>> {
        self.inner.stamp()
    }
    fn changed(&self) -> io::Result<Option<Moment>> {
        self.inner.changed()
    }
}
