//! Frames that wait to be sent, and what the worker asks about them: whether there is room, how much is
//! uncommitted, and whether an epoch has any. Pure.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;

use ft_proto::Epoch;
use ft_wire::mirror::{CHANGE_OVERHEAD, Frame, Kind};

use crate::image::buffer::Buffer;
use crate::image::range::Range;
use crate::mirror::uncommitted::Uncommitted;

/// Whether a write may be taken from the ring now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Room {
    /// It may.
    Yes,
    /// The link is behind; the worker is woken when it has caught up.
    Busy,
    /// Too much is uncommitted; only a release makes room.
    Full,
}

/// What follows a frame's header.
pub enum Body {
    /// Nothing.
    None,
    /// These bytes.
    Bytes(Vec<u8>),
    /// Part of a shared buffer.
    Part(Arc<Buffer>, Range),
}

impl Body {
    /// All of a buffer.
    #[must_use]
    pub fn all(buffer: &Arc<Buffer>) -> Self {
        Self::Part(buffer.clone(), Range::new(0, buffer.len() as u64))
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::None => &[],
            Self::Bytes(bytes) => bytes,
            Self::Part(buffer, part) => buffer.get(part.offset as usize..part.end() as usize).unwrap_or_default(),
        }
    }

    fn cost(&self) -> u64 {
        CHANGE_OVERHEAD + self.bytes().len() as u64
    }
}

/// The queue, oldest first.
pub struct Outbox {
    queue: VecDeque<(Frame, Body)>,
    /// Bytes in it, as [`Body`] counts them.
    queued: u64,
    /// The VMM's bound in bytes: so much may be queued, half of it uncommitted.
    limit: u64,
    /// A write was refused because the queue was full.
    refused: bool,
    uncommitted: Uncommitted,
    /// The epoch that writes belong to now.
    epoch: Epoch,
    /// Whether it has any frames.
    has_data: bool,
}

impl Outbox {
    /// Empty, in `epoch`, to which the greeting belongs.
    #[must_use]
    pub fn new(epoch: Epoch, limit: u64) -> Self {
        let uncommitted = Uncommitted::default();
        Self { queue: VecDeque::new(), queued: 0, limit, refused: false, uncommitted, epoch, has_data: true }
    }

    /// Whether a write of `len` bytes may be taken now, with `waiting` bytes of writes taken that are not
    /// started.
    pub fn room(&mut self, len: u64, waiting: u64) -> Room {
        let uncommitted = self.uncommitted.total();
        let before = uncommitted + waiting;
        if before > 0 && before + len + CHANGE_OVERHEAD > self.limit / 2 {
            // The worker tries again when those that wait are started.
            return if uncommitted > 0 { Room::Full } else { Room::Busy };
        }
        if self.queued > self.limit {
            self.refused = true;
            return Room::Busy;
        }
        Room::Yes
    }

    /// Queues a frame.
    pub fn push(&mut self, frame: Frame, body: Body) {
        self.has_data |= !matches!(frame.kind, Kind::End | Kind::Persist | Kind::Renamed);
        self.queued += body.cost();
        self.queue.push_back((frame, body));
    }

    /// Queues a frame of the current epoch.
    pub fn push_now(&mut self, kind: Kind, offset: u64, len: u64, body: Body) {
        self.push(Frame { kind, epoch: self.epoch, offset, len }, body);
    }

    /// Queues a guest's write that the standby must commit.
    pub fn push_uncommitted(&mut self, frame: Frame, body: Body) {
        self.uncommitted.add(frame.epoch, body.cost());
        self.push(frame, body);
    }

    /// `epoch` is over and `next` follows. Whether it had no frames: then it is not announced to the
    /// standby's disk.
    pub fn end_epoch(&mut self, epoch: Epoch, next: Epoch) -> bool {
        self.epoch = next;
        let idle = !mem::take(&mut self.has_data);
        if !idle {
            self.push(Frame { kind: Kind::End, epoch, offset: 0, len: 0 }, Body::None);
        }
        idle
    }

