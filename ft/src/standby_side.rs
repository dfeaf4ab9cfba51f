//! What the engine does for a node that is a standby: let a primary in, commit its epochs, take over.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use ft_proto::device_ctl::{Command, Report};
use ft_proto::wire::{Kind, Refusal, TookOver, Welcome, Yielding, encode_body};
use ft_proto::{Committed, Epoch, Input, NodeId, Settings, Term};
use host_kit::error::chain;
use serde_json::json;

use crate::clock::micros;
use crate::copies::MemoryCopy;
use crate::device_link::LinkError;
use crate::engine::{Engine, Session};
use crate::guest::{GuestError, Position, Shape};
use crate::identity::SessionKey;
use crate::image::WholeImage;
use crate::inbox::Message;
use crate::listener::Caller;
use crate::place::Place;
use crate::receiver::{Received, ReceiverHandle};
use crate::status::{Peer, Takeover};
use crate::transport::{Stamp, write_frame};

/// A disk that needs longer than this to apply what was committed fails the takeover.
const DISK_LIMIT: Duration = Duration::from_secs(30);
/// A device process has little to do to start.
const START_LIMIT: Duration = Duration::from_secs(5);

/// A session in which this node is the standby.
pub(crate) struct StandbySide {
    pub(crate) peer: Peer,
    pub(crate) primary: NodeId,
    shape: Shape,
    disk_buffer: u64,
    /// `None` once the stream has ended; what was committed is still good.
    stream: Option<(ReceiverHandle, TcpStream)>,
    /// Whole in memory and state, waiting for disks.
    whole: BTreeMap<Epoch, Box<WholeImage>>,
    /// The committed checkpoint's state; its pages are in guest memory.
    latest: Option<Box<WholeImage>>,
    /// The last committed epoch that each disk has something of.
    disk_epochs: BTreeMap<usize, Epoch>,
    place: Place,
    /// When the primary's word came that it has stopped, and for how long it had by then, in microseconds.
    yielded: Option<(Instant, u64)>,
}

