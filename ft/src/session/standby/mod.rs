//! A session in which this node is the standby: lets a primary in, commits its epochs, takes over.
//!
//! ```text
//!  join --> received: MemoryComplete, Yielded, PeerLeft ...   commit(1), commit(2) ...   take_over, or reset
//! ```

mod takeover;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ft_proto::{Committed, Epoch, Input, NodeId, Settings, Term, Time};
use ft_transport::connection::Connection;
use ft_transport::frames::{Stamp, write_frame};
use ft_transport::heartbeats::Heartbeats;
use ft_transport::listener::Incoming;
use ft_wire::device_ctl::Command;
use ft_wire::nonce::Nonce;
use ft_wire::session::{Kind, Refusal, Welcome, Yielding, encode_body};
use host_kit::error::chain;
use pollux_api::event::EventName;
use pollux_api::status::Peer;
use serde_json::json;

use crate::checkpoint::cpu_placement::CpuPlacement;
use crate::context::Context;
use crate::context::inbox::Message;
use crate::devices::DeviceKey;
use crate::guest::Shape;
use crate::identity::SessionKey;
use crate::peers::limits::runs_ahead;
use crate::platform::Platform;
use crate::stream::ends::{Received, ReceivingEnd};
use crate::stream::image::WholeImage;

/// A session in which this node is the standby.
pub(crate) struct StandbySession<P: Platform> {
    /// Tells messages of its thread from those of earlier ones.
    number: u64,
    peer: Peer,
    primary: NodeId,
    /// What the VM is made of there. Its disks have the numbers that the stream calls them by.
    shape: Shape,
    disk_buffer: u64,
    /// `None` once the stream has ended; what was committed is still good.
    stream: Option<(P::Receiver, P::Connection)>,
    /// Whole in memory and state, waiting for disks.
    whole: BTreeMap<Epoch, Box<WholeImage>>,
    /// The committed checkpoint's state; its pages are in guest memory.
    latest: Option<Box<WholeImage>>,
    /// The last committed epoch that each device has something of.
    applied: BTreeMap<DeviceKey, Epoch>,
    place: CpuPlacement,
    /// When the primary's word came that it has stopped, and for how long it had by then, in microseconds.
    yielded: Option<(Time, u64)>,
}

/// What a primary wants that is let in.
pub(crate) struct Join<C> {
    pub(crate) incoming: Incoming<C>,
    pub(crate) shape: Shape,
    pub(crate) beats: [SocketAddr; 2],
    pub(crate) disk_buffer: u64,
    pub(crate) base: Option<u64>,
    pub(crate) settings: Settings,
}

/// What a caller is told that is let in.
pub(crate) fn welcome<P: Platform>(cx: &Context<P>, key: Option<SessionKey>, kept: bool) -> Welcome {
    let (session, nonce) = key.map_or((0, Nonce::NONE), |key| (key.session, key.nonce));
    Welcome { node: cx.node().id(), session, nonce, kept }
}

