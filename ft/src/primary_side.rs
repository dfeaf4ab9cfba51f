//! What the engine does for a node that is a primary: first copy, cuts, releases, the end of a session.

use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use ft_proto::device_ctl::{Command, Hold};
use ft_proto::pages::PAGE;
use ft_proto::wire::{Kind, Refusal, WireError, decode_body};
use ft_proto::{Alone, Committed, CutKind, Epoch, Input, State, Time};
use host_kit::error::chain;
use serde_json::json;

use crate::capture::{CaptureError, Captured, Held, capture, resume};
use crate::clock::micros;
use crate::coder::Volume;
use crate::connect::{self, Applicant, Opened, Unopened};
use crate::copies::MemoryCopy;
use crate::engine::{Engine, Session, Watched};
use crate::first_copy::{FirstCopy, Step};
use crate::guest::GuestError;
use crate::history::History;
use crate::identity::SessionKey;
use crate::inbox::{Message, Reply};
use crate::options::{Compression, ProtectOptions};
use crate::packing_judge::Judge;
use crate::path::{explain, limit_silence};
use crate::place::Place;
use crate::sender::{Job, SenderHandle, Sent};
use crate::staging::Staging;
use crate::status::{CompressionStatus, Peer, Recent};
use crate::transport::FrameReader;
use crate::witness::Asker;

/// Frames of the standby that are read before there is a look at everything else.
const WORDS_PER_LOOK: usize = 256;
/// How long a cut is put off while the guest cannot be stopped.
const CUT_AGAIN: Duration = Duration::from_millis(2);

/// A session in which this node is the primary.
pub(crate) struct PrimarySide {
    pub(crate) peer: Peer,
    pub(crate) copy: Option<FirstCopy>,
    sender: SenderHandle,
    stream: TcpStream,
    reader: FrameReader,
    /// Staging buffers that are neither being filled nor being sent.
    free: Vec<Staging>,
    /// Buffers with the sender.
    sending: usize,
    /// Cuts that the standby has not acknowledged.
    uncommitted: VecDeque<Uncommitted>,
    /// Lists of pages that are not in use.
    lists: Vec<Vec<u64>>,
    /// How the session came about, for the next one.
    options: ProtectOptions,
    key: SessionKey,
    /// Whether the standby has acknowledged a whole checkpoint.
    has_base: bool,
    /// What the standby was told last of the first copy is on its way.
    telling: bool,
    judge: Judge,
    place: Place,
    /// Where the vCPUs run.
    taken: Vec<usize>,
    /// Whether the last epoch was packed.
    packing: bool,
    /// A cut that could not be made at once, and when to try again.
    put_off: Option<(Epoch, CutKind, Time)>,
}

/// A cut that is on its way: what the standby may not have if the session ends.
struct Uncommitted {
    epoch: Epoch,
    begun: Time,
    /// When it was handed to the sender.
    sent: Time,
    pages: Vec<u64>,
    packed: bool,
}

impl PrimarySide {
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// When a cut that was put off is to be made.
    pub(crate) fn cut_due(&self) -> Option<Time> {
        self.put_off.map(|(_, _, at)| at)
    }

    /// How the session came about.
    pub(crate) fn options(&self) -> &ProtectOptions {
        &self.options
    }

    /// Tells the standby something that the next word of its kind replaces: not more of it than the link carries.
    pub(crate) fn tell(&mut self, job: Job) {
        if !std::mem::replace(&mut self.telling, true) {
            self.sender.send(job);
        }
    }

    /// For status.
    pub(crate) fn compression(&self, volume: Volume) -> CompressionStatus {
        let Volume { raw, sent } = volume;
        CompressionStatus { setting: self.options.compression.name(), packing: self.packing, raw, sent }
    }
}

/// What is measured of a session.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) pause: Recent,
    pub(crate) commit: Recent,
    pub(crate) pages: Recent,
    pub(crate) bytes: Recent,
    pub(crate) raw_bytes: Recent,
    /// Of all epochs of the session together.
    pub(crate) volume: Volume,
    pub(crate) held: Held,
    pub(crate) epochs: u64,
}

