//! The ft-ctl link: messages of `ft_wire::device_ctl` over a SEQPACKET socket.
//!
//! In: an inherited socket, or a path to listen at for one VMM. Out: commands, one at a time, never waiting
//! for one. Never: a second VMM, or a second chance. Once the link is lost the process has no reason to live.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use ft_wire::device_ctl::{CTL_MAX, Command, CtlError, Report, decode, encode};

use crate::sockets::UnlinkOnDrop;

/// The link is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The VMM is gone.
    #[error("the VMM has closed the ft-ctl link")]
    Closed,
    /// The VMM does not speak this protocol.
    #[error("the VMM sent what is no ft-ctl command")]
    Malformed(#[source] CtlError),
    /// A system call failed.
    #[error("the ft-ctl link failed")]
    Socket(#[source] io::Error),
}

/// Our end of the link.
pub struct Control {
    link: Option<OwnedFd>,
    /// Present until the VMM has connected.
    listener: Option<(OwnedFd, UnlinkOnDrop)>,
    buffer: Box<[u8]>,
}

impl Control {
    /// A link over a connected socket.
    #[must_use]
    pub fn connected(link: OwnedFd) -> Self {
        Self { link: Some(link), listener: None, buffer: vec![0; CTL_MAX].into_boxed_slice() }
    }

    /// A link that the VMM will make by connecting to `listener`.
    #[must_use]
    pub fn listening(listener: OwnedFd, path: UnlinkOnDrop) -> Self {
        Self { link: None, listener: Some((listener, path)), buffer: vec![0; CTL_MAX].into_boxed_slice() }
    }

    /// The descriptor to wait for: the link, or the listening socket as long as there is no link.
    #[must_use]
    pub fn fd(&self) -> Option<i32> {
        self.link.as_ref().or(self.listener.as_ref().map(|(fd, _)| fd)).map(AsRawFd::as_raw_fd)
    }

    /// Takes the VMM's connection, and stops listening. False: there was nobody (any more).
    ///
    /// # Errors
    /// When the socket fails.
    pub fn accept(&mut self) -> Result<bool, LinkError> {
        let Some((listener, _)) = &self.listener else {
            return Ok(false);
        };
        match crate::sockets::accept(listener) {
            Ok(link) => {
                self.link = Some(link);
                self.listener = None;
                Ok(true)
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => Ok(false),
            Err(e) => Err(LinkError::Socket(e)),
        }
    }

    /// Whether the VMM still has to connect.
    #[must_use]
    pub fn is_listening(&self) -> bool {
        self.listener.is_some()
    }

    /// The next command, or `None` when none is waiting.
    ///
    /// # Errors
    /// When the link is lost: closed, broken, or used by something that is no VMM.
    pub fn receive(&mut self) -> Result<Option<Command>, LinkError> {
        let Some(link) = &self.link else {
            return Ok(None);
        };
        // MSG_TRUNC returns the true length of a message that is too long.
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        let to = self.buffer.as_mut_ptr().cast();
        // SAFETY: the buffer is valid for writes of its whole length.
        let n = unsafe { libc::recv(link.as_raw_fd(), to, self.buffer.len(), flags) };
        if n < 0 {
            let e = io::Error::last_os_error();
            return match e.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                io::ErrorKind::ConnectionReset => Err(LinkError::Closed),
                _ => Err(LinkError::Socket(e)),
            };
        }
        if n == 0 {
            return Err(LinkError::Closed);
        }
        let whole = self.buffer.get(..n.unsigned_abs()).unwrap_or_default();
        decode(whole).map(Some).map_err(LinkError::Malformed)
    }

    /// Sends `report`. Waits when the VMM does not read: the socket holds far more than an epoch's reports.
    ///
    /// # Errors
    /// When the link is lost.
    pub fn send(&mut self, report: &Report) -> Result<(), LinkError> {
        let Some(link) = &self.link else {
            return Ok(());
        };
        let message = encode(report, &mut self.buffer).map_err(LinkError::Malformed)?;
        loop {
            // SAFETY: the message is valid for reads of its whole length.
            let n = unsafe { libc::send(link.as_raw_fd(), message.as_ptr().cast(), message.len(), libc::MSG_NOSIGNAL) };
            if n >= 0 {
                return Ok(());
            }
            let e = io::Error::last_os_error();
            match e.kind() {
                io::ErrorKind::Interrupted => {}
                // An inherited socket may be set to non-blocking.
                io::ErrorKind::WouldBlock => wait_writable(link)?,
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => return Err(LinkError::Closed),
                _ => return Err(LinkError::Socket(e)),
            }
        }
    }
}

fn wait_writable(link: &OwnedFd) -> Result<(), LinkError> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let fd: BorrowedFd<'_> = link.as_fd();
    match poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(e) => Err(LinkError::Socket(e.into())),
    }
}
