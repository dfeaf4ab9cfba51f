//! The device processes of this VM: the capabilities of each, and the commands to all of them or to those
//! with a capability.
//!
//! In: commands of the engine. Out: their reports. Never: a rule that depends on the place of a device in a
//! list, or on its kind.

pub(crate) mod control;
mod copies;
mod disk_copy;
pub(crate) mod link;
pub(crate) mod socket;

use std::time::Duration;

use ft_proto::{Alone, Committed, Epoch, Term, VmId};
use ft_wire::device_ctl::{Command, Hold, InFlight, Report};
use ft_wire::state::Position;

use self::control::{DeviceControl, LinkError};
use self::disk_copy::DiskCopy;
use self::link::DeviceLink;
use crate::guest::{DeviceCaps, DeviceWait, Shape};

/// A device process that takes longer than this to seal counts as dead. It has microseconds of work to do.
const SEAL_LIMIT: Duration = Duration::from_secs(2);
/// A disk has one small write to do.
const NOTE_LIMIT: Duration = Duration::from_secs(5);
/// A disk that needs longer than this to apply what was committed fails the takeover.
const ROLL_BACK_LIMIT: Duration = Duration::from_secs(30);
/// A device process has little to do to start.
const START_LIMIT: Duration = Duration::from_secs(5);

/// Names a device as long as it is there, and never another one afterwards.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct DeviceKey(u64);

impl DeviceKey {
    /// As a number that tells it from all others.
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    /// The key of that number.
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }
}

/// What devices held back when they were sealed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Held {
    frames: u64,
    bytes: u64,
}

impl Held {
    /// Frames that network devices held.
    pub(crate) fn frames(self) -> u64 {
        self.frames
    }

    /// Bytes that were held or uncommitted.
    pub(crate) fn bytes(self) -> u64 {
        self.bytes
    }
}

/// A device that joins, and the way to its process.
#[derive(Debug)]
pub struct DeviceEnd<C> {
    /// What the device can do.
    pub caps: DeviceCaps,
    /// The way to it.
    pub control: C,
}

/// One device process.
#[derive(Debug)]
struct Device<C> {
    key: DeviceKey,
    link: DeviceLink<C>,
    caps: DeviceCaps,
    /// Whether it had anything to release at its last seal.
    held: bool,
    /// How its copy on the other host is, if it is a disk.
    copy: Option<DiskCopy>,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Devices<C> {
    all: Vec<Device<C>>,
    next: u64,
}

impl<C: DeviceControl> Devices<C> {
    /// Those of a VM of this shape.
    pub(crate) fn new(ends: Vec<DeviceEnd<C>>, shape: &Shape) -> Self {
        let mut devices = Self { all: Vec::new(), next: 0 };
        for end in ends {
            devices.add(end, shape);
        }
        devices
    }

    /// A device joins a VM that has this shape with it.
    pub(crate) fn add(&mut self, end: DeviceEnd<C>, shape: &Shape) -> DeviceKey {
        let key = DeviceKey(self.next);
        self.next += 1;
        let DeviceEnd { caps, control } = end;
        let id = control.id();
        let copy = shape.disk_number(id).map(|_| DiskCopy::new(id.to_owned()));
        self.all.push(Device { key, link: DeviceLink::new(control), caps, held: false, copy });
        key
    }

    /// A device leaves. Nothing more is heard of it.
    pub(crate) fn remove(&mut self, key: DeviceKey) {
        self.all.retain(|device| device.key != key);
    }

    /// The keys of all devices.
    pub(crate) fn keys(&self) -> Vec<DeviceKey> {
        self.all.iter().map(|device| device.key).collect()
    }

    /// The device of this id.
    pub(crate) fn by_id(&self, id: &str) -> Option<DeviceKey> {
        self.all.iter().find(|device| device.link.id() == id).map(|device| device.key)
    }

    /// The id of a device.
    pub(crate) fn id(&self, key: DeviceKey) -> &str {
        self.get(key).map_or("", |device| device.link.id())
    }

    /// What a device can do.
    pub(crate) fn caps(&self, key: DeviceKey) -> DeviceCaps {
        self.get(key).map(|device| device.caps).unwrap_or_default()
    }

    /// The way to it.
    pub(crate) fn control(&self, key: DeviceKey) -> Option<&C> {
        self.get(key).map(|device| device.link.control())
    }

    fn get(&self, key: DeviceKey) -> Option<&Device<C>> {
        self.all.iter().find(|device| device.key == key)
    }

    fn get_mut(&mut self, key: DeviceKey) -> Option<&mut Device<C>> {
        self.all.iter_mut().find(|device| device.key == key)
    }