/// A takeover that could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeOverError {
    #[error("there is no committed checkpoint")]
    NoCheckpoint,
    #[error(transparent)]
    Device(#[from] LinkError),
    #[error(transparent)]
    Guest(#[from] GuestError),
}

impl Engine {
    pub(crate) fn join(
        &mut self,
        caller: Caller,
        shape: Shape,
        beats: [SocketAddr; 2],
        (disk_buffer, base): (u64, Option<u64>),
        settings: Settings,
    ) {
        let (vm, node, term, address) = (caller.hello.vm, caller.hello.node, caller.term, caller.address);
        let key = SessionKey::draw();
        if !matches!(self.session, Session::None) {
            // What is held of the former session is gone from here on: the core must not count on it.
            self.input(Input::PeerLeft { term: self.node.term(), reason: "a new session begins".to_owned() });
        }
        // What follows is work in bulk again, and that of threads that inherit it.
        host_kit::sched::set_realtime(false);
        // Whatever becomes of this session, memory is not that checkpoint any more.
        let kept = self.memory_base.take().is_some_and(|ours| base == Some(ours));
        let clear = || if kept { Ok(()) } else { self.memory.clear() };
        let prepared = self.guest.adopt(&shape).and_then(|()| clear());
        if let Err(error) = prepared {
            return caller.refuse(vec![chain(&error)]);
        }
        self.session_number += 1;
        let (number, post) = (self.session_number, self.post.clone());
        let tell = move |received| post.send(Message::Received(number, received));
        let stream = match caller.welcome(&self.welcome(Some(key), kept)) {
            Ok(stream) => stream,
            Err(error) => return self.note("caller-lost", json!({ "reason": chain(&error) })),
        };
        let memory = self.memory.clone();
        let receiver = stream.try_clone().and_then(|reader| Ok((ReceiverHandle::start(reader, memory, tell)?, stream)));
        let stream = match receiver {
            Ok(stream) => Some(stream),
            Err(error) => return self.note("caller-lost", json!({ "reason": chain(&error) })),
        };
        self.node.configure(settings, self.clock.now());
        (self.identity.vm, self.identity.session) = (vm, Some(key));
        self.beats.key(self.identity.beats(self.node.id(), node));
        self.beats.aim(beats, settings.silence.map(|limit| limit / 6));
        let disks = u16::try_from(shape.mirrored().count()).unwrap_or(u16::MAX);
        self.memory_copy = Some(MemoryCopy::begin(kept, self.clock.now()));
        self.suspected = None;
        self.session = Session::Standby(Box::new(StandbySide {
            peer: Peer { address: address.to_string(), node: node.to_string() },
            primary: node,
            shape,
            disk_buffer,
            stream,
            whole: BTreeMap::new(),
            latest: None,
            disk_epochs: BTreeMap::new(),
            place: Place::begin(),
            yielded: None,
        }));
        self.input(Input::PrimaryJoined { peer: node, term, disks });
    }

    pub(crate) fn disk_caller(&mut self, caller: Caller, index: u16) {
        let at = usize::from(index);
        let max_uncommitted = match &self.session {
            Session::Standby(side)
                if side.primary == caller.hello.node && side.shape.mirrored().any(|disk| disk == index) =>
            {
                side.disk_buffer
            }
            _ => return caller.refuse(vec!["there is no session that this disk belongs to".to_owned()]),
        };
        let handed = match caller.welcome(&self.welcome(self.identity.session, false)) {
            Ok(stream) => {
                let fd = OwnedFd::from(stream);
                self.links[at].send(&Command::Receive { max_uncommitted }, Some(fd.as_fd()))
            }
            Err(error) => return self.note("caller-lost", json!({ "reason": chain(&error) })),
        };
        if let Err(error) = handed {
            self.input(Input::PeerLeft { term: self.node.term(), reason: chain(&error) });
        }
        self.disks[at].copying();
    }

    /// The receiving thread told something.
    pub(crate) fn received(&mut self, received: Received) {
        let Session::Standby(side) = &mut self.session else { return };
        match received {
            Received::Progress(last) => {
                if let Some(progress) = last.take() {
                    self.told_progress(progress);
                }
            }
            Received::Whole(image) => {
                let epoch = image.epoch;
                let idle = side.shape.mirrored().filter(|disk| image.is_idle((*disk).into())).collect();
                side.whole.insert(epoch, image);
                self.input(Input::MemoryComplete { epoch, idle });
            }
            Received::Yielded(term, Yielding { reason, stopped_us }, at) => {
                side.yielded = Some((at, stopped_us));
                self.note("primary-yielded", json!({ "reason": reason }));
                self.input(Input::Yielded { term });
            }
            Received::Left(term, reason) => self.input(Input::PeerLeft { term, reason }),
            Received::Ended(reason) => {
                side.say_why(Kind::Refuse, self.node.term(), &reason);
                side.stream = None;
                side.whole.clear();
                self.last_error = Some(reason.clone());
                self.note("stream-lost", json!({ "reason": reason }));
                self.input(Input::StreamLost { reason });
            }
        }
    }

    /// Performs `Action::Commit`: acknowledge first, so that the primary's output leaves, then apply. The base waits until its state has
    /// been loaded: a VM that is not built like the primary's must not be found out when there is no other one any more.
    pub(crate) fn commit(&mut self, committed: &Committed) {
        let Session::Standby(side) = &mut self.session else { return };
        let epoch = committed.epoch();
        let Some(mut image) = side.whole.remove(&epoch) else { return };
        let is_base = epoch == Epoch(1);
        if let Some((receiver, _)) = &side.stream {
            receiver.committed(epoch);
        }
        if !is_base {
            side.ack(self.node.term(), epoch);
        }
        if let Err(error) = image.apply(&*self.memory) {
            // Every page number was checked before; memory is neither old nor new now.
            side.latest = None;
            let reason = format!("epoch {epoch} could not be applied: {}", chain(&error));
            return self.input(Input::PeerLeft { term: self.node.term(), reason });
        }
        if is_base {
            if let Err(error) = self.guest.load(image.state()) {
                let reason = format!("the VM here is not built like the primary's: {}", chain(&error));
                return self.input(Input::PeerLeft { term: self.node.term(), reason });
            }
            side.ack(self.node.term(), epoch);
        }
        side.recycle(&mut image);
        for (at, link) in self.links.iter_mut().take(self.disks.len()).enumerate().filter(|(at, _)| !image.is_idle(*at))
        {
            side.disk_epochs.insert(at, epoch);
            let _ = link.send(&Command::Release(committed.into()), None);
        }
        if is_base {
            side.place = Place::begin();
        }
        side.find_place(image.page_count(), image.has_output(self.disks.len()));
        side.latest = Some(image);
        self.measured.epochs += 1;
        if is_base {
            self.copies_are_complete();
        }
    }

    /// Performs `Action::Reset`: what was received is useless.
    pub(crate) fn reset(&mut self, reason: &str) {
        if let Session::Standby(mut side) = std::mem::replace(&mut self.session, Session::None) {
            side.say_why(Kind::Bye, self.node.term(), reason);
            // The same primary may go on from there.
            self.memory_base = side.latest.as_ref().and(self.identity.session).map(|key| key.session);
        }
        for (at, link) in self.links.iter_mut().take(self.disks.len()).enumerate() {
            self.disks[at].state = "-";
            // A device that is gone is noticed by its closed socket.
            let _ = link.drop_session();
        }
        self.last_error = Some(reason.to_owned());
    }

    pub(crate) fn welcome(&self, key: Option<SessionKey>, kept: bool) -> Welcome {
        let (session, nonce) = key.map_or((0, 0), |key| (key.session, key.nonce));
        Welcome { node: self.node.id(), session, nonce, kept }
    }

    /// Performs `Action::TakeOver`.
    pub(crate) fn take_over(&mut self, committed: Epoch, term: Term) {
        // The threads that it starts inherit what this one is.
        host_kit::sched::set_realtime(false);
        match self.try_take_over(committed) {
            Ok(takeover) => {
                self.takeover = Some(takeover);
                let Takeover { total_us, gap_us, .. } = takeover;
                let mut detail = json!({ "epoch": committed.0, "term": term.0, "us": total_us });
                if let Some(gap_us) = gap_us {
                    detail["gap_us"] = gap_us.into();
                }
                self.note("took-over", detail);
                // They have noted the next term by themselves; nobody waits for the answer.
                self.tell_owner(term);
                self.publish();
            }
            Err(error) => self.input(Input::TakeOverFailed { reason: chain(&error) }),
        }
    }

    fn try_take_over(&mut self, committed: Epoch) -> Result<Takeover, TakeOverError> {
        let begun = self.clock.now();
        let passed = |engine: &Self| micros(engine.clock.now().since(begun));
        let Session::Standby(side) = std::mem::replace(&mut self.session, Session::None) else {
            return Err(TakeOverError::NoCheckpoint);
        };
        let StandbySide { latest, disk_epochs, shape, yielded, primary, stream, .. } = *side;
        // Ends the receiving thread: nothing writes to memory behind our back from here on.
        drop(stream);
        let image = latest.filter(|image| image.epoch == committed).ok_or(TakeOverError::NoCheckpoint)?;
        let disks = self.disks.len();
        for (at, link) in self.links.iter_mut().take(disks).enumerate() {
            // A disk knows only of the epochs that it has something of.
            let after = disk_epochs.get(&at).copied().unwrap_or(committed);
            link.send(&Command::Discard { after }, None)?;
        }
        self.guest.load(image.state())?;
        for link in self.links.iter_mut().take(disks) {
            link.wait_for(DISK_LIMIT, |report| if report == Report::Discarded { Ok(()) } else { Err(report) })?;
        }
        let disks_us = passed(self);
        self.guest.activate()?;
        for link in &mut self.links {
            let at = image.positions.iter().find(|position| position.id == link.id());
            let start = start_command(at, &shape, link.id());
            link.send(&start, None)?;
        }
        for link in &mut self.links {
            link.wait_for(START_LIMIT, |report| if report == Report::Started { Ok(()) } else { Err(report) })?;
        }
        self.guest.start()?;
        for disk in &mut self.disks {
            disk.state = "-";
        }
        let gap_us = yielded.map(|(at, stopped_us)| stopped_us.saturating_add(micros(at.elapsed())));
        let total_us = passed(self);
        let suspected = self.suspected.filter(|_| gap_us.is_none());
        let silence_ms = suspected.map(|(silence_ms, _)| silence_ms);
        let last_beat_us = suspected.map(|(silence_ms, at)| silence_ms * 1000 + micros(self.clock.now().since(at)));
        self.took_over = Some(TookOver { from: primary, silence_ms, total_us, gap_us });
        Ok(Takeover { epoch: committed.0, disks_us, total_us, silence_ms, last_beat_us, gap_us })
    }
}

impl StandbySide {
    /// Whether it holds a whole copy.
    pub(crate) fn has_copy(&self) -> bool {
        self.latest.is_some()
    }

    /// Whether its stream still works.
    pub(crate) fn is_connected(&self) -> bool {
        self.stream.is_some()
    }

    /// Where the threads of the next epoch work, by what the last one was like.
    fn find_place(&mut self, pages: usize, awaited: bool) {
        self.place.epoch(pages, awaited);
        host_kit::sched::pin_to_cpu(self.place.next(&[]));
        if let Some((receiver, _)) = &self.stream {
            receiver.stay_on(self.place.of_carriers());
        }
    }

    fn ack(&mut self, term: Term, epoch: Epoch) {
        if let Some((_, stream)) = &mut self.stream {
            // A stream that is broken ends at the receiving thread.
            let _ = write_frame(stream, Stamp { kind: Kind::Ack, term, epoch }, &[]);
        }
    }

    /// Tells the primary why this standby leaves: `Bye`, and it has dropped its copy, or `Refuse`.
    fn say_why(&mut self, kind: Kind, term: Term, reason: &str) {
        if let Some((_, stream)) = &mut self.stream {
            let body = encode_body(&Refusal { reasons: vec![reason.to_owned()] });
            let _ = write_frame(stream, Stamp { kind, term, epoch: Epoch(0) }, &[&body]);
        }
    }

    fn recycle(&self, image: &mut WholeImage) {
        if let Some((receiver, _)) = &self.stream {
            image.recycle().for_each(|buffer| receiver.give_back(buffer));
        }
    }
}

fn start_command(position: Option<&Position>, shape: &Shape, id: &str) -> Command {
    let in_flight = position.map(|position| position.in_flight.clone()).unwrap_or_default();
    let macs = shape.nets.iter().filter(|net| net.id == id).map(|net| net.mac).collect();
    Command::Start { in_flight, macs }
}
