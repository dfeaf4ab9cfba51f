//! The engine's thread: waits for anything to happen, tells the core, performs what the core decides. It decides nothing.
//!
//! One epoll over the inbox of the other threads, the device processes' sockets, the standby's acknowledgements and a
//! timer. On the way from output held by a device to its release there is no other thread but the sender, and no lock.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use ft_proto::device_ctl::{Command, Report};
use ft_proto::wire::TookOver;
use ft_proto::witness::Claim;
use ft_proto::{Action, Event, Input, LinkId, Node, NodeId, Settings, State, Time, VmId};
use host_kit::error::chain;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::beats::Beats;
use crate::claims::Pending;
use crate::clock::Clock;
use crate::copies::MemoryCopy;
use crate::device_link::{DeviceLink, LinkError};
use crate::guest::{Guest, Memory};
use crate::identity::Identity;
use crate::inbox::{Inbox, Message, Post, Reply};
use crate::listener::Door;
use crate::options::{ProtectOptions, StandbyOptions};
use crate::primary_side::{Measured, PrimarySide};
use crate::search::Search;
use crate::standby_side::StandbySide;
use crate::start::Reign;
use crate::status::{Board, DiskStatus, LinkStatus, Status, Takeover, WitnessStatus, light_name};
use crate::witness::Asker;

/// How often the status is brought up to date while a session is open.
const STATUS_INTERVAL: std::time::Duration = std::time::Duration::from_millis(100);

/// What this node holds open towards another one.
pub(crate) enum Session {
    None,
    Primary(Box<PrimarySide>),
    Standby(Box<StandbySide>),
}

/// What epoll says is ready.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Watched {
    Inbox,
    Timer,
    Stream,
    Link(usize),
}

impl Watched {
    fn data(self) -> u64 {
        match self {
            Self::Inbox => 0,
            Self::Timer => 1,
            Self::Stream => 2,
            Self::Link(at) => 3 + at as u64,
        }
    }

    fn from_data(data: u64) -> Self {
        match data {
            0 => Self::Inbox,
            1 => Self::Timer,
            2 => Self::Stream,
            at => Self::Link(usize::try_from(at - 3).unwrap_or(usize::MAX)),
        }
    }
}

/// Everything the engine's thread owns.
pub(crate) struct Engine {
    pub(crate) node: Node,
    pub(crate) clock: Clock,
    pub(crate) guest: Box<dyn Guest>,
    pub(crate) memory: Arc<dyn Memory>,
    /// Disks first, as in `disks`.
    pub(crate) links: Vec<DeviceLink>,
    pub(crate) disks: Vec<DiskStatus>,
    pub(crate) post: Post,
    pub(crate) beats: Beats,
    pub(crate) board: Board,
    pub(crate) listen: Option<StandbyOptions>,
    pub(crate) identity: Identity,
    pub(crate) session: Session,
    pub(crate) session_number: u64,
    pub(crate) opening: bool,
    pub(crate) search: Search,
    /// Why a device process is of no use any more.
    pub(crate) broken: Option<String>,
    /// Who is asked about the right to run.
    pub(crate) witness: Option<Asker>,
    pub(crate) measured: Measured,
    pub(crate) memory_copy: Option<MemoryCopy>,
    pub(crate) takeover: Option<Takeover>,
    pub(crate) last_error: Option<String>,
    _door: Option<Door>,
    inbox: Inbox,
    epoll: Epoll,
    timer: TimerFd,
    timer_at: Option<Time>,
    status_at: Time,
    /// Calls that are answered when this node is alone, or fenced.
    pub(crate) waiting: Vec<Reply>,
    /// Calls that are answered when the VM has left, or stays.
    pub(crate) moving: Vec<Reply>,
    /// Since when the guest stands still, if it was stopped for more than a checkpoint.
    pub(crate) stopped: Option<Instant>,
    /// How long the peer was silent when it was suspected, in milliseconds, and when that was.
    pub(crate) suspected: Option<(u64, Time)>,
    /// What the witness has not answered yet.
    pub(crate) claim: Option<Pending>,
    /// How this node came to run the VM, for who becomes its standby.
    pub(crate) took_over: Option<TookOver>,
    /// The session that is over whose last checkpoint the standby's memory still is, and since which a primary knows every page
    /// that was written.
    pub(crate) memory_base: Option<u64>,
    /// Whom `ft resume` asks first, while protection is suspended.
    pub(crate) suspended: Option<ProtectOptions>,
    quit: bool,
}

