//! One end of an ft-ctl socket: a unix `SOCK_SEQPACKET` socket on which one datagram is one message.
//!
//! In and out: messages of any type, some with a descriptor. Never: a message in parts, or one that blocks
//! the receiver.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use ft_wire::device_ctl::{CTL_MAX, CtlError, decode, encode};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType, recvmsg, sendmsg,
    shutdown, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most messages are shorter, and are encoded on the stack.
const SHORT: usize = 2048;

/// Why a link cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other end is closed.
    #[error("the ft-ctl link is closed")]
    Closed,
    /// A datagram that is not a message of this protocol.
    #[error("a datagram that is not a {expected}")]
    Malformed {
        /// What it should have been.
        expected: &'static str,
        /// The decoder's answer.
        #[source]
        source: CtlError,
    },
    /// A datagram longer than any message.
    #[error("a datagram longer than any {expected}")]
    TooLong {
        /// What it should have been.
        expected: &'static str,
    },
    /// A message that cannot be encoded: a bug of the sender.
    #[error("an ft-ctl message cannot be encoded")]
    Encode(#[source] CtlError),
    /// The socket failed.
    #[error("the ft-ctl socket failed")]
    Socket(#[source] io::Error),
}

impl From<Errno> for LinkError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN => Self::Closed,
            _ => Self::Socket(errno.into()),
        }
    }
}

/// A message that arrived, and the descriptor that came with it.
pub type Received<T> = (T, Option<OwnedFd>);

/// One end of the socket. May be shared: each message is sent whole, whoever sends it.
#[derive(Debug)]
pub struct Link(OwnedFd);

