//! What has arrived on the mirror stream, and how much of it the VMM has released. Pure. Every frame passes
//! through here, and every command of the VMM that concerns frames.

use ft_proto::Epoch;
use ft_wire::mirror::Frame;

use crate::receive::epoch_log::{Change, EpochLog, OverLimit};
use crate::receive::protocol::{Protocol, Step, Violation};

/// Why a request of the VMM cannot be met; the disk must not be used to run the VM then.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum StateError {
    /// Not everything of the epoch is here.
    #[error("epoch {wanted} has not completely arrived at this disk, the last one is {complete:?}")]
    Incomplete {
        /// As requested.
        wanted: Epoch,
        /// The last complete one.
        complete: Option<Epoch>,
    },
    /// The background copy was not complete.
    #[error("the copy of the disk is not complete, the image is not usable")]
    NotCopied,
    /// The image already has writes that are newer than the checkpoint.
    #[error("the copy of the disk was complete only in epoch {synced}, epoch {wanted} is before that")]
    CopiedLater {
        /// As requested.
        wanted: Epoch,
        /// When the image became a copy.
        synced: Epoch,
    },
    /// Writes that count were never released.
    #[error("epoch {0} counts but was never released")]
    Unreleased(Epoch),
}

/// One stream.
pub struct Incoming {
    protocol: Protocol,
    log: EpochLog,
    /// The last epoch that was released.
    released: Epoch,
    /// No frame has an effect any more, not even one that was received before.
    closed: bool,
}

impl Incoming {
    /// For an image of `size` bytes; holds at most `limit` bytes.
    #[must_use]
    pub fn new(size: u64, limit: u64) -> Self {
        Self { protocol: Protocol::new(size), log: EpochLog::new(limit), released: Epoch(0), closed: false }
    }

    /// What to do with a frame.
    ///
    /// # Errors
    /// When it violates the protocol.
    pub fn accept(&mut self, frame: &Frame, checksum: u64) -> Result<Step, Violation> {
        self.protocol.step(frame, checksum)
    }

    /// Keeps a write until its epoch is released.
    ///
    /// # Errors
    /// When there would be too many.
    pub fn hold(&mut self, epoch: Epoch, change: Change) -> Result<(), OverLimit> {
        self.log.push(epoch, change)
    }

    /// The writes of all epochs up to and including `epoch` that were not released before, in order.
    ///
    /// # Errors
    /// When they have not all arrived.
    pub fn release(&mut self, epoch: Epoch) -> Result<Vec<Change>, StateError> {
        self.has(epoch)?;
        self.released = self.released.max(epoch);
        Ok(self.log.release(epoch))
    }

    /// Drops the writes of all epochs after `epoch`.
    ///
    /// # Errors
    /// When the image does not, or will not, hold exactly what it held at the end of `epoch`.
    pub fn discard_after(&mut self, epoch: Epoch) -> Result<(), StateError> {
        self.log.discard_after(epoch);
        let synced = self.protocol.synced().ok_or(StateError::NotCopied)?;
        if epoch < synced {
            return Err(StateError::CopiedLater { wanted: epoch, synced });
        }
        self.has(epoch)?;
        self.log.oldest().map_or(Ok(()), |oldest| Err(StateError::Unreleased(oldest)))
    }

    /// Drops the writes of incomplete epochs: the stream has ended.
    pub fn discard_incomplete(&mut self) {
        self.log.discard_after(self.protocol.complete().unwrap_or_default());
    }

    /// The last epoch that was released.
    #[must_use]
    pub fn released(&self) -> Epoch {
        self.released
    }

    /// Bytes of writes that are held.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.log.cost()
    }

    /// Frames have no effect any more.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Whether frames have no effect any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    fn has(&self, wanted: Epoch) -> Result<(), StateError> {
        match self.protocol.complete() {
            _ if self.protocol.precedes_stream(wanted) => Ok(()),
            Some(complete) if wanted <= complete => Ok(()),
            complete => Err(StateError::Incomplete { wanted, complete }),
        }
    }
}

#[cfg(test)]
mod tests {
    use ft_wire::mirror::{Digest, Kind};

    use super::*;
    use crate::image::range::Range;

    /// A stream from epoch 2 on whose copy was complete in epoch 3, with one held write of each of `epochs`,
    /// which have ended.
    fn incoming(epochs: &[u64]) -> Incoming {
        let mut incoming = Incoming::new(1 << 20, 1 << 20);
        let mut accept = |kind, epoch, offset, len| {
            let frame = Frame { kind, epoch: Epoch(epoch), offset, len };
            if incoming.accept(&frame, 5).unwrap() == Step::Hold {
                let change = Change { range: Range::new(offset, len), data: None };
                incoming.hold(frame.epoch, change).unwrap();
            }
        };
        accept(Kind::Hello, 2, 0, 1 << 20);
        accept(Kind::Begin, 0, 0, 0);
        accept(Kind::SyncDone, 3, 0, 0);
        let mut digest = Digest::default();
        digest.add(5);
        for epoch in epochs {
            accept(Kind::Zeroes, *epoch, 0, 512);
            accept(Kind::End, *epoch, digest.count, digest.sum);
        }
        incoming
    }

    #[test]
    fn an_epoch_is_released_once_and_only_when_it_is_complete() {
        let mut incoming = incoming(&[3, 5]);
        assert_eq!(incoming.release(Epoch(1)).map(|changes| changes.len()), Ok(0));
        assert_eq!(incoming.release(Epoch(4)).map(|changes| changes.len()), Ok(1));
        assert_eq!(incoming.release(Epoch(4)).map(|changes| changes.len()), Ok(0));
        let (wanted, complete) = (Epoch(6), Some(Epoch(5)));
        assert_eq!(incoming.release(wanted).map(drop), Err(StateError::Incomplete { wanted, complete }));
        assert_eq!((incoming.released(), incoming.held() > 0), (Epoch(4), true));
    }

    #[test]
    fn a_takeover_is_refused_unless_the_image_is_exactly_that_of_its_epoch() {
        let discard = |released: u64, wanted| {
            let mut incoming = incoming(&[3, 5]);
            incoming.release(Epoch(released)).unwrap();
            incoming.discard_after(Epoch(wanted))
        };
        assert_eq!(discard(4, 4), Ok(()));
        assert_eq!(discard(5, 5), Ok(()));
        assert_eq!(discard(3, 5), Err(StateError::Unreleased(Epoch(5))));
        let (wanted, synced) = (Epoch(2), Epoch(3));
        assert_eq!(discard(1, 2), Err(StateError::CopiedLater { wanted, synced }));
        let copying = Incoming::new(1 << 20, 1 << 20).discard_after(Epoch(1));
        assert_eq!(copying, Err(StateError::NotCopied));
    }
}
