//! What the disks of a pair do for the guest's checkpoints: commands of the engines, the mirror stream
//! between them, the records of their images.

use std::time::Duration;

use ft_proto::Epoch;
use ft_wire::device_ctl::{Command, Report};

use crate::body::Body;
use crate::devices::{Disk, Mirror, Receiver};
use crate::drive::Drive;
use crate::guest::{Blocks, disk_of};
use crate::ids::device_of;
use crate::invariants::Moment;
use crate::mutation::Mutation;
use crate::network::{Payload, Segment, StreamId};
use crate::process::Address;
use crate::record::{Marks, Record, Role};
use crate::world::{Event, World};

/// How often a standby is asked what it has on stable storage, per million checkpoints.
const DURABLE: u64 = 500_000;

impl World {
    /// The engine tells its disk something.
    pub(crate) fn command_disk(&mut self, address: Address, disk: usize, command: &Command) {
        let now = self.now;
        match command {
            Command::Own { term, .. } => {
                self.hosts[address.0].drives[disk].image.record.run_alone(*term);
                self.report_later(address, device_of(disk), Report::Owned);
            }
            Command::Seal { epoch, .. } => {
                let twice = self
                    .process(address)
                    .is_some_and(|process| std::mem::replace(&mut process.body().disks[disk].sealed, true));
                if twice {
                    self.forbidden(address, format!("epoch {epoch} is sealed before the one before it was resumed"));
                }
            }
            Command::Resume | Command::Start { .. } => self.with_body(address, |body| body.disks[disk].sealed = false),
            Command::Release(release) => {
                let latency = self.disk_latency(address.0, disk);
                let epoch = release.epoch();
                if let Some(Err(why)) = self.process(address).map(|p| p.body().disks[disk].may_release(epoch)) {
                    self.forbidden(address, why);
                }
                self.with_body(address, |body| body.disks[disk].release(epoch, now, latency));
                if self.mutation == Some(Mutation::SettleOnAck) {
                    self.settle_on_ack(address, disk, epoch);
                }
            }
            Command::End(term) => {
                self.settled_blocks(address);
                self.hosts[address.0].drives[disk].image.record.ended = *term;
            }
            Command::Unmirror => self.unmirror(address, disk),
            Command::Discard { after: Epoch(0) } => {
                let receiver = self.process(address).and_then(|process| process.body().disks[disk].receiver.take());
                if let Some(receiver) = receiver {
                    self.close(address.0, receiver.stream);
                }
                if self.mutation == Some(Mutation::DropSessionLate) {
                    return self.reported(address, device_of(disk), Report::Discarded);
                }
                self.report_later(address, device_of(disk), Report::Discarded);
            }
            _ => {}
        }
    }

    fn unmirror(&mut self, address: Address, disk: usize) {
        let Some(process) = self.process(address) else { return };
        let (mirror, greeting) = {
            let disk = &mut process.body().disks[disk];
            (disk.mirror.take().map(|mirror| mirror.stream), disk.greeting.take())
        };
        for stream in mirror.into_iter().chain(greeting) {
            self.close(address.0, stream);
        }
    }

    /// A disk is given a stream to the other one.
    pub(crate) fn connect_disk(&mut self, address: Address, disk: usize, command: &Command, stream: StreamId) {
        match command {
            Command::Mirror { epoch, .. } => self.with_body(address, |body| {
                (body.disks[disk].epoch, body.disks[disk].greeting) = (*epoch, Some(stream));
            }),
            _ => {
                // What was given to the image before is in it.
                self.settled_blocks(address);
                let record = self.hosts[address.0].drives[disk].image.record;
                self.with_body(address, |body| body.disks[disk].receive_from(stream));
                self.send(address.0, stream, Payload::DiskWelcome { record });
            }
        }
        let unclaimed = self.process(address).and_then(|process| process.unclaimed.remove(&stream));
        for segment in unclaimed.into_iter().flatten() {
            self.disk_stream(address, stream, segment);
        }
    }