impl<P: Platform> StandbySession<P> {
    /// Begins a session with a primary; the one before it is over. `None`: nothing comes of it, and the
    /// caller knows why, or is gone.
    pub(crate) fn join(cx: &mut Context<P>, number: u64, join: Join<P::Connection>) -> Option<Self> {
        let Join { incoming, shape, beats, disk_buffer, base, settings } = join;
        let (vm, node, term, address) = (incoming.hello.vm, incoming.hello.node, incoming.term, incoming.address);
        let key = cx.platform().draw_session();
        // What follows is work in bulk again, and that of threads that inherit it.
        cx.platform().set_realtime(false);
        // Whatever becomes of this session, memory is not that checkpoint any more.
        let kept = cx.machine_mut().take_base().is_some_and(|ours| base == Some(ours));
        let adopted = cx.machine_mut().guest().adopt(&shape);
        let prepared = adopted.and_then(|()| if kept { Ok(()) } else { cx.machine().memory().clear() });
        if let Err(error) = prepared {
            incoming.refuse(vec![chain(&error)]);
            return None;
        }
        let certificate = incoming.stream.peer_name();
        let stream = match Self::open_stream(cx, number, incoming, key, kept) {
            Ok(stream) => stream,
            Err(reason) => {
                cx.note(EventName::HandshakeFailed, json!({ "reason": reason }));
                return None;
            }
        };
        cx.configure(settings);
        cx.identity_mut().join(vm, key);
        cx.beat_with(node);
        cx.beats().aim(beats, settings.silence.map(|limit| limit / 6));
        cx.begin_memory_copy(kept);
        cx.reporter().suspect(None);
        let disks = u16::try_from(shape.mirrored().count()).unwrap_or(u16::MAX);
        cx.input(Input::PrimaryJoined { peer: node, term, disks });
        Some(Self {
            number,
            peer: Peer { address: address.to_string(), node: node.to_string(), certificate },
            primary: node,
            shape,
            disk_buffer,
            stream: Some(stream),
            whole: BTreeMap::new(),
            latest: None,
            applied: BTreeMap::new(),
            place: CpuPlacement::begin(cx.platform().cpu_load()),
            yielded: None,
        })
    }

    fn open_stream(
        cx: &Context<P>,
        number: u64,
        incoming: Incoming<P::Connection>,
        key: SessionKey,
        kept: bool,
    ) -> Result<(P::Receiver, P::Connection), String> {
        let post = cx.post();
        let tell = move |received| post.send(Message::Received(number, received));
        let stream = incoming.welcome(&welcome(cx, Some(key), kept)).map_err(|error| chain(&error))?;
        let memory = cx.machine().memory().clone();
        let receiver = cx.platform().start_receiver(&stream, memory, tell);
        Ok((receiver.map_err(|error| chain(&error))?, stream))
    }

    /// Whether a message with this number is of this session.
    pub(crate) fn is(&self, number: u64) -> bool {
        self.number == number
    }

    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The other node.
    pub(crate) fn primary(&self) -> NodeId {
        self.primary
    }

    /// Whether it holds a whole copy.
    pub(crate) fn has_copy(&self) -> bool {
        self.latest.is_some()
    }

    /// Whether its stream still works.
    pub(crate) fn is_connected(&self) -> bool {
        self.stream.is_some()
    }

    /// The stream of a disk, which the stream between the hosts calls by this number.
    pub(crate) fn disk_stream(&self, cx: &mut Context<P>, incoming: Incoming<P::Connection>, number: u16) {
        let id = self.shape.disk_id(number).filter(|_| self.shape.mirrored().any(|disk| disk == number));
        let key = id.and_then(|id| cx.devices().by_id(id));
        let Some(key) = key.filter(|_| self.primary == incoming.hello.node) else {
            return incoming.refuse(vec!["there is no session that this disk belongs to".to_owned()]);
        };
        let stream = match incoming.welcome(&welcome(cx, cx.identity().session(), false)) {
            Ok(stream) => stream,
            Err(error) => return cx.note(EventName::HandshakeFailed, json!({ "reason": chain(&error) })),
        };
        let command = Command::Receive { max_uncommitted: self.disk_buffer };
        if let Err(error) = cx.devices().connect(key, &command, &stream) {
            cx.input(Input::PeerLeft { term: cx.term(), reason: chain(&error) });
        }
    }

    /// The receiving thread told something.
    pub(crate) fn received(&mut self, cx: &mut Context<P>, received: Received) {
        match received {
            Received::Progress(last) => {
                if let Some(progress) = last.take() {
                    cx.told_progress(progress, &self.shape);
                }
            }
            Received::Whole(image) => {
                let epoch = image.epoch();
                let is_idle = |number: &u16| self.shape.disk_id(*number).is_some_and(|id| image.is_idle(id));
                let idle = self.shape.mirrored().filter(is_idle).collect();
                self.whole.insert(epoch, image);
                cx.input(Input::MemoryComplete { epoch, idle });
            }
            Received::Yielded(term, Yielding { reason, stopped_us }, at) => {
                self.yielded = Some((at, stopped_us));
                cx.note(EventName::PrimaryYielded, json!({ "reason": reason }));
                cx.input(Input::Yielded { term });
            }
            Received::Left(term, reason) => cx.input(Input::PeerLeft { term, reason }),
            Received::Ended(reason) => self.stream_ended(cx, reason),
        }
    }

