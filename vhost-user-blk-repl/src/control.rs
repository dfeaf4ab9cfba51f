//! The ft-ctl socket: one datagram is one message, a command may bring one descriptor.
//!
//! Reports are sent from several threads; `SOCK_SEQPACKET` keeps each whole. A [`Session`] stops late reports of a
//! mirror stream that is over.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use ft_proto::device_ctl::{CTL_MAX, Command, CtlError, Report, decode, encode};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, listen,
    recvmsg, send, socket,
};
use tracing::warn;

use crate::lock;

/// The device's end of an ft-ctl socket.
pub struct Link {
    fd: OwnedFd,
    /// Received datagrams; kept, because a `Seal` should not wait for memory.
    incoming: Mutex<Vec<u8>>,
}

/// One command from the VMM, and the descriptor that came with it.
pub type Received = (Command, Option<OwnedFd>);

/// Why nothing was received.
#[derive(Debug, thiserror::Error)]
pub enum RecvError {
    /// Nothing is there now.
    #[error("nothing to read")]
    Empty,
    /// The VMM has closed its end.
    #[error("the link is closed")]
    Closed,
    /// A datagram that is not a command.
    #[error("a datagram that is not a command")]
    Malformed(#[source] CtlError),
    /// A datagram longer than any command.
    #[error("a datagram longer than any command")]
    TooLong,
}

impl Link {
    /// Wraps a connected `SOCK_SEQPACKET` socket.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd, incoming: Mutex::new(vec![0; CTL_MAX]) }
    }

    /// Descriptor to wait on.
    #[must_use]
    pub fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// The next command; does not block.
    ///
    /// # Errors
    /// See [`RecvError`].
    pub fn recv(&self) -> Result<Received, RecvError> {
        let mut bytes = lock(&self.incoming);
        let mut iov = [IoSliceMut::new(&mut bytes)];
        let mut space = nix::cmsg_space!([RawFd; 4]);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = loop {
            match recvmsg::<()>(self.raw_fd(), &mut iov, Some(&mut space), flags) {
                Ok(message) => break message,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(RecvError::Empty),
                Err(_) => return Err(RecvError::Closed),
            }
        };
        let mut fds = Vec::new();
        for control in message.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::ScmRights(received) = control {
                // SAFETY: the kernel has just installed these descriptors for this message; nobody else knows them.
                fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let (len, truncated) = (message.bytes, message.flags.contains(MsgFlags::MSG_TRUNC));
        match len {
            0 => Err(RecvError::Closed),
            _ if truncated => Err(RecvError::TooLong),
            _ => decode(&bytes[..len]).map(|command| (command, fds.pop())).map_err(RecvError::Malformed),
        }
    }

    /// Sends a report; waits for room. A link that is closed is noticed where commands are read, not here.
    pub fn report(&self, report: &Report) {
        self.send(report, MsgFlags::empty());
    }

    /// Sends a report unless the VMM is behind with reading: for progress, of which the next one says more.
    pub fn report_if_room(&self, report: &Report) {
        self.send(report, MsgFlags::MSG_DONTWAIT);
    }

    fn send(&self, report: &Report, flags: MsgFlags) {
        let mut buf = [0; 2048];
        let mut large;
        let bytes = match encode(report, &mut buf) {
            Ok(bytes) => bytes,
            Err(_) => {
                large = vec![0; CTL_MAX];
                match encode(report, &mut large) {
                    Ok(bytes) => bytes,
                    Err(e) => return warn!("cannot encode a report: {e}"),
                }
            }
        };
        loop {
            match send(self.raw_fd(), bytes, flags | MsgFlags::MSG_NOSIGNAL) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if !flags.contains(MsgFlags::MSG_DONTWAIT) => {
                    let _ = poll(&mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE);
                }
                _ => return,
            }
        }
    }
}

/// Right to report about one mirror stream, until it is closed.
#[derive(Clone)]
pub struct Session {
    link: Arc<Link>,
    live: Arc<Mutex<bool>>,
}

impl Session {
    /// A live session on `link`.
    #[must_use]
    pub fn new(link: Arc<Link>) -> Self {
        Self { link, live: Arc::new(Mutex::new(true)) }
    }

    /// Reports, if the session is not closed.
    pub fn report(&self, report: &Report) {
        let live = lock(&self.live);
        if *live {
            self.link.report(report);
        }
    }

    /// Reports progress, if the session is not closed and the VMM is not behind.
    pub fn progress(&self, report: &Report) {
        let live = lock(&self.live);
        if *live {
            self.link.report_if_room(report);
        }
    }

    /// Reports one last thing and closes the session.
    pub fn finish(&self, report: &Report) {
        let mut live = lock(&self.live);
        if *live {
            self.link.report(report);
        }
        *live = false;
    }

    /// No report is sent after this returns.
    pub fn close(&self) {
        *lock(&self.live) = false;
    }
}

/// Listens on an ft-ctl socket at `path`.
///
/// # Errors
/// When the path is taken or not writable.
pub fn listen_at(path: &Path) -> io::Result<OwnedFd> {
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::new(1)?)?;
    Ok(fd)
}

/// Accepts one connection.
///
/// # Errors
/// Of the kernel.
pub fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    loop {
        match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            // SAFETY: accept4 has just made this descriptor; nobody else knows it.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            Err(Errno::EINTR | Errno::ECONNABORTED) => {}
            Err(e) => return Err(e.into()),
        }
    }
}
