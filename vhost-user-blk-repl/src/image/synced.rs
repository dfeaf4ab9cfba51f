//! The one place through which an image is put on stable storage. It never forgets that this has failed.
//!
//! The kernel reports an error of write-back to one sync of an open file only, and takes what it could not
//! write for written afterwards: the next sync succeeds, although data is lost. So a failure here is for
//! good, whoever asked for that sync, and syncs are one at a time: of two at once, only one would hear of
//! the error.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use host_kit::sync::lock;
use tracing::error;

use crate::image::stamp::{Moment, Stamp};
use crate::image::storage::Image;

/// Called once, when a sync has failed for the first time.
type OnFailure = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Turns {
    running: bool,
    /// How many syncs have begun, and how many of them are done.
    begun: u64,
    done: u64,
    /// Of the first one that failed.
    failure: Option<String>,
}

/// An image whose syncs are shared by all who ask for one, and whose first failure is remembered.
pub struct SyncedImage {
    image: Arc<dyn Image>,
    turns: Mutex<Turns>,
    changed: Condvar,
    on_failure: OnFailure,
}

impl SyncedImage {
    /// Around `image`, of which there must be no other.
    #[must_use]
    pub fn new(image: Arc<dyn Image>, on_failure: OnFailure) -> Self {
        Self { image, turns: Mutex::default(), changed: Condvar::new(), on_failure }
    }

    /// What may be missing in the image, and why, if a sync has failed.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        lock(&self.turns).failure.clone()
    }

    /// Waits for a sync that has begun after this call: somebody else's, or `None` if it is up to the caller.
    fn shared(&self) -> Option<io::Result<()>> {
        let mut turns = lock(&self.turns);
        // One that has begun before may have missed what was written since.
        let wanted = turns.begun + 1;
        while turns.running && turns.done < wanted {
            turns = self.changed.wait(turns).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(why) = &turns.failure {
            return Some(Err(io::Error::other(why.clone())));
        }
        if turns.done >= wanted {
            return Some(Ok(()));
        }
        (turns.running, turns.begun) = (true, wanted);
        None
    }

    /// The sync that this caller has performed is done.
    fn done(&self, result: &io::Result<()>) {
        let mut turns = lock(&self.turns);
        (turns.running, turns.done) = (false, turns.begun);
        if let Err(e) = result {
            turns.failure = Some(format!("the image could not be put on stable storage, data may be lost: {e}"));
        }
        self.changed.notify_all();
    }
}

impl Image for SyncedImage {
    fn size(&self) -> u64 {
        self.image.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.image.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.image.write_at(offset, data)
    }

    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.image.zero(offset, len, unmap)
    }

    fn sync(&self) -> io::Result<()> {
        if let Some(result) = self.shared() {
            return result;
        }
        let result = self.image.sync();
        self.done(&result);
        if let Err(e) = &result {
            error!("the image cannot be put on stable storage: {e}");
            (self.on_failure)();
        }
        result
    }

    fn hole_end(&self, offset: u64) -> Option<u64> {
        self.image.hole_end(offset)
    }

    fn stamp(&self) -> io::Result<Option<Stamp>> {
        self.image.stamp()
    }

    fn changed(&self) -> io::Result<Option<Moment>> {
        self.image.changed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

    use super::*;

    /// Reports an error of write-back as Linux does: to one sync.
    #[derive(Default)]
    struct Disk {
        broken: AtomicBool,
        syncs: AtomicUsize,
        /// Where a sync waits twice, if it waits: when it has begun, and before it ends.
        gate: Option<Barrier>,
    }

    impl Image for Disk {
        fn size(&self) -> u64 {
            512
        }

        fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> io::Result<()> {
            Ok(())
        }

        fn write_at(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
            Ok(())
        }

        fn zero(&self, _offset: u64, _len: u64, _unmap: bool) -> io::Result<()> {
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            self.syncs.fetch_add(1, SeqCst);
            self.gate.iter().for_each(|gate| {
                gate.wait();
                gate.wait();
            });
            if self.broken.swap(false, SeqCst) { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
        }

        fn hole_end(&self, _offset: u64) -> Option<u64> {
            None
        }

        fn stamp(&self) -> io::Result<Option<Stamp>> {
            Ok(None)
        }

        fn changed(&self) -> io::Result<Option<Moment>> {
            Ok(None)
        }
    }

    #[test]
    fn a_sync_that_has_failed_once_fails_for_good_and_is_told_once() {
        let (disk, told) = (Arc::new(Disk::default()), Arc::new(AtomicUsize::new(0)));
        let tell = told.clone();
        let image = SyncedImage::new(
            disk.clone(),
            Box::new(move || {
                tell.fetch_add(1, SeqCst);
            }),
        );
        image.sync().unwrap();
        assert_eq!(image.failure(), None);
        disk.broken.store(true, SeqCst);
        assert_eq!(image.sync().unwrap_err().raw_os_error(), Some(libc::EIO));
        assert!(image.sync().unwrap_err().to_string().contains("Input/output error"));
        assert!(image.failure().is_some());
        assert_eq!((disk.syncs.load(SeqCst), told.load(SeqCst)), (2, 1));
    }

    #[test]
    fn whoever_asks_during_a_sync_gets_a_later_one_and_its_failure() {
        let disk = Arc::new(Disk { gate: Some(Barrier::new(2)), ..Disk::default() });
        let image = SyncedImage::new(disk.clone(), Box::new(|| {}));
        let gate = || disk.gate.iter().for_each(|gate| drop(gate.wait()));
        std::thread::scope(|scope| {
            let first = scope.spawn(|| image.sync());
            gate();
            let others = [scope.spawn(|| image.sync()), scope.spawn(|| image.sync())];
            gate();
            first.join().unwrap().unwrap();
            // Whichever of the two it is.
            gate();
            disk.broken.store(true, SeqCst);
            gate();
            let results = others.map(|other| other.join().unwrap());
            assert!(results.iter().all(Result::is_err), "{results:?}");
        });
        assert_eq!(disk.syncs.load(SeqCst), 2);
    }
}
