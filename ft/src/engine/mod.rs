//! The engine's thread: waits for anything to happen and has the executor deal with it.
//!
//! One epoll over the inbox of the other threads, the device processes' sockets, the standby's
//! acknowledgements and a timer. Between output held by a device and its release there is no other thread but
//! the sender, and no lock.

mod admission;
pub(crate) mod assembly;
mod checkpointer;
pub(crate) mod executor;
mod operator_commands;
mod protection;
mod timer;

use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

use ft_transport::listener::Listener;
use nix::errno::Errno;

use self::assembly::assemble;
pub(crate) use self::assembly::{Begin, Parts};
use self::executor::Executor;
use self::timer::Timer;
use crate::context::inbox::Inbox;
use crate::devices::control::LinkError;
use crate::platform::linux::Linux;
use crate::platform::poller::{Poller, Ready, Token};

/// Between two looks at everything when the kernel does not say what is ready.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The executor, and what its thread waits with.
pub(crate) struct Engine {
    executor: Executor<Linux>,
    inbox: Inbox<Linux>,
    poller: Poller,
    timer: Timer,
    _listener: Option<Listener>,
}

impl Engine {
    /// `listener`: who lets callers in, as long as the engine runs.
    pub(crate) fn new(
        parts: Parts<Linux>,
        inbox: Inbox<Linux>,
        listener: Option<Listener>,
    ) -> Result<Self, EngineError> {
        let poller = parts.platform.poller().clone();
        let timer = Timer::new()?;
        poller.watch(Token::Inbox, &inbox)?;
        poller.watch(Token::Timer, &timer)?;
        let mut executor = assemble(parts);
        executor.context().watch_devices();
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
            cx.local_error_once(format!("cannot set the timer: {errno}"));
        }
    }

    /// The kernel does not say what is ready: the engine looks at everything, slowly, rather than leave its
    /// VM without protection or, worse, without anybody who lets its output go.
    fn look_at_all(&mut self, errno: Errno) -> ControlFlow<()> {
        self.executor.context().local_error_once(format!("epoll failed: {errno}"));
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
    /// Other hosts cannot be talked to as they must be.
    #[error("--ft: {0}")]
    Tls(String),
    /// An address of `--ft` cannot be bound.
    #[error("--ft: cannot listen at {0}")]
    Listen(std::net::SocketAddr, #[source] io::Error),
}
