//! Makes the standby's image equal in the background, next to the guest's writes: by copying, or by comparing hashes and
//! copying what differs.
//!
//! A copy never overwrites a newer write on the standby: parts of a chunk that the guest writes while the chunk is read are
//! left out, because the write itself is in the stream before the chunk. The same holds for a block that is found equal:
//! whatever made it differ since is in the stream after its hash. Holes and zero blocks cost one small frame.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use ft_proto::device_ctl::Report;

use crate::buffer::Buffer;
use crate::image::Image;
use crate::mirror::{Body, Shared, State};
use crate::mirror_wire::{Frame, HEADER_LEN, Kind, ResyncKind};
use crate::range::Range;
use crate::resync::{BLOCK, BLOCKS, Plan, hashes, parts};

const CHUNK: u64 = BLOCK * BLOCKS;
/// Longest hole that is looked at in one step, so that progress is seen.
const HOLE: u64 = 1 << 30;
/// The copy waits while more bytes than this are queued: guest writes should not stand in line behind it.
const AHEAD: u64 = 1 << 20;
/// Chunks whose hashes may be under way: both sides hash at the same time.
pub(crate) const UNANSWERED: usize = 16;
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

pub(crate) struct Copier {
    shared: Arc<Shared>,
    image: Arc<dyn Image>,
    rate: u64,
    next_chunk: Instant,
    reported: Instant,
    kind: ResyncKind,
    done: u64,
    total: u64,
    sent: u64,
    unanswered: VecDeque<Range>,
}

impl Copier {
    pub(crate) fn new(shared: Arc<Shared>, image: Arc<dyn Image>, rate: u64) -> Self {
        let now = Instant::now();
        Self {
            shared,
            image,
            rate,
            next_chunk: now,
            reported: now,
            kind: ResyncKind::Full,
            done: 0,
            total: 0,
            sent: 0,
            unanswered: VecDeque::new(),
        }
    }

    pub(crate) fn run(mut self) {
        // `None`: the stream is closed, and whoever closed it has said why.
        let _ = self.resynchronise();
    }

    fn resynchronise(&mut self) -> Option<()> {
        let Plan { begin, ranges } = self.plan()?;
        self.kind = begin.kind;
        self.total = ranges.iter().map(|range| range.len).sum();
        self.shared.session.report(&self.report());
        for range in ranges {
            let mut at = range.offset;
            while at < range.end() {
                at = self.step(Range::new(at, range.end() - at))?;
                self.progress();
            }
        }
        while !self.unanswered.is_empty() {
            self.answered()?;
        }
        // From here on the standby may take over.
        if let Err(e) = self.shared.tracker.protected() {
            self.shared.lose(&e.to_string());
            return None;
        }
        {
            let mut state = self.shared.state();
            let frame = Frame { kind: Kind::SyncDone, epoch: state.epoch, offset: 0, len: 0 };
            self.shared.push(&mut state, frame, Body::None);
            state.synced = true;
        }
        self.shared.session.report(&self.report());
        self.shared.session.report(&Report::InSync);
        Some(())
    }

    fn plan(&self) -> Option<Plan> {
        let waits = |state: &mut State| state.open && state.plan.is_none();
        let waited = self.shared.changed.wait_while(self.shared.state(), waits);
        let state = waited.unwrap_or_else(PoisonError::into_inner);
        state.plan.clone().filter(|_| state.open)
    }

    fn report(&self) -> Report {
        Report::Resync { kind: self.kind, done: self.done, total: self.total, sent: self.sent }
    }

    fn progress(&mut self) {
        let now = Instant::now();
        if self.done < self.total && now - self.reported >= PROGRESS_EVERY {
            self.reported = now;
            self.shared.session.progress(&self.report());
        }
    }

    /// Deals with the chunk or hole at the start of `left`; where the next one begins.
    fn step(&mut self, left: Range) -> Option<u64> {
        // Chunks do not cross the boundaries that both sides count blocks from.
        let chunk = Range::new(left.offset, left.len.min(CHUNK - left.offset % CHUNK));
        self.begin(Range::new(left.offset, left.len.min(HOLE)))?;
        if let Some(end) = self.image.hole_end(left.offset) {
            let hole = Range::new(left.offset, end.min(left.offset + HOLE).min(left.end()) - left.offset);
            self.finish(hole, None)?;
            self.done += hole.len;
            return Some(hole.end());
        }
        if self.kind == ResyncKind::Full {
            self.begin(chunk)?;
            self.copy(chunk)?;
            self.done += chunk.len;
        } else {
            self.compare(chunk)?;
        }
        Some(chunk.end())
    }

