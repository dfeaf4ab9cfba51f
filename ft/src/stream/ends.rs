//! The two ends of a replication stream as the engine's thread uses them: what it gives them, and what they
//! tell it.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ft_proto::{Epoch, Term, Time};
use ft_transport::frames::TransportError;
use ft_wire::session::{CopyProgress, Yielding};

use crate::checkpoint::epoch_image::EpochImage;
use crate::guest::Form;
use crate::stream::coder::Volume;
use crate::stream::image::WholeImage;

/// What to send.
#[derive(Debug)]
pub enum Job {
    /// Pages of the first copy, packed or not.
    Copy(EpochImage, bool),
    /// How far the first copy is.
    Progress(CopyProgress),
    /// A checkpoint, packed or not, and the processor to send it from, if it is to be one.
    Epoch(EpochImage, bool, Option<u16>),
    /// This node has stopped, for this reason and since then: the standby shall take over.
    Yield(String, Time),
    /// This node leaves the session in good order.
    Bye(String),
}

/// What became of a job.
#[derive(Debug)]
pub enum Sent {
    /// The image is not needed here any more.
    Done(Done),
    /// The standby has been told how far the first copy is.
    Told,
    /// The stream broke; nothing more is sent.
    Failed(TransportError),
}

/// An image that has left.
#[derive(Debug)]
pub struct Done {
    /// The image.
    pub image: EpochImage,
    /// Whether it was packed.
    pub packed: bool,
    /// Its bytes.
    pub volume: Volume,
    /// How long sending took.
    pub took: Duration,
    /// How its pages were sent.
    pub forms: Vec<(u64, Form)>,
}

/// The primary's end. Dropping it breaks the stream: what is queued is lost.
pub trait SendingEnd: Debug + Send {
    /// Queues a job. Never blocks: what may be queued is bounded by the staging buffers there are.
    fn send(&self, job: Job);

    /// Sends what is queued and `last`, then closes. The caller does not wait for it.
    fn leave(self, last: Job);
}

/// What the stream brought.
#[derive(Debug)]
pub enum Received {
    /// The primary says how far it is with the first copy.
    Progress(LastProgress),
    /// An epoch is whole.
    Whole(Box<WholeImage>),
    /// The primary gives the VM up, for this reason.
    Yielded(Term, Yielding, Time),
    /// The primary leaves in good order.
    Left(Term, String),
    /// The stream ended, broke, or carried something wrong. Nothing follows.
    Ended(String),
}

/// The last word about the first copy, until it is read.
#[derive(Clone, Debug, Default)]
pub struct LastProgress(Arc<Mutex<Option<CopyProgress>>>);

impl LastProgress {
    /// Returns whether the word before it has been read.
    pub(super) fn put(&self, progress: CopyProgress) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(progress).is_none()
    }

    /// Reads it.
    #[must_use]
    pub fn take(&self) -> Option<CopyProgress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The standby's end. Dropping it breaks the stream, and nothing is written to memory after that.
pub trait ReceivingEnd: Debug + Send {
    /// Where to receive from the next epoch on. `None`: anywhere.
    fn stay_on(&self, cpu: Option<u16>);

    /// This epoch is committed, and the primary is about to be told: it may send one more.
    fn committed(&self, epoch: Epoch);

    /// Returns a page buffer for reuse.
    fn give_back(&self, buffer: Vec<u8>);
}
