//! What the model engine does for a primary: first copy, cuts, the end of a session. Follows
//! `ft/src/replica/primary/mod.rs`.

use std::time::Duration;

use ft_proto::device_ctl::{Command, Hold};
use ft_proto::{Alone, CutKind, Epoch, Input};

use crate::guest::{BLOCKS, Image, PAGES};
use crate::network::{Payload, Segment, StreamId};
use crate::process::{Address, Busy, Message, Session};
use crate::record::Role;
use crate::truth::Cut;
use crate::world::{Event, World};

/// Pages in a frame.
const CHUNK: usize = 3;
/// A round that leaves no more than this is small enough for a checkpoint.
const SMALL: usize = 6;
const ROUNDS_MAX: u32 = 16;

impl World {
    /// Moves the first copy on.
    pub(crate) fn pump(&mut self, address: Address, session: u64) {
        let again = self.rng.micros(100, 1500);
        let Some(process) = self.process(address) else { return };
        let Session::Primary(side) = &mut process.session else { return };
        let stream = side.stream;
        let Some(copy) = side.copy.as_mut().filter(|_| side.session == session) else { return };
        let mut pages: Vec<usize> = (copy.next_page..PAGES).take(CHUNK).collect();
        copy.next_page += pages.len();
        let room = CHUNK - pages.len();
        pages.extend(copy.dirty.drain(..room.min(copy.dirty.len())));
        if !pages.is_empty() {
            let pages = pages.into_iter().map(|page| (page, process.guest.pages[page])).collect();
            self.send(address.0, stream, Payload::Copy { pages });
        } else if side.disk_in_sync && (copy.small || copy.rounds >= ROUNDS_MAX) {
            side.copy = None;
            return self.input(address, Input::Synced);
        } else {
            copy.dirty = std::mem::take(&mut process.guest.dirty).into_iter().collect();
            copy.small = copy.dirty.len() <= SMALL;
            copy.rounds += 1;
        }
        self.after(again, Event::Tell(address, Message::Pump(session)));
    }

    /// Performs `Action::Cut`: guest and devices stand still until [`Self::cut_end`].
    pub(crate) fn cut(&mut self, address: Address, epoch: Epoch, kind: CutKind) {
        let (low, high) = self.plan.pause_us;
        let pause = self.rng.micros(low, high);
        let fails = self.rng.chance(self.plan.cut_fails);
        let began = self.now;
        let always = self.mutation == Some(crate::mutation::Mutation::AlwaysIdle) && epoch > Epoch(1);
        let Some(process) = self.process(address) else { return };
        let Session::Primary(side) = &process.session else { return };
        let session = side.session;
        process.guest.stopped = true;
        let dirty = std::mem::take(&mut process.guest.dirty);
        let mirror = process.disk.mirror.as_mut();
        // What has no stream cannot tell that there was nothing.
        let idle = mirror.is_some_and(|mirror| !std::mem::take(&mut mirror.touched) || always);
        let image = if fails {
            process.guest.dirty = dirty;
            None
        } else {
            let pages = dirty.into_iter().map(|page| (page, process.guest.pages[page])).collect();
            Some(Image { epoch, pages, vcpu: process.guest.vcpu.clone(), idle })
        };
        let cut = Cut { at: process.guest.vcpu.at, digest: process.guest.digest() };
        process.disk.epoch = epoch.next();
        let mirror = process.disk.mirror.as_ref().map(|mirror| mirror.stream);
        process.busy = Busy::Cut { epoch, kind, began, image };
        self.truth.cuts.insert((session, epoch), cut);
        self.note(address.0, || format!("-> cut {epoch} {kind:?} at {:?}", cut.at));
        if let Some(mirror) = mirror.filter(|_| !idle) {
            self.send(address.0, mirror, Payload::DiskEnd { epoch });
        }
        let frames = self.command_nic(address, &Command::Seal { epoch, cpu: None });
        self.leave_host(address, frames);
        self.after(pause, Event::CutEnd(address));
    }

    /// Everything runs again, and the image is on its way.
    pub(crate) fn cut_end(&mut self, address: Address) {
        let now = self.now;
        let Some(process) = self.process(address) else { return };
        if process.paused_until > now {
            let later = process.paused_until;
            return self.at(later, Event::CutEnd(address));
        }
        let Busy::Cut { epoch, kind, began, image } = std::mem::replace(&mut process.busy, Busy::No) else { return };
        // The last cut leaves guest and devices stopped, unless it fails.
        let runs = kind != CutKind::Last || image.is_none();
        process.guest.stopped = !runs;
        let stream = if let Session::Primary(side) = &process.session { Some(side.stream) } else { None };
        let Some(image) = image else {
            let reason = "no memory for the capture".to_owned();
            return self.go_on(address, Some(Input::CutFailed { epoch, reason }));
        };
        if kind == CutKind::Base {
            self.command_nic(address, &Command::Protect { epoch: epoch.next(), hold: Hold::on() });
        }
        if runs {
            self.command_nic(address, &Command::Resume);
        }
        let pages = image.pages.len() as u64;
        if let Some(stream) = stream {
            self.send_image(address.0, stream, image);
        }
        self.go_on(address, Some(Input::CutDone { epoch, paused: now.since(began), pages }));
    }

