//! What the disks of a pair do for the guest's checkpoints: commands of the engines, the mirror stream
//! between them, the records of their images.

use std::time::Duration;

use ft_proto::Epoch;
use ft_wire::device_ctl::{Command, Report};

use crate::body::DISK;
use crate::devices::Mirror;
use crate::guest::BLOCKS;
use crate::invariants::Moment;
use crate::mutation::Mutation;
use crate::network::{Payload, Segment, StreamId};
use crate::process::Address;
use crate::record::{Record, Role};
use crate::world::{Event, World};

/// How often a standby is asked what it has on stable storage, per million checkpoints.
const DURABLE: u64 = 500_000;

impl World {
    /// The engine tells its disk something.
    pub(crate) fn command_disk(&mut self, address: Address, command: &Command) {
        let now = self.now;
        match command {
            Command::Own { term, .. } => {
                self.hosts[address.0].image.record.run_alone(*term);
                self.report_later(address, DISK, Report::Owned);
            }
            Command::Seal { epoch, .. } => {
                let twice = self
                    .process(address)
                    .is_some_and(|process| std::mem::replace(&mut process.body().disk.sealed, true));
                if twice {
                    self.forbidden(address, format!("epoch {epoch} is sealed before the one before it was resumed"));
                }
            }
            Command::Resume | Command::Start { .. } => self.with_body(address, |body| body.disk.sealed = false),
            Command::Release(release) => {
                let latency = self.disk_latency(address.0);
                if let Some(Err(why)) = self.process(address).map(|p| p.body().disk.may_release(release.epoch())) {
                    self.forbidden(address, why);
                }
                self.with_body(address, |body| body.disk.release(release.epoch(), now, latency));
                if self.mutation == Some(Mutation::SettleOnAck) {
                    self.settle_on_ack(address, release.epoch());
                }
            }
            Command::End(term) => {
                self.settled_blocks(address);
                self.hosts[address.0].image.record.ended = *term;
            }
            Command::Unmirror => self.unmirror(address),
            Command::Discard { after: Epoch(0) } => {
                let receiver = self.process(address).and_then(|process| process.body().disk.receiver.take());
                if let Some(receiver) = receiver {
                    self.close(address.0, receiver.stream);
                }
                if self.mutation == Some(Mutation::DropSessionLate) {
                    return self.reported(address, DISK, Report::Discarded);
                }
                self.report_later(address, DISK, Report::Discarded);
            }
            _ => {}
        }
    }

    fn unmirror(&mut self, address: Address) {
        let Some(process) = self.process(address) else { return };
        let (mirror, greeting) = {
            let mut body = process.body();
            (body.disk.mirror.take().map(|mirror| mirror.stream), body.disk.greeting.take())
        };
        for stream in mirror.into_iter().chain(greeting) {
            self.close(address.0, stream);
        }
    }

    /// The disk is given a stream to the other one.
    pub(crate) fn connect_disk(&mut self, address: Address, command: &Command, stream: StreamId) {
        match command {
            Command::Mirror { epoch, .. } => self.with_body(address, |body| {
                (body.disk.epoch, body.disk.greeting) = (*epoch, Some(stream));
            }),
            _ => {
                // What was given to the image before is in it.
                self.settled_blocks(address);
                let record = self.hosts[address.0].image.record;
                self.with_body(address, |body| body.disk.receive_from(stream));
                self.send(address.0, stream, Payload::DiskWelcome { record });
            }
        }
        let unclaimed = self.process(address).and_then(|process| process.unclaimed.remove(&stream));
        for segment in unclaimed.into_iter().flatten() {
            self.disk_stream(address, stream, segment);
        }
    }

    /// The two records say what may differ.
    fn begin_mirror(&mut self, address: Address, stream: StreamId, standby: &Record) {
        let base = self.rng.word();
        let record = self.hosts[address.0].image.record;
        let (ours, term) = (record.marks, record.term);
        let (todo, common) = record.plan(standby);
        self.with_body(address, |body| {
            body.disk.greeting = None;
            let (todo, written) = (Some(todo), Default::default());
            body.disk.mirror = Some(Mirror { stream, todo, base, written, touched: true });
        });
        self.resyncs += u64::from(common.is_some());
        self.note(address.0, || format!("-> disk: incremental {}, {todo:?}", common.is_some()));
        self.send(address.0, stream, Payload::Begin { term, common, marks: ours });
        self.after(Duration::from_micros(50), Event::CopyTick(address, stream));
    }

