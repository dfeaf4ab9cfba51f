//! Background copy of the primary's whole image into the mirror stream, next to the guest's writes.
//!
//! It never overwrites a newer write on the standby: parts of a chunk that the guest writes while the chunk is read are
//! left out, because the write itself is in the stream before the chunk. Holes and zero blocks cost one small frame.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use ft_proto::device_ctl::Report;

use crate::buffer::Buffer;
use crate::image::Image;
use crate::mirror::{Body, Shared, State};
use crate::mirror_wire::{Frame, Kind};
use crate::range::Range;

const CHUNK: u64 = 256 * 1024;
/// Longest hole that is looked at in one step, so that progress is seen.
const HOLE: u64 = 1 << 30;
/// The copy waits while more bytes than this are queued: guest writes should not stand in line behind it.
const AHEAD: u64 = 1 << 20;
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

pub(crate) struct Copier {
    shared: Arc<Shared>,
    image: Arc<dyn Image>,
    rate: u64,
    next_chunk: Instant,
    reported: Instant,
}

impl Copier {
    pub(crate) fn new(shared: Arc<Shared>, image: Arc<dyn Image>, rate: u64) -> Self {
        let now = Instant::now();
        Self { shared, image, rate, next_chunk: now, reported: now }
    }

    pub(crate) fn run(mut self) {
        let total = self.image.size();
        let mut at = 0;
        while at < total {
            match self.copy_one(at) {
                Some(end) => at = end,
                None => return,
            }
            self.progress(at, total);
        }
        {
            let mut state = self.shared.state();
            let frame = Frame { kind: Kind::SyncDone, epoch: state.epoch, offset: 0, len: 0 };
            self.shared.push(&mut state, frame, Body::None);
            state.synced = true;
        }
        self.shared.session.report(&Report::Resync { done: total, total });
        self.shared.session.report(&Report::InSync);
    }

    fn progress(&mut self, done: u64, total: u64) {
        let now = Instant::now();
        if done < total && now - self.reported >= PROGRESS_EVERY {
            self.reported = now;
            self.shared.session.progress(&Report::Resync { done, total });
        }
    }

    /// Copies one chunk or hole at `at`; where the next one begins, or `None` when the stream is closed.
    fn copy_one(&mut self, at: u64) -> Option<u64> {
        let left = self.image.size() - at;
        self.begin(Range::new(at, left.min(HOLE)))?;
        if let Some(end) = self.image.hole_end(at) {
            let range = Range::new(at, end.min(at + HOLE) - at);
            return self.finish(range, None);
        }
        let range = Range::new(at, left.min(CHUNK));
        let mut data = Buffer::zeroed(range.len as usize);
        if let Err(e) = self.image.read_at(at, &mut data) {
            self.shared.lose(&format!("cannot read the local image at {at}: {e}"));
            return None;
        }
        self.pace(range.len);
        let data = if data.is_zero() { None } else { Some(Arc::new(data)) };
        self.finish(range, data)
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
    fn finish(&mut self, range: Range, data: Option<Arc<Buffer>>) -> Option<u64> {
        let mut state = self.shared.state();
        let (_, written) = state.reading.take()?;
        let epoch = state.epoch;
        for part in range.without(&written) {
            let frame = |kind| Frame { kind, epoch, offset: part.offset, len: part.len };
            match &data {
                Some(data) => {
                    let body = Body::Part(data.clone(), Range::new(part.offset - range.offset, part.len));
                    self.shared.push(&mut state, frame(Kind::Copy), body);
                }
                None => self.shared.push(&mut state, frame(Kind::CopyZero), Body::None),
            }
        }
        state.open.then_some(range.end())
    }

    /// Keeps to the rate by moving the time of the next chunk.
    fn pace(&mut self, bytes: u64) {
        if let Some(nanos) = (bytes * 1_000_000_000).checked_div(self.rate) {
            self.next_chunk = self.next_chunk.max(Instant::now()) + Duration::from_nanos(nanos);
        }
    }
}
