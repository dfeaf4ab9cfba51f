//! What the model engine does for a standby: take a session's frames in, commit, take over. Follows
//! `ft/src/replica/standby/mod.rs`, `receiver.rs` and `image.rs`.

use std::time::Duration;

use ft_proto::device_ctl::{Command, Report};
use ft_proto::{Committed, Epoch, Input, Term};

use crate::guest::{Image, Vcpu, digest};
use crate::invariants::{Moment, TookOver};
use crate::mutation::Mutation;
use crate::network::{Payload, Segment, StreamId};
use crate::process::{Address, Busy, Session};
use crate::record::Role;
use crate::world::{Event, World};

/// How often a standby is asked what it has on stable storage, per million checkpoints.
const DURABLE: u64 = 200_000;

/// An image of which nothing has arrived.
pub(crate) fn empty_image() -> Image {
    Image { epoch: Epoch(1), pages: Vec::new(), vcpu: Vcpu::default(), idle: false }
}

impl World {
    /// A frame of the session's stream arrived.
    pub(crate) fn standby_stream(&mut self, address: Address, segment: Segment) {
        let early = self.mutation == Some(Mutation::ApplyOnArrival);
        let Some(process) = self.process(address) else { return };
        let Session::Standby(side) = &mut process.session else { return };
        let bad = |reason: &str| Err(reason.to_owned());
        let result = match segment {
            Segment::Data(Payload::Copy { pages }) if side.arriving.epoch == Epoch(1) => {
                pages.into_iter().for_each(|(page, value)| process.guest.pages[page] = value);
                Ok(None)
            }
            Segment::Data(Payload::Pages { pages }) if !side.state_seen => {
                if early {
                    pages.iter().for_each(|(page, value)| process.guest.pages[*page] = *value);
                }
                side.arriving.pages.extend(pages);
                Ok(None)
            }
            Segment::Data(Payload::State { vcpu }) if !side.state_seen => {
                side.arriving.vcpu = *vcpu;
                side.state_seen = true;
                Ok(None)
            }
            Segment::Data(Payload::End { epoch, idle }) if side.state_seen && epoch == side.arriving.epoch => {
                let next = Image { epoch: epoch.next(), ..empty_image() };
                side.state_seen = false;
                side.arriving.idle = idle;
                side.whole.insert(epoch, std::mem::replace(&mut side.arriving, next));
                Ok(Some(Input::MemoryComplete { epoch, idle: idle.then_some(0).into_iter().collect() }))
            }
            Segment::Data(Payload::Yield { term }) => Ok(Some(Input::Yielded { term })),
            Segment::Data(Payload::Bye { term, reason }) => Ok(Some(Input::PeerLeft { term, reason })),
            Segment::Data(_) => bad("a frame that may not come now"),
            Segment::Corrupt => bad("a corrupt frame"),
            Segment::Fin => bad("the stream is closed"),
        };
        match result {
            Ok(Some(input)) => self.input(address, input),
            Ok(None) => {}
            Err(reason) => self.standby_stream_ended(address, reason),
        }
    }

    fn standby_stream_ended(&mut self, address: Address, reason: String) {
        let Some(process) = self.process(address) else { return };
        let term = process.node.term();
        let Session::Standby(side) = &mut process.session else { return };
        side.whole.clear();
        if let Some(stream) = side.stream.take() {
            self.send(address.0, stream, Payload::Bye { term, reason: reason.clone() });
            self.close(address.0, stream);
        }
        self.input(address, Input::StreamLost { reason });
    }

    /// Performs `Action::Commit`: acknowledge, apply, let the disk apply.
    pub(crate) fn commit(&mut self, address: Address, committed: &Committed) {
        let (now, epoch) = (self.now, committed.epoch());
        let latency = self.disk_latency(address.0);
        let host = &mut self.hosts[address.0];
        let Some(process) = host.process.as_mut().filter(|process| process.incarnation == address.1) else { return };
        let (node, term) = (process.node.id(), process.node.term());
        let Session::Standby(side) = &mut process.session else { return };
        let Some(image) = side.whole.remove(&epoch) else { return };
        let (session, stream) = (side.session, side.stream);
        if !image.idle {
            side.disk_epoch = epoch;
        }
        let whole = process.disk.is_complete(side.disk_epoch);
        image.pages.iter().for_each(|(page, value)| process.guest.pages[*page] = *value);
        let digest = digest(&process.guest.pages, &image.vcpu);
        side.latest = Some(image);
        process.disk.release(epoch, now, latency);
        let due = process.disk.last_due;
        let asked = whole && self.rng.chance(DURABLE);
        let receiver = process.disk.receiver.as_mut().filter(|receiver| asked && !receiver.renaming);
        let begun = receiver.map(|receiver| {
            // What is in the image from here on gets a name; what follows is marked by it.
            (receiver.fresh, receiver.renaming) = (Default::default(), true);
            receiver.stream
        });
        if let Some(stream) = begun {
            self.at(due.max(now), Event::Durable(address, stream, epoch));
        }
        self.note(address.0, || format!("-> commit {epoch} (disk complete: {whole})"));
        if let Some(cut) = self.truth.cuts.get(&(session, epoch)).filter(|_| whole) {
            self.truth.held.insert(node, cut.at);
        }
        self.moment(Moment::Committed { session, epoch, digest });
        if let Some(stream) = stream {
            self.send(address.0, stream, Payload::Ack { term, epoch });
        }
    }

