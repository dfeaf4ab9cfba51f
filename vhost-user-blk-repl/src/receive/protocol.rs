//! Which frames a standby accepts on the mirror stream, and in which order. Pure: a frame in, a [`Step`] or a
//! violation out.
//!
//! ```text
//!   Greeting ──Hello──► Beginning ──Begin──► Copying ──SyncDone──► InSync
//!                                            Hashes are compared,  Write is held by epoch, End completes it,
//!                                            Copy, Write applied   Persist, Renamed
//! ```
//! `End` may come in both of the last phases. Anything else is a peer that misbehaves, and the stream is
//! refused.

use ft_proto::Epoch;
use ft_wire::mirror::{BLOCK, BLOCKS, Digest, Frame, Kind};

use crate::image::SECTOR;

/// What to do with an accepted frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Send this image's record.
    Greeted,
    /// The image becomes the stream's copy.
    Begun,
    /// Report which blocks differ, after everything before is written.
    Compare,
    /// Write it to the image now, after everything before it.
    Apply,
    /// Keep it until its epoch is released.
    Hold,
    /// From here on the image is a copy.
    Synced,
    /// Everything of this epoch and earlier ones has arrived.
    Complete(Epoch),
    /// Report when everything up to here is on stable storage.
    Persist,
    /// The primary has the image's new name.
    Renamed,
}

/// A frame that violates the protocol.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Violation {
    /// The image sizes differ.
    #[error("the peer's disk has {theirs} bytes, this one has {ours}: make both images the same size")]
    Size {
        /// The peer's.
        theirs: u64,
        /// This disk's.
        ours: u64,
    },
    /// A frame at the wrong time.
    #[error("expected {expected}, got a {got:?} frame")]
    Order {
        /// What is allowed.
        expected: &'static str,
        /// What came.
        got: Kind,
    },
    /// A range outside of the image or unaligned.
    #[error("range of {len} bytes at {offset} does not fit the disk")]
    Range {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// A frame of an epoch that is over.
    #[error("frame of epoch {got} in epoch {open}")]
    Epoch {
        /// The frame's.
        got: Epoch,
        /// The open one.
        open: Epoch,
    },
    /// An epoch ended, and not all of it came.
    #[error("epoch {epoch} should have {expected} writes, {got} came, or their checksum differs")]
    Incomplete {
        /// Which.
        epoch: Epoch,
        /// As announced.
        expected: u64,
        /// What arrived.
        got: u64,
    },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Greeting,
    Beginning,
    Copying,
    /// Since the copy was complete in this epoch.
    InSync(Epoch),
}

/// The state of the stream.
#[derive(Debug)]
pub struct Protocol {
    size: u64,
    phase: Phase,
    first: Epoch,
    /// Oldest epoch that a write may still belong to.
    open: Epoch,
    digest: Digest,
    complete: Option<Epoch>,
}

