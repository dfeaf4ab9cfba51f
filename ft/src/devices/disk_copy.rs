//! A disk's copy in the current session: how far it is, as told in status and events.

use ft_proto::Time;
use ft_wire::device_ctl::ResyncKind;
use ft_wire::session::DiskProgress;
use pollux_api::status as api;
use pollux_api::status::CopyState;

use crate::progress_meter::ProgressMeter;

/// A disk and its copy.
#[derive(Clone, Debug)]
pub(crate) struct DiskCopy {
    /// The disk's id.
    id: String,
    state: CopyState,
    resync: Option<ResyncKind>,
    done: u64,
    total: u64,
    sent: u64,
    eta_s: Option<u64>,
    meter: ProgressMeter,
}

impl DiskCopy {
    pub(crate) fn new(id: String) -> Self {
        let (state, meter) = (CopyState::Idle, ProgressMeter::begin(Time::default()));
        Self { id, state, resync: None, done: 0, total: 0, sent: 0, eta_s: None, meter }
    }

    /// A session begins.
    pub(crate) fn copying(&mut self) {
        *self = Self { state: CopyState::Copying, ..Self::new(std::mem::take(&mut self.id)) };
    }

    /// Whether it is being copied.
    pub(crate) fn is_copying(&self) -> bool {
        self.state == CopyState::Copying
    }

    /// How the standby's image is, or was, made equal.
    pub(crate) fn resync(&self) -> Option<ResyncKind> {
        self.resync
    }

    /// Whose copy, bytes sent for it, and seconds that it will still take.
    pub(crate) fn so_far(&self) -> (&str, u64, Option<u64>) {
        (&self.id, self.sent, self.eta_s)
    }

    /// The session is over.
    pub(crate) fn end(&mut self) {
        self.state = CopyState::Idle;
    }

    /// Its stream has ended.
    pub(crate) fn lose(&mut self) {
        self.state = CopyState::Lost;
    }

    /// How far its copy is. Returns whether that is worth an event.
    pub(crate) fn progress(&mut self, progress: DiskProgress, now: Time) -> bool {
        let DiskProgress { kind, done, total, sent } = progress;
        if self.resync.is_none() {
            (self.resync, self.meter) = (Some(kind), ProgressMeter::begin(now));
        }
        (self.done, self.total, self.sent) = (done, total, sent);
        self.eta_s = self.meter.eta_s(done, total, now);
        self.meter.is_news(done, total, now)
    }

    /// For the other host.
    pub(crate) fn counted(&self) -> Option<DiskProgress> {
        self.resync.map(|kind| DiskProgress { kind, done: self.done, total: self.total, sent: self.sent })
    }

    /// The copy is complete: how long it took, in milliseconds.
    pub(crate) fn in_sync(&mut self, now: Time) -> u64 {
        (self.state, self.done, self.eta_s) = (CopyState::InSync, self.total, None);
        self.meter.millis(now)
    }

    /// For `ft status`.
    pub(crate) fn status(&self) -> api::DiskStatus {
        let resync = self.resync.map(|kind| match kind {
            ResyncKind::Full => api::ResyncKind::Full,
            ResyncKind::Incremental => api::ResyncKind::Incremental,
            ResyncKind::Compare => api::ResyncKind::Compare,
        });
        let Self { state, done, total, sent, eta_s, .. } = *self;
        api::DiskStatus { id: self.id.clone(), state, resync, done, total, sent, eta_s }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resynchronisation_has_a_beginning_a_rate_and_an_end() {
        let second = |n| Time::default() + std::time::Duration::from_secs(n);
        let progress = |done, sent| DiskProgress { kind: ResyncKind::Compare, done, total: 100, sent };
        let mut disk = DiskCopy::new("disk0".to_owned());
        disk.copying();
        assert_eq!(disk.counted(), None);
        assert!(!disk.progress(progress(0, 0), second(5)), "that it begins is told otherwise");
        assert_eq!((disk.resync, disk.eta_s), (Some(ResyncKind::Compare), None));
        assert!(disk.progress(progress(40, 7), second(9)));
        assert_eq!((disk.eta_s, disk.counted()), (Some(6), Some(progress(40, 7))));
        assert_eq!(disk.in_sync(second(15)), 10_000);
        assert_eq!((disk.state, disk.done, disk.eta_s), (CopyState::InSync, 100, None));
        assert_eq!(disk.status().resync, Some(api::ResyncKind::Compare));
    }
}