    /// Performs `Action::Reset`.
    pub(crate) fn reset_standby(&mut self, address: Address, reason: String) {
        let Some(process) = self.process(address) else { return };
        let term = process.node.term();
        let mut stream = None;
        if let Session::Standby(side) = &mut process.session {
            stream = side.stream.take();
            process.session = Session::None;
        }
        self.drop_disk_session(address);
        if let Some(stream) = stream {
            self.send(address.0, stream, Payload::Bye { term, reason });
            self.close(address.0, stream);
        }
    }

    /// What the disk still reports of its session is of the past.
    pub(crate) fn drop_disk_session(&mut self, address: Address) {
        let Some(process) = self.process(address) else { return };
        process.dropped += 1;
        if let Some(receiver) = process.disk.receiver.take() {
            self.close(address.0, receiver.stream);
        }
        self.report_later(address, Report::Discarded);
    }

    /// Performs `Action::TakeOver`: the thread is busy until the disk has applied what counts.
    pub(crate) fn take_over(&mut self, address: Address, committed: Epoch, term: Term) {
        let now = self.now;
        let spend = self.rng.micros(200, 2000);
        let keep = self.mutation == Some(Mutation::TakeOverWithoutDiscard);
        let Some(process) = self.process(address) else { return };
        let session = std::mem::replace(&mut process.session, Session::None);
        let Session::Standby(side) = session else {
            return self.input(address, Input::TakeOverFailed { reason: "there is no session".to_owned() });
        };
        if keep {
            process.disk.apply_everything(now);
        }
        let Some(process) = self.process(address) else { return };
        process.disk.discard(committed);
        let drained = process.disk.drained_at().unwrap_or(now).max(now);
        if let Some(stream) = side.stream {
            self.close(address.0, stream);
        }
        self.note_false_takeover(address, &side);
        let Some(latest) = side.latest.filter(|image| image.epoch == committed) else {
            return self.input(address, Input::TakeOverFailed { reason: "there is no checkpoint".to_owned() });
        };
        let (session, primary, primary_host) = (side.session, side.primary, side.primary_host);
        let busy = Busy::TakeOver { committed, term, latest: Box::new(latest), session, primary, primary_host };
        if let Some(process) = self.process(address) {
            process.busy = busy;
        }
        self.at(drained + spend, Event::TakeOverEnd(address));
    }

    /// Tells whether the primary really was in trouble when its standby claimed the VM.
    fn note_false_takeover(&mut self, address: Address, side: &crate::process::StandbySide) {
        let Some(claimed) = side.claimed_at else { return };
        let Some(limit) = self.plan.settings.silence else { return };
        // Random loss and long delays silence a healthy peer once in a while.
        if self.plan.loss > 10_000 || self.plan.aimed > 0 {
            return;
        }
        let from = claimed - 2 * limit;
        let alive = self.hosts[side.primary_host].process.as_ref();
        let alive = alive.is_some_and(|process| process.node.id() == side.primary && process.node.beat().runs);
        let disturbed = self.truth.disturbed.get(&(side.primary_host, address.0)).copied().unwrap_or_default();
        self.moment(Moment::Suspected { wrongly: alive && disturbed < from });
    }

    /// The VM runs here from now on.
    pub(crate) fn take_over_end(&mut self, address: Address) {
        let now = self.now;
        if let Some(later) = self.process(address).map(|process| process.paused_until).filter(|until| *until > now) {
            return self.at(later, Event::TakeOverEnd(address));
        }
        let blocks = self.settled_blocks(address);
        let stale = self.hosts[address.0].image.stale;
        let Some(process) = self.process(address) else { return };
        let Busy::TakeOver { committed, term, latest, session, primary, primary_host } =
            std::mem::replace(&mut process.busy, Busy::No)
        else {
            return;
        };
        process.guest.vcpu = latest.vcpu;
        let from = process.guest.vcpu.at;
        let took = TookOver {
            node: process.node.id(),
            session,
            epoch: committed,
            digest: process.guest.digest(),
            pages: process.guest.pages,
            done: process.guest.vcpu.done,
            blocks,
            stale,
        };
        self.takeovers += 1;
        self.note(address.0, || {
            format!("runs the VM of {primary} (was on {primary_host}) from {from:?} in term {term}")
        });
        self.moment(Moment::TookOver(Box::new(took)));
        let at = self.truth.new_branch(Some(from));
        let Some(process) = self.process(address) else { return };
        process.guest.vcpu.at = at;
        process.guest.running = true;
        process.disk.receiver = None;
        self.hosts[address.0].image.record.run_alone(term);
        self.ran(address.0);
        let Some(process) = self.process(address) else { return };
        let in_flight = process.guest.vcpu.in_flight.len();
        self.command_nic(address, &Command::Start { in_flight: Vec::new(), macs: Vec::new() });
        // Requests in flight are submitted again.
        (0..in_flight).for_each(|_| self.submit(address));
        self.after(Duration::from_micros(10), Event::GuestStep(address));
        self.go_on(address, None);
    }