impl Link {
    /// Takes over a connected `SOCK_SEQPACKET` socket.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// A link and the socket of its other end, which does not survive an exec.
    ///
    /// # Errors
    /// When descriptors have run out.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (near, far) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(near), far))
    }

    /// Another handle of the same end.
    ///
    /// # Errors
    /// When descriptors have run out.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Sends a message, with a descriptor if there is one. Waits for room.
    ///
    /// # Errors
    /// When the link is closed or broken.
    pub fn send<T: Serialize>(&self, message: &T, fd: Option<BorrowedFd<'_>>) -> Result<(), LinkError> {
        self.encode(message, |bytes| {
            // An inherited socket may be set to non-blocking.
            while !self.send_bytes(bytes, fd, MsgFlags::empty())? {
                self.poll(PollFlags::POLLOUT, PollTimeout::NONE)?;
            }
            Ok(())
        })
    }

    /// Sends a message if there is room for it. False: there was none.
    ///
    /// # Errors
    /// When the link is closed or broken.
    pub fn try_send<T: Serialize>(&self, message: &T) -> Result<bool, LinkError> {
        self.encode(message, |bytes| self.send_bytes(bytes, None, MsgFlags::MSG_DONTWAIT))
    }

    /// The next message, if one is there; never waits. `buffer` has [`CTL_MAX`] bytes; the caller keeps it,
    /// since a `Seal` should not wait for memory. `expected` is what errors call a message.
    ///
    /// # Errors
    /// When the link is closed or broken, or something else than a message arrived.
    pub fn receive<T: DeserializeOwned>(
        &self,
        buffer: &mut [u8],
        expected: &'static str,
    ) -> Result<Option<Received<T>>, LinkError> {
        let mut parts = [IoSliceMut::new(buffer)];
        let mut space = nix::cmsg_space!([RawFd; 4]);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = loop {
            match recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut space), flags) {
                Ok(message) => break message,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        };
        let mut fds = Vec::new();
        for control in message.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::ScmRights(received) = control {
                // SAFETY: the kernel has just made these descriptors for this message; nobody else knows
                // them.
                fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let (len, truncated) = (message.bytes, message.flags.contains(MsgFlags::MSG_TRUNC));
        match len {
            0 => Err(LinkError::Closed),
            _ if truncated => Err(LinkError::TooLong { expected }),
            _ => match decode(buffer.get(..len).unwrap_or_default()) {
                Ok(message) => Ok(Some((message, fds.pop()))),
                Err(source) => Err(LinkError::Malformed { expected, source }),
            },
        }
    }

    /// Waits until a message can be received. False: not before the timeout.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wait(&self, timeout: PollTimeout) -> Result<bool, LinkError> {
        self.poll(PollFlags::POLLIN, timeout)
    }

    /// Closes the link at once, whoever has a handle of it.
    pub fn shut(&self) {
        // It may be closed already.
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }

    fn encode<T: Serialize, R>(
        &self,
        message: &T,
        send: impl FnOnce(&[u8]) -> Result<R, LinkError>,
    ) -> Result<R, LinkError> {
        if let Ok(bytes) = encode(message, &mut [0; SHORT]) {
            return send(bytes);
        }
        send(encode(message, &mut vec![0; CTL_MAX]).map_err(LinkError::Encode)?)
    }

    /// False: no room.
    fn send_bytes(&self, bytes: &[u8], fd: Option<BorrowedFd<'_>>, flags: MsgFlags) -> Result<bool, LinkError> {
        let raw = fd.map(|fd| [fd.as_raw_fd()]);
        let rights = raw.as_ref().map(|fds| ControlMessage::ScmRights(fds));
        loop {
            let parts = [IoSlice::new(bytes)];
            match sendmsg::<()>(self.0.as_raw_fd(), &parts, rights.as_slice(), flags | MsgFlags::MSG_NOSIGNAL, None) {
                Ok(_) => return Ok(true),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(false),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn poll(&self, events: PollFlags, timeout: PollTimeout) -> Result<bool, LinkError> {
        loop {
            match poll(&mut [PollFd::new(self.0.as_fd(), events)], timeout) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use ft_proto::Epoch;
    use ft_wire::device_ctl::{Command, Report};
    use nix::sys::socket::send;

    use super::*;

    fn pair() -> (Link, Link) {
        let (near, far) = Link::pair().unwrap();
        (near, Link::new(far))
    }

    fn receive(link: &Link) -> Result<Option<Received<Command>>, LinkError> {
        link.receive(&mut vec![0; CTL_MAX], "command")
    }

    #[test]
    fn messages_arrive_whole_and_in_order_some_with_a_descriptor() {
        let (near, far) = pair();
        assert!(receive(&far).unwrap().is_none());
        let (stream, other) = Link::pair().unwrap();
        near.send(&Command::Standby(true), None).unwrap();
        near.send(&Command::Receive { max_uncommitted: 7 }, Some(other.as_fd())).unwrap();
        assert!(matches!(receive(&far).unwrap(), Some((Command::Standby(true), None))));
        let (command, fd) = receive(&far).unwrap().unwrap();
        assert_eq!(command, Command::Receive { max_uncommitted: 7 });
        Link::new(fd.unwrap()).send(&Command::Resume, None).unwrap();
        assert!(matches!(receive(&stream).unwrap(), Some((Command::Resume, None))));
        drop(near);
        assert!(matches!(receive(&far), Err(LinkError::Closed)));
        assert!(matches!(far.send(&Report::InSync, None), Err(LinkError::Closed)));
    }

    #[test]
    fn long_messages_fit_and_longer_ones_are_told() {
        let (near, far) = pair();
        let reason = "x".repeat(CTL_MAX - 100);
        near.send(&Report::Failed { reason: reason.clone() }, None).unwrap();
        let received = far.receive::<Report>(&mut vec![0; CTL_MAX], "report").unwrap();
        assert!(matches!(received, Some((Report::Failed { .. }, None))));
        assert!(matches!(near.send(&reason.repeat(2), None), Err(LinkError::Encode(_))));
        for (bytes, told) in [(vec![255; 9], "not a command"), (vec![0; CTL_MAX + 1], "longer than any command")] {
            send(near.as_fd().as_raw_fd(), &bytes, MsgFlags::empty()).unwrap();
            assert!(receive(&far).unwrap_err().to_string().contains(told), "{told}");
        }
    }

    #[test]
    fn progress_is_not_sent_when_there_is_no_room() {
        let (near, _far) = pair();
        let report = Report::Held { epoch: Epoch(1) };
        assert!(near.try_send(&report).unwrap());
        while near.try_send(&report).unwrap() {}
    }

    #[test]
    fn a_link_that_is_shut_is_closed_at_both_ends() {
        let (near, far) = pair();
        let _other_handle = near.try_clone().unwrap();
        near.shut();
        assert!(matches!(receive(&far), Err(LinkError::Closed)));
        assert!(matches!(receive(&near), Err(LinkError::Closed)));
    }
}
