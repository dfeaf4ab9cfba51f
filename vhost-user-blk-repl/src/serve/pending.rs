//! One request between its descriptor chain and the guest's answer. A request that is larger than what the
//! disk told the guest to send is served in pieces, one after the other.
//!
//! ```text
//!   waiting (for an earlier write, or for marks) ──start──► running ──in_image──► done ──► answered
//!        ▲                                                                      │
//!        └──────────────── the next piece, if there is room ◄───────────────────┘
//! ```

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use device_api::counters::Transfer;
use ft_wire::mirror::CHANGE_OVERHEAD;
use vm_memory::GuestAddress;

use crate::geometry::MAX_DATA;
use crate::image::buffer::Buffer;
use crate::image::range::Range;
use crate::serve::executor::Op;
use crate::serve::request::{self, Span, gather};
use crate::serve::ring::Guest;

/// The part of a request that is not under way yet.
struct Rest {
    /// Of the disk.
    range: Range,
    /// Of guest memory.
    spans: Vec<Span>,
    /// Guest to disk.
    write: bool,
}

enum Stage {
    /// Not started: waits for an earlier write, or for its marks.
    Waiting(Op),
    /// The disk has it, or a piece of it.
    Running,
    /// The disk is done with it, or with a piece of it.
    Done,
}

/// A request that was taken and is not finished.
pub struct Pending {
    queue: u16,
    head: u16,
    status: GuestAddress,
    stage: Stage,
    /// Where the data of the piece that is being read goes.
    into: Vec<Span>,
    /// What it writes and the image has not; empty once the image has all.
    ranges: Vec<Range>,
    /// What remains after this piece.
    rest: Option<Rest>,
    /// Bytes of this piece.
    bytes: usize,
    /// Bytes of the pieces before it.
    moved: usize,
    /// What is counted, and since when, once the guest is notified.
    transfer: Option<(Transfer, Instant)>,
    /// The guest is not notified: its queue was stopped while sealed.
    abandoned: bool,
}

impl Pending {
    /// A request at `head` of a queue, whose status byte goes to `status`, and which moves nothing.
    #[must_use]
    pub fn new(queue: u16, head: u16, status: GuestAddress) -> Self {
        Self {
            queue,
            head,
            status,
            stage: Stage::Done,
            into: Vec::new(),
            ranges: Vec::new(),
            rest: None,
            bytes: 0,
            moved: 0,
            transfer: None,
            abandoned: false,
        }
    }

    /// It reads `range` of the disk to guest memory.
    #[must_use]
    pub fn reading(mut self, range: Range, spans: Vec<Span>) -> Self {
        self.transfer = (range.len > 0).then(|| (Transfer::Read, Instant::now()));
        self.rest = Some(Rest { range, spans, write: false });
        self
    }

    /// It writes `range` of the disk from guest memory.
    #[must_use]
    pub fn writing(mut self, range: Range, spans: Vec<Span>) -> Self {
        self.transfer = Some((Transfer::Write, Instant::now()));
        self.ranges = vec![range];
        self.rest = Some(Rest { range, spans, write: true });
        self
    }

    /// It makes `ranges` of the disk read as zero.
    #[must_use]
    pub fn zeroing(mut self, ranges: Vec<Range>) -> Self {
        self.ranges = ranges;
        self
    }

    /// Its queue.
    #[must_use]
    pub fn queue(&self) -> u16 {
        self.queue
    }

    /// Its first descriptor.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Where its status byte goes.
    #[must_use]
    pub fn status(&self) -> GuestAddress {
        self.status
    }

    /// Where the data of the piece that was read goes.
    #[must_use]
    pub fn into(&self) -> &[Span] {
        &self.into
    }

    /// What it writes and the image has not.
    #[must_use]
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// Bytes of this piece.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of the pieces that are done.
    #[must_use]
    pub fn moved(&self) -> usize {
        self.moved
    }

    /// What is counted, and since when.
    #[must_use]
    pub fn transfer(&self) -> Option<(Transfer, Instant)> {
        self.transfer
    }

    /// Complete it without notifying the guest.
    pub fn abandon(&mut self) {
        self.abandoned = true;
    }

    /// Whether the guest is not going to be notified.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.abandoned
    }

    /// Length of the next piece and whether it is a write; `None`: there is none.
    #[must_use]
    pub fn next(&self) -> Option<(u64, bool)> {
        self.rest.as_ref().map(|rest| (rest.range.len.min(MAX_DATA), rest.write))
    }

    /// The operation of the next piece, whose data is copied here if it is a write; `None` when it is not in
    /// guest memory.
    pub fn next_op(&mut self, mem: &Guest, sync: bool) -> Option<Op> {
        let write = self.rest.as_ref().is_some_and(|rest| rest.write);
        let (range, spans) = self.take_piece();
        if !write {
            (self.into, self.bytes) = (spans, range.len as usize);
            return Some(Op::Read { offset: range.offset, into: Buffer::zeroed(self.bytes) });
        }
        let mut data = Buffer::zeroed(range.len as usize);
        gather(&**mem, &spans, &mut data).ok()?;
        self.bytes = data.len();
        Some(Op::Write { offset: range.offset, from: Arc::new(data), sync })
    }

    fn take_piece(&mut self) -> (Range, Vec<Span>) {
        let Some(Rest { range, spans, write }) = self.rest.take() else { return (Range::new(0, 0), Vec::new()) };
        if range.len <= MAX_DATA {
            return (range, spans);
        }
        let later = Range::new(range.offset + MAX_DATA, range.len - MAX_DATA);
        self.rest = Some(Rest { range: later, spans: request::skip(&spans, MAX_DATA), write });
        (Range::new(range.offset, MAX_DATA), request::first(&spans, MAX_DATA))
    }

    /// This operation is next, once it may start.
    pub fn wait_with(&mut self, op: Op) {
        self.stage = Stage::Waiting(op);
    }

    /// The operation that waits to be started.
    #[must_use]
    pub fn waiting(&self) -> Option<&Op> {
        match &self.stage {
            Stage::Waiting(op) => Some(op),
            Stage::Running | Stage::Done => None,
        }
    }

    /// Takes that operation: it is started.
    pub fn start(&mut self) -> Option<Op> {
        match mem::replace(&mut self.stage, Stage::Running) {
            Stage::Waiting(op) => Some(op),
            other => {
                self.stage = other;
                None
            }
        }
    }

    /// Whether it is being written to the image.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        matches!(self.stage, Stage::Running) && !self.ranges.is_empty()
    }

    /// The disk is done with the piece. True: it was a write, and nothing of it is left to be written.
    pub fn in_image(&mut self, ok: bool) -> bool {
        self.stage = Stage::Done;
        match &self.rest {
            Some(rest) if ok && rest.write => {
                self.ranges = vec![rest.range];
                false
            }
            _ => !mem::take(&mut self.ranges).is_empty(),
        }
    }

    /// The piece is done with: how many bytes it held.
    pub fn end_piece(&mut self) -> usize {
        self.moved += self.bytes;
        mem::take(&mut self.bytes)
    }
}

/// What the mirror will count for an operation.
#[must_use]
pub fn cost(op: &Op) -> u64 {
    match op {
        Op::Write { from, .. } => CHANGE_OVERHEAD + from.len() as u64,
        Op::Zero { ranges, .. } => CHANGE_OVERHEAD * ranges.len() as u64,
        Op::Read { .. } | Op::Flush => 0,
    }
}