    /// The two records say what may differ.
    fn begin_mirror(&mut self, address: Address, disk: usize, stream: StreamId, standby: &Record) {
        let (base, disks) = (self.rng.word(), self.plan.disks);
        let record = self.hosts[address.0].drives[disk].image.record;
        let (ours, term) = (record.marks, record.term);
        let (all, common) = record.plan(standby);
        let todo: Marks = std::array::from_fn(|block| all[block] && disk_of(block, disks) == disk);
        self.with_body(address, |body| {
            body.disks[disk].greeting = None;
            let (todo, written) = (Some(todo), Default::default());
            body.disks[disk].mirror = Some(Mirror { stream, todo, base, written, touched: true });
        });
        self.resyncs += u64::from(common.is_some());
        self.note(address.0, || format!("-> disk {disk}: incremental {}, {todo:?}", common.is_some()));
        self.send(address.0, stream, Payload::Begin { term, common, marks: ours });
        self.after(Duration::from_micros(50), Event::CopyTick(address, stream));
    }

    /// The disk marks the end of an epoch in its stream.
    pub(crate) fn disk_end(&mut self, address: Address, disk: usize, epoch: Epoch) {
        let mirror = |body: &Body| body.disks[disk].mirror.as_ref().map(|mirror| mirror.stream);
        if let Some(stream) = self.process(address).and_then(|process| mirror(&process.body())) {
            self.send(address.0, stream, Payload::DiskEnd { epoch });
        }
    }

    /// The background copy of the disk moves on.
    pub(crate) fn copy_tick(&mut self, address: Address, stream: StreamId) {
        let again = self.rng.micros(100, 800);
        let now = self.now;
        let skip = self.mutation == Some(Mutation::SkipResync);
        if self.process(address).is_some_and(|process| process.paused_until > now) {
            return self.after(Duration::from_millis(5), Event::CopyTick(address, stream));
        }
        self.settled_blocks(address);
        let Some(process) = self.hosts[address.0].process.as_ref().filter(|process| process.incarnation == address.1)
        else {
            return;
        };
        let mut body = process.body();
        let Some(disk) = body.disk_on(stream) else { return };
        let Drive { full_until, image, .. } = &self.hosts[address.0].drives[disk];
        let (full, blocks) = (*full_until > now, image.blocks);
        let epoch = body.disks[disk].epoch;
        let Some(mirror) = body.disks[disk].mirror.as_mut().filter(|mirror| mirror.stream == stream) else { return };
        mirror.touched = true;
        let Some(todo) = &mut mirror.todo else { return };
        if let Some(block) = todo.iter().position(|mark| *mark).filter(|_| !skip) {
            todo[block] = false;
            drop(body);
            self.send(address.0, stream, Payload::Block { block, value: blocks[block] });
            return self.after(again, Event::CopyTick(address, stream));
        }
        if full {
            let reason = "the disk's record cannot be written".to_owned();
            body.disks[disk].mirror = None;
            drop(body);
            self.close(address.0, stream);
            return self.report_later(address, device_of(disk), Report::MirrorLost { reason });
        }
        mirror.todo = None;
        let base = mirror.base;
        drop(body);
        self.hosts[address.0].drives[disk].image.record.role = Role::Protected;
        self.send(address.0, stream, Payload::Synced { epoch, base, truth: blocks });
        self.report_later(address, device_of(disk), Report::InSync);
    }

    /// The images of a host, with everything on them that should be by now.
    pub(crate) fn settled_blocks(&mut self, address: Address) -> Blocks {
        let now = self.now;
        let host = &mut self.hosts[address.0];
        if let Some(process) = &host.process {
            let mut body = process.body();
            body.disks.iter_mut().zip(&mut host.drives).for_each(|(disk, drive)| disk.settle(now, &mut drive.image));
        }
        host.blocks()
    }

