//! What the engine tells of a session's first copy, the same in status and events of both hosts: the primary counts, and its
//! standby is told.

use ft_proto::device_ctl::Report;
use ft_proto::wire::{CopyProgress, DiskProgress};
use ft_proto::{Input, Time};
use pollux_api::status::{CopyState, Progress};
use serde_json::json;

use crate::course::Course;
use crate::engine::{Engine, Session};
use crate::sender::Job;

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
    pub(crate) fn begin(kept: bool, now: Time) -> Self {
        let kind = if kept { "incremental" } else { "full" };
        Self { kind, course: Course::begin(now), progress: Progress::default(), told: false }
    }

    pub(crate) fn progress(&self) -> Progress {
        self.progress
    }
}

impl Engine {
    /// Primary: how far the copies are. The standby is told, unless it has not even been sent what was told before.
    pub(crate) fn count_copies(&mut self) {
        let Session::Primary(side) = &mut self.session else { return };
        let Some(copy) = &side.copy else { return };
        let memory = copy.counted();
        let disks = self.disks.iter().map(|disk| disk.counted()).collect();
        side.tell(Job::Progress(CopyProgress { memory, disks }));
        self.memory_progress(memory);
    }

    /// Standby: how far the primary says the copies are.
    pub(crate) fn told_progress(&mut self, CopyProgress { memory, disks }: CopyProgress) {
        self.memory_progress(memory);
        for (at, progress) in (0..self.disks.len()).zip(disks) {
            if let Some(progress) = progress.filter(|_| self.disks[at].state == CopyState::Copying) {
                self.disk_progress(at, progress);
            }
        }
    }

    fn memory_progress(&mut self, [done, total]: [u64; 2]) {
        let now = self.clock.now();
        let Some(copy) = &mut self.memory_copy else { return };
        let begins = !std::mem::replace(&mut copy.told, true);
        let eta_s = copy.course.eta_s(done, total, now);
        copy.progress = Progress { done, total, eta_s };
        let steps = copy.course.is_news(done, total, now);
        if begins {
            let detail = json!({ "kind": copy.kind, "bytes": total });
            self.note("memory-copy-started", detail);
        } else if steps {
            self.note("memory-copy-progress", json!({ "done": done, "total": total, "eta_s": eta_s }));
        }
    }

    /// All of memory that is not in the base checkpoint is copied.
    pub(crate) fn memory_copied(&mut self) {
        let Some(copy) = self.memory_copy.take() else { return };
        let ms = copy.course.millis(self.clock.now());
        self.note("memory-copy-done", json!({ "bytes": copy.progress.done, "ms": ms }));
    }

    /// Standby: the base checkpoint is committed.
    pub(crate) fn copies_are_complete(&mut self) {
        self.memory_copied();
        for at in 0..self.disks.len() {
            if self.disks[at].state == CopyState::Copying {
                self.disk_in_sync(at);
            }
        }
    }

    fn disk_progress(&mut self, at: usize, progress: DiskProgress) {
        let DiskProgress { kind, done, total, .. } = progress;
        let disk = &mut self.disks[at];
        let begins = disk.resync.is_none();
        let steps = disk.progress(progress, self.clock.now());
        let (id, kind) = (disk.id.clone(), kind.name());
        if begins {
            self.note("resync-started", json!({ "disk": id, "kind": kind, "bytes": total }));
        } else if steps {
            let (sent, eta_s) = (disk.sent, disk.eta_s);
            let detail = json!({ "disk": id, "done": done, "total": total, "bytes_sent": sent, "eta_s": eta_s });
            self.note("resync-progress", detail);
        }
    }

    /// A disk's copy is complete.
    pub(crate) fn disk_in_sync(&mut self, at: usize) {
        let disk = &mut self.disks[at];
        let ms = disk.in_sync(self.clock.now());
        let kind = disk.resync.map(|kind| kind.name());
        let detail = json!({ "disk": disk.id, "kind": kind, "bytes_sent": disk.sent, "ms": ms });
        self.note("resync-done", detail);
    }

    /// Primary: a disk's mirror told something.
    pub(crate) fn disk_report(&mut self, at: usize, report: &Report) {
        match *report {
            Report::Resync { kind, done, total, sent } => {
                self.disk_progress(at, DiskProgress { kind, done, total, sent });
            }
            Report::InSync => {
                self.disk_in_sync(at);
                self.pump();
            }
            Report::MirrorLost { ref reason } => {
                // The standby may have said why before it closed the mirror.
                self.read_stream();
                if !matches!(self.session, Session::None) {
                    let disk = &mut self.disks[at];
                    disk.state = CopyState::Lost;
                    let reason = format!("mirror of {}: {reason}", disk.id);
                    self.input(Input::StreamLost { reason });
                }
            }
            _ => {}
        }
    }
}