    /// Sends what has been declared with [`Copier::begin`].
    fn copy(&mut self, range: Range) -> Option<()> {
        let data = self.read(range)?;
        let data = if data.is_zero() { None } else { Some(Arc::new(data)) };
        self.finish(range, data)
    }

    /// Sends hashes, and deals with the answers to former ones if there are many.
    fn compare(&mut self, range: Range) -> Option<()> {
        let body = hashes(&self.read(range)?);
        {
            let mut state = self.shared.state();
            let frame = Frame { kind: Kind::Hashes, epoch: state.epoch, offset: range.offset, len: range.len };
            self.sent += (HEADER_LEN + body.len()) as u64;
            self.shared.push(&mut state, frame, Body::Bytes(body));
        }
        self.unanswered.push_back(range);
        if self.unanswered.len() >= UNANSWERED { self.answered() } else { Some(()) }
    }

    /// Waits for the oldest answer and sends the blocks that differ.
    fn answered(&mut self) -> Option<()> {
        let asked = self.unanswered.pop_front()?;
        let waits = |state: &mut State| state.open && state.differ.is_empty();
        let waited = self.shared.changed.wait_while(self.shared.state(), waits);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        let answer = state.differ.pop_front().filter(|_| state.open);
        drop(state);
        let (offset, mask) = answer?;
        if offset != asked.offset {
            self.shared.lose("the peer misbehaves: it compares what it was not asked for");
            return None;
        }
        for part in parts(asked, mask) {
            self.begin(part)?;
            self.copy(part)?;
        }
        self.done += asked.len;
        Some(())
    }

    fn read(&mut self, range: Range) -> Option<Buffer> {
        let mut data = Buffer::zeroed(range.len as usize);
        if let Err(e) = self.image.read_at(range.offset, &mut data) {
            self.shared.lose(&format!("cannot read the local image at {}: {e}", range.offset));
            return None;
        }
        self.pace(range.len);
        Some(data)
    }

    /// Waits until the copy may go on, then declares what is read.
    fn begin(&mut self, range: Range) -> Option<()> {
        let mut state = self.shared.state();
        loop {
            let pause = self.next_chunk.saturating_duration_since(Instant::now());
            let may = |state: &State| state.before.is_empty() && Shared::queued(state) <= AHEAD;
            if !state.open {
                return None;
            }
            if pause.is_zero() && may(&state) {
                break;
            }
            state = if pause.is_zero() {
                let waited = self.shared.changed.wait_while(state, |state| state.open && !may(state));
                waited.unwrap_or_else(PoisonError::into_inner)
            } else {
                let waited = self.shared.changed.wait_timeout_while(state, pause, |state| state.open);
                waited.unwrap_or_else(PoisonError::into_inner).0
            };
        }
        Shared::begin_read(&mut state, range);
        Some(())
    }

    /// Queues what was read, without what has been written meanwhile.
    fn finish(&mut self, range: Range, data: Option<Arc<Buffer>>) -> Option<()> {
        let mut state = self.shared.state();
        let (_, written) = state.reading.take()?;
        let epoch = state.epoch;
        for part in range.without(&written) {
            let frame = |kind| Frame { kind, epoch, offset: part.offset, len: part.len };
            self.sent += HEADER_LEN as u64 + if data.is_some() { part.len } else { 0 };
            match &data {
                Some(data) => {
                    let body = Body::Part(data.clone(), Range::new(part.offset - range.offset, part.len));
                    self.shared.push(&mut state, frame(Kind::Copy), body);
                }
                None => self.shared.push(&mut state, frame(Kind::CopyZero), Body::None),
            }
        }
        state.open.then_some(())
    }

    /// Keeps to the rate by moving the time of the next chunk.
    fn pace(&mut self, bytes: u64) {
        if let Some(nanos) = (bytes * 1_000_000_000).checked_div(self.rate) {
            self.next_chunk = self.next_chunk.max(Instant::now()) + Duration::from_nanos(nanos);
        }
    }
}