    fn those(&mut self, can: impl Fn(DeviceCaps) -> bool) -> impl Iterator<Item = &mut Device<C>> {
        self.all.iter_mut().filter(move |device| can(device.caps))
    }

    /// The next report of a device, if there is one.
    pub(crate) fn report(&mut self, key: DeviceKey) -> Result<Option<Report>, LinkError> {
        self.get_mut(key).map_or(Ok(None), |device| device.link.try_recv())
    }

    /// A report that came while another one was waited for: a poll does not show it.
    pub(crate) fn early_report(&mut self) -> Option<(DeviceKey, Report)> {
        self.all.iter_mut().find_map(|device| Some((device.key, device.link.early()?)))
    }

    /// This host does not run the VM.
    pub(crate) fn stand_by(&mut self) {
        self.send_to_all(|| Command::Standby(true));
    }

    /// Devices touch guest memory no more until they are told to resume. They seal while the vCPUs come to a
    /// stop and capture themselves. An interrupt that a device raises after a vCPU has captured its LAPIC is
    /// not in the checkpoint; takeover injects every interrupt once for this reason.
    ///
    /// A device that is busy with a vCPU's request while `device_wait` is on has as long as for that request.
    pub(crate) fn seal(
        &mut self,
        epoch: Epoch,
        cpu: Option<u16>,
        positions: &mut Vec<Position>,
        device_wait: &DeviceWait,
    ) -> Result<Held, LinkError> {
        self.all.iter_mut().try_for_each(|device| device.link.send(&Command::Seal { epoch, cpu }, None))?;
        let mut held = Held::default();
        for device in &mut self.all {
            positions.push(device.sealed(epoch, &mut held, device_wait)?);
        }
        Ok(held)
    }

    /// They go on. With an epoch the output of that one, and of all after it, is held.
    pub(crate) fn resume(&mut self, hold_from: Option<Epoch>) {
        for device in &mut self.all {
            // A device that is gone is noticed by its closed socket; the others must run again whatever
            // happens to it.
            if let Some(epoch) = hold_from.filter(|_| device.caps.holds_output) {
                device.tell(&Command::Protect { epoch, hold: Hold::on() });
            }
            device.tell(&Command::Resume);
        }
    }

    /// The output of a device that has just joined is held, from `epoch` on.
    pub(crate) fn hold(&mut self, key: DeviceKey, epoch: Epoch) {
        if let Some(device) = self.get_mut(key).filter(|device| device.caps.holds_output) {
            device.tell(&Command::Protect { epoch, hold: Hold::on() });
        }
    }

    /// Output up to an epoch may leave.
    pub(crate) fn release(&mut self, committed: &Committed) {
        // Output first: somebody waits for it. A device that held nothing at the last seal has nothing of an
        // earlier epoch.
        for holds_output in [true, false] {
            for device in self.those(|caps| caps.holds_output == holds_output).filter(|device| device.held) {
                device.tell(&Command::Release(committed.into()));
            }
        }
    }

    /// Standby: devices that have something of a committed epoch apply it. `idle`: has it nothing of this
    /// one? `applies`: it has.
    pub(crate) fn apply(
        &mut self,
        committed: &Committed,
        idle: impl Fn(&str) -> bool,
        mut applies: impl FnMut(DeviceKey),
    ) {
        for device in self.those(DeviceCaps::rolls_back).filter(|device| !idle(device.link.id())) {
            applies(device.key);
            device.tell(&Command::Release(committed.into()));
        }
    }

    /// Whether somebody waits for output of a device; `has_output`: has that one any?
    pub(crate) fn any_output(&self, has_output: impl Fn(&str) -> bool) -> bool {
        self.all.iter().any(|device| device.caps.holds_output && has_output(device.link.id()))
    }

    /// This host goes on alone: nothing is mirrored or held any more. `stopped`: they were sealed for good.
    pub(crate) fn go_alone(&mut self, alone: &Alone, stopped: bool) {
        for device in &mut self.all {
            if device.caps.mirrors {
                device.tell(&Command::Unmirror);
            }
            if device.caps.rolls_back() {
                // A device that is gone is noticed by its closed socket.
                let _ = device.link.drop_session();
            }
            if device.caps.holds_output {
                device.tell(&Command::Protect { epoch: Epoch(0), hold: Hold::off(alone) });
            }
            if stopped {
                device.tell(&Command::Resume);
            }
        }
    }

    /// What was begun for a session that does not come about.
    pub(crate) fn unmirror(&mut self) {
        self.those(|caps| caps.mirrors).for_each(|device| device.tell(&Command::Unmirror));
        self.drop_session();
    }

    /// A session is over of which this host held a copy.
    pub(crate) fn drop_session(&mut self) {
        for device in self.those(DeviceCaps::rolls_back) {
            // A device that is gone is noticed by its closed socket.
            let _ = device.link.drop_session();
        }
        self.end_copies();
    }