impl Engine {
    /// The API wants protection: find out whether it can be had, on a thread that may wait.
    pub(crate) fn protect(&mut self, options: Option<ProtectOptions>, reply: Reply) {
        if !self.is_alone() {
            let state = if self.opening { "about to be protected" } else { self.state_name() };
            let _ = reply.send(Err(vec![format!("this VM is {state} already: see `pollux ft status`")]));
            return;
        }
        self.suspended = None;
        self.search.switch(true);
        let peers = options.map_or_else(|| self.search.peers().to_vec(), |options| vec![options]);
        if peers.is_empty() {
            let reason = "there is no standby to ask: name one with peer= and heartbeat=, or start pollux-vmm with --ft \
                          standby-peers=";
            let _ = reply.send(Err(vec![reason.to_owned()]));
            return;
        }
        self.ask_peers(peers, reply);
    }

    /// Has `peers` asked for somebody who waits.
    pub(crate) fn ask_peers(&mut self, peers: Vec<ProtectOptions>, reply: Reply) {
        if let Err(error) = self.open(peers, Some(reply.clone())) {
            let _ = reply.send(Err(vec![format!("cannot start a thread: {error}")]));
        }
    }

    /// Whether a session may be opened.
    pub(crate) fn is_alone(&self) -> bool {
        self.node.state() == State::Solo && !self.opening
    }

    /// Asks the configured peers if it is time for that.
    pub(crate) fn look_for_standby(&mut self) {
        let now = self.clock.now();
        if !self.is_alone() || self.search.due().is_none_or(|due| due > now) {
            return;
        }
        if let Err(error) = self.open(self.search.peers().to_vec(), None) {
            self.not_found(&Unopened::now(format!("cannot start a thread: {error}")));
        }
    }

    /// A session is over. If the VM was never protected by it that is a failure like any other.
    pub(crate) fn session_ended(&mut self, reason: &str) {
        if self.search.session_ended() && self.search.is_on() {
            self.last_error = Some(reason.to_owned());
            self.not_found(&Unopened { reasons: vec![reason.to_owned()], settled: true });
        }
    }

    fn not_found(&mut self, Unopened { reasons, settled }: &Unopened) {
        let news = self.search.failed(reasons, *settled, self.clock.now());
        if news && !self.search.peers().is_empty() {
            self.note("looking-for-standby", json!({ "reasons": reasons }));
            self.publish();
        }
    }

    /// Has `peers` asked one after the other.
    fn open(&mut self, peers: Vec<ProtectOptions>, reply: Option<Reply>) -> io::Result<()> {
        // From here on, also when no session comes of it: the record that the connecting thread makes is ours to end.
        let address = peers.first().and_then(|options| options.witness.as_ref());
        if self.witness.as_ref().map(Asker::address) != address {
            self.witness = address.map(Asker::start).transpose()?;
        }
        let vm = self.identity.vm.ok_or_else(|| io::Error::other("the VM has no identity"))?;
        let mut blockers = self.guest.blockers();
        blockers.extend(self.broken.clone());
        let applicant = Applicant {
            node: self.node.id(),
            term: self.node.term(),
            vm,
            first: self.identity.first,
            previous: self.identity.proof(),
            shape: self.guest.shape(),
            blockers,
            witness: self.witness.clone(),
            took_over: self.took_over,
            base: self.memory_base,
            brief: reply.is_none(),
        };
        let post = self.post.clone();
        host_kit::thread::spawn("ft-open", move || {
            let opened = connect::open_first(&applicant, peers).map(Box::new);
            post.send(Message::Opened(opened, reply));
        })?;
        self.opening = true;
        Ok(())
    }

