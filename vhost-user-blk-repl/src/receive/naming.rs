//! Gives the standby's image a new name, once everything in it so far is on stable storage, and reports that
//! to the primary. On a thread of its own: neither the stream nor a takeover waits for the disk.
//!
//! ```text
//!   idle ──begin──► mark what is written from here on ──► sync the image ──► write the record
//!    ▲                                                                             │
//!    └──────────────────────────────── Durable ◄───────────────────────────────────┘
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ft_proto::Epoch;
use host_kit::sandbox::Needs;
use tracing::warn;

use crate::image::Image;
use crate::receive::applier::Applier;
use crate::receive::reply::Replies;
use crate::record::Base;
use crate::tracker::{RecordWriteError, StandbyStream};

/// For one stream.
pub struct Naming {
    image: Arc<dyn Image>,
    replies: Arc<Replies>,
    /// A name was requested and is not confirmed yet.
    busy: AtomicBool,
}

/// The last name is not confirmed yet.
#[derive(Debug)]
pub struct Busy;

#[derive(Debug, thiserror::Error)]
enum NameError {
    #[error(transparent)]
    Sync(#[from] std::io::Error),
    #[error(transparent)]
    Record(#[from] RecordWriteError),
}

impl Naming {
    /// Of `image`, for the stream that `replies` go to.
    #[must_use]
    pub fn new(image: Arc<dyn Image>, replies: Arc<Replies>) -> Arc<Self> {
        Arc::new(Self { image, replies, busy: AtomicBool::new(false) })
    }

    /// Names the image `base`, as it will be when everything queued so far is applied, and then confirms to
    /// the primary that everything up to `epoch` is on stable storage. Does not block.
    ///
    /// # Errors
    /// When the last name is not confirmed yet.
    pub fn begin(
        self: &Arc<Self>,
        applier: &Applier,
        stream: StandbyStream,
        epoch: Epoch,
        base: Base,
    ) -> Result<(), Busy> {
        if self.busy.swap(true, Ordering::SeqCst) {
            return Err(Busy);
        }
        let naming = self.clone();
        applier.then(
            0,
            Box::new(move |applied| {
                stream.begin_renaming();
                let name = move || naming.finish(&stream, epoch, base);
                // The primary can do without the confirmation.
                if applied && let Err(e) = host_kit::thread::spawn("blk_settle", Needs::MESSAGES | Needs::STORAGE, name)
                {
                    warn!("cannot start a thread: {e}");
                }
            }),
        );
        Ok(())
    }

    fn finish(&self, stream: &StandbyStream, epoch: Epoch, base: Base) {
        match self.name(stream, base) {
            Ok(()) => {
                self.busy.store(false, Ordering::SeqCst);
                self.replies.durable(epoch);
            }
            Err(e) => warn!("this image is not known to be on stable storage: {e}"),
        }
    }

    fn name(&self, stream: &StandbyStream, base: Base) -> Result<(), NameError> {
        self.image.sync()?;
        Ok(stream.rename(base)?)
    }
}
