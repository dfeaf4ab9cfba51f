//! Reports the progress of a session's first copy, the same on both hosts: the primary counts and tells its
//! standby.

use ft_proto::Input;
use ft_wire::session::CopyProgress;

use super::Context;
use crate::devices::DeviceKey;
use crate::guest::Shape;
use crate::platform::Platform;

impl<P: Platform> Context<P> {
    /// A session begins. `kept`: the standby has a copy already, and gets what was written since.
    pub(crate) fn begin_memory_copy(&mut self, kept: bool) {
        let now = self.now();
        self.reporter.begin_memory_copy(kept, now);
    }

    /// Bytes of memory that are copied, and that are to be.
    pub(crate) fn memory_progress(&mut self, bytes: [u64; 2]) {
        let now = self.now();
        let note = self.reporter.memory_progress(bytes, now);
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
        let now = self.now();
        let note = self.reporter.memory_copied(now);
        self.note_all(note);
    }

    /// Standby: the base checkpoint is committed.
    pub(crate) fn all_copied(&mut self) {
        self.memory_copied();
        let now = self.now();
        let notes = self.devices().all_copies_done(now);
        self.note_all(notes);
    }

    /// The mirror of a disk has ended: what it brought is of no use without what follows.
    pub(crate) fn mirror_lost(&mut self, key: DeviceKey, reason: &str) {
        self.devices().copy_lost(key);
        let reason = format!("mirror of {}: {reason}", self.devices().id(key));
        self.input(Input::StreamLost { reason });
    }

    /// A disk's copy is complete.
    pub(crate) fn disk_copied(&mut self, key: DeviceKey) {
        let now = self.now();
        let note = self.devices().copy_done(key, now);
        self.note_all(note);
    }
}