    /// The connecting thread is through.
    pub(crate) fn opened(&mut self, opened: Result<Box<Opened>, Unopened>, reply: Option<Reply>) {
        self.opening = false;
        let wanted = reply.is_some() || self.search.is_on();
        let result = match opened {
            Ok(_) if self.node.state() != State::Solo => {
                Err(Unopened::now(format!("this VM is {} now", self.state_name())))
            }
            Ok(_) if !wanted => Err(Unopened::now("protection is not wanted any more".to_owned())),
            Ok(opened) => self.begin(*opened).map_err(|error| Unopened { reasons: vec![error], settled: true }),
            Err(why) => Err(why),
        };
        match &result {
            Ok(()) => self.search.accepted(),
            Err(why) => {
                if reply.is_some() {
                    self.last_error = Some(why.reasons.join("; "));
                }
                if wanted {
                    self.not_found(why);
                }
            }
        }
        self.publish();
        // The caller may have given up waiting.
        let _ = reply.map(|reply| reply.send(result.map_err(|why| why.reasons)));
    }

    fn begin(&mut self, opened: Opened) -> Result<(), String> {
        let Opened { options, stream, disks, beats, peer, term, key, base } = opened;
        let failed = |what: &str, error: &dyn std::error::Error| format!("{what}: {}", chain(error));
        self.session_number += 1;
        let (number, post) = (self.session_number, self.post.clone());
        let tell = move |sent| match sent {
            // The buffer is wanted at the next cut; to wake the engine for it would delay what it waits for.
            Sent::Done(ref staging, ..) if staging.epoch != Epoch(0) => post.send_later(Message::Sent(number, sent)),
            sent => post.send(Message::Sent(number, sent)),
        };
        if options.detect_ms != 0 {
            limit_silence(&stream);
        }
        let writer = stream.try_clone().map_err(|error| failed("cannot use the connection", &error))?;
        let history = self.history(&options);
        let sender = SenderHandle::start(writer, term, history, tell)
            .map_err(|error| failed("cannot start a thread", &error))?;
        let ranges = self.first_ranges(base).map_err(|error| failed("cannot track guest memory", &error))?;
        self.tell_owner(term);
        self.mirror_disks(&options, disks).inspect_err(|_| self.do_without_mirror())?;
        let now = self.clock.now();
        self.node.configure(options.settings(), now);
        self.node.adopt_term(term);
        self.watch(Watched::Stream, stream.as_fd());
        self.identity.session = Some(key);
        self.beats.key(self.identity.beats(self.node.id(), peer));
        if self.witness.is_some() {
            self.identity.first = false;
            self.identity.look_at.get_or_insert(now);
        }
        self.beats.route(beats, options.settings().silence.map(|limit| limit / 6));
        self.measured = Measured::default();
        self.session = Session::Primary(Box::new(PrimarySide {
            peer: Peer { address: options.peer.to_string(), node: peer.to_string() },
            copy: Some(FirstCopy::new(ranges)),
            sender,
            stream,
            reader: FrameReader::default(),
            free: Vec::new(),
            sending: 0,
            uncommitted: VecDeque::new(),
            lists: Vec::new(),
            judge: Judge::new(options.compression),
            place: Place::begin(),
            taken: Vec::new(),
            packing: false,
            put_off: None,
            options,
            key,
            has_base: false,
            telling: false,
        }));
        if self.suspended.take().is_some() {
            // What ended the search is over.
            self.search.switch(true);
        }
        self.input(Input::SessionOpened { peer });
        self.memory_copy = Some(MemoryCopy::begin(base.is_some(), now));
        self.count_copies();
        Ok(())
    }