    fn send_image(&mut self, host: usize, stream: StreamId, image: Image) {
        for pages in image.pages.chunks(CHUNK) {
            self.send(host, stream, Payload::Pages { pages: pages.to_vec() });
        }
        self.send(host, stream, Payload::State { vcpu: Box::new(image.vcpu) });
        self.send(host, stream, Payload::End { epoch: image.epoch, idle: image.idle });
    }

    /// The standby's side of the stream has something.
    pub(crate) fn primary_stream(&mut self, address: Address, segment: Segment) {
        let input = match segment {
            Segment::Data(Payload::Ack { term, epoch }) => Input::Acked { term, epoch },
            Segment::Data(Payload::Bye { term, reason }) => {
                Input::PeerLeft { term, reason: format!("the standby left: {reason}") }
            }
            Segment::Data(_) | Segment::Corrupt => Input::StreamLost { reason: "a corrupt frame".to_owned() },
            Segment::Fin => Input::StreamLost { reason: "the stream is closed".to_owned() },
        };
        self.input(address, input);
    }

    /// Performs `Action::GoAlone`.
    pub(crate) fn go_alone(&mut self, address: Address, alone: &Alone) {
        self.unmirror(address);
        if let Some(process) = self.process(address).filter(|process| process.guest.stopped) {
            process.guest.stopped = false;
            self.command_nic(address, &Command::Resume);
        }
        let frames = self.command_nic(address, &Command::Protect { epoch: Epoch(0), hold: Hold::off(alone) });
        self.leave_host(address, frames);
        let Some(process) = self.process(address) else { return };
        let term = process.node.term();
        self.end_primary(address, Payload::Bye { term, reason: "the primary goes on alone".to_owned() });
    }

    fn unmirror(&mut self, address: Address) {
        let Some(process) = self.process(address) else { return };
        if let Some(mirror) = process.disk.mirror.take() {
            self.close(address.0, mirror.stream);
        }
        let term = self.process(address).map_or(ft_proto::Term(0), |process| process.node.term());
        self.hosts[address.0].image.record.run_alone(term);
        self.drop_disk_session(address);
    }

    /// An operator tests a failover: this node stops without telling anybody, and its beats end.
    pub(crate) fn simulate_crash(&mut self, address: Address) {
        let Some(process) = self.process(address) else { return };
        let Session::Primary(side) = &process.session else { return };
        if !process.node.can_fail_over() {
            return;
        }
        let stream = side.stream;
        process.route = None;
        self.input(address, Input::SimulateCrash);
        if let Some(process) = self.process(address) {
            process.session = Session::None;
        }
        self.close(address.0, stream);
    }

    /// Performs `Action::Yield`.
    pub(crate) fn yield_to_standby(&mut self, address: Address) {
        let Some(process) = self.process(address) else { return };
        let term = process.node.term();
        self.end_primary(address, Payload::Yield { term });
    }

    fn end_primary(&mut self, address: Address, last: Payload) {
        let Some(process) = self.process(address) else { return };
        if !matches!(process.session, Session::Primary(_)) {
            return;
        }
        if let Session::Primary(side) = std::mem::replace(&mut process.session, Session::None) {
            self.send(address.0, side.stream, last);
            self.close(address.0, side.stream);
        }
    }

    /// The background copy of the disk moves on.
    pub(crate) fn copy_tick(&mut self, address: Address, stream: StreamId) {
        let again = self.rng.micros(100, 800);
        let now = self.now;
        let skip = self.mutation == Some(crate::mutation::Mutation::SkipResync);
        if self.process(address).is_some_and(|process| process.paused_until > now) {
            return self.after(Duration::from_millis(5), Event::CopyTick(address, stream));
        }
        let full = self.hosts[address.0].disk_full_until > now;
        let blocks = self.settled_blocks(address);
        let Some(process) = self.process(address) else { return };
        let epoch = process.disk.epoch;
        let Some(mirror) = process.disk.mirror.as_mut().filter(|mirror| mirror.stream == stream) else { return };
        mirror.touched = true;
        let Some(todo) = &mut mirror.todo else { return };
        if let Some(block) = todo.iter().position(|mark| *mark).filter(|_| !skip) {
            todo[block] = false;
            self.send(address.0, stream, Payload::Block { block, value: blocks[block] });
            return self.after(again, Event::CopyTick(address, stream));
        }
        if full {
            let reason = "the disk's record cannot be written".to_owned();
            process.disk.mirror = None;
            self.close(address.0, stream);
            return self.report_later(address, ft_proto::device_ctl::Report::MirrorLost { reason });
        }
        mirror.todo = None;
        let base = mirror.base;
        self.hosts[address.0].image.record.role = Role::Protected;
        self.send(address.0, stream, Payload::Synced { epoch, base, truth: blocks });
        self.report_later(address, ft_proto::device_ctl::Report::InSync);
    }

    /// The image of a host, with everything on it that should be by now.
    pub(crate) fn settled_blocks(&mut self, address: Address) -> [u64; BLOCKS] {
        let now = self.now;
        let host = &mut self.hosts[address.0];
        if let Some(process) = &mut host.process {
            process.disk.settle(now, &mut host.image);
        }
        host.image.blocks
    }
}
