//! What runs, or may run, on this host: the guest, its memory and its devices.

use std::ops::Range;
use std::sync::Arc;

use ft_proto::{Alone, Committed, Epoch, Time, VmId};
use pollux_api::Blocker;

use crate::devices::control::DeviceControl;
use crate::devices::{DeviceEnd, DeviceKey, Devices};
use crate::guest::{Guest, GuestError, HeldOutput, Memory, Shape};

/// The VM on this host.
pub(crate) struct Machine<C> {
    guest: Box<dyn Guest>,
    memory: Arc<dyn Memory>,
    devices: Devices<C>,
    /// Since when the guest is stopped, if it was for more than a checkpoint.
    stopped: Option<Time>,
    /// The session that is over whose last checkpoint the standby's memory still is, and since which a
    /// primary knows every page that was written.
    base: Option<u64>,
    /// Why a device process is of no use any more.
    broken: Option<String>,
    /// Whether the VMM has been told that this VM has to be built anew.
    told_unusable: bool,
}

impl<C: DeviceControl> Machine<C> {
    /// A guest, and the ways to its device processes.
    pub(crate) fn new(guest: Box<dyn Guest>, ends: Vec<DeviceEnd<C>>) -> Self {
        let devices = Devices::new(ends, &guest.shape());
        let memory = guest.memory();
        Self { guest, memory, devices, stopped: None, base: None, broken: None, told_unusable: false }
    }

    pub(crate) fn guest(&mut self) -> &mut dyn Guest {
        &mut *self.guest
    }

    pub(crate) fn devices(&mut self) -> &mut Devices<C> {
        &mut self.devices
    }

    /// For what needs both at once.
    pub(crate) fn parts(&mut self) -> (&mut dyn Guest, &mut Devices<C>) {
        (&mut *self.guest, &mut self.devices)
    }

    pub(crate) fn control(&self, key: DeviceKey) -> Option<&C> {
        self.devices.control(key)
    }

    pub(crate) fn device_id(&self, key: DeviceKey) -> &str {
        self.devices.id(key)
    }

    pub(crate) fn memory(&self) -> &Arc<dyn Memory> {
        &self.memory
    }

    pub(crate) fn shape(&self) -> Shape {
        self.guest.shape()
    }

    /// Console output that is held is told to `held`.
    pub(crate) fn watch_console(&mut self, held: HeldOutput) {
        self.guest.watch_console(held);
    }

    /// A device joins. It is the guest's already.
    pub(crate) fn add_device(&mut self, end: DeviceEnd<C>) -> DeviceKey {
        self.devices.add(end, &self.guest.shape())
    }

    /// Why this VM cannot be protected: all reasons.
    pub(crate) fn blockers(&self) -> Vec<Blocker> {
        let mut blockers = self.guest.blockers();
        blockers.extend(self.broken.clone().map(|reason| Blocker::DeviceFailed { reason }));
        blockers
    }

    /// A device process is of no use any more.
    pub(crate) fn device_failed(&mut self, reason: &str) {
        self.broken.get_or_insert_with(|| reason.to_owned());
    }

    /// This VM waits for a primary. With a device that has failed it does so in vain.
    pub(crate) fn stand_by(&mut self) {
        if let Some(reason) = self.broken.as_ref().filter(|_| !self.told_unusable) {
            self.told_unusable = true;
            self.guest.unusable(reason);
        }
    }

    /// The guest has been stopped since then, for good or until [`Self::go_alone`].
    pub(crate) fn stopped(&mut self, since: Option<Time>) {
        self.stopped = since;
    }

    /// Since when it is stopped.
    pub(crate) fn stopped_since(&self) -> Option<Time> {
        self.stopped
    }

    /// Everything up to an epoch may leave: the only place where output leaves a VM that is protected.
    pub(crate) fn release(&mut self, committed: &Committed) {
        self.devices.release(committed);
        self.guest.release_console(committed);
    }

    /// The devices go on in `epoch`. After the `base` output is held.
    pub(crate) fn resume_devices(&mut self, base: bool, epoch: Epoch) {
        self.devices.resume(base.then_some(epoch));
    }

    /// The VM goes on here, without a standby, and what it held may leave.
    pub(crate) fn go_alone(&mut self, alone: &Alone, vm: Option<VmId>) {
        self.devices.go_alone(alone, self.stopped.is_some());
        if let Some(vm) = vm {
            self.devices.tell_owner(vm, alone.term());
        }
        self.guest.free_console(alone);
        // It was about to move, and stays.
        if self.stopped.take().is_some() {
            self.guest.resume();
        }
    }

    /// Another node runs the VM: held output is dropped before anything else.
    pub(crate) fn fence(&mut self, reason: &str, now: Time) {
        self.devices.discard();
        self.guest.fence(reason);
        self.stopped.get_or_insert(now);
    }

    /// The session whose last checkpoint is kept.
    pub(crate) fn base(&self) -> Option<u64> {
        self.base
    }

    /// Nothing counts on it any more.
    pub(crate) fn take_base(&mut self) -> Option<u64> {
        self.base.take()
    }

    /// From here on the last checkpoint of this session is kept, if there is one.
    pub(crate) fn keep_base(&mut self, session: Option<u64>) {
        self.base = session;
    }

    /// The pages that a session begins with, and those written from now on are known: all of them, or, if the
    /// standby's memory is the checkpoint `base`, since which they are known already, none.
    pub(crate) fn first_ranges(&mut self, base: Option<u64>) -> Result<Vec<Range<u64>>, GuestError> {
        let known = self.base.take();
        if base.is_some() {
            let current = base == known;
            // The standby has not cleared its memory.
            return if current { Ok(Vec::new()) } else { Err(GuestError::plain("it was not tracked to the end")) };
        }
        if known.is_some() {
            self.guest.stop_tracking();
        }
        self.guest.start_tracking()?;
        self.memory.populated().inspect_err(|_| self.guest.stop_tracking())
    }
}
