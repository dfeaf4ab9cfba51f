//! The engine as the VMM sees it: start it, call it, read its board.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded, select_biased};
use ft_proto::{HostId, LinkId, VmId};
use ft_transport::beats::{BeatSocket, Beats};
use ft_transport::heartbeats::Heartbeats;
use ft_transport::listener::{Arrival, Listener};
use pollux_api::event::EventName;
use pollux_api::{EventRecord, Refused, Status};
use serde_json::json;

use crate::clock::Clock;
use crate::context::inbox::{Inbox, Message, Post, Reply};
use crate::devices::DeviceEnd;
use crate::devices::socket::ControlSocket;
use crate::engine::{Begin, Engine, EngineError, Parts};
use crate::guest::{Guest, LinkEnd};
use crate::identity::{incarnation_of, unnamed_host};
use crate::needs;
use crate::options::{ProtectOptions, StandbyOptions};
use crate::peers::expiry::ExpiryWatch;
use crate::peers::tls::PeerTls;
use crate::platform::linux::Linux;
use crate::start::NodeTerm;
use crate::status::Board;
use crate::witness::{WitnessAddress, WitnessClient};

/// How long the end of a VM waits for the witness to say that its standby must not go on with it.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What an engine begins with, whatever its role.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where status and events go. One board may serve one engine after the other.
    pub board: Board,
    /// By whom this VM is protected, without being asked, whenever it runs alone.
    pub peers: Vec<ProtectOptions>,
    /// Who is asked about the right to run.
    pub witness: Option<WitnessAddress>,
    /// This host.
    pub host: HostId,
    /// The VM, if its disks say which one it is; that of a [`NodeTerm`] counts more.
    pub vm: Option<VmId>,
    /// Where a host that runs the VM answers others who ask what it does.
    pub listen: Option<StandbyOptions>,
    /// What protects the streams to other hosts.
    pub tls: PeerTls,
    /// The VM has disks that are to know what they are used for, also while it is not protected.
    pub notes_disks: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            board: Board::default(),
            peers: Vec::new(),
            witness: None,
            host: unnamed_host(),
            vm: None,
            listen: None,
            tls: PeerTls::off(),
            notes_disks: false,
        }
    }
}

/// What can be asked of the engine of a VM.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// Protects the VM, by the configured peers if no other one is named. Done when a standby has accepted
    /// and the first copy has begun. Configured peers are looked for again from now on.
    Protect(Option<Box<ProtectOptions>>),
    /// Ends protection; the VM goes on alone, and no standby is looked for. Done when it does.
    Stop,
    /// Ends protection for a while: the VM goes on alone, and what it writes is kept track of, so that
    /// [`Self::Resume`] need not copy everything again. Done when it is alone.
    Suspend,
    /// Ends that while. Done when a standby has accepted.
    Resume,
    /// Stops the VM here and lets the standby go on with it, for this reason.
    HandOver(String),
    /// Moves the VM to its standby with nothing in flight. Done when it has left.
    Switchover,
    /// Stops the VM here without a word to its standby, which finds out and takes over. Done when it is
    /// stopped.
    TestFailover,
}

/// The protection of one VM, as its VMM sees it.
pub trait Control: Send + Sync {
    /// The VM has booted: a standby is looked for from now on.
    fn vm_started(&self);
    /// Has the engine do something, and waits until it is done. May take as long as a host that is down, or a
    /// witness that hangs.
    ///
    /// # Errors
    /// Why it is not done.
    fn call(&self, call: Call) -> Result<(), Refused>;
    /// The VM has ended for good, and its vCPUs run no more: tells the standby and the witness.
    fn vm_ended(&self);
    /// Ends the engine and gives its addresses back; status and events stay what they are.
    fn end(&self);
    /// The status, at most 100 ms old. Takes no lock that an epoch holds.
    fn status(&self) -> Status;
    /// The last events, oldest first. Takes no lock that an epoch holds.
    fn events(&self) -> Vec<EventRecord>;
}

/// A VM's fault tolerance. Dropping it ends its threads; a peer notices that as the end of this node.
#[derive(Debug)]
pub struct Ft {
    post: Post<Linux>,
    board: Board,
    /// Closed when the engine has ended. Whoever is to answer a call may outlive it, on its way to a host
    /// that is down.
    ended: Receiver<Infallible>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
    tls: PeerTls,
    /// Callers that were turned away.
    turned_away: Arc<AtomicU64>,
    _expiry: Option<ExpiryWatch>,
}