    /// The pages that a session begins with, and those written from now on are known: all of them, or, if the standby's memory
    /// is the checkpoint since which they are known already, none.
    fn first_ranges(&mut self, base: Option<u64>) -> Result<Vec<Range<u64>>, GuestError> {
        let known = self.memory_base.take();
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

    /// What makes the session's memory of what it has sent.
    fn history(&self, options: &ProtectOptions) -> impl FnOnce() -> Option<History> + Send + use<> {
        let ram = self.memory.ranges();
        let quarter = ram.iter().map(|range| range.end - range.start).sum::<u64>() * PAGE as u64 / 4;
        let (bytes, wanted) = (options.delta_cache.min(quarter), options.compression != Compression::Off);
        move || wanted.then(|| History::new(&ram, bytes))
    }

    fn mirror_disks(&mut self, options: &ProtectOptions, streams: Vec<(u16, TcpStream)>) -> Result<(), String> {
        let command =
            Command::Mirror { epoch: Epoch(1), max_uncommitted: options.disk_buffer, rate: options.disk_rate };
        for (index, stream) in streams {
            let at = usize::from(index);
            let fd = OwnedFd::from(stream);
            self.links[at].send(&command, Some(fd.as_fd())).map_err(|error| chain(&error))?;
            self.disks[at].copying();
        }
        Ok(())
    }

    /// No session comes of it: what was begun for one is ended, since the guest would pay for it.
    fn do_without_mirror(&mut self) {
        self.guest.stop_tracking();
        for (link, disk) in self.links.iter_mut().zip(&mut self.disks) {
            // A device that is gone is noticed by its closed socket.
            let _ = link.send(&Command::Unmirror, None);
            let _ = link.drop_session();
            disk.state = "-";
        }
    }

    /// Moves the first copy on as far as it goes now.
    pub(crate) fn pump(&mut self) {
        let disks_ready = self.disks.iter().all(|disk| disk.state != "copying");
        loop {
            let now = self.clock.now();
            let Session::Primary(side) = &mut self.session else { return };
            let Some(copy) = &mut side.copy else { return };
            // One buffer being sent, one being filled: the link never waits for the copy.
            if side.sending >= 2 {
                return;
            }
            let mut staging = side.free.pop().unwrap_or_default();
            staging.clear(Epoch(0));
            match copy.step(&mut staging.pages, side.sending, disks_ready, now) {
                Step::Wait => return side.free.push(staging),
                Step::Send => match staging.copy_pages(&*self.memory) {
                    Ok(()) => {
                        side.sending += 1;
                        staging.pack = side.judge.pack_copy();
                        side.sender.send(Job::Copy(staging));
                    }
                    Err(error) => return self.input(Input::StreamLost { reason: chain(&error) }),
                },
                Step::Harvest => match self.guest.harvest(&mut staging.pages) {
                    Ok(()) => {
                        copy.round(&staging.pages, now);
                        side.free.push(staging);
                    }
                    Err(error) => return self.input(Input::StreamLost { reason: chain(&error) }),
                },
                Step::Done => {
                    side.free.push(staging);
                    self.count_copies();
                    return self.synced();
                }
            }
        }
    }

    fn synced(&mut self) {
        if let Session::Primary(side) = &mut self.session {
            side.copy = None;
        }
        self.memory_copied();
        self.input(Input::Synced);
    }

    /// The sending thread told something.
    pub(crate) fn sent(&mut self, sent: Sent) {
        let Session::Primary(side) = &mut self.session else { return };
        match sent {
            Sent::Done(staging, volume, took) => {
                side.sending -= 1;
                if staging.epoch == Epoch(0) {
                    side.judge.copied(staging.pack, volume.raw, took);
                } else {
                    self.measured.bytes.add(volume.sent);
                    self.measured.raw_bytes.add(volume.raw);
                    self.measured.volume.raw += volume.raw;
                    self.measured.volume.sent += volume.sent;
                }
                side.free.push(staging);
                self.pump();
            }
            Sent::Told => side.telling = false,
            Sent::Failed(reason) => {
                // The standby may have said why before it closed the stream.
                self.read_stream();
                self.input(Input::StreamLost { reason });
            }
        }
    }

    /// Performs `Action::Cut`.
    pub(crate) fn cut(&mut self, epoch: Epoch, kind: CutKind) {
        let Session::Primary(side) = &mut self.session else { return };
        let begun = self.clock.now();
        // Of the cut before, since that is over only now.
        let stood = self.guest.stood_still().filter(|_| kind != CutKind::Base);
        let mut staging = side.free.pop().unwrap_or_default();
        staging.clear(epoch);
        if kind == CutKind::Base {
            side.place = Place::begin();
        }
        self.guest.processors(&mut side.taken);
        let cpu = side.place.next(&side.taken);
        host_kit::sched::pin_to_cpu(cpu);
        let result = capture(&mut *self.guest, &mut self.links, kind, &mut staging, cpu);
        if let Some(stood) = stood.filter(|_| !matches!(result, Err(CaptureError::Busy))) {
            self.measured.pause.add(micros(stood));
        }
        let went_on = kind != CutKind::Last || result.is_err();
        let input = match result {
            Ok(Captured { held, paused }) => {
                self.measured.held = held;
                side.place.epoch(staging.pages.len(), held.frames > 0);
                let count = staging.pages.len() as u64;
                self.measured.pages.add(count);
                let mut pages = side.lists.pop().unwrap_or_default();
                pages.clone_from(&staging.pages);
                let packed = side.judge.pack(pages.len());
                (staging.pack, side.packing, staging.cpu) = (packed, packed, side.place.of_carriers());
                side.uncommitted.push_back(Uncommitted { epoch, begun, sent: self.clock.now(), pages, packed });
                side.sending += 1;
                side.sender.send(Job::Epoch(staging));
                if kind == CutKind::Last {
                    self.stopped = Instant::now().checked_sub(paused);
                }
                Input::CutDone { epoch, paused, pages: count }
            }
            Err(CaptureError::Busy) => {
                side.free.push(staging);
                side.put_off = Some((epoch, kind, begun + CUT_AGAIN));
                return;
            }
            Err(CaptureError::Device(error)) => Input::YieldRequested { reason: chain(&error) },
            Err(CaptureError::Guest(error)) => Input::CutFailed { epoch, reason: chain(&error) },
        };
        if went_on {
            // After the epoch is on its way: somebody may wait for it.
            let base = kind == CutKind::Base && matches!(input, Input::CutDone { .. });
            resume(&mut self.links, self.disks.len(), base, epoch.next());
        }
        self.input(input);
        // Reports that came while the capture waited for others do not show up in epoll.
        self.read_early_reports();
    }

    /// Makes a cut that was put off, if it is time for that.
    pub(crate) fn cut_again(&mut self) {
        let now = self.clock.now();
        let Session::Primary(side) = &mut self.session else { return };
        if let Some((epoch, kind, _)) = side.put_off.take_if(|(_, _, at)| *at <= now) {
            self.cut(epoch, kind);
        }
    }

    /// The standby's side of the stream has something.
    pub(crate) fn read_stream(&mut self) {
        // What is left wakes us again: a standby that talks without end must not have all of this thread.
        for _ in 0..WORDS_PER_LOOK {
            let Session::Primary(side) = &mut self.session else { return };
            let input = match side.reader.poll(&side.stream) {
                Ok(None) => return,
                Ok(Some((header, body))) => match header.kind {
                    Kind::Ack => Input::Acked { term: header.term, epoch: header.epoch },
                    Kind::Bye => {
                        let reasons = decode_body(Kind::Bye, &body).map(|Refusal { reasons }| reasons.join("; "));
                        let reason = format!("the standby left: {}", reasons.unwrap_or_else(|error| error.to_string()));
                        Input::PeerLeft { term: header.term, reason }
                    }
                    // It keeps its copy: the stream has ended for it, and it says why.
                    Kind::Refuse => {
                        let reasons = decode_body(Kind::Refuse, &body).map(|Refusal { reasons }| reasons.join("; "));
                        let reason = reasons.unwrap_or_else(|error| error.to_string());
                        Input::StreamLost { reason: format!("the standby lost the stream: {reason}") }
                    }
                    got => {
                        let error = WireError::Unexpected { got, expected: "ack or bye" };
                        Input::StreamLost { reason: error.to_string() }
                    }
                },
                Err(error) => {
                    let reason = explain(&error, &side.stream, None);
                    // A stream at its end stays readable for ever.
                    self.unwatch_stream();
                    return self.input(Input::StreamLost { reason });
                }
            };
            self.input(input);
        }
    }

    /// Performs `Action::Release`: the only place where a primary lets output out while it is protected.
    pub(crate) fn release(&mut self, committed: &Committed) {
        // The network first: somebody waits for its frames. Who held nothing at the last seal has nothing of an earlier epoch.
        for link in self.links.iter_mut().rev().filter(|link| link.holds) {
            // A device that is gone is noticed by its closed socket.
            let _ = link.send(&Command::Release(committed.into()), None);
        }
        self.guest.release_console(committed);
        let Session::Primary(side) = &mut self.session else { return };
        let now = self.clock.now();
        while let Some(Uncommitted { begun, sent, pages, packed, .. }) =
            side.uncommitted.pop_front_if(|cut| cut.epoch <= committed.epoch())
        {
            self.measured.commit.add(micros(now.since(begun)));
            self.measured.epochs += 1;
            side.judge.acknowledged(pages.len(), packed, now.since(sent));
            side.lists.push(pages);
            side.has_base = true;
        }
    }

    /// Performs `Action::GoAlone`: the session is over, the VM goes on here, and held output may leave.
    pub(crate) fn go_alone(&mut self, alone: &Alone) {
        let disks = self.disks.len();
        for (at, link) in self.links.iter_mut().enumerate() {
            // A device that is gone is noticed by its closed socket.
            if at < disks {
                let _ = link.send(&Command::Unmirror, None);
                let _ = link.drop_session();
            } else {
                let _ = link.send(&Command::Protect { epoch: Epoch(0), hold: Hold::off(alone) }, None);
            }
            if self.stopped.is_some() {
                let _ = link.send(&Command::Resume, None);
            }
        }
        self.tell_owner(alone.term());
        self.guest.free_console(alone);
        // It was about to move, and stays.
        if self.stopped.take().is_some() {
            self.guest.resume();
        }
        self.keep_base();
        if self.suspended.is_some() {
            self.note("suspended", json!({ "memory_kept": self.memory_base.is_some() }));
        }
        self.end_primary(Job::Bye("the primary goes on alone".to_owned()));
        self.answer_waiting(Ok(()));
        self.answer_moving(Err(vec![
            "the VM stays here: its standby was lost on the way, see `pollux ft events`".to_owned(),
        ]));
    }

    /// If this session may be followed by another one with the same standby, goes on to track what is written, and counts what
    /// the standby may not have as written again. Nobody knows whether it has it: to send it twice does no harm.
    fn keep_base(&mut self) {
        match &self.session {
            Session::Primary(side) if side.has_base && (self.suspended.is_some() || self.search.due().is_some()) => {
                side.uncommitted.iter().for_each(|cut| self.guest.put_back(&cut.pages));
                self.memory_base = Some(side.key.session);
            }
            _ => self.guest.stop_tracking(),
        }
    }

    /// Performs `Action::Yield`; the fence before it has noted why.
    pub(crate) fn yield_to_standby(&mut self) {
        let reason = self.last_error.clone().unwrap_or_default();
        self.end_primary(Job::Yield(reason, self.stopped.unwrap_or_else(Instant::now)));
        self.answer_moving(Ok(()));
    }

    /// Performs `Action::Dismiss`: the stream stays open for the answer.
    pub(crate) fn dismiss_standby(&mut self) {
        if let Session::Primary(side) = &self.session {
            side.sender.send(Job::Bye("stopped by request".to_owned()));
        }
    }

    fn end_primary(&mut self, last: Job) {
        self.unwatch_stream();
        for disk in &mut self.disks {
            disk.state = "-";
        }
        if let Session::Primary(side) = std::mem::replace(&mut self.session, Session::None) {
            side.sender.leave(last);
        }
    }
}