    /// The disk marks the end of an epoch in its stream.
    pub(crate) fn disk_end(&mut self, address: Address, epoch: Epoch) {
        let mirror = self.process(address).and_then(|process| process.body().disk.mirror.as_ref().map(|m| m.stream));
        if let Some(stream) = mirror {
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
        let full = self.hosts[address.0].disk_full_until > now;
        let blocks = self.settled_blocks(address);
        let Some(process) = self.process(address) else { return };
        let mut body = process.body();
        let epoch = body.disk.epoch;
        let Some(mirror) = body.disk.mirror.as_mut().filter(|mirror| mirror.stream == stream) else { return };
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
            body.disk.mirror = None;
            drop(body);
            self.close(address.0, stream);
            return self.report_later(address, DISK, Report::MirrorLost { reason });
        }
        mirror.todo = None;
        let base = mirror.base;
        drop(body);
        self.hosts[address.0].image.record.role = Role::Protected;
        self.send(address.0, stream, Payload::Synced { epoch, base, truth: blocks });
        self.report_later(address, DISK, Report::InSync);
    }

    /// The image of a host, with everything on it that should be by now.
    pub(crate) fn settled_blocks(&mut self, address: Address) -> [u64; BLOCKS] {
        let now = self.now;
        let host = &mut self.hosts[address.0];
        if let Some(process) = &host.process {
            process.body().disk.settle(now, &mut host.image);
        }
        host.image.blocks
    }

    /// A standby has committed and applied an epoch.
    pub(crate) fn applied(&mut self, address: Address, session: u64, epoch: Epoch, digest: u64, idle: bool) {
        let now = self.now;
        let Some(process) = self.process(address) else { return };
        let node = process.id();
        let mut body = process.body();
        if !idle {
            body.disk.committed = epoch;
        }
        let (whole, due) = (body.disk.is_complete(body.disk.committed), body.disk.last_due);
        drop(body);
        let asked = whole && self.rng.chance(DURABLE);
        let begun = self.process(address).and_then(|process| {
            let mut body = process.body();
            let receiver = body.disk.receiver.as_mut().filter(|receiver| asked && !receiver.renaming)?;
            // What is in the image from here on gets a name; what follows is marked by it.
            (receiver.fresh, receiver.renaming) = (Default::default(), true);
            Some(receiver.stream)
        });
        if let Some(stream) = begun {
            self.at(due.max(now), Event::Durable(address, stream, epoch));
        }
        self.note(address.0, || format!("-> commit {epoch} (disk complete: {whole})"));
        if let Some(cut) = self.truth.cuts.get(&(session, epoch)).filter(|_| whole) {
            self.truth.held.insert(node, cut.at);
        }
        self.moment(Moment::Committed { session, epoch, digest });
    }

    /// A mirror stream brought something to a disk.
    pub(crate) fn disk_stream(&mut self, address: Address, id: StreamId, segment: Segment) {
        let now = self.now;
        let latency = self.disk_latency(address.0);
        match &segment {
            Segment::Data(Payload::Durable { epoch, base }) => return self.durable(address, id, *epoch, *base),
            Segment::Data(Payload::Renamed) => return self.renamed(address, id),
            Segment::Data(Payload::DiskWelcome { record }) => return self.begin_mirror(address, id, record),
            Segment::Data(Payload::Synced { base, .. }) => {
                let due = self.process(address).map_or(now, |process| process.body().disk.last_due.max(now));
                self.at(due, Event::Received(address, id, *base));
            }
            _ => {}
        }
        let synced = matches!(segment, Segment::Data(Payload::Synced { .. }));
        let host = &mut self.hosts[address.0];
        let Some(process) = &host.process else { return };
        let lost = |reason: &str| Some(Report::MirrorLost { reason: reason.to_owned() });
        let report = match segment {
            Segment::Data(payload) => match process.body().disk.take(payload, now, latency, &mut host.image) {
                Ok(report) => report,
                Err(violation) => lost(violation.0),
            },
            Segment::Corrupt => lost("a corrupt frame"),
            Segment::Fin => lost("the mirror stream is closed"),
        };
        let node = process.id();
        if synced && host.image.stale && report.is_none() {
            self.moment(Moment::Copied { node });
        }
        if matches!(report, Some(Report::MirrorLost { .. })) {
            self.with_body(address, |body| {
                if body.disk.greeting == Some(id) {
                    body.disk.greeting = None;
                } else if body.disk.mirror.as_ref().is_some_and(|mirror| mirror.stream == id) {
                    body.disk.mirror = None;
                } else {
                    body.disk.stop_receiving();
                }
            });
            self.close(address.0, id);
        }
        if let Some(report) = report {
            self.report_later(address, DISK, report);
        }
    }