/// What a node begins as.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Begin {
    /// It runs the VM.
    Run(Reign),
    /// It waits for a primary.
    StandBy(NodeId),
}

/// What an engine is made of.
pub(crate) struct Parts {
    pub(crate) guest: Box<dyn Guest>,
    pub(crate) inbox: Inbox,
    pub(crate) post: Post,
    pub(crate) board: Board,
    pub(crate) beats: Beats,
    pub(crate) clock: Clock,
    pub(crate) begin: Begin,
    /// The VM, as far as it is known.
    pub(crate) vm: Option<VmId>,
    pub(crate) door: Option<(StandbyOptions, Door)>,
    pub(crate) peers: Vec<ProtectOptions>,
    pub(crate) witness: Option<Asker>,
}

impl Engine {
    pub(crate) fn new(parts: Parts) -> Result<Self, EngineError> {
        let Parts { mut guest, inbox, post, board, beats, clock, begin, vm, door, peers, witness } = parts;
        let links: Vec<_> = guest.links()?.into_iter().map(DeviceLink::new).collect();
        let disks = guest.shape().disks.into_iter();
        let disks: Vec<_> = disks.map(|disk| DiskStatus::new(disk.id)).collect();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(io::Error::from)?;
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map_err(io::Error::from)?;
        let now = clock.now();
        let core = match begin {
            Begin::StandBy(node) => Node::standby(node, Settings::default(), now),
            Begin::Run(reign) => Node::solo(reign.node, reign.term, Settings::default(), now),
        };
        let identity = Identity::new(begin, vm, witness.is_some(), now);
        let mut search = Search::new(peers);
        // The VM of a standby runs as soon as it has taken over.
        search.switch(matches!(begin, Begin::StandBy(_)));
        let (listen, door) = door.unzip();
        let memory = guest.memory();
        let engine = Self {
            node: core,
            clock,
            guest,
            memory,
            links,
            disks,
            post,
            beats,
            board,
            listen,
            identity,
            session: Session::None,
            session_number: 0,
            opening: false,
            search,
            broken: None,
            witness,
            measured: Measured::default(),
            memory_copy: None,
            takeover: None,
            last_error: None,
            _door: door,
            inbox,
            epoll,
            timer,
            timer_at: None,
            status_at: now,
            waiting: Vec::new(),
            moving: Vec::new(),
            stopped: None,
            suspected: None,
            claim: None,
            took_over: None,
            memory_base: None,
            suspended: None,
            quit: false,
        };
        engine.watch_all();
        Ok(engine)
    }

    fn watch_all(&self) {
        self.watch(Watched::Inbox, self.inbox.as_fd());
        self.watch(Watched::Timer, self.timer.as_fd());
        for (at, link) in self.links.iter().enumerate() {
            self.watch(Watched::Link(at), link.as_fd());
        }
    }