impl Protocol {
    /// For an image of `size` bytes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self {
            size,
            phase: Phase::Greeting,
            first: Epoch(0),
            open: Epoch(0),
            digest: Digest::default(),
            complete: None,
        }
    }

    /// The epoch in which the image became a copy: checkpoints of earlier epochs do not match it.
    #[must_use]
    pub fn synced(&self) -> Option<Epoch> {
        match self.phase {
            Phase::InSync(epoch) => Some(epoch),
            Phase::Greeting | Phase::Beginning | Phase::Copying => None,
        }
    }

    /// The last epoch of which everything has arrived.
    #[must_use]
    pub fn complete(&self) -> Option<Epoch> {
        self.complete
    }

    /// Whether `epoch` was over before the stream began.
    #[must_use]
    pub fn precedes_stream(&self, epoch: Epoch) -> bool {
        self.phase == Phase::Greeting || epoch < self.first
    }

    /// Accepts the next frame with its checksum.
    ///
    /// # Errors
    /// See [`Violation`].
    pub fn step(&mut self, frame: &Frame, checksum: u64) -> Result<Step, Violation> {
        let wrong = |expected| Err(Violation::Order { expected, got: frame.kind });
        match (self.phase, frame.kind) {
            (Phase::Greeting, Kind::Hello) => self.hello(frame),
            (Phase::Greeting, _) => wrong("a greeting"),
            (_, Kind::Hello) => wrong("anything but a second greeting"),
            (_, Kind::Refused | Kind::Answer | Kind::Differ | Kind::Durable) => wrong("a frame of a primary"),
            (Phase::Beginning, Kind::Begin) => {
                self.phase = Phase::Copying;
                Ok(Step::Begun)
            }
            (Phase::Beginning, _) => wrong("the beginning"),
            (_, Kind::Begin) => wrong("anything but a second beginning"),
            (Phase::Copying, Kind::Hashes) => self.comparable(frame).map(|()| Step::Compare),
            (Phase::Copying, Kind::Copy | Kind::CopyZero) => self.in_range(frame).map(|()| Step::Apply),
            (Phase::Copying, Kind::SyncDone) => {
                self.in_epoch(frame)?;
                self.phase = Phase::InSync(frame.epoch);
                Ok(Step::Synced)
            }
            (Phase::Copying, Kind::Persist | Kind::Renamed) => wrong("the end of the copy"),
            (Phase::InSync(_), Kind::Hashes | Kind::Copy | Kind::CopyZero | Kind::SyncDone) => {
                wrong("writes, the copy is done")
            }
            (Phase::InSync(_), Kind::Persist) => Ok(Step::Persist),
            (Phase::InSync(_), Kind::Renamed) => Ok(Step::Renamed),
            (phase, Kind::Write | Kind::Zeroes) => {
                self.in_range(frame)?;
                self.in_epoch(frame)?;
                self.digest.add(checksum);
                Ok(if phase == Phase::Copying { Step::Apply } else { Step::Hold })
            }
            (_, Kind::End) => self.end(frame),
        }
    }

    fn hello(&mut self, frame: &Frame) -> Result<Step, Violation> {
        if frame.len != self.size {
            return Err(Violation::Size { theirs: frame.len, ours: self.size });
        }
        self.phase = Phase::Beginning;
        (self.first, self.open) = (frame.epoch, frame.epoch);
        Ok(Step::Greeted)
    }

    fn comparable(&self, frame: &Frame) -> Result<(), Violation> {
        self.in_range(frame)?;
        if frame.len > BLOCK * BLOCKS {
            return Err(Violation::Range { offset: frame.offset, len: frame.len });
        }
        Ok(())
    }

    fn end(&mut self, frame: &Frame) -> Result<Step, Violation> {
        self.in_epoch(frame)?;
        if (Digest { count: frame.offset, sum: frame.len }) != self.digest {
            let (expected, got) = (frame.offset, self.digest.count);
            return Err(Violation::Incomplete { epoch: frame.epoch, expected, got });
        }
        self.digest = Digest::default();
        self.complete = Some(frame.epoch);
        self.open = frame.epoch.next();
        Ok(Step::Complete(frame.epoch))
    }

    /// Checks the epoch; a later one than the open one is fine, because not every epoch is announced.
    fn in_epoch(&mut self, frame: &Frame) -> Result<(), Violation> {
        if frame.epoch < self.open || frame.epoch.0 == u64::MAX {
            return Err(Violation::Epoch { got: frame.epoch, open: self.open });
        }
        self.open = frame.epoch;
        Ok(())
    }

    fn in_range(&self, frame: &Frame) -> Result<(), Violation> {
        let inside = frame.offset.checked_add(frame.len).is_some_and(|end| end <= self.size);
        let aligned = frame.offset.is_multiple_of(SECTOR) && frame.len.is_multiple_of(SECTOR);
        if inside && aligned && frame.len > 0 {
            Ok(())
        } else {
            Err(Violation::Range { offset: frame.offset, len: frame.len })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;

    fn frame(kind: Kind, epoch: u64, offset: u64, len: u64) -> Frame {
        Frame { kind, epoch: Epoch(epoch), offset, len }
    }

    fn hello() -> Frame {
        frame(Kind::Hello, 1, 0, SIZE)
    }

    fn begin() -> Frame {
        frame(Kind::Begin, 0, 0, 0)
    }

    /// Feeds frames with checksum 5; the last answer counts.
    fn feed(frames: &[Frame]) -> Result<Step, Violation> {
        let mut protocol = Protocol::new(SIZE);
        let mut last = Ok(Step::Greeted);
        for frame in frames {
            assert!(last.is_ok(), "{last:?} before {frame:?}");
            last = protocol.step(frame, 5);
        }
        last
    }

    #[test]
    fn copies_then_holds_then_completes() {
        let mut digest = Digest::default();
        digest.add(5);
        digest.add(5);
        let mut frames = vec![hello(), begin(), frame(Kind::Copy, 1, 0, 512), frame(Kind::Write, 1, 512, 512)];
        assert_eq!(feed(&frames), Ok(Step::Apply));
        frames.push(frame(Kind::SyncDone, 1, 0, 0));
        assert_eq!(feed(&frames), Ok(Step::Synced));
        frames.push(frame(Kind::Zeroes, 1, 0, SIZE));
        assert_eq!(feed(&frames), Ok(Step::Hold));
        let ends = [frame(Kind::End, 1, 2, digest.sum), frame(Kind::End, 1, 1, digest.sum), frame(Kind::End, 1, 2, 0)];
        for (index, end) in ends.into_iter().enumerate() {
            let result = feed(&[&frames[..], &[end]].concat());
            assert_eq!(result.is_ok(), index == 0, "{result:?}");
        }
    }

    #[test]
    fn refuses_what_cannot_be() {
        let end = frame(Kind::End, 3, 0, 0);
        for (name, frames) in [
            ("no greeting", vec![frame(Kind::Write, 1, 0, 512)]),
            ("two greetings", vec![hello(), hello()]),
            ("two beginnings", vec![hello(), begin(), begin()]),
            ("no beginning", vec![hello(), frame(Kind::Copy, 1, 0, 512)]),
            ("smaller disk", vec![frame(Kind::Hello, 1, 0, SIZE / 2)]),
            ("beyond the end", vec![hello(), begin(), frame(Kind::Write, 1, SIZE, 512)]),
            ("overflow", vec![hello(), begin(), frame(Kind::Zeroes, 1, u64::MAX - 511, 512)]),
            ("unaligned", vec![hello(), begin(), frame(Kind::Copy, 1, 1, 512)]),
            ("empty", vec![hello(), begin(), frame(Kind::CopyZero, 1, 0, 0)]),
            ("epoch before the first", vec![hello(), begin(), frame(Kind::Write, 0, 0, 512)]),
            ("write of an ended epoch", vec![hello(), begin(), end, frame(Kind::Write, 3, 0, 512)]),
            ("epoch ends twice", vec![hello(), begin(), end, end]),
            (
                "copy after the copy",
                vec![hello(), begin(), frame(Kind::SyncDone, 1, 0, 0), frame(Kind::Copy, 1, 0, 512)],
            ),
            (
                "hashes after the copy",
                vec![hello(), begin(), frame(Kind::SyncDone, 1, 0, 0), frame(Kind::Hashes, 1, 0, 512)],
            ),
            ("hashes of too much", vec![hello(), begin(), frame(Kind::Hashes, 1, 0, SIZE)]),
            ("persist before the copy", vec![hello(), begin(), frame(Kind::Persist, 1, 0, 0)]),
            ("a new name before the copy", vec![hello(), begin(), frame(Kind::Renamed, 1, 0, 0)]),
            ("refusal from a primary", vec![hello(), begin(), frame(Kind::Refused, 1, 0, 0)]),
            ("last of all epochs", vec![hello(), begin(), frame(Kind::End, u64::MAX, 0, 0)]),
        ] {
            assert!(feed(&frames).is_err(), "{name}");
        }
    }
}
