//! How the first copy of guest memory comes along, and which of its steps are worth an event. Pure.

use ft_proto::Time;
use pollux_api::event::EventName;
use pollux_api::status::Progress;
use serde_json::json;

use crate::note::Note;
use crate::progress_meter::ProgressMeter;

/// The copy of guest memory.
#[derive(Debug)]
pub(crate) struct MemoryCopy {
    kind: &'static str,
    meter: ProgressMeter,
    progress: Progress,
    /// Whether it has been told that it began.
    told: bool,
}

impl MemoryCopy {
    /// `kept`: the standby has a copy already, and gets what was written since.
    pub(super) fn begin(kept: bool, now: Time) -> Self {
        let kind = if kept { "incremental" } else { "full" };
        Self { kind, meter: ProgressMeter::begin(now), progress: Progress::default(), told: false }
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress
    }

    /// So much is done. Returns what is worth telling of that.
    pub(super) fn advance(&mut self, [done, total]: [u64; 2], now: Time) -> Option<Note> {
        let begins = !std::mem::replace(&mut self.told, true);
        let eta_s = self.meter.eta_s(done, total, now);
        self.progress = Progress { done, total, eta_s };
        let steps = self.meter.is_news(done, total, now);
        if begins {
            return Some((EventName::MemoryCopyStarted, json!({ "kind": self.kind, "bytes": total })));
        }
        steps.then(|| (EventName::MemoryCopyProgress, json!({ "done": done, "total": total, "eta_s": eta_s })))
    }

    /// It is complete.
    pub(super) fn done(&self, now: Time) -> Note {
        (EventName::MemoryCopyDone, json!({ "bytes": self.progress.done, "ms": self.meter.millis(now) }))
    }
}
