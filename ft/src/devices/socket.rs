//! The control socket to one device process, in production: a datagram is a command, or a report.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ft_proto::device_ctl::{self, CTL_MAX, Command, Report};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};

use super::control::{Control, LinkError};

/// A connected socket on which `Hello` was answered.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    id: String,
    socket: OwnedFd,
    buffer: Box<[u8; CTL_MAX]>,
}

impl ControlSocket {
    pub(crate) fn new(id: String, socket: OwnedFd) -> Self {
        Self { id, socket, buffer: Box::new([0; CTL_MAX]) }
    }
}

impl Control for ControlSocket {
    type Stream = TcpStream;
    type Deadline = Instant;

    fn id(&self) -> &str {
        &self.id
    }

    fn send(&mut self, command: &Command, stream: Option<&TcpStream>) -> Result<(), LinkError> {
        let bytes = device_ctl::encode(command, &mut self.buffer[..])
            .map_err(|source| LinkError::Malformed { id: self.id.clone(), source })?;
        let fds: Vec<_> = stream.iter().map(|stream| stream.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let rights = if fds.is_empty() { &[][..] } else { &rights[..] };
        loop {
            match sendmsg::<()>(
                self.socket.as_raw_fd(),
                &[io::IoSlice::new(bytes)],
                rights,
                MsgFlags::MSG_NOSIGNAL,
                None,
            ) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(broken(&self.id, errno)),
            }
        }
    }

    fn recv_now(&mut self) -> Result<Option<Report>, LinkError> {
        loop {
            return match recv(self.socket.as_raw_fd(), &mut self.buffer[..], MsgFlags::MSG_DONTWAIT) {
                Ok(0) => Err(LinkError::Gone(self.id.clone())),
                Ok(len) => device_ctl::decode(&self.buffer[..len])
                    .map(Some)
                    .map_err(|source| LinkError::Malformed { id: self.id.clone(), source }),
                Err(Errno::EAGAIN) => Ok(None),
                Err(Errno::EINTR) => continue,
                Err(errno) => Err(broken(&self.id, errno)),
            };
        }
    }

    fn deadline(&self, limit: Duration) -> Instant {
        Instant::now() + limit
    }

    fn wait(&mut self, deadline: &Instant) -> Result<bool, LinkError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(true),
            Err(errno) => Err(broken(&self.id, errno)),
        }
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn broken(id: &str, errno: Errno) -> LinkError {
    match errno {
        Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN => LinkError::Gone(id.to_owned()),
        _ => LinkError::Socket { id: id.to_owned(), source: errno.into() },
    }
}
