//! What is told of a session's first copy, the same in status and events of both hosts: the primary counts, and its standby is told.

use ft_proto::Time;
use ft_proto::wire::CopyProgress;
use serde_json::json;

use super::Context;
use crate::course::Course;
use crate::devices::DeviceKey;
use crate::guest::Shape;
use crate::note::Note;
use crate::status::Progress;

/// The copy of guest memory.
#[derive(Debug)]
pub(crate) struct MemoryCopy {
    kind: &'static str,
    course: Course,
    progress: Progress,
    /// Whether it has been told that it began.
    told: bool,
}

impl MemoryCopy {
    /// `kept`: the standby has a copy already, and gets what was written since.
    fn begin(kept: bool, now: Time) -> Self {
        let kind = if kept { "incremental" } else { "full" };
        Self { kind, course: Course::begin(now), progress: Progress::default(), told: false }
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress
    }

    /// So much is done. Returns what is worth telling of that.
    fn advance(&mut self, [done, total]: [u64; 2], now: Time) -> Option<Note> {
        let begins = !std::mem::replace(&mut self.told, true);
        let eta_s = self.course.eta_s(done, total, now);
        self.progress = Progress { done, total, eta_s };
        let steps = self.course.is_news(done, total, now);
        if begins {
            return Some(("memory-copy-started", json!({ "kind": self.kind, "bytes": total })));
        }
        steps.then(|| ("memory-copy-progress", json!({ "done": done, "total": total, "eta_s": eta_s })))
    }
}

impl Context {
    /// A session begins. `kept`: the standby has a copy already, and gets what was written since.
    pub(crate) fn begin_memory_copy(&mut self, kept: bool) {
        self.reporter.memory_copy = Some(MemoryCopy::begin(kept, self.now()));
    }

    /// Bytes of memory that are copied, and that are to be.
    pub(crate) fn memory_progress(&mut self, bytes: [u64; 2]) {
        let now = self.now();
        let note = self.reporter.memory_copy.as_mut().and_then(|copy| copy.advance(bytes, now));
        self.note_all(note);
    }

    /// Standby of a VM of this shape: how far the primary says the copies are.
    pub(crate) fn told_progress(&mut self, CopyProgress { memory, disks }: CopyProgress, shape: &Shape) {
        self.memory_progress(memory);
        let now = self.now();
        for (number, progress) in (0..).zip(disks) {
            let key = shape.disk_id(number).and_then(|id| self.devices().by_id(id));
            if let (Some(key), Some(progress)) = (key, progress) {
                let note = self.devices().copy_told(key, progress, now);
                self.note_all(note);
            }
        }
    }

    /// All of memory that is not in the base checkpoint is copied.
    pub(crate) fn memory_copied(&mut self) {
        let Some(copy) = self.reporter.memory_copy.take() else { return };
        let ms = copy.course.millis(self.now());
        self.note("memory-copy-done", json!({ "bytes": copy.progress.done, "ms": ms }));
    }

    /// Standby: the base checkpoint is committed.
    pub(crate) fn all_copied(&mut self) {
        self.memory_copied();
        let now = self.now();
        let notes = self.devices().all_copies_done(now);
        self.note_all(notes);
    }

    /// A disk's copy is complete.
    pub(crate) fn disk_copied(&mut self, key: DeviceKey) {
        let now = self.now();
        let note = self.devices().copy_done(key, now);
        self.note_all(note);
    }
}
