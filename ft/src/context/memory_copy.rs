//! How the first copy of guest memory comes along, and which of its steps are worth an event. Pure.

use ft_proto::Time;
use serde_json::json;

use crate::course::Course;
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
    pub(super) fn begin(kept: bool, now: Time) -> Self {
        let kind = if kept { "incremental" } else { "full" };
        Self { kind, course: Course::begin(now), progress: Progress::default(), told: false }
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress
    }

    /// So much is done. Returns what is worth telling of that.
    pub(super) fn advance(&mut self, [done, total]: [u64; 2], now: Time) -> Option<Note> {
        let begins = !std::mem::replace(&mut self.told, true);
        let eta_s = self.course.eta_s(done, total, now);
        self.progress = Progress { done, total, eta_s };
        let steps = self.course.is_news(done, total, now);
        if begins {
            return Some(("memory-copy-started", json!({ "kind": self.kind, "bytes": total })));
        }
        steps.then(|| ("memory-copy-progress", json!({ "done": done, "total": total, "eta_s": eta_s })))
    }

    /// It is complete.
    pub(super) fn done(&self, now: Time) -> Note {
        ("memory-copy-done", json!({ "bytes": self.progress.done, "ms": self.course.millis(now) }))
    }
}