    /// The VM runs elsewhere: held output is dropped. Only what was never released is still held.
    pub(crate) fn discard(&mut self) {
        self.send_to_all(|| Command::Discard { after: Epoch(0) });
    }

    /// What came after a checkpoint is dropped; `after` names its last epoch for a device. They answer: see
    /// [`Self::rolled_back`].
    pub(crate) fn roll_back(&mut self, after: impl Fn(DeviceKey) -> Epoch) -> Result<(), LinkError> {
        let mut all = self.those(DeviceCaps::rolls_back);
        all.try_for_each(|device| device.link.send(&Command::Discard { after: after(device.key) }, None))
    }

    /// Waits until all have.
    pub(crate) fn rolled_back(&mut self) -> Result<(), LinkError> {
        let mut all = self.those(DeviceCaps::rolls_back);
        all.try_for_each(|device| device.await_report(ROLL_BACK_LIMIT, &Report::Discarded))
    }

    /// The VM runs here from a checkpoint on. `from`: a device's requests in flight, and the addresses that
    /// it announces.
    pub(crate) fn start(&mut self, from: impl Fn(&str) -> (Vec<InFlight>, Vec<[u8; 6]>)) -> Result<(), LinkError> {
        for device in &mut self.all {
            let (in_flight, macs) = from(device.link.id());
            device.link.send(&Command::Start { in_flight, macs }, None)?;
        }
        self.all.iter_mut().try_for_each(|device| device.await_report(START_LIMIT, &Report::Started))
    }

    /// Has those that are mirrored note something for good, and waits until they have.
    fn note(&mut self, command: impl Fn() -> Command, answer: &Report) -> Result<(), LinkError> {
        self.those(|caps| caps.mirrors).try_for_each(|device| device.link.send(&command(), None))?;
        self.those(|caps| caps.mirrors).try_for_each(|device| device.await_report(NOTE_LIMIT, answer))
    }

    /// The disks note that this host runs the VM: afterwards they prove it.
    pub(crate) fn note_owner(&mut self, vm: VmId, term: Term) -> Result<(), LinkError> {
        self.note(|| Command::Own { vm, term }, &Report::Owned)
    }

    /// As [`Self::note_owner`], but nobody waits for it.
    pub(crate) fn tell_owner(&mut self, vm: VmId, term: Term) {
        self.those(|caps| caps.mirrors).for_each(|device| device.tell(&Command::Own { vm, term }));
    }

    /// The disks note that the VM was shut down in `term`, and that they are the newest. Returns what they
    /// say from now on.
    pub(crate) fn note_end(&mut self, term: Term) -> Result<Term, LinkError> {
        self.note(|| Command::End(term), &Report::Ended)?;
        Ok(if self.all.iter().any(|device| device.caps.mirrors) { term } else { Term(0) })
    }

    /// A stream to or from the device of the same id on the other host.
    pub(crate) fn connect(&mut self, key: DeviceKey, command: &Command, stream: &C::Stream) -> Result<(), LinkError> {
        let sent = self.get_mut(key).map_or(Ok(()), |device| device.link.send(command, Some(stream)));
        self.begin_copy(key);
        sent
    }

    fn send_to_all(&mut self, command: impl Fn() -> Command) {
        self.all.iter_mut().for_each(|device| device.tell(&command()));
    }
}

impl<C: DeviceControl> Device<C> {
    /// Sends what needs no answer. A device that is gone is noticed by its closed socket.
    fn tell(&mut self, command: &Command) {
        let _ = self.link.send(command, None);
    }

    fn await_report(&mut self, limit: Duration, wanted: &Report) -> Result<(), LinkError> {
        self.link.wait_for(limit, |report| if report == *wanted { Ok(()) } else { Err(report) })
    }

    fn sealed(&mut self, expected: Epoch, held: &mut Held, device_wait: &DeviceWait) -> Result<Position, LinkError> {
        let id = self.link.id().to_owned();
        let sealed = |report| match report {
            Report::Sealed { epoch, queues, in_flight, held_frames, held_bytes, idle } if epoch == expected => {
                Ok((Position { id: id.clone(), queues, in_flight, idle }, held_frames, held_bytes))
            }
            other => Err(other),
        };
        let (position, frames, bytes) = loop {
            match self.link.wait_for(SEAL_LIMIT, sealed) {
                Err(LinkError::Silent { .. }) if device_wait.is_on() => {}
                answer => break answer?,
            }
        };
        self.held = frames + bytes > 0;
        held.frames += frames;
        held.bytes += bytes;
        Ok(position)
    }
}

#[cfg(test)]
mod tests;
