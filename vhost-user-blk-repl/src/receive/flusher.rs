//! The thread that puts what was applied to a standby's image on stable storage, soon afterwards: a takeover
//! finds little left to do. Nobody waits for it.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use host_kit::sandbox::Needs;
use host_kit::sync::lock;

use crate::image::Image;

/// Stable storage is behind by at most this long, and the time that a sync takes,
const BEHIND: Duration = Duration::from_secs(1);
/// or by this many bytes.
const BEHIND_BYTES: u64 = 64 << 20;

#[derive(Default)]
struct Written {
    /// Since the last sync began.
    bytes: u64,
    closed: bool,
}

struct Shared {
    written: Mutex<Written>,
    changed: Condvar,
}

/// Tells the thread, which ends when this is dropped.
pub struct Flusher {
    shared: Arc<Shared>,
}

impl Flusher {
    /// Starts the thread, for `image`.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn new(image: Arc<dyn Image>) -> io::Result<Self> {
        let shared = Arc::new(Shared { written: Mutex::default(), changed: Condvar::new() });
        let theirs = shared.clone();
        host_kit::thread::spawn("blk_flush", Needs::STORAGE, move || {
            // What the image reports when a sync of it has failed is not this thread's business.
            while theirs.next_sync() && image.sync().is_ok() {}
        })?;
        Ok(Self { shared })
    }

    /// So much was written to the image. Does not block.
    pub fn wrote(&self, bytes: u64) {
        let mut written = lock(&self.shared.written);
        let before = written.bytes;
        written.bytes += bytes;
        if before == 0 || before < BEHIND_BYTES && written.bytes >= BEHIND_BYTES {
            self.shared.changed.notify_all();
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        lock(&self.shared.written).closed = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    /// Waits until a sync is due; `false`: none is any more.
    fn next_sync(&self) -> bool {
        let written = self.changed.wait_while(lock(&self.written), |written| written.bytes == 0 && !written.closed);
        let written = written.unwrap_or_else(PoisonError::into_inner);
        let early = |written: &mut Written| written.bytes < BEHIND_BYTES && !written.closed;
        let due = self.changed.wait_timeout_while(written, BEHIND, early);
        let mut written = due.unwrap_or_else(PoisonError::into_inner).0;
        written.bytes = 0;
        !written.closed
    }
}