impl Ft {
    /// For a VM that runs here, alone, from [`Control::vm_started`] on.
    ///
    /// # Errors
    /// When a thread or descriptor cannot be had, or a disk cannot note that it is run from.
    pub fn solo(guest: Box<dyn Guest>, node_term: NodeTerm, setup: Setup) -> Result<Self, EngineError> {
        let listen = setup.listen.clone();
        Self::start(guest, Begin::Run(node_term), setup, listen)
    }

    /// For a VM that is built here and waits for a primary.
    ///
    /// # Errors
    /// When an address cannot be bound, or a thread or descriptor cannot be had.
    pub fn standby(guest: Box<dyn Guest>, options: StandbyOptions, setup: Setup) -> Result<Self, EngineError> {
        Self::start(guest, Begin::StandBy(incarnation_of(setup.host)), setup, Some(options))
    }

    fn start(
        mut guest: Box<dyn Guest>,
        begin: Begin,
        setup: Setup,
        options: Option<StandbyOptions>,
    ) -> Result<Self, EngineError> {
        let (inbox, post) = Inbox::new()?;
        let Setup { board, peers, witness, vm, tls, notes_disks, .. } = setup;
        let clock = Clock::new();
        let beat_post = post.clone();
        let device_wait = guest.device_wait();
        let beats = Beats::start(
            move || clock.now(),
            move || device_wait.is_on(),
            move |link, at, beat| beat_post.heard(link, at, beat),
        )?;
        let witness = witness.as_ref().map(WitnessClient::start).transpose()?;
        if let (Begin::StandBy(_), Some(options)) = (&begin, &options) {
            beats.route(listen_for_beats(options)?, None);
        }
        let listener = options.as_ref().map(|options| listen(options, &tls, board.clone(), post.clone()));
        let listener = listener.transpose()?;
        let turned_away = listener.as_ref().map(Listener::turned_away).unwrap_or_default();
        let devices = guest.links()?.into_iter().map(device_end).collect();
        let parts = Parts {
            platform: Linux::new(clock, tls.clone())?,
            guest,
            devices,
            post: post.clone(),
            board: board.clone(),
            beats,
            begin,
            vm,
            listen: options,
            peers,
            witness,
        };
        let mut engine = Engine::new(parts, inbox, listener)?;
        if notes_disks {
            engine.note_owner()?;
        }
        engine.publish();
        let (running, ended) = bounded(0);
        let thread = host_kit::thread::spawn("ft", needs::ENGINE, move || {
            let _running = running;
            engine.run();
        })?;
        let expiry = ExpiryWatch::start(tls.clone(), board.clone())?;
        Ok(Self { post, board, ended, thread: Mutex::new(Some(thread)), tls, turned_away, _expiry: expiry })
    }

    /// As [`Call::Protect`].
    ///
    /// # Errors
    /// Every reason why the VM cannot be protected, all at once.
    pub fn protect(&self, options: Option<ProtectOptions>) -> Result<(), Refused> {
        self.call(Call::Protect(options.map(Box::new)))
    }

    /// As [`Call::Stop`].
    ///
    /// # Errors
    /// When the VM is not protected, or the witness gives it to the other node.
    pub fn stop(&self) -> Result<(), Refused> {
        self.call(Call::Stop)
    }

    /// As [`Call::Suspend`].
    ///
    /// # Errors
    /// When the VM is not protected, or the witness gives it to the other node.
    pub fn suspend(&self) -> Result<(), Refused> {
        self.call(Call::Suspend)
    }

    /// As [`Call::Resume`].
    ///
    /// # Errors
    /// When protection is not suspended, or every reason why nobody accepts; it stays suspended then.
    pub fn resume(&self) -> Result<(), Refused> {
        self.call(Call::Resume)
    }

    /// As [`Call::HandOver`].
    ///
    /// # Errors
    /// When the VM is not protected.
    pub fn hand_over(&self, reason: &str) -> Result<(), Refused> {
        self.call(Call::HandOver(reason.to_owned()))
    }

    /// As [`Call::Switchover`].
    ///
    /// # Errors
    /// When the VM is not protected, or stays here because the standby was lost.
    pub fn switchover(&self) -> Result<(), Refused> {
        self.call(Call::Switchover)
    }

    /// As [`Call::TestFailover`].
    ///
    /// # Errors
    /// When the VM is not protected.
    pub fn test_failover(&self) -> Result<(), Refused> {
        self.call(Call::TestFailover)
    }