    /// A mirror stream brought something to a disk.
    pub(crate) fn disk_stream(&mut self, address: Address, id: StreamId, segment: Segment) {
        let now = self.now;
        let latency = self.disk_latency(address.0);
        let segment = match segment {
            Segment::Data(Payload::Durable { epoch, base }) => return self.durable(address, id, epoch, base),
            Segment::Data(Payload::Renamed) => return self.renamed(address, id),
            Segment::Data(Payload::Synced { epoch, base, truth }) => {
                let due = self.process(address).map_or(now, |process| process.disk.last_due.max(now));
                self.at(due, Event::Received(address, id, base));
                Segment::Data(Payload::Synced { epoch, base, truth })
            }
            other => other,
        };
        let synced = matches!(segment, Segment::Data(Payload::Synced { .. }));
        let host = &mut self.hosts[address.0];
        let Some(process) = &mut host.process else { return };
        let lost = |reason: &str| Some(Report::MirrorLost { reason: reason.to_owned() });
        let report = match segment {
            Segment::Data(payload) => match process.disk.take(payload, now, latency, &mut host.image) {
                Ok(report) => report,
                Err(violation) => lost(violation.0),
            },
            Segment::Corrupt => lost("a corrupt frame"),
            Segment::Fin => lost("the mirror stream is closed"),
        };
        let node = process.node.id();
        if synced && host.image.stale && report.is_none() {
            self.moment(Moment::Copied { node });
        }
        if matches!(report, Some(Report::MirrorLost { .. })) {
            let Some(process) = self.process(address) else { return };
            if process.disk.mirror.as_ref().is_some_and(|mirror| mirror.stream == id) {
                process.disk.mirror = None;
            } else {
                process.disk.stop_receiving();
            }
            self.close(address.0, id);
        }
        if let Some(report) = report {
            self.report_later(address, report);
        }
    }

    /// Standby: whether the image still belongs to this stream.
    fn receives(&mut self, address: Address, id: StreamId) -> bool {
        let Some(process) = self.process(address) else { return false };
        !process.broken && process.disk.receiver.as_ref().is_some_and(|receiver| receiver.stream == id)
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
        let host = &mut self.hosts[address.0];
        let receiver = host.process.as_ref().and_then(|process| process.disk.receiver.as_ref());
        let Some(fresh) = receiver.map(|receiver| receiver.fresh) else { return };
        let same = self.mutation == Some(Mutation::SameNameForLess) && epoch > Epoch(0);
        let base = host.image.record.base.filter(|_| same).unwrap_or(base);
        host.image.record.rename(base, &fresh);
        self.send(address.0, id, Payload::Durable { epoch, base });
    }

    /// Standby: the primary knows the name.
    fn renamed(&mut self, address: Address, id: StreamId) {
        if !self.receives(address, id) {
            return;
        }
        let host = &mut self.hosts[address.0];
        if let Some(receiver) = host.process.as_mut().and_then(|process| process.disk.receiver.as_mut()) {
            host.image.record.renamed(&receiver.fresh);
            receiver.renaming = false;
        }
    }

    /// Primary: so much is on the standby's stable storage.
    fn durable(&mut self, address: Address, id: StreamId, epoch: Epoch, base: u64) {
        let mirror = self.process(address).and_then(|process| process.disk.mirror.as_ref());
        if mirror.is_some_and(|mirror| mirror.stream == id) {
            self.settle(address, epoch, base);
            self.send(address.0, id, Payload::Renamed);
        }
    }

    /// What no primary may do: the standby has acknowledged the epoch, and may not have it on stable storage.
    pub(crate) fn settle_on_ack(&mut self, address: Address, epoch: Epoch) {
        let mirror = self.process(address).and_then(|process| process.disk.mirror.as_ref());
        if let Some(base) = mirror.map(|mirror| mirror.base) {
            let base = self.hosts[address.0].image.record.base.unwrap_or(base);
            self.settle(address, epoch, base);
        }
    }

    fn settle(&mut self, address: Address, epoch: Epoch, base: u64) {
        let host = &mut self.hosts[address.0];
        if let Some(mirror) = host.process.as_ref().and_then(|process| process.disk.mirror.as_ref()) {
            host.image.record.settle(base, epoch, &mirror.written);
        }
    }
}
