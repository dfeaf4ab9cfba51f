//! Holds the frames that the guest sent until the epoch they belong to is committed.
//!
//! In: frames with their epoch, and the releases. Out: releasable frames, oldest first. Never: a frame out of
//! order, a frame of an epoch that was not released, an allocation per frame (storage is one ring that is
//! reused).
//!
//! ```text
//!   front                               back
//!   [ releasable | releasable | held n | held n+1 | held n+1 ]   free ...
//!     pop_front >                                    < discard_after
//! ```

use std::collections::VecDeque;

use ft_proto::Epoch;

/// One stored frame: where its bytes are and what it belongs to.
#[derive(Clone, Copy, Debug)]
struct Held {
    epoch: Epoch,
    queue: u16,
    start: usize,
    len: usize,
}

/// A bounded first-in, first-out store of frames by epoch.
#[derive(Debug)]
pub struct EpochBuffer {
    ring: Box<[u8]>,
    frames: VecDeque<Held>,
    max_frames: usize,
    /// Where the next frame starts if it fits there.
    tail: usize,
    /// How many frames at the front may leave.
    releasable: usize,
    held_bytes: usize,
}

impl EpochBuffer {
    /// A buffer of at most `max_bytes` bytes and `max_frames` frames. The memory is touched as it is used.
    #[must_use]
    pub fn new(max_bytes: usize, max_frames: usize) -> Self {
        Self {
            ring: vec![0; max_bytes].into_boxed_slice(),
            frames: VecDeque::with_capacity(max_frames),
            max_frames,
            tail: 0,
            releasable: 0,
            held_bytes: 0,
        }
    }

    /// Where a frame of `len` bytes would start, or `None` when it does not fit now.
    fn place(&self, len: usize) -> Option<usize> {
        if len == 0 || self.frames.len() >= self.max_frames {
            return None;
        }
        let Some(front) = self.frames.front() else {
            // Starting over at 0 keeps the working set small: the same few pages serve again and again.
            return (len <= self.ring.len()).then_some(0);
        };
        let head = front.start;
        if self.tail > head {
            if len <= self.ring.len() - self.tail {
                return Some(self.tail);
            }
            // The rest of the ring stays unused until the frames before it have left.
            return (len <= head).then_some(0);
        }
        (len <= head - self.tail).then_some(self.tail)
    }

    /// Adds a frame of `len` bytes at the back and returns its bytes to be filled; `None` when it does not
    /// fit now.
    #[must_use]
    pub fn push(&mut self, epoch: Epoch, queue: u16, len: usize) -> Option<&mut [u8]> {
        let start = self.place(len)?;
        self.frames.push_back(Held { epoch, queue, start, len });
        self.tail = start + len;
        self.held_bytes += len;
        Some(&mut self.ring[start..start + len])
    }

    /// Takes the frame that was pushed last back out; nothing happens when it was released already.
    pub fn retract(&mut self) {
        if self.frames.len() > self.releasable
            && let Some(frame) = self.frames.pop_back()
        {
            self.tail = frame.start;
            self.held_bytes -= frame.len;
        }
    }

    /// Lets every frame of `epoch` and earlier epochs leave.
    pub fn release(&mut self, epoch: Epoch) {
        while self.frames.get(self.releasable).is_some_and(|frame| frame.epoch <= epoch) {
            self.releasable += 1;
        }
    }

    /// Lets everything leave: protection has ended and this host keeps running the VM.
    pub fn release_all(&mut self) {
        self.releasable = self.frames.len();
    }

    /// The oldest frame that may leave, with the queue it came from.
    #[must_use]
    pub fn front(&self) -> Option<(u16, &[u8])> {
        if self.releasable == 0 {
            return None;
        }
        self.frames.front().map(|frame| (frame.queue, &self.ring[frame.start..frame.start + frame.len]))
    }

    /// Forgets the frame that [`Self::front`] shows; nothing happens when there is none.
    pub fn pop_front(&mut self) {
        if self.releasable == 0 {
            return;
        }
        if let Some(frame) = self.frames.pop_front() {
            self.releasable -= 1;
            self.held_bytes -= frame.len;
        }
    }

    /// Drops the frames of epochs after `epoch` that were not released yet, and says how many they were.
    pub fn discard_after(&mut self, epoch: Epoch) -> usize {
        let before = self.frames.len();
        while self.newest_held().is_some_and(|newest| newest > epoch) {
            self.retract();
        }
        before - self.frames.len()
    }

    /// Drops every frame that was not released yet, and says how many they were.
    pub fn discard_held(&mut self) -> usize {
        let dropped = self.frames.len() - self.releasable;
        (0..dropped).for_each(|_| self.retract());
        dropped
    }

    /// Epoch of the newest frame that was not released yet.
    #[must_use]
    pub fn newest_held(&self) -> Option<Epoch> {
        if self.frames.len() == self.releasable { None } else { self.frames.back().map(|frame| frame.epoch) }
    }

    /// Whether a released frame waits to leave.
    #[must_use]
    pub fn has_releasable(&self) -> bool {
        self.releasable > 0
    }

    /// Whether no frame is stored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Number of stored frames.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.frames.len()
    }

    /// Bytes of stored frames.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.held_bytes
    }
}

#[cfg(test)]
mod tests;