    /// Standby: whether the image still belongs to this stream.
    fn receives(&mut self, address: Address, id: StreamId) -> bool {
        let Some(process) = self.process(address) else { return false };
        let body = process.body();
        !body.broken && body.disk.receiver.as_ref().is_some_and(|receiver| receiver.stream == id)
    }

    /// Standby: the whole copy is on stable storage.
    pub(crate) fn copy_received(&mut self, address: Address, id: StreamId, base: u64) {
        if !self.receives(address, id) {
            return;
        }
        self.settled_blocks(address);
        self.rename(address, id, Epoch(0), base);
    }

    /// Standby: it has been asked, and everything of `epoch` is on stable storage.
    pub(crate) fn tell_durable(&mut self, address: Address, id: StreamId, epoch: Epoch) {
        if self.receives(address, id) && self.hosts[address.0].image.record.role == Role::Standby {
            self.settled_blocks(address);
            let base = self.rng.word();
            self.rename(address, id, epoch, base);
        }
    }

    /// Standby: what is in the image has a new name, and the primary is told.
    fn rename(&mut self, address: Address, id: StreamId, epoch: Epoch, base: u64) {
        let Some(process) = self.process(address) else { return };
        let Some(fresh) = process.body().disk.receiver.as_ref().map(|receiver| receiver.fresh) else { return };
        let same = self.mutation == Some(Mutation::SameNameForLess) && epoch > Epoch(0);
        let record = &mut self.hosts[address.0].image.record;
        let base = record.base.filter(|_| same).unwrap_or(base);
        record.rename(base, &fresh);
        self.send(address.0, id, Payload::Durable { epoch, base });
    }

    /// Standby: the primary knows the name.
    fn renamed(&mut self, address: Address, id: StreamId) {
        if !self.receives(address, id) {
            return;
        }
        let host = &mut self.hosts[address.0];
        let Some(process) = &host.process else { return };
        if let Some(receiver) = process.body().disk.receiver.as_mut() {
            host.image.record.renamed(&receiver.fresh);
            receiver.renaming = false;
        }
    }

    /// Primary: so much is on the standby's stable storage.
    fn durable(&mut self, address: Address, id: StreamId, epoch: Epoch, base: u64) {
        if self.mirrors(address) == Some(id) {
            self.settle(address, epoch, base);
            self.send(address.0, id, Payload::Renamed);
        }
    }

    fn mirrors(&mut self, address: Address) -> Option<StreamId> {
        self.process(address)?.body().disk.mirror.as_ref().map(|mirror| mirror.stream)
    }

    /// What no primary may do: the standby has acknowledged the epoch, and may not have it on stable storage.
    fn settle_on_ack(&mut self, address: Address, epoch: Epoch) {
        let base = self.process(address).and_then(|process| process.body().disk.mirror.as_ref().map(|m| m.base));
        if let Some(base) = base {
            let base = self.hosts[address.0].image.record.base.unwrap_or(base);
            self.settle(address, epoch, base);
        }
    }

    fn settle(&mut self, address: Address, epoch: Epoch, base: u64) {
        let host = &mut self.hosts[address.0];
        let Some(process) = &host.process else { return };
        if let Some(mirror) = process.body().disk.mirror.as_ref() {
            host.image.record.settle(base, epoch, &mirror.written);
        }
    }
}
