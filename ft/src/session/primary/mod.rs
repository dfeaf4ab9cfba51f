//! A session in which this node is the primary: sends the first copy, then each epoch as it was captured, and
//! hears what the standby has. It captures nothing itself, and lets nothing out.
//!
//! ```text
//!  begin --> pump: first copy ... --> Synced --> send_epoch(1), send_epoch(2) ...     end, or dropped
//!            read_frame: Acked, PeerLeft, StreamLost   (whenever the stream has something)
//! ```

mod unacknowledged;

use ft_proto::{Committed, Epoch, Input, NodeId, Time};
use ft_transport::connection::Connection;
use ft_transport::frames::FrameReader;
use ft_transport::heartbeats::Heartbeats;
use ft_wire::device_ctl::{Command, Report};
use ft_wire::pages::PAGE;
use ft_wire::session::{CopyProgress, DiskProgress, Header, Kind, Refusal, WireError, decode_body};
use host_kit::error::chain;
use pollux_api::options::{Compression, Tuning};
use pollux_api::status::{CompressionStatus, Peer};

use self::unacknowledged::Unacknowledged;
use crate::checkpoint::epoch_image::EpochImage;
use crate::checkpoint::first_copy::{FirstCopy, Step};
use crate::context::Context;
use crate::context::inbox::Message;
use crate::devices::DeviceKey;
use crate::identity::SessionKey;
use crate::options::ProtectOptions;
use crate::peers::application::Opened;
use crate::platform::{OpenedOn, Platform};
use crate::stream::adaptive_compression::Selector;
use crate::stream::ends::{Done, Job, SendingEnd, Sent};
use crate::stream::history::History;

/// Chunks of the first copy with the sender: one is being sent while one is being filled, so the link never
/// waits for the copy.
const CHUNKS: usize = 2;

/// Frames of the standby that are read before there is a look at everything else.
pub(crate) const FRAMES_PER_LOOK: usize = 256;

/// A session in which this node is the primary.
pub(crate) struct PrimarySession<P: Platform> {
    /// Tells messages of its threads from those of earlier ones.
    number: u64,
    peer: Peer,
    /// How the session came about, for the next one.
    options: ProtectOptions,
    key: SessionKey,
    /// The first copy, until it is through.
    copy: Option<FirstCopy>,
    outbound: Outbound<P::Sender>,
    stream: P::Connection,
    reader: FrameReader,
    unacknowledged: Unacknowledged,
    selector: Selector,
    /// Whether the last epoch was packed.
    packing: bool,
}

/// The sending thread, and what it has been given.
struct Outbound<S> {
    sender: S,
    /// Images that it has not sent yet.
    sending: usize,
    /// What the standby was told last of the first copy is on its way.
    telling: bool,
}

impl<S: SendingEnd> Outbound<S> {
    fn send_image(&mut self, job: Job) {
        self.sending += 1;
        self.sender.send(job);
    }

    /// Tells the standby something that the next word of its kind replaces: not more of it than the link
    /// carries.
    fn tell(&mut self, job: Job) {
        if !std::mem::replace(&mut self.telling, true) {
            self.sender.send(job);
        }
    }
}

impl<P: Platform> PrimarySession<P> {
    /// Begins the session that a standby has accepted. The core is not told yet.
    pub(crate) fn begin(cx: &mut Context<P>, number: u64, opened: OpenedOn<P>) -> Result<Self, String> {
        let Opened { options, stream, disks, beats, peer, term, key, base } = opened;
        let failed = |what: &str, error: &dyn std::error::Error| format!("{what}: {}", chain(error));
        let post = cx.post();
        let tell = move |sent| match sent {
            // The buffer is wanted at the next cut; to wake the engine for it would delay what it waits for.
            Sent::Done(Done { ref image, .. }) if image.epoch != Epoch(0) => {
                post.send_later(Message::Sent(number, sent));
            }
            sent => post.send(Message::Sent(number, sent)),
        };
        if options.tuning.detect_ms != 0 {
            stream.limit_silence();
        }
        let history = history(cx, &options);
        let sender = (cx.platform().start_sender(&stream, term, history, tell))
            .map_err(|error| failed("cannot start a thread", &error))?;
        let ranges = cx.machine_mut().first_ranges(base);
        let ranges = ranges.map_err(|error| failed("cannot track guest memory", &error))?;
        cx.tell_owner(term);
        if let Err(reason) = mirror_disks(cx, &options, disks) {
            // No session comes of it: what was begun for one is ended, since the guest would pay for it.
            cx.machine_mut().guest().stop_tracking();
            cx.devices().unmirror();
            return Err(reason);
        }
        cx.configure(options.settings());
        cx.adopt_term(term);
        cx.watch_stream(&stream);
        cx.identity_mut().begin(key);
        cx.beat_with(peer);
        let now = cx.now();
        if cx.witness_mut().registered(now) {
            cx.identity_mut().registered();
        }
        cx.beats().route(beats, options.settings().silence.map(|limit| limit / 6));
        cx.reporter().measure_anew();
        Ok(Self {
            number,
            peer: peer_status(&options, peer, stream.peer_name()),
            key,
            copy: Some(FirstCopy::new(ranges)),
            outbound: Outbound { sender, sending: 0, telling: false },
            stream,
            reader: FrameReader::default(),
            unacknowledged: Unacknowledged::default(),
            selector: Selector::new(options.tuning.compression),
            packing: false,
            options,
        })
    }

