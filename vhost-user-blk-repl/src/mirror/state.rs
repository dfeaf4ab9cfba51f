//! The state that the threads of a stream's sending end share. Pure.
//!
//! ```text
//!   Copying ──in_sync──► InSync
//!      └────────┬──────────┘
//!             close ──► Closed ──set_lost──► Lost
//!
//!   Closed: nothing is queued or sent any more.   Lost: that was reported.
//! ```

use std::collections::HashSet;

use ft_proto::Epoch;
use ft_wire::mirror::{Frame, Kind, Name, encode_fields};

use crate::image::range::Range;
use crate::mirror::copy_window::CopyWindow;
use crate::mirror::outbox::{Body, Outbox};
use crate::record::Base;

/// The copy waits while more bytes than this are queued, so that guest writes do not queue behind it.
const COPY_AHEAD: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Copying,
    InSync,
    Closed,
    Lost,
}

/// One stream.
pub struct State {
    phase: Phase,
    outbox: Outbox,
    window: CopyWindow,
    /// The name that the standby was asked to give to its image, until it confirms.
    naming: Option<Base>,
}

impl State {
    /// Of a stream that begins in `epoch`, while the writes `earlier` are under way; `limit` is the VMM's
    /// bound in bytes.
    #[must_use]
    pub fn new(epoch: Epoch, limit: u64, earlier: HashSet<u64>) -> Self {
        Self {
            phase: Phase::Copying,
            outbox: Outbox::new(epoch, limit),
            window: CopyWindow::new(earlier),
            naming: None,
        }
    }

