//! The thread that makes the standby's image equal in the background, next to the guest's writes: by copying,
//! or by comparing hashes and copying what differs. Holes and zero blocks cost one small frame. See
//! `copy_window` for why it may do that.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ft_wire::device_ctl::Report;
use ft_wire::mirror::{BLOCK, BLOCKS, HEADER_LEN, Kind, ResyncKind};

use crate::blocks::{hashes, parts};
use crate::image::Image;
use crate::image::buffer::Buffer;
use crate::image::range::Range;
use crate::mirror::feedback::{Answers, UNANSWERED};
use crate::mirror::outbox::Body;
use crate::mirror::plan::Plan;
use crate::mirror::state::State;
use crate::mirror::stream::Stream;
use crate::tracker::PrimarySession;

const CHUNK: u64 = BLOCK * BLOCKS;
/// Longest hole that is skipped in one step, so that progress is visible.
const HOLE: u64 = 1 << 30;
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Progress of the copy, as reported to the VMM.
struct Progress {
    kind: ResyncKind,
    done: u64,
    total: u64,
    sent: u64,
    reported: Instant,
}

impl Progress {
    fn new(plan: &Plan) -> Self {
        let total = plan.ranges.iter().map(|range| range.len).sum();
        Self { kind: plan.begin.kind, done: 0, total, sent: 0, reported: Instant::now() }
    }

    fn report(&self) -> Report {
        Report::Resync { kind: self.kind, done: self.done, total: self.total, sent: self.sent }
    }

    /// The next report, if it is due.
    fn due(&mut self) -> Option<Report> {
        let now = Instant::now();
        let due = self.done < self.total && now - self.reported >= PROGRESS_EVERY;
        if due {
            self.reported = now;
        }
        due.then(|| self.report())
    }
}

/// Keeps to a rate in bytes per second, 0 for none, by moving the time of the next chunk.
struct Pace {
    rate: u64,
    next: Instant,
}

impl Pace {
    fn took(&mut self, bytes: u64) {
        if let Some(nanos) = (bytes * 1_000_000_000).checked_div(self.rate) {
            self.next = self.next.max(Instant::now()) + Duration::from_nanos(nanos);
        }
    }
}

/// The thread's state.
pub struct Copier {
    stream: Arc<Stream>,
    record: Arc<PrimarySession>,
    image: Arc<dyn Image>,
    answers: Answers,
    pace: Pace,
    /// Chunks whose hashes are under way.
    unanswered: VecDeque<Range>,
}

impl Copier {
    /// Copies `image` to the stream's peer, once that has sent its record.
    #[must_use]
    pub fn new(
        stream: Arc<Stream>,
        record: Arc<PrimarySession>,
        image: Arc<dyn Image>,
        answers: Answers,
        rate: u64,
    ) -> Self {
        let pace = Pace { rate, next: Instant::now() };
        Self { stream, record, image, answers, pace, unanswered: VecDeque::new() }
    }

    /// Copies all.
    pub fn run(mut self) {
        // `None`: the stream is closed, and the reason was reported.
        let _ = self.resynchronise();
    }

    fn resynchronise(&mut self) -> Option<()> {
        let plan = self.answers.plan.recv().ok()?;
        let mut progress = Progress::new(&plan);
        let reports = self.stream.reports().clone();
        reports.report(&progress.report());
        for range in plan.ranges {
            let mut at = range.offset;
            while at < range.end() {
                at = self.step(Range::new(at, range.end() - at), &mut progress)?;
                if let Some(report) = progress.due() {
                    reports.progress(&report);
                }
            }
        }
        while !self.unanswered.is_empty() {
            self.answered(&mut progress)?;
        }
        match self.record.protected() {
            // From here on the standby may take over.
            Ok(true) => {}
            Ok(false) => return None,
            Err(e) => {
                self.stream.lose(&e.to_string());
                return None;
            }
        }
        self.stream.update(State::in_sync);
        reports.report(&progress.report());
        reports.report(&Report::InSync);
        Some(())
    }

    /// Processes the chunk or hole at the start of `left`; returns where the next one begins.
    fn step(&mut self, left: Range, progress: &mut Progress) -> Option<u64> {
        // Chunks do not cross the boundaries that both sides count blocks from.
        let chunk = Range::new(left.offset, left.len.min(CHUNK - left.offset % CHUNK));
        self.begin(Range::new(left.offset, left.len.min(HOLE)))?;
        if let Some(end) = self.image.hole_end(left.offset) {
            let hole = Range::new(left.offset, end.min(left.offset + HOLE).min(left.end()) - left.offset);
            self.finish(hole, None, progress)?;
            progress.done += hole.len;
            return Some(hole.end());
        }
        if progress.kind == ResyncKind::Full {
            self.begin(chunk)?;
            self.copy(chunk, progress)?;
            progress.done += chunk.len;
        } else {
            self.compare(chunk, progress)?;
        }
        Some(chunk.end())
    }

    /// Sends a chunk that was begun with [`Copier::begin`].
    fn copy(&mut self, range: Range, progress: &mut Progress) -> Option<()> {
        let data = self.read(range)?;
        let data = if data.is_zero() { None } else { Some(Arc::new(data)) };
        self.finish(range, data.as_ref(), progress)
    }

    /// Sends hashes. Processes the oldest answer if many are outstanding.
    fn compare(&mut self, range: Range, progress: &mut Progress) -> Option<()> {
        let body = hashes(&self.read(range)?);
        progress.sent += (HEADER_LEN + body.len()) as u64;
        self.stream.update(|state| state.push(Kind::Hashes, range.offset, range.len, Body::Bytes(body)));
        self.unanswered.push_back(range);
        if self.unanswered.len() >= UNANSWERED { self.answered(progress) } else { Some(()) }
    }

    /// Waits for the oldest answer and sends the blocks that differ.
    fn answered(&mut self, progress: &mut Progress) -> Option<()> {
        let asked = self.unanswered.pop_front()?;
        let (offset, mask) = self.answers.differ.recv().ok()?;
        if offset != asked.offset {
            self.stream.lose("the peer misbehaves: it compares what it was not asked for");
            return None;
        }
        for part in parts(asked, mask) {
            self.begin(part)?;
            self.copy(part, progress)?;
        }
        progress.done += asked.len;
        Some(())
    }

    fn read(&mut self, range: Range) -> Option<Buffer> {
        let mut data = Buffer::zeroed(range.len as usize);
        if let Err(e) = self.image.read_at(range.offset, &mut data) {
            self.stream.lose(&format!("cannot read the local image at {}: {e}", range.offset));
            return None;
        }
        self.pace.took(range.len);
        Some(data)
    }

    /// Waits until the copy may continue, then begins a chunk.
    fn begin(&self, range: Range) -> Option<()> {
        self.stream.begin_chunk(range, self.pace.next)
    }

    /// Queues the data that was read, `None` for zeroes, except where the guest has written since.
    fn finish(&self, range: Range, data: Option<&Arc<Buffer>>, progress: &mut Progress) -> Option<()> {
        let kind = if data.is_some() { Kind::Copy } else { Kind::CopyZero };
        let body = |part: &Range| match data {
            Some(data) => Body::Part(data.clone(), Range::new(part.offset - range.offset, part.len)),
            None => Body::None,
        };
        let (parts, open) = self.stream.update(|state| (state.end_chunk(range, kind, body), state.is_open()));
        for part in parts {
            progress.sent += HEADER_LEN as u64 + if data.is_some() { part.len } else { 0 };
        }
        open.then_some(())
    }
}