    /// Whether a message with this number is of this session.
    pub(crate) fn is(&self, number: u64) -> bool {
        self.number == number
    }

    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// How the session came about.
    pub(crate) fn options(&self) -> &ProtectOptions {
        &self.options
    }

    /// When the first copy goes on if nothing happens.
    pub(crate) fn copy_due(&self) -> Option<Time> {
        self.copy.as_ref()?.timeout(self.outbound.sending)
    }

    /// For status.
    pub(crate) fn compression(&self, cx: &mut Context<P>) -> CompressionStatus {
        let volume = cx.reporter().measured().volume();
        let (setting, packing) = (self.options.tuning.compression, self.packing);
        CompressionStatus { setting, packing, raw: volume.raw, sent: volume.sent }
    }

    /// How far the copies are. The standby is told, unless it has not even been sent what was told before.
    pub(crate) fn report_copies(&mut self, cx: &mut Context<P>) {
        let Some(copy) = &self.copy else { return };
        let memory = copy.counted();
        let shape = cx.machine().shape();
        let disks = cx.devices().copied(&shape);
        self.outbound.tell(Job::Progress(CopyProgress { memory, disks }));
        cx.memory_progress(memory);
    }

    /// Moves the first copy on as far as it goes now.
    pub(crate) fn pump(&mut self, cx: &mut Context<P>) {
        let disks_ready = cx.devices().are_copied();
        while self.outbound.sending < CHUNKS {
            let now = cx.now();
            let Some(copy) = &mut self.copy else { return };
            let mut chunk = cx.buffers().take(Epoch(0));
            match copy.step(&mut chunk.pages, self.outbound.sending, disks_ready, now) {
                Step::Wait => return cx.buffers().put_back(chunk),
                Step::Send => match chunk.copy_pages(&**cx.machine().memory()) {
                    Ok(()) => {
                        let pack = self.selector.pack_copy();
                        self.outbound.send_image(Job::Copy(EpochImage::new(chunk), pack));
                    }
                    Err(error) => return cx.input(Input::StreamLost { reason: chain(&error) }),
                },
                Step::Harvest => match cx.machine_mut().guest().harvest(&mut chunk.pages) {
                    Ok(()) => {
                        copy.round(&chunk.pages, now);
                        cx.buffers().put_back(chunk);
                    }
                    Err(error) => return cx.input(Input::StreamLost { reason: chain(&error) }),
                },
                Step::Done => {
                    cx.buffers().put_back(chunk);
                    self.report_copies(cx);
                    self.copy = None;
                    cx.memory_copied();
                    return cx.input(Input::Synced);
                }
            }
        }
    }

    /// The sending thread told something.
    pub(crate) fn sent(&mut self, cx: &mut Context<P>, sent: Sent) {
        match sent {
            Sent::Done(Done { image, packed, volume, took, forms }) => {
                self.outbound.sending -= 1;
                if image.epoch == Epoch(0) {
                    self.selector.copied(packed, volume.raw, took);
                } else {
                    cx.reporter().measured().sent(volume);
                    cx.machine_mut().guest().sent(&forms);
                }
                cx.buffers().done(image);
                self.pump(cx);
            }
            Sent::Told => self.outbound.telling = false,
            Sent::Failed(error) => {
                let reason = self.stream.explain(&error);
                // The standby may have said why before it closed the stream.
                self.read_frames(cx);
                cx.input(Input::StreamLost { reason });
            }
        }
    }

    /// A checkpoint for the standby, begun at `begun`; `cpu` is where to send it from, if that is one
    /// processor.
    pub(crate) fn send_epoch(&mut self, cx: &Context<P>, image: EpochImage, begun: Time, cpu: Option<u16>) {
        let packed = self.selector.pack(image.pages.len());
        self.packing = packed;
        self.unacknowledged.push(&image, begun, cx.now(), packed);
        self.outbound.send_image(Job::Epoch(image, packed, cpu));
    }

    /// The standby has everything up to this epoch.
    pub(crate) fn committed(&mut self, cx: &mut Context<P>, committed: &Committed) {
        let now = cx.now();
        let selector = &mut self.selector;
        self.unacknowledged.acknowledged(committed.epoch(), |epoch| {
            cx.reporter().measured().committed(now.since(epoch.begun()));
            selector.acknowledged(epoch.pages().len(), epoch.is_packed(), now.since(epoch.sent()));
        });
    }