    fn stream_ended(&mut self, cx: &mut Context<P>, reason: String) {
        self.say_why(Kind::Refuse, cx.term(), &reason);
        self.stream = None;
        self.whole.clear();
        cx.reporter().failed(reason.clone());
        cx.note(EventName::StreamLost, json!({ "reason": reason }));
        cx.input(Input::StreamLost { reason });
    }

    /// A disk has all of an epoch.
    pub(crate) fn disk_complete(&mut self, cx: &mut Context<P>, key: DeviceKey, epoch: Epoch) {
        let committed = cx.node().epoch();
        if runs_ahead(epoch, committed, cx.node().settings().depth) {
            // Said once; what a stream that has ended still brings is of no interest.
            if self.is_connected() {
                let id = cx.devices().id(key);
                let reason = format!(
                    "the peer misbehaves: it ends epoch {epoch} of {id} although {committed} is the last committed one"
                );
                self.stream_ended(cx, reason);
            }
            return;
        }
        if let Some(disk) = self.shape.disk_number(cx.machine().device_id(key)) {
            cx.input(Input::DiskComplete { epoch, disk });
        }
    }

    /// Performs `Action::Commit`: acknowledge first, so that the primary's output leaves, then apply. The
    /// base waits until its state has been loaded: a VM that is not built like the primary's must not be
    /// found out when there is no other one any more.
    pub(crate) fn commit(&mut self, cx: &mut Context<P>, committed: &Committed) {
        let (epoch, term) = (committed.epoch(), cx.term());
        let Some(mut image) = self.whole.remove(&epoch) else { return };
        let is_base = epoch == Epoch(1);
        if let Some((receiver, _)) = &self.stream {
            receiver.committed(epoch);
        }
        if !is_base {
            self.ack(term, epoch);
        }
        if let Err(error) = image.apply(&**cx.machine().memory()) {
            // Every page number was checked before; memory is neither old nor new now.
            self.latest = None;
            let reason = format!("epoch {epoch} could not be applied: {}", chain(&error));
            return cx.input(Input::PeerLeft { term, reason });
        }
        if is_base {
            if let Err(error) = cx.machine_mut().guest().load(image.state()) {
                let reason = format!("the VM here is not built like the primary's: {}", chain(&error));
                return cx.input(Input::PeerLeft { term, reason });
            }
            self.ack(term, epoch);
            self.place = CpuPlacement::begin(cx.platform().cpu_load());
        }
        self.recycle(&mut image);
        let applied = &mut self.applied;
        let applies = |key| {
            applied.insert(key, epoch);
        };
        cx.devices().apply(committed, |id| image.is_idle(id), applies);
        let awaited = cx.devices().any_output(|id| image.position(id).is_some_and(|position| !position.idle));
        self.find_place(cx, epoch, image.page_count(), awaited);
        self.latest = Some(image);
        cx.reporter().measured().applied();
        if is_base {
            cx.all_copied();
        }
    }

    /// Performs `Action::Reset`: what was received is useless.
    pub(crate) fn reset(mut self, cx: &mut Context<P>, reason: &str) {
        self.say_why(Kind::Bye, cx.term(), reason);
        // The same primary may go on from there.
        let session = cx.identity().session().filter(|_| self.has_copy());
        cx.machine_mut().keep_base(session.map(|key| key.session));
    }

    /// Where the threads of the next epoch work, by what the last one was like.
    fn find_place(&mut self, cx: &Context<P>, epoch: Epoch, pages: usize, awaited: bool) {
        self.place.epoch(epoch, pages, awaited);
        cx.platform().pin_to_cpu(self.place.next(&[]));
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
