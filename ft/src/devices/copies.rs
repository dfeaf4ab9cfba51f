//! The progress of the copies of this host's disks on the other host: counted on the primary, reported to the
//! standby.

use ft_proto::Time;
use ft_wire::session::DiskProgress;
use pollux_api::event::EventName;
use pollux_api::status::DiskStatus;
use serde_json::json;

use super::control::DeviceControl;
use super::disk_copy::DiskCopy;
use super::{DeviceKey, Devices};
use crate::guest::Shape;
use crate::note::Note;

impl<C: DeviceControl> Devices<C> {
    /// For status: the disks.
    pub(crate) fn copies(&self) -> Vec<DiskStatus> {
        self.all.iter().filter_map(|device| device.copy.as_ref()).map(DiskCopy::status).collect()
    }

    /// For the other host: how far the copy of each disk is that has begun, in the order of their numbers.
    pub(crate) fn copied(&self, shape: &Shape) -> Vec<Option<DiskProgress>> {
        let of = |id: &str| self.copy(self.by_id(id)?)?.counted();
        shape.disks.iter().map(|disk| of(&disk.id)).collect()
    }

    /// Whether no disk is still being copied.
    pub(crate) fn are_copied(&self) -> bool {
        self.all.iter().filter_map(|device| device.copy.as_ref()).all(|copy| !copy.is_copying())
    }

    /// A session begins for this disk.
    pub(super) fn begin_copy(&mut self, key: DeviceKey) {
        if let Some(copy) = self.copy_mut(key) {
            copy.copying();
        }
    }

    /// A session is over.
    pub(crate) fn end_copies(&mut self) {
        self.all.iter_mut().filter_map(|device| device.copy.as_mut()).for_each(DiskCopy::end);
    }

    /// How far a copy is, and what is worth telling of that.
    pub(crate) fn copy_progress(&mut self, key: DeviceKey, progress: DiskProgress, now: Time) -> Option<Note> {
        let copy = self.copy_mut(key)?;
        let DiskProgress { kind, done, total, .. } = progress;
        let begins = copy.resync().is_none();
        let steps = copy.progress(progress, now);
        let (id, sent, eta_s) = copy.so_far();
        if begins {
            Some((EventName::ResyncStarted, json!({ "disk": id, "kind": kind.name(), "bytes": total })))
        } else {
            let detail = || json!({ "disk": id, "done": done, "total": total, "bytes_sent": sent, "eta_s": eta_s });
            steps.then(|| (EventName::ResyncProgress, detail()))
        }
    }

    /// As [`Self::copy_progress`], where the other host counts. What it says of a disk that is not being
    /// copied is late.
    pub(crate) fn copy_told(&mut self, key: DeviceKey, progress: DiskProgress, now: Time) -> Option<Note> {
        self.copy(key).filter(|copy| copy.is_copying())?;
        self.copy_progress(key, progress, now)
    }

    /// A copy is complete.
    pub(crate) fn copy_done(&mut self, key: DeviceKey, now: Time) -> Option<Note> {
        let copy = self.copy_mut(key)?;
        let ms = copy.in_sync(now);
        let (kind, (id, sent, _)) = (copy.resync().map(|kind| kind.name()), copy.so_far());
        Some((EventName::ResyncDone, json!({ "disk": id, "kind": kind, "bytes_sent": sent, "ms": ms })))
    }

    /// All that are still being copied are complete.
    pub(crate) fn all_copies_done(&mut self, now: Time) -> Vec<Note> {
        let copying = |key: &DeviceKey| self.copy(*key).is_some_and(DiskCopy::is_copying);
        let keys: Vec<_> = self.keys().into_iter().filter(copying).collect();
        keys.into_iter().filter_map(|key| self.copy_done(key, now)).collect()
    }

    /// The stream of a disk has ended.
    pub(crate) fn copy_lost(&mut self, key: DeviceKey) {
        if let Some(copy) = self.copy_mut(key) {
            copy.lose();
        }
    }

    fn copy(&self, key: DeviceKey) -> Option<&DiskCopy> {
        self.get(key)?.copy.as_ref()
    }

    fn copy_mut(&mut self, key: DeviceKey) -> Option<&mut DiskCopy> {
        self.get_mut(key)?.copy.as_mut()
    }
}