    /// Reads one frame of the standby. Returns whether there may be more.
    pub(crate) fn read_frame(&mut self, cx: &mut Context<P>) -> bool {
        match self.reader.poll(&self.stream) {
            Ok(None) => false,
            Ok(Some((header, body))) => {
                cx.input(heard(&header, &body));
                true
            }
            Err(error) => {
                let reason = self.stream.explain(&error);
                // A stream at its end stays readable for ever.
                cx.platform().unwatch_stream(&self.stream);
                cx.input(Input::StreamLost { reason });
                false
            }
        }
    }

    /// Reads what there is. A standby that talks without end must not have all of this thread.
    fn read_frames(&mut self, cx: &mut Context<P>) {
        let _ = (0..FRAMES_PER_LOOK).all(|_| self.read_frame(cx));
    }

    /// The mirror of a disk told something.
    pub(crate) fn disk_report(&mut self, cx: &mut Context<P>, key: DeviceKey, report: Report) {
        match report {
            Report::Resync { kind, done, total, sent } => {
                let now = cx.now();
                let note = cx.devices().copy_progress(key, DiskProgress { kind, done, total, sent }, now);
                cx.note_all(note);
            }
            Report::InSync => {
                cx.disk_copied(key);
                self.pump(cx);
            }
            Report::MirrorLost { reason } => {
                // The standby may have said why before it closed the mirror.
                self.read_frames(cx);
                cx.mirror_lost(key, &reason);
            }
            _ => {}
        }
    }

    /// The session may be followed by another one with the same standby: what that may not have counts as
    /// written again, if it has a whole checkpoint at all. Nobody knows whether it has it: to send it twice
    /// does no harm.
    pub(crate) fn keep_base(&self, cx: &mut Context<P>) -> bool {
        if self.unacknowledged.has_base() {
            self.unacknowledged.pages().for_each(|pages| cx.machine_mut().guest().put_back(pages));
            cx.machine_mut().keep_base(Some(self.key.session));
        }
        self.unacknowledged.has_base()
    }

    /// Asks the standby to drop its copy; the stream stays open for the answer.
    pub(crate) fn dismiss(&self) {
        self.outbound.sender.send(Job::Bye("stopped by request".to_owned()));
    }

    /// Ends the session with a last message.
    pub(crate) fn end(self, cx: &mut Context<P>, last: Job) {
        cx.platform().unwatch_stream(&self.stream);
        cx.devices().end_copies();
        cx.buffers().free();
        self.outbound.sender.leave(last);
    }

    /// Ends it as if this host had died: with whatever is on its way.
    pub(crate) fn break_off(self, cx: &mut Context<P>) {
        cx.platform().unwatch_stream(&self.stream);
        cx.buffers().free();
    }
}

fn peer_status(options: &ProtectOptions, peer: NodeId, certificate: Option<String>) -> Peer {
    Peer { address: options.peer.to_string(), node: peer.to_string(), certificate }
}

/// What makes the session's memory of what it has sent.
fn history<P: Platform>(cx: &Context<P>, options: &ProtectOptions) -> impl FnOnce() -> History + Send + use<P> {
    let ram = cx.machine().memory().ranges();
    let quarter = ram.iter().map(|range| range.end - range.start).sum::<u64>() * PAGE as u64 / 4;
    let Tuning { delta_cache, compression, .. } = &options.tuning;
    let bytes = if *compression == Compression::Off { 0 } else { delta_cache.0.min(quarter) };
    move || History::new(&ram, bytes)
}

fn mirror_disks<P: Platform>(
    cx: &mut Context<P>,
    options: &ProtectOptions,
    streams: Vec<(u16, P::Connection)>,
) -> Result<(), String> {
    let Tuning { disk_buffer, disk_rate, .. } = &options.tuning;
    let command = Command::Mirror { epoch: Epoch(1), max_uncommitted: disk_buffer.0, rate: disk_rate.0 };
    let shape = cx.machine().shape();
    for (number, stream) in streams {
        let key = shape.disk_id(number).and_then(|id| cx.devices().by_id(id));
        let Some(key) = key else { return Err(format!("there is no disk {number} any more")) };
        cx.devices().connect(key, &command, &stream).map_err(|error| chain(&error))?;
    }
    Ok(())
}

/// What a frame of the standby is to the core.
fn heard(header: &Header, body: &[u8]) -> Input {
    let reasons = |kind| {
        let reasons = decode_body(kind, body).map(|Refusal { reasons }| reasons.join("; "));
        reasons.unwrap_or_else(|error| error.to_string())
    };
    match header.kind {
        Kind::Ack => Input::Acked { term: header.term, epoch: header.epoch },
        Kind::Bye => Input::PeerLeft { term: header.term, reason: format!("the standby left: {}", reasons(Kind::Bye)) },
        // It keeps its copy: the stream has ended for it, and it says why.
        Kind::Refuse => Input::StreamLost { reason: format!("the standby lost the stream: {}", reasons(Kind::Refuse)) },
        got => Input::StreamLost { reason: WireError::Unexpected { got, expected: "ack or bye" }.to_string() },
    }
}
