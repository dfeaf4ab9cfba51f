//! Output-buffering network card: a vhost-user backend that holds the guest's frames until their epoch is committed.
//!
//! In: a virtio-net device's queues (vhost-user), the VMM's ft-ctl commands, a tap. Out: frames. Never: a held frame
//! before its release, and guest memory touched between `Seal` and `Resume`.
//!
//! Reading order: `backend` (events and the order of work), `commands` (ft-ctl), `output` and `input` (frames), then what
//! they are made of: `gate`, `epoch_buffer`, `work` (pure), `ring`, `tap`, `announce`, `control`, `sockets`, `poller`, `relay`.

pub mod announce;
pub mod args;
pub mod backend;
mod commands;
mod control;
mod control_queue;
pub mod epoch_buffer;
pub mod gate;
mod input;
mod output;
mod poller;
mod relay;
pub mod ring;
mod sockets;
pub mod tap;
mod work;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use device_counters::{NetCounters, Page};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use vhost::vhost_user::{Error as VhostError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::event::{EventFlag, new_event_consumer_and_notifier};

use crate::args::{Args, Endpoint};
use crate::backend::{Net, Shared};
use crate::control::Control;
use crate::sockets::{Kind, UnlinkOnDrop, inherited, listen_at};
use crate::tap::Tap;

/// Why the card could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No tap.
    #[error(transparent)]
    Tap(#[from] tap::TapError),
    /// No socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The frontend or the vhost-user library.
    #[error("vhost-user: {0}")]
    VhostUser(String),
    /// No place to count.
    #[error("--counters {}: cannot be used", path.display())]
    Counters {
        /// The flag's value.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// The host is out of something.
    #[error("{what}")]
    Host {
        /// What could not be had.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

pub use sockets::SocketError;

fn host(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Host { what, source }
}

/// Runs the card until its frontend disconnects, its ft-ctl link closes, or SIGTERM or SIGINT arrives.
///
/// Blocks these signals for the calling thread and those it starts: call it early.
///
/// # Errors
/// When it cannot start, or the frontend breaks the protocol.
pub fn run(args: &Args) -> Result<(), Error> {
    let signals = signals().map_err(host("signals cannot be received"))?;
    let (listener, _unlink) = vhost_socket(args)?;
    let control = ft_ctl(args)?;
    let counters = counters(args)?;
    let tap = Tap::open(args)?;
    tracing::info!("tap {}, {} queue pairs", tap.name(), args.num_queues);

    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let (ended, quit) = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)
        .map_err(host("an event counter cannot be had"))?;
    let net = Net::new(args, tap, control, counters, memory.clone(), Some(signals), quit)
        .map_err(host("a timer or event counter cannot be had"))?;
    let net: Shared = Arc::new(Mutex::new(net));
    let mut daemon = VhostUserDaemon::new("vhost-user-net".into(), net.clone(), memory).map_err(vhost_user)?;
    for handler in daemon.get_epoll_handlers() {
        // SAFETY: the handler owns the descriptor and lives until after the duplicate is made.
        let epoll = unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&*handler)) };
        let epoll = epoll.try_clone_to_owned().map_err(host("a descriptor cannot be had"))?;
        lock(&net).attach(epoll).map_err(host("events cannot be received"))?;
    }
    if !frontend_waits(&listener, &ended)? {
        return Ok(());
    }
    let listener = if args.ft_ctl.is_some() { listener } else { relayed(&listener)? };
    daemon.start(&mut Listener::from(UnixListener::from(listener))).map_err(vhost_user)?;
    lock(&net).set_connection(daemon.shutdown_handle());
    match daemon.wait() {
        Ok(())
        | Err(DaemonError::HandleRequest(
            VhostError::Disconnected | VhostError::PartialMessage | VhostError::SocketBroken(_),
        )) => Ok(()),
        Err(e) => Err(vhost_user(e)),
    }
}

fn vhost_user(error: DaemonError) -> Error {
    Error::VhostUser(error.to_string())
}

/// A panic of the worker has already been reported; the card is useless then, but shutting down needs no intact state.
fn lock(net: &Shared) -> std::sync::MutexGuard<'_, Net> {
    net.lock().unwrap_or_else(PoisonError::into_inner)
}

fn signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

fn vhost_socket(args: &Args) -> Result<(OwnedFd, Option<UnlinkOnDrop>), Error> {
    match &args.socket {
        Endpoint::Fd(fd) => Ok((inherited("--socket", *fd, Kind::Stream, true)?, None)),
        Endpoint::Path(path) => {
            let (fd, unlink) = listen_at("--socket", path, Kind::Stream)?;
            Ok((fd, Some(unlink)))
        }
    }
}

fn ft_ctl(args: &Args) -> Result<Option<Control>, Error> {
    Ok(match &args.ft_ctl {
        None => None,
        Some(Endpoint::Fd(fd)) => Some(Control::connected(inherited("--ft-ctl", *fd, Kind::SeqPacket, false)?)),
        Some(Endpoint::Path(path)) => {
            let (fd, unlink) = listen_at("--ft-ctl", path, Kind::SeqPacket)?;
            Some(Control::listening(fd, unlink))
        }
    })
}

fn counters(args: &Args) -> Result<NetCounters, Error> {
    let page = match &args.counters {
        Some(path) => Page::open(path).map_err(|source| Error::Counters { path: path.clone(), source })?,
        None => Page::private().map_err(host("memory for counters cannot be had"))?,
    };
    Ok(NetCounters::new(page))
}

/// Puts the relay between the waiting frontend and the library.
fn relayed(listener: &OwnedFd) -> Result<OwnedFd, Error> {
    let frontend = sockets::accept(listener).map_err(host("the frontend cannot be accepted"))?;
    relay::start(frontend.into()).map_err(host("the vhost-user relay cannot be started"))
}

/// Waits for a frontend to connect. False: the process is to end first.
fn frontend_waits(listener: &OwnedFd, ended: &impl std::os::fd::AsRawFd) -> Result<bool, Error> {
    // SAFETY: the caller owns the descriptor for longer than this call.
    let ended = unsafe { BorrowedFd::borrow_raw(ended.as_raw_fd()) };
    loop {
        let mut fds = [PollFd::new(ended, PollFlags::POLLIN), PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => return Ok(!fds[0].any().unwrap_or(true)),
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(Error::Host { what: "waiting for the frontend failed", source: e.into() }),
        }
    }
}