    /// Whether frames are taken.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Copying | Phase::InSync)
    }

    /// Whether the copy is not complete.
    #[must_use]
    pub fn is_copying(&self) -> bool {
        self.phase == Phase::Copying
    }

    /// Whether the stream has broken, and that was reported.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.phase == Phase::Lost
    }

    /// The queue.
    #[must_use]
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// As [`State::outbox`], for epochs and room. Frames are queued by the methods here, which check that the
    /// stream is open.
    pub fn outbox_mut(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// Queues the frames of a guest's write; it goes to the image next.
    pub fn guest_write(&mut self, id: u64, ranges: &[Range], frames: impl Iterator<Item = (Frame, Body)>) {
        if !self.is_open() {
            return;
        }
        self.window.write_started(id, ranges);
        for (frame, body) in frames {
            match self.phase {
                Phase::InSync => self.outbox.push_uncommitted(frame, body),
                _ => self.outbox.push(frame, body),
            }
        }
    }

    /// A write has reached the image, or failed. Whether the copy may read the image from now on.
    pub fn write_done(&mut self, id: u64) -> bool {
        self.window.write_done(id)
    }

    /// See [`Outbox::end_epoch`]. On a broken stream no epoch is idle.
    pub fn end_epoch(&mut self, epoch: Epoch, next: Epoch) -> bool {
        if self.is_open() {
            return self.outbox.end_epoch(epoch, next);
        }
        self.outbox.set_epoch(next);
        false
    }

    /// Queues a frame of the current epoch.
    pub fn push(&mut self, kind: Kind, offset: u64, len: u64, body: Body) {
        if self.is_open() {
            self.outbox.push_now(kind, offset, len, body);
        }
    }

    /// Whether the copy may continue: it may read the image, and not too much is queued.
    #[must_use]
    pub fn may_copy(&self) -> bool {
        self.window.is_open() && self.outbox.queued() <= COPY_AHEAD
    }

    /// See [`CopyWindow::begin_chunk`].
    pub fn begin_chunk(&mut self, range: Range) {
        self.window.begin_chunk(range);
    }

    /// Queues the part of the chunk that the copy has read, except where the guest has written since. `body`
    /// makes a frame's body.
    pub fn end_chunk(&mut self, part: Range, kind: Kind, body: impl Fn(&Range) -> Body) -> Vec<Range> {
        let parts = self.window.end_chunk(part);
        for part in &parts {
            self.push(kind, part.offset, part.len, body(part));
        }
        parts
    }

    /// The copy is complete.
    pub fn in_sync(&mut self) {
        self.push(Kind::SyncDone, 0, 0, Body::None);
        if self.is_open() {
            self.phase = Phase::InSync;
        }
    }

    /// The peer is going to give this name to its image when the copy is complete.
    pub fn begin_naming(&mut self, base: Base) {
        self.naming = Some(base);
    }

    /// Asks the standby to name its image `base` when that is on stable storage, if it is in sync and has
    /// confirmed the last name.
    pub fn persist(&mut self, base: Base) {
        if self.phase == Phase::InSync && self.naming.is_none() {
            self.naming = Some(base);
            self.push(Kind::Persist, 0, 0, Body::Bytes(encode_fields(&Name { base: base.0 })));
        }
    }

    /// Whether the standby has a name to confirm.
    #[must_use]
    pub fn is_naming(&self) -> bool {
        self.naming.is_some()
    }

    /// The standby has confirmed: the name, and writes that have not reached this image yet. `None`: not
    /// before the copy is complete.
    #[must_use]
    pub fn named(&self) -> Option<(Base, Vec<Range>)> {
        let base = self.naming.filter(|_| self.phase == Phase::InSync)?;
        Some((base, self.window.being_written()))
    }

    /// The confirmation was processed. Tells the standby if this image has the name on stable storage, too.
    pub fn end_naming(&mut self, renamed: bool) {
        self.naming = None;
        if renamed {
            self.push(Kind::Renamed, 0, 0, Body::None);
        }
    }

    /// Ends the stream; whether it was open.
    pub fn close(&mut self) -> bool {
        let was_open = self.is_open();
        if was_open {
            self.phase = Phase::Closed;
            self.outbox.clear();
        }
        was_open
    }

    /// The end was reported.
    pub fn set_lost(&mut self) {
        self.phase = Phase::Lost;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State::new(Epoch(1), 1 << 20, HashSet::new())
    }

    fn write(state: &mut State, id: u64) {
        let range = Range::new(0, 512);
        let frame = Frame { kind: Kind::Zeroes, epoch: Epoch(1), offset: 0, len: 512 };
        state.guest_write(id, &[range], std::iter::once((frame, Body::None)));
    }

    #[test]
    fn only_what_comes_after_the_copy_is_uncommitted() {
        let mut state = state();
        write(&mut state, 1);
        assert_eq!(state.outbox().uncommitted(), 0);
        state.in_sync();
        write(&mut state, 2);
        assert!(state.outbox().uncommitted() > 0 && !state.is_copying());
        let kinds: Vec<_> = std::iter::from_fn(|| state.outbox_mut().pop()).map(|(frame, _)| frame.kind).collect();
        assert_eq!(kinds, [Kind::Zeroes, Kind::SyncDone, Kind::Zeroes]);
    }

    #[test]
    fn the_standby_is_asked_for_one_name_at_a_time_and_not_before_the_copy_is_complete() {
        let mut state = state();
        state.begin_naming(Base(5));
        assert_eq!(state.named(), None);
        state.in_sync();
        state.persist(Base(6));
        write(&mut state, 1);
        assert_eq!(state.named(), Some((Base(5), vec![Range::new(0, 512)])));
        state.end_naming(true);
        state.persist(Base(6));
        state.persist(Base(7));
        assert_eq!(state.named().map(|(base, _)| base), Some(Base(6)));
        let kinds: Vec<_> = std::iter::from_fn(|| state.outbox_mut().pop()).map(|(frame, _)| frame.kind).collect();
        assert_eq!(kinds, [Kind::SyncDone, Kind::Zeroes, Kind::Renamed, Kind::Persist]);
    }

    #[test]
    fn a_closed_stream_takes_nothing_and_knows_of_no_idle_epoch() {
        let mut state = state();
        assert!(state.close() && !state.close());
        write(&mut state, 1);
        state.in_sync();
        assert!(!state.end_epoch(Epoch(1), Epoch(2)) && !state.end_epoch(Epoch(2), Epoch(3)));
        assert!(state.outbox_mut().pop().is_none() && !state.is_lost());
        state.set_lost();
        assert!(state.is_lost() && !state.is_open());
    }
}
