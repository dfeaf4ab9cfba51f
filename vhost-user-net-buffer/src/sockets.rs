//! Unix sockets by path or by inherited descriptor.
//!
//! Never: a socket file left behind, or somebody else's socket taken away.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, getsockopt, listen, socket, sockopt,
};

/// A socket cannot be used; the message names the flag.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Someone listens there.
    #[error("{flag} {path}: in use by another process; end it or give another path")]
    InUse {
        /// The flag.
        flag: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// A file is in the way.
    #[error("{flag} {path}: exists and is no socket; remove it or give another path")]
    NotASocket {
        /// The flag.
        flag: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// Something else about the path.
    #[error("{flag} {path}: cannot listen here")]
    Path {
        /// The flag.
        flag: &'static str,
        /// Its value.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The inherited descriptor is not what it must be.
    #[error("{flag} fd={fd}: is no {expected} inherited from the parent process")]
    Inherited {
        /// The flag.
        flag: &'static str,
        /// Its value.
        fd: i32,
        /// What it must be.
        expected: &'static str,
    },
}

/// Removes a socket file when dropped.
#[derive(Debug)]
pub struct UnlinkOnDrop(PathBuf);

impl Drop for UnlinkOnDrop {
    fn drop(&mut self) {
        // It may be gone already, which is all the same.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What kind of socket a flag asks for.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// The vhost-user socket.
    Stream,
    /// The ft-ctl socket.
    SeqPacket,
}

impl Kind {
    fn sock_type(self) -> SockType {
        match self {
            Self::Stream => SockType::Stream,
            Self::SeqPacket => SockType::SeqPacket,
        }
    }
}

/// Listens at `path`. A socket file that nobody listens at any more is replaced.
///
/// # Errors
/// See [`SocketError`].
pub fn listen_at(flag: &'static str, path: &Path, kind: Kind) -> Result<(OwnedFd, UnlinkOnDrop), SocketError> {
    let failed = |source: io::Error| SocketError::Path { flag, path: path.into(), source };
    let address = UnixAddr::new(path).map_err(|e| failed(e.into()))?;
    let fd =
        socket(AddressFamily::Unix, kind.sock_type(), SockFlag::SOCK_CLOEXEC, None).map_err(|e| failed(e.into()))?;
    if let Err(e) = bind(fd.as_raw_fd(), &address) {
        if e != nix::errno::Errno::EADDRINUSE {
            return Err(failed(e.into()));
        }
        let meta = std::fs::symlink_metadata(path).map_err(failed)?;
        if !meta.file_type().is_socket() {
            return Err(SocketError::NotASocket { flag, path: path.into() });
        }
        // A datagram socket is refused by type if someone is there, and otherwise for want of anyone. A real connection
        // would be taken for the frontend.
        let probe = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .map_err(|e| failed(e.into()))?;
        match connect(probe.as_raw_fd(), &address) {
            Err(nix::errno::Errno::ECONNREFUSED) => {}
            _ => return Err(SocketError::InUse { flag, path: path.into() }),
        }
        std::fs::remove_file(path).map_err(failed)?;
        bind(fd.as_raw_fd(), &address).map_err(|e| failed(e.into()))?;
    }
    let unlink = UnlinkOnDrop(path.into());
    let backlog = Backlog::new(1).map_err(|e| failed(e.into()))?;
    listen(&fd, backlog).map_err(|e| failed(e.into()))?;
    Ok((fd, unlink))
}

/// Takes over an inherited descriptor; it must be a socket of `kind`, listening or not as `listening` says.
///
/// # Errors
/// When it is not.
pub fn inherited(flag: &'static str, fd: i32, kind: Kind, listening: bool) -> Result<OwnedFd, SocketError> {
    let expected = match (kind, listening) {
        (Kind::Stream, true) => "listening unix socket",
        (Kind::Stream, false) => "connected unix socket",
        (Kind::SeqPacket, _) => "connected SOCK_SEQPACKET unix socket",
    };
    let wrong = SocketError::Inherited { flag, fd, expected };
    // SAFETY: only F_GETFD on a number, which fails when it is no open descriptor.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(wrong);
    }
    // SAFETY: just seen to be open; nothing in this process closes it during the call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let fits = getsockopt(&borrowed, sockopt::SockType).is_ok_and(|t| t == kind.sock_type())
        && getsockopt(&borrowed, sockopt::AcceptConn).is_ok_and(|l| l == listening);
    if !fits {
        return Err(wrong);
    }
    // SAFETY: the parent process has passed this descriptor for this flag, so that nobody else here owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Accepts one connection.
///
/// # Errors
/// As `accept4`.
pub fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: just returned by accept4, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
