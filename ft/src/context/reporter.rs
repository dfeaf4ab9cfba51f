//! What status and events show that no other part owns: measurements, the copy of memory, the last takeover,
//! the last error.

use std::time::Duration;

use ft_proto::{Event, Time};
use pollux_api::EventRecord;
use pollux_api::event::EventName;
use pollux_api::status::{Progress, Status, Takeover};
use serde_json::Value;

use super::memory_copy::MemoryCopy;
use crate::clock::micros;
use crate::devices::Held;
use crate::note::Note;
use crate::status::{Board, Recent};
use crate::stream::coder::Volume;

/// How often the status is brought up to date while a session is open.
const STATUS_INTERVAL: Duration = Duration::from_millis(100);

/// What is measured of a session.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pause: Recent,
    commit: Recent,
    pages: Recent,
    bytes: Recent,
    raw_bytes: Recent,
    /// Of all epochs of the session together.
    volume: Volume,
    held: Held,
    epochs: u64,
}

impl Measured {
    /// The guest was paused for so long.
    pub(crate) fn paused(&mut self, pause: Duration) {
        self.pause.add(micros(pause));
    }

    /// An epoch was captured.
    pub(crate) fn captured(&mut self, pages: u64, held: Held) {
        self.pages.add(pages);
        self.held = held;
    }

    /// And sent.
    pub(crate) fn sent(&mut self, Volume { raw, sent }: Volume) {
        self.bytes.add(sent);
        self.raw_bytes.add(raw);
        self.volume.raw += raw;
        self.volume.sent += sent;
    }

    /// And committed, so long after it was begun.
    pub(crate) fn committed(&mut self, took: Duration) {
        self.commit.add(micros(took));
        self.epochs += 1;
    }

    /// A standby has applied an epoch.
    pub(crate) fn applied(&mut self) {
        self.epochs += 1;
    }

    /// Bytes of the session's epochs.
    pub(crate) fn volume(&self) -> Volume {
        self.volume
    }

    /// Epochs that were committed.
    pub(crate) fn epochs(&self) -> u64 {
        self.epochs
    }

    /// Their part of a status.
    pub(super) fn fill(&self, status: &mut Status) {
        status.pause_us = self.pause.percentiles();
        status.commit_us = self.commit.percentiles();
        status.dirty_pages = self.pages.percentiles();
        status.epoch_bytes = self.bytes.percentiles();
        status.epoch_raw_bytes = self.raw_bytes.percentiles();
        status.held_frames = self.held.frames();
        status.held_bytes = self.held.bytes();
        status.epochs = self.epochs;
    }
}

/// What is reported.
pub(crate) struct Reporter {
    board: Board,
    measured: Measured,
    /// The copy of memory, while it runs.
    memory_copy: Option<MemoryCopy>,
    takeover: Option<Takeover>,
    last_error: Option<String>,
    /// How long the peer was silent when it was suspected, in milliseconds, and when that was.
    suspected: Option<(u64, Time)>,
    /// When the status is to be brought up to date while a session is open.
    due: Time,
    /// Or at once.
    stale: bool,
}

impl Reporter {
    pub(crate) fn new(board: Board, now: Time) -> Self {
        Self {
            board,
            measured: Measured::default(),
            memory_copy: None,
            takeover: None,
            last_error: None,
            suspected: None,
            due: now,
            stale: false,
        }
    }

    pub(crate) fn measured(&mut self) -> &mut Measured {
        &mut self.measured
    }

    /// A session begins.
    pub(crate) fn measure_anew(&mut self) {
        self.measured = Measured::default();
    }

    /// The copy of memory begins. `kept`: the standby has one already, and gets what was written since.
    pub(super) fn begin_memory_copy(&mut self, kept: bool, now: Time) {
        self.memory_copy = Some(MemoryCopy::begin(kept, now));
    }

    /// So many of its bytes are copied, and are to be.
    pub(super) fn memory_progress(&mut self, bytes: [u64; 2], now: Time) -> Option<Note> {
        self.memory_copy.as_mut().and_then(|copy| copy.advance(bytes, now))
    }

    /// It is complete.
    pub(super) fn memory_copied(&mut self, now: Time) -> Option<Note> {
        self.memory_copy.take().map(|copy| copy.done(now))
    }

    /// How far it is, while it runs.
    pub(super) fn memory_sync(&self) -> Option<Progress> {
        self.memory_copy.as_ref().map(MemoryCopy::progress)
    }

    pub(super) fn note(&self, event: EventName, detail: Value) -> EventRecord {
        self.board.note(event, detail)
    }

    pub(super) fn event(&self, event: &Event) -> EventRecord {
        self.board.event(event)
    }

    /// Something went wrong.
    pub(crate) fn failed(&mut self, reason: String) {
        self.last_error = Some(reason);
    }

    /// Whether that is the last thing that went wrong.
    pub(crate) fn has_failed(&self, reason: &str) -> bool {
        self.last_error.as_deref() == Some(reason)
    }

    /// The last thing that went wrong.
    pub(crate) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// This node has taken over.
    pub(crate) fn took_over(&mut self, takeover: Takeover) {
        self.takeover = Some(takeover);
    }

    pub(crate) fn has_taken_over(&self) -> bool {
        self.takeover.is_some()
    }

    /// The peer is silent, or is heard again.
    pub(crate) fn suspect(&mut self, suspected: Option<(u64, Time)>) {
        self.suspected = suspected;
    }

    /// How long the peer was silent when it was suspected, and when that was.
    pub(crate) fn suspected(&self) -> Option<(u64, Time)> {
        self.suspected
    }

    /// The status is to be brought up to date when everything is done that has been decided.
    pub(crate) fn publish_soon(&mut self) {
        self.stale = true;
    }

    pub(crate) fn is_stale(&self) -> bool {
        self.stale
    }

    /// When it is to be brought up to date while a session is open.
    pub(crate) fn due(&self) -> Time {
        self.due
    }

    /// Makes the status on the board current.
    pub(super) fn publish(&mut self, mut status: Status, now: Time) {
        (self.due, self.stale) = (now + STATUS_INTERVAL, false);
        self.measured.fill(&mut status);
        status.takeover = self.takeover;
        status.last_error.clone_from(&self.last_error);
        self.board.publish(status);
    }
}