    /// A standby has committed and applied an epoch.
    pub(crate) fn applied(&mut self, address: Address, of: (u64, Epoch), digest: u64, idle: &[bool]) {
        let (session, epoch) = of;
        let Some(process) = self.process(address) else { return };
        let node = process.id();
        let mut body = process.body();
        for (disk, _) in body.disks.iter_mut().zip(idle).filter(|(_, idle)| !**idle) {
            disk.committed = epoch;
        }
        let whole: Vec<_> = body.disks.iter().map(|disk| disk.is_complete(disk.committed)).collect();
        drop(body);
        (0..whole.len()).filter(|disk| whole[*disk]).for_each(|disk| self.ask_for_durable(address, disk, epoch));
        self.note(address.0, || format!("-> commit {epoch} (disks complete: {whole:?})"));
        if let Some(cut) = self.truth.cuts.get(&of).filter(|_| whole.iter().all(|whole| *whole)) {
            self.truth.held.insert(node, cut.at);
        }
        self.moment(Moment::Committed { session, epoch, digest });
    }

    /// The primary's disk may want to know what the standby's has on stable storage.
    fn ask_for_durable(&mut self, address: Address, disk: usize, epoch: Epoch) {
        let (now, asked) = (self.now, self.rng.chance(DURABLE));
        let begun = self.process(address).and_then(|process| {
            let disk = &mut process.body().disks[disk];
            let receiver = disk.receiver.as_mut().filter(|receiver| asked && !receiver.renaming)?;
            // What is in the image from here on gets a name; what follows is marked by it.
            (receiver.fresh, receiver.renaming) = (Default::default(), true);
            Some((receiver.stream, disk.last_due))
        });
        if let Some((stream, due)) = begun {
            self.at(due.max(now), Event::Durable(address, stream, epoch));
        }
    }

    /// A mirror stream brought something to a disk.
    pub(crate) fn disk_stream(&mut self, address: Address, id: StreamId, segment: Segment) {
        let Some(disk) = self.process(address).and_then(|process| process.body().disk_on(id)) else { return };
        let now = self.now;
        let latency = self.disk_latency(address.0, disk);
        match &segment {
            Segment::Data(Payload::Durable { epoch, base }) => return self.durable(address, id, *epoch, *base),
            Segment::Data(Payload::Renamed) => return self.renamed(address, id),
            Segment::Data(Payload::DiskWelcome { record }) => return self.begin_mirror(address, disk, id, record),
            Segment::Data(Payload::Synced { base, .. }) => {
                let due = self.process(address).map_or(now, |process| process.body().disks[disk].last_due.max(now));
                self.at(due, Event::Received(address, id, *base));
            }
            _ => {}
        }
        let synced = matches!(segment, Segment::Data(Payload::Synced { .. }));
        let host = &mut self.hosts[address.0];
        let (Some(process), image) = (&host.process, &mut host.drives[disk].image) else { return };
        let lost = |reason: &str| Some(Report::MirrorLost { reason: reason.to_owned() });
        let report = match segment {
            Segment::Data(payload) => match process.body().disks[disk].take(payload, now, latency, image) {
                Ok(report) => report,
                Err(violation) => lost(violation.0),
            },
            Segment::Corrupt => lost("a corrupt frame"),
            Segment::Fin => lost("the mirror stream is closed"),
        };
        let node = process.id();
        if synced && image.stale && report.is_none() {
            self.moment(Moment::Copied { node });
        }
        if matches!(report, Some(Report::MirrorLost { .. })) {
            self.with_body(address, |body| body.disks[disk].lose(id));
            self.close(address.0, id);
        }
        let one_for_all = self.mutation == Some(Mutation::OneDiskForAll);
        for other in (0..self.plan.disks).filter(|other| *other == disk || one_for_all) {
            if let Some(report) =
                report.clone().filter(|report| other == disk || matches!(report, Report::Complete { .. }))
            {
                self.report_later(address, device_of(other), report);
            }
        }
    }