    /// Runs until told to quit.
    pub(crate) fn run(mut self) {
        if !self.node.runs() {
            for link in &mut self.links {
                let _ = link.send(&Command::Standby(true), None);
            }
        }
        self.perform_all();
        let mut events = [EpollEvent::empty(); 16];
        while !self.quit {
            // Before a thread is started, which would inherit it. The first copy is work in bulk: never urgent.
            host_kit::sched::set_realtime(matches!(self.node.state(), State::Protected | State::StandbyReady));
            self.look_for_standby();
            self.watch_record();
            self.arm_timer();
            let ready = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(errno) => {
                    self.look_at_all(errno);
                    continue;
                }
            };
            // Messages first: beats that have arrived must be told before the clock is looked at.
            self.read_inbox();
            for event in &events[..ready] {
                match Watched::from_data(event.data()) {
                    Watched::Inbox => {}
                    Watched::Timer => self.timer_fired(),
                    Watched::Stream => self.read_stream(),
                    Watched::Link(at) => self.read_link(at),
                }
            }
            self.publish_if_due();
        }
        if let Some(witness) = &self.witness {
            witness.finish();
        }
    }

    /// Tells the core and performs what it decides.
    pub(crate) fn input(&mut self, input: Input) {
        self.node.handle(input, self.clock.now());
        self.perform_all();
    }

    fn perform_all(&mut self) {
        while let Some(action) = self.node.poll_action() {
            // What the beats say must never lag behind what is done.
            self.beats.say(self.node.beat(), self.clock.now());
            self.perform(action);
        }
        self.beats.say(self.node.beat(), self.clock.now());
        if self.node.state() == State::Fenced {
            // Those that waited for a move that succeeded have been answered.
            self.answer_moving(Err(self.last_error.iter().cloned().collect()));
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Cut { epoch, kind } => self.cut(epoch, kind),
            Action::Release(committed) => self.release(&committed),
            Action::Commit(committed) => self.commit(&committed),
            Action::AskWitness(claim) => self.ask_witness(claim),
            Action::TakeOver { committed, term } => self.take_over(committed, term),
            Action::GoAlone(alone) => self.go_alone(&alone),
            Action::Yield => self.yield_to_standby(),
            Action::Dismiss => self.dismiss_standby(),
            Action::Fence { reason } => self.fence(&reason),
            Action::Reset { reason } => self.reset(&reason),
            Action::Event(event) => {
                self.event(&event);
                // A VM that is being taken over runs nowhere yet.
                if !matches!(event, Event::TakingOver { .. }) {
                    self.publish();
                }
            }
        }
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::PeerSuspected { silence_ms } => self.suspected = Some((*silence_ms, self.clock.now())),
            // With a claim at the witness it is still why this host may take over.
            Event::Protected { .. } => self.search.found(),
            Event::ProtectionLost { reason, .. } => self.session_ended(reason),
            Event::LinkBack { .. } if !self.node.awaits_witness() => self.suspected = None,
            _ => {}
        }
        let record = self.board.event(event);
        self.guest.told(&record);
    }

    /// An event that the core does not know.
    pub(crate) fn note(&mut self, event: &str, detail: serde_json::Value) {
        let record = self.board.note(event, detail);
        self.guest.told(&record);
    }

    pub(crate) fn ask_witness(&mut self, claim: Claim) {
        if let (Some(witness), Some(vm)) = (&self.witness, self.identity.vm) {
            self.claim = Some(Pending::asked(self.claim.take(), claim, self.clock.now()));
            let post = self.post.clone();
            witness.ask(vm, claim, move |answer| post.send(Message::Witness(answer)));
        }
    }

    /// Performs `Action::Fence`: held output is dropped before anything else.
    fn fence(&mut self, reason: &str) {
        for link in &mut self.links {
            // Only what was never released is still held.
            let _ = link.send(&Command::Discard { after: ft_proto::Epoch(0) }, None);
        }
        self.guest.fence(reason);
        self.guest_stopped();
        self.last_error = Some(reason.to_owned());
        self.answer_waiting(Err(vec![reason.to_owned()]));
    }

    pub(crate) fn read_inbox(&mut self) {
        self.inbox.acknowledge();
        while let Some(message) = self.inbox.next() {
            match message {
                Message::VmStarted => self.search.switch(true),
                Message::Protect(options, reply) => self.protect(options, reply),
                Message::Stop(reply) => self.stop(reply),
                Message::Suspend(reply) => self.suspend(reply),
                Message::Resume(reply) => self.resume(reply),
                Message::HandOver(reason, reply) => self.hand_over(reason, &reply),
                Message::Switchover(reply) => self.switchover(reply),
                Message::TestFailover(reply) => self.test_failover(&reply),
                Message::VmEnded(reply) => self.vm_ended(&reply),
                Message::Quit => self.quit = true,
                Message::Opened(opened, reply) => self.opened(opened, reply),
                Message::Caller(caller) => self.caller(*caller),
                Message::Vouched(caller, since, record) => self.vouched(*caller, since, record),
                Message::RecordRead(record) => self.record_read(record),
                Message::Received(number, received) if number == self.session_number => self.received(received),
                Message::Sent(number, sent) if number == self.session_number => self.sent(sent),
                Message::Received(..) | Message::Sent(..) => {}
                Message::Witness(answer) => {
                    self.claim = self.claim.take().and_then(|claim| claim.answered(&answer));
                    self.input(Input::Witness(answer));
                }
                Message::Trouble(thread, reason) => self.trouble(thread, reason),
                Message::Beat(link, at, beat) => self.input(Input::Beat { link, at, beat }),
            }
        }
    }

    pub(crate) fn answer_waiting(&mut self, result: Result<(), Vec<String>>) {
        for reply in self.waiting.drain(..) {
            let _ = reply.send(result.clone());
        }
    }

    pub(crate) fn timer_fired(&mut self) {
        // Read so that the descriptor is quiet again; its count is of no interest.
        let _ = self.timer.wait();
        self.timer_at = None;
        self.cut_again();
        self.input(Input::Timeout);
        self.pump();
    }

    pub(crate) fn read_link(&mut self, at: usize) {
        loop {
            match self.links[at].try_recv() {
                Ok(Some(report)) => self.report(at, report),
                Ok(None) => return,
                Err(error) => return self.link_lost(at, &error),
            }
        }
    }

    pub(crate) fn read_early_reports(&mut self) {
        for at in 0..self.links.len() {
            if self.links[at].has_early() {
                self.read_link(at);
            }
        }
    }

    fn report(&mut self, at: usize, report: Report) {
        match report {
            // Of an epoch that is sealed already the cut was made.
            Report::Held { epoch } | Report::Full { epoch } if epoch == self.node.epoch() => {
                self.input(Input::CutWanted);
            }
            Report::Complete { epoch } => self.disk_complete(at, epoch),
            Report::Failed { reason } => self.device_failed(at, &reason),
            Report::Resync { .. } | Report::InSync | Report::MirrorLost { .. } if at < self.disks.len() => {
                self.disk_report(at, &report);
            }
            // Answers that nobody waits for any more.
            _ => {}
        }
    }

    fn link_lost(&mut self, at: usize, error: &LinkError) {
        let _ = self.epoll.delete(self.links[at].as_fd());
        self.device_failed(at, &chain(error));
    }

    fn device_failed(&mut self, at: usize, reason: &str) {
        let id = self.links[at].id().to_owned();
        self.note("device-failed", serde_json::json!({ "device": id, "reason": reason }));
        self.last_error = Some(reason.to_owned());
        self.broken.get_or_insert_with(|| reason.to_owned());
        match self.session {
            Session::None => {}
            Session::Primary(_) => self.input(Input::YieldRequested { reason: reason.to_owned() }),
            Session::Standby(_) => {
                self.input(Input::PeerLeft { term: self.node.term(), reason: reason.to_owned() });
            }
        }
        if matches!(self.node.state(), State::StandbyEmpty) {
            self.guest.unusable(reason);
        }
    }

    pub(crate) fn watch(&self, what: Watched, fd: BorrowedFd<'_>) {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, what.data());
        if let Err(errno) = self.epoll.add(fd, event) {
            self.post.send(Message::Trouble("ft", format!("cannot watch {what:?}: {errno}")));
        }
    }

    pub(crate) fn unwatch_stream(&self) {
        if let Session::Primary(side) = &self.session {
            // Not watched any more after its end was read.
            let _ = self.epoll.delete(side.stream());
        }
    }

    fn arm_timer(&mut self) {
        let copy = match &self.session {
            Session::Primary(side) => {
                side.copy.as_ref().and_then(|copy| copy.timeout()).into_iter().chain(side.cut_due()).min()
            }
            _ => None,
        };
        let status = (!matches!(self.session, Session::None)).then_some(self.status_at);
        let search = self.search.due().filter(|_| self.is_alone());
        let record = self.record_due();
        let next = self.node.poll_timeout().into_iter().chain(copy).chain(status).chain(search).chain(record).min();
        // To fire too early now and then costs less than to be set anew after each event.
        if self.timer_at.is_some_and(|at| next.is_none_or(|next| at <= next)) {
            return;
        }
        self.timer_at = next;
        let armed = match next {
            // Zero would disarm it.
            Some(at) => {
                let left = at.since(self.clock.now()).max(std::time::Duration::from_nanos(1));
                self.timer.set(Expiration::OneShot(TimeSpec::from_duration(left)), TimerSetTimeFlags::empty())
            }
            None => self.timer.unset(),
        };
        if let Err(errno) = armed {
            self.timer_at = None;
            self.trouble_once(format!("cannot set the timer: {errno}"));
        }
    }

    pub(crate) fn publish_if_due(&mut self) {
        if self.clock.now() >= self.status_at {
            self.count_copies();
            self.publish();
        }
    }

    /// Makes the status on the board current.
    pub(crate) fn publish(&mut self) {
        let now = self.clock.now();
        self.status_at = now + STATUS_INTERVAL;
        let peer = match &self.session {
            Session::None => None,
            Session::Primary(side) => Some(side.peer.clone()),
            Session::Standby(side) => Some(side.peer.clone()),
        };
        let copy = self.memory_copy.as_ref().filter(|_| peer.is_some());
        let links = match &peer {
            None => Vec::new(),
            Some(_) => LinkId::ALL.iter().map(|link| self.link_status(*link, now)).collect(),
        };
        let policy = self.node.settings().on_partition.map(|policy| {
            let name = format!("none: {policy:?} goes on").to_lowercase();
            WitnessStatus { name, answered: None, error: None, record: None }
        });
        self.board.publish(Status {
            role: self.role_name(),
            state: self.state_name(),
            replica: self.replica_name(),
            term: self.node.term().0,
            epoch: self.node.epoch().0,
            vm: self.identity.vm.map(|vm| vm.to_string()),
            node: self.node.id().to_string(),
            peer,
            links,
            witness: self.witness.as_ref().map(Asker::status).or(policy),
            claim: self.open_claim().map(|claim| claim.status(now)),
            ignored_beats: self.beats.ignored().sum(),
            pause_us: self.measured.pause.percentiles(),
            commit_us: self.measured.commit.percentiles(),
            dirty_pages: self.measured.pages.percentiles(),
            epoch_bytes: self.measured.bytes.percentiles(),
            epoch_raw_bytes: self.measured.raw_bytes.percentiles(),
            compression: match &self.session {
                Session::Primary(side) => Some(side.compression(self.measured.volume)),
                _ => None,
            },
            held_frames: self.measured.held.frames,
            held_bytes: self.measured.held.bytes,
            epochs: self.measured.epochs,
            search: self.search.status(),
            memory_sync: copy.map(MemoryCopy::progress),
            disks: self.disks.clone(),
            takeover: self.takeover,
            last_error: self.last_error.clone(),
        });
    }

    fn link_status(&self, link: LinkId, now: Time) -> LinkStatus {
        let (light, silence) = self.node.link(link, now);
        let name = match link {
            LinkId::Replication => "replication",
            LinkId::Heartbeat => "heartbeat",
        };
        let silence_ms = u64::try_from(silence.as_millis()).unwrap_or(u64::MAX);
        LinkStatus { name, state: light_name(light), silence_ms }
    }
}

/// The engine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A descriptor or thread could not be made.
    #[error("cannot set up the fault-tolerance engine")]
    Io(#[from] io::Error),
    /// The VMM did not give what is needed.
    #[error(transparent)]
    Guest(#[from] crate::guest::GuestError),
    /// A disk did not note that the VM runs from it.
    #[error("--ft: a disk cannot note that this host runs the VM")]
    Disk(#[from] LinkError),
    /// An address of `--ft` cannot be bound.
    #[error("--ft: cannot listen at {0}")]
    Listen(std::net::SocketAddr, #[source] io::Error),
}
