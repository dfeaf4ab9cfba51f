//! The engine's thread: waits for anything to happen and has the executor deal with it.
//!
//! One epoll over the inbox of the other threads, the device processes' sockets, the standby's
//! acknowledgements and a timer. Between output held by a device and its release there is no other thread but
//! the sender, and no lock.

mod admission;
mod checkpointer;
mod executor;
mod operator_commands;
mod protection;
mod timer;

use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::time::Duration;

use ft_proto::{Node, NodeId, Settings, VmId};
use nix::errno::Errno;

use self::admission::Admission;
use self::executor::Executor;
use self::protection::Protection;
use self::timer::Timer;
use crate::clock::Clock;
use crate::context::inbox::{Inbox, Post};
use crate::context::machine::Machine;
use crate::context::poller::{Poller, Ready, Token};
use crate::context::reporter::Reporter;
use crate::context::witness_link::WitnessLink;
use crate::context::{self, Context};
use crate::devices::link::LinkError;
use crate::guest::{Guest, HeldOutput};
use crate::identity::Identity;
use crate::options::{ProtectOptions, StandbyOptions};
use crate::peers::search::Search;
use crate::start::NodeTerm;
use crate::status::Board;
use crate::transport::beats::Beats;
use crate::transport::listener::Listener;
use crate::witness::WitnessClient;

/// Between two looks at everything when the kernel does not say what is ready.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What a node begins as.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Begin {
    /// It runs the VM.
    Run(NodeTerm),
    /// It waits for a primary.
    StandBy(NodeId),
}

/// What an engine is made of: the arguments of [`Engine::new`] by name.
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
    pub(crate) listener: Option<(StandbyOptions, Listener)>,
    pub(crate) peers: Vec<ProtectOptions>,
    pub(crate) witness: Option<WitnessClient>,
}

/// The executor, and what its thread waits with.
pub(crate) struct Engine {
    executor: Executor,
    inbox: Inbox,
    poller: Poller,
    timer: Timer,
    _listener: Option<Listener>,
}

impl Engine {
    pub(crate) fn new(parts: Parts) -> Result<Self, EngineError> {
        let Parts { guest, inbox, post, board, beats, clock, begin, vm, listener, peers, witness } = parts;
        let mut machine = Machine::new(guest)?;
        let held = post.clone();
        machine.watch_console(HeldOutput::new(move |epoch| held.output_held(epoch)));
        let poller = Poller::new()?;
        let now = clock.now();
        let (node, identity, on_record) = match begin {
            Begin::StandBy(node) => (Node::standby(node, Settings::default(), now), Identity::new(vm, false), true),
            Begin::Run(node_term) => {
                let node = Node::solo(node_term.node, node_term.term, Settings::default(), now);
                (node, Identity::new(Some(node_term.vm), node_term.first), !node_term.first)
            }
        };
        let mut search = Search::new(peers);
        // The VM of a standby runs as soon as it has taken over.
        search.switch(matches!(begin, Begin::StandBy(_)));
        let (listen, listener) = listener.unzip();
        let mut cx = Context::new(context::Parts {
            node,
            clock,
            machine,
            identity,
            witness: WitnessLink::new(witness, on_record, now),
            beats,
            reporter: Reporter::new(board, now),
            poller: poller.clone(),
            post,
        });
        let timer = Timer::new()?;
        cx.watch(Token::Inbox, inbox.as_fd());
        cx.watch(Token::Timer, timer.as_fd());
        cx.watch_devices();
        let executor = Executor::new(cx, Protection::new(search), Admission::new(listen));
        Ok(Self { executor, inbox, poller, timer, _listener: listener })
    }

    /// Has the disks note that this host runs the VM, before it does: afterwards they prove it.
    pub(crate) fn note_owner(&mut self) -> Result<(), LinkError> {
        self.executor.note_owner()
    }

    /// Makes the status on the board current.
    pub(crate) fn publish(&mut self) {
        self.executor.publish();
    }

    /// Runs until told to quit.
    pub(crate) fn run(mut self) {
        self.executor.begin();
        let mut ready = Ready::new();
        while self.turn(&mut ready).is_continue() {}
        self.executor.end();
    }

    /// Waits once.
    fn turn(&mut self, ready: &mut Ready) -> ControlFlow<()> {
        // Before a thread is started, which would inherit it. The first copy is work in bulk: never urgent.
        host_kit::sched::set_realtime(self.executor.is_urgent());
        self.executor.look_around();
        self.arm_timer();
        match self.poller.wait(ready) {
            Ok(()) => {}
            Err(Errno::EINTR) => return ControlFlow::Continue(()),
            Err(errno) => return self.look_at_all(errno),
        }
        // Messages first: beats that have arrived must be told before the clock is looked at.
        self.read_inbox()?;
        let mut at = 0;
        while let Some(token) = ready.get(at) {
            match token {
                Token::Inbox => {}
                Token::Timer => self.timer_fired(),
                Token::Stream => self.executor.read_stream(),
                Token::Device(key) => self.executor.read_device(key),
            }
            at += 1;
        }
        self.executor.publish_if_due();
        ControlFlow::Continue(())
    }

    fn read_inbox(&mut self) -> ControlFlow<()> {
        self.inbox.acknowledge();
        while let Some(message) = self.inbox.next() {
            self.executor.message(message)?;
        }
        ControlFlow::Continue(())
    }

    fn timer_fired(&mut self) {
        self.timer.acknowledge();
        self.executor.timer_fired();
    }

    fn arm_timer(&mut self) {
        let due = self.executor.due();
        let cx = self.executor.context();
        if let Err(errno) = self.timer.arm(due, cx.now()) {
            cx.trouble_once(format!("cannot set the timer: {errno}"));
        }
    }

    /// The kernel does not say what is ready: the engine looks at everything, slowly, rather than leave its
    /// VM without protection or, worse, without anybody who lets its output go.
    fn look_at_all(&mut self, errno: Errno) -> ControlFlow<()> {
        self.executor.context().trouble_once(format!("epoll failed: {errno}"));
        std::thread::sleep(LOOK_AGAIN);
        self.read_inbox()?;
        self.timer_fired();
        self.executor.read_stream();
        for key in self.executor.context().devices().keys() {
            self.executor.read_device(key);
        }
        self.executor.publish_if_due();
        ControlFlow::Continue(())
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