    /// Standby: the disk whose image still belongs to this stream.
    fn receives(&mut self, address: Address, id: StreamId) -> Option<usize> {
        let body = self.process(address)?.body();
        let of = |receiver: &Receiver| receiver.stream == id;
        let disk = body.disks.iter().position(|disk| disk.receiver.as_ref().is_some_and(of))?;
        (!body.links[device_of(disk)].broken).then_some(disk)
    }

    /// Standby: the whole copy is on stable storage.
    pub(crate) fn copy_received(&mut self, address: Address, id: StreamId, base: u64) {
        if let Some(disk) = self.receives(address, id) {
            self.settled_blocks(address);
            self.rename(address, disk, Epoch(0), base);
        }
    }

    /// Standby: it has been asked, and everything of `epoch` is on stable storage.
    pub(crate) fn tell_durable(&mut self, address: Address, id: StreamId, epoch: Epoch) {
        let Some(disk) = self.receives(address, id) else { return };
        if self.hosts[address.0].drives[disk].image.record.role == Role::Standby {
            self.settled_blocks(address);
            let base = self.rng.word();
            self.rename(address, disk, epoch, base);
        }
    }

    /// Standby: what is in the image has a new name, and the primary is told.
    fn rename(&mut self, address: Address, disk: usize, epoch: Epoch, base: u64) {
        let Some(process) = self.process(address) else { return };
        let receiver =
            |body: &Body| body.disks[disk].receiver.as_ref().map(|receiver| (receiver.fresh, receiver.stream));
        let Some((fresh, stream)) = receiver(&process.body()) else { return };
        let same = self.mutation == Some(Mutation::SameNameForLess) && epoch > Epoch(0);
        let record = &mut self.hosts[address.0].drives[disk].image.record;
        let base = record.base.filter(|_| same).unwrap_or(base);
        record.rename(base, &fresh);
        self.send(address.0, stream, Payload::Durable { epoch, base });
    }

    /// Standby: the primary knows the name.
    fn renamed(&mut self, address: Address, id: StreamId) {
        let Some(disk) = self.receives(address, id) else { return };
        let host = &mut self.hosts[address.0];
        let Some(process) = &host.process else { return };
        if let Some(receiver) = process.body().disks[disk].receiver.as_mut() {
            host.drives[disk].image.record.renamed(&receiver.fresh);
            receiver.renaming = false;
        }
    }

    /// Primary: so much is on the standby's stable storage.
    fn durable(&mut self, address: Address, id: StreamId, epoch: Epoch, base: u64) {
        let mirrors = |disk: &Disk| disk.mirror.as_ref().is_some_and(|mirror| mirror.stream == id);
        let disk = self.process(address).and_then(|process| process.body().disks.iter().position(mirrors));
        if let Some(disk) = disk {
            self.settle(address, disk, epoch, base);
            self.send(address.0, id, Payload::Renamed);
        }
    }

    /// What no primary may do: the standby has acknowledged the epoch, and may not have it on stable storage.
    fn settle_on_ack(&mut self, address: Address, disk: usize, epoch: Epoch) {
        let base = |body: &Body| body.disks[disk].mirror.as_ref().map(|mirror| mirror.base);
        if let Some(base) = self.process(address).and_then(|process| base(&process.body())) {
            let base = self.hosts[address.0].drives[disk].image.record.base.unwrap_or(base);
            self.settle(address, disk, epoch, base);
        }
    }

    fn settle(&mut self, address: Address, disk: usize, epoch: Epoch, base: u64) {
        let host = &mut self.hosts[address.0];
        let Some(process) = &host.process else { return };
        if let Some(mirror) = process.body().disks[disk].mirror.as_ref() {
            host.drives[disk].image.record.settle(base, epoch, &mirror.written);
        }
    }
}