    /// A device has joined the VM: from now on it is part of every checkpoint. One that has a copy on the
    /// other host joins only while no session is open.
    ///
    /// # Errors
    /// When it has to wait.
    pub fn device_joined(&self, end: LinkEnd) -> Result<(), Refused> {
        self.ask_and_wait(|reply| Message::DeviceJoined(device_end(end), reply))
    }

    /// The device of this id has left the VM.
    ///
    /// # Errors
    /// When there is none.
    pub fn device_left(&self, id: &str) -> Result<(), Refused> {
        self.ask_and_wait(|reply| Message::DeviceLeft(id.to_owned(), reply))
    }

    fn ask_and_wait(&self, message: impl FnOnce(Reply) -> Message<Linux>) -> Result<(), Refused> {
        let answer = self.ask(message);
        let ended = || Err(Refused::Ended);
        // An answer that is there counts, even if the engine has ended since.
        select_biased! {
            recv(answer) -> answer => answer.unwrap_or_else(|_| ended()),
            recv(self.ended) -> _ => answer.try_recv().unwrap_or_else(|_| ended()),
        }
    }

    fn ask(&self, message: impl FnOnce(Reply) -> Message<Linux>) -> Receiver<Result<(), Refused>> {
        let (reply, answer) = bounded(1);
        self.post.send(message(reply));
        answer
    }
}

impl Control for Ft {
    fn vm_started(&self) {
        self.post.send(Message::VmStarted);
    }

    fn call(&self, call: Call) -> Result<(), Refused> {
        self.ask_and_wait(|reply| match call {
            Call::Protect(options) => Message::Protect(options.map(|options| *options), reply),
            Call::Stop => Message::Stop(reply),
            Call::Suspend => Message::Suspend(reply),
            Call::Resume => Message::Resume(reply),
            Call::HandOver(reason) => Message::HandOver(reason, reply),
            Call::Switchover => Message::Switchover(reply),
            Call::TestFailover => Message::TestFailover(reply),
        })
    }

    fn vm_ended(&self) {
        // A standby is told not to take over; having none is as good. An engine that has ended has nothing to
        // tell.
        if let Err(RecvTimeoutError::Timeout) = self.ask(Message::Stop).recv_timeout(STOP_TIMEOUT) {
            let witness = self.status().witness.map(|witness| witness.name).unwrap_or_default();
            tracing::warn!(
                target: "ft",
                "witness {witness} has not answered within {} s: the VM ends here, and its standby may go on with it",
                STOP_TIMEOUT.as_secs()
            );
        }
        let _ = self.ask_and_wait(Message::VmEnded);
    }

    fn end(&self) {
        self.post.send(Message::Quit);
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }

    fn status(&self) -> Status {
        let turned_away = self.turned_away.load(Ordering::Relaxed);
        Status { tls: Some(self.tls.status()), turned_away, ..self.board.status() }
    }

    fn events(&self) -> Vec<EventRecord> {
        self.board.events()
    }
}

impl Drop for Ft {
    fn drop(&mut self) {
        self.end();
    }
}

fn device_end(LinkEnd { id, caps, socket }: LinkEnd) -> DeviceEnd<ControlSocket> {
    DeviceEnd { caps, control: ControlSocket::new(id, socket) }
}

/// Accepts connections from primaries and from hosts that ask.
fn listen(options: &StandbyOptions, tls: &PeerTls, board: Board, post: Post<Linux>) -> Result<Listener, EngineError> {
    let tell = move |arrival| match arrival {
        Arrival::Incoming(caller) => post.send(Message::Incoming(caller)),
        Arrival::Trouble(reason) => post.send(Message::LocalError("ft-listen", reason)),
        Arrival::TurnedAway(cause, address) => {
            let detail = json!({ "reason": format!("a caller {cause}"), "address": address.to_string() });
            board.note(EventName::CallerTurnedAway, detail);
        }
    };
    let tls = tls.credentials().map_err(EngineError::Tls)?;
    Listener::open(options.listen, tls, tell).map_err(|error| EngineError::Listen(options.listen, error))
}

fn listen_for_beats(options: &StandbyOptions) -> Result<Vec<BeatSocket>, EngineError> {
    let bind = |(link, address)| BeatSocket::listen(link, address).map_err(|error| EngineError::Listen(address, error));
    LinkId::ALL.into_iter().zip([options.listen, options.heartbeat]).map(bind).collect()
}