    /// Writes belong to `epoch` from now on.
    pub fn set_epoch(&mut self, epoch: Epoch) {
        self.epoch = epoch;
    }

    /// The standby holds everything up to and including `epoch`.
    pub fn release(&mut self, epoch: Epoch) {
        self.uncommitted.release(epoch);
    }

    /// Bytes that the standby has not committed.
    #[must_use]
    pub fn uncommitted(&self) -> u64 {
        self.uncommitted.total()
    }

    /// Bytes that wait to be sent.
    #[must_use]
    pub fn queued(&self) -> u64 {
        self.queued
    }

    /// The oldest frame.
    pub fn pop(&mut self) -> Option<(Frame, Body)> {
        let (frame, body) = self.queue.pop_front()?;
        self.queued -= body.cost();
        Some((frame, body))
    }

    /// Whether a write that was refused for want of room should be tried again now. Fields so once.
    pub fn has_room_again(&mut self) -> bool {
        let again = self.refused && self.queued <= self.limit / 2;
        self.refused &= !again;
        again
    }

    /// Drops all frames.
    pub fn clear(&mut self) {
        self.queue.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1 << 20;

    fn write(epoch: u64, len: usize) -> (Frame, Body) {
        let frame = Frame { kind: Kind::Write, epoch: Epoch(epoch), offset: 0, len: len as u64 };
        (frame, Body::all(&Arc::new(Buffer::zeroed(len))))
    }

    #[test]
    fn half_of_the_limit_may_be_uncommitted() {
        let mut outbox = Outbox::new(Epoch(1), LIMIT);
        assert_eq!(outbox.room(LIMIT, 0), Room::Yes, "a single request always fits");
        assert_eq!(outbox.room(LIMIT, 1), Room::Busy, "that waits, and nothing is uncommitted");
        let (frame, body) = write(1, 400 << 10);
        outbox.push_uncommitted(frame, body);
        assert_eq!([100, 200].map(|kib| outbox.room(kib << 10, 0)), [Room::Yes, Room::Full]);
        outbox.release(Epoch(0));
        assert_eq!(outbox.room(200 << 10, 0), Room::Full);
        outbox.release(Epoch(1));
        assert_eq!((outbox.room(200 << 10, 0), outbox.uncommitted()), (Room::Yes, 0));
    }

    #[test]
    fn a_refused_write_is_tried_again_once_half_of_the_queue_is_free() {
        let mut outbox = Outbox::new(Epoch(1), LIMIT);
        for _ in 0..5 {
            let (frame, body) = write(1, 256 << 10);
            outbox.push(frame, body);
        }
        assert!(!outbox.has_room_again(), "none was refused");
        assert_eq!(outbox.room(512, 0), Room::Busy);
        let told = |outbox: &mut Outbox| outbox.pop().is_some() && outbox.has_room_again();
        assert_eq!([(); 5].map(|()| told(&mut outbox)), [false, false, false, true, false]);
        assert_eq!((outbox.queued(), outbox.pop().is_none()), (0, true));
    }

    #[test]
    fn an_epoch_without_data_is_idle_and_is_not_ended() {
        let mut outbox = Outbox::new(Epoch(1), LIMIT);
        assert!(!outbox.end_epoch(Epoch(1), Epoch(2)), "the greeting is of the first one");
        outbox.push_now(Kind::Persist, 0, 0, Body::None);
        outbox.push_now(Kind::Renamed, 0, 0, Body::None);
        assert!(outbox.end_epoch(Epoch(2), Epoch(3)));
        outbox.push_now(Kind::CopyZero, 0, 512, Body::None);
        assert!(!outbox.end_epoch(Epoch(3), Epoch(4)));
        let kinds: Vec<_> = std::iter::from_fn(|| outbox.pop()).map(|(frame, _)| (frame.kind, frame.epoch.0)).collect();
        assert_eq!(
            kinds,
            [(Kind::End, 1), (Kind::Persist, 2), (Kind::Renamed, 2), (Kind::CopyZero, 3), (Kind::End, 3)]
        );
    }
}
