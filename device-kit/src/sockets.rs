//! Unix sockets by path or by inherited descriptor.
//!
//! Never: a socket file left behind, or somebody else's socket taken away.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, getsockopt, listen, socket, sockopt,
};

use crate::args::Endpoint;

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
    #[error("{flag} {path}: exists and is not a socket; remove it or give another path")]
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
    #[error("{flag} fd={fd}: is not a {expected} inherited from the parent process")]
    Inherited {
        /// The flag.
        flag: &'static str,
        /// Its value.
        fd: i32,
        /// What it must be.
        expected: &'static str,
    },
}

/// The file of a listening socket, removed when nobody needs it any more: once, at the latest when the last
/// handle is dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct SocketFile(Option<Arc<Bound>>);

#[derive(Debug)]
struct Bound {
    path: PathBuf,
    removed: AtomicBool,
}

impl SocketFile {
    fn new(path: &Path) -> Self {
        Self(Some(Arc::new(Bound { path: path.into(), removed: AtomicBool::new(false) })))
    }

    pub(crate) fn remove(&self) {
        if let Some(bound) = &self.0 {
            bound.remove();
        }
    }
}

impl Bound {
    fn remove(&self) {
        // Not a second time: somebody else may listen there by then.
        if !self.removed.swap(true, Ordering::Relaxed) {
            // It may be gone already, which is all the same.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Removes files at the end, whatever other handles there are.
pub(crate) struct RemoveAtEnd(pub(crate) [SocketFile; 2]);

impl Drop for RemoveAtEnd {
    fn drop(&mut self) {
        self.0.iter().for_each(SocketFile::remove);
    }
}

/// The vhost-user socket, listening.
#[derive(Debug)]
pub struct VhostSocket {
    listener: OwnedFd,
    file: SocketFile,
}

impl VhostSocket {
    /// Listens at the path, or takes over the listening socket, that `flag` names.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn open(flag: &'static str, endpoint: &Endpoint) -> Result<Self, SocketError> {
        match endpoint {
            Endpoint::Fd(fd) => Ok(inherited(flag, *fd, Kind::Stream)?.into()),
            Endpoint::Path(path) => {
                let (listener, file) = listen_at(flag, path, Kind::Stream)?;
                Ok(Self { listener, file })
            }
        }
    }

    pub(crate) fn file(&self) -> SocketFile {
        self.file.clone()
    }

    pub(crate) fn into_parts(self) -> (OwnedFd, SocketFile) {
        (self.listener, self.file)
    }
}

impl From<OwnedFd> for VhostSocket {
    /// A listening socket, whose file is somebody else's.
    fn from(listener: OwnedFd) -> Self {
        Self { listener, file: SocketFile::default() }
    }
}

/// The ft-ctl socket.
#[derive(Debug)]
pub struct ControlSocket(pub(crate) ControlState);

#[derive(Debug)]
pub(crate) enum ControlState {
    /// The VMM has still to connect.
    Listening(OwnedFd, SocketFile),
    /// The VMM is there.
    Connected(OwnedFd),
}

impl ControlSocket {
    /// Listens at the path, or takes over the connected socket, that `flag` names.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn open(flag: &'static str, endpoint: &Endpoint) -> Result<Self, SocketError> {
        match endpoint {
            Endpoint::Fd(fd) => Ok(inherited(flag, *fd, Kind::SeqPacket)?.into()),
            Endpoint::Path(path) => {
                let (listener, file) = listen_at(flag, path, Kind::SeqPacket)?;
                Ok(Self(ControlState::Listening(listener, file)))
            }
        }
    }
}

impl ControlSocket {
    pub(crate) fn file(&self) -> SocketFile {
        match &self.0 {
            ControlState::Listening(_, file) => file.clone(),
            ControlState::Connected(_) => SocketFile::default(),
        }
    }
}

impl From<OwnedFd> for ControlSocket {
    /// A connected socket.
    fn from(link: OwnedFd) -> Self {
        Self(ControlState::Connected(link))
    }
}

/// What kind of socket a flag asks for.
#[derive(Clone, Copy, Debug)]
enum Kind {
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
fn listen_at(flag: &'static str, path: &Path, kind: Kind) -> Result<(OwnedFd, SocketFile), SocketError> {
    let failed = |source: io::Error| SocketError::Path { flag, path: path.into(), source };
    let address = UnixAddr::new(path).map_err(|e| failed(e.into()))?;
    let fd =
        socket(AddressFamily::Unix, kind.sock_type(), SockFlag::SOCK_CLOEXEC, None).map_err(|e| failed(e.into()))?;
    if let Err(e) = bind(fd.as_raw_fd(), &address) {
        if e != Errno::EADDRINUSE {
            return Err(failed(e.into()));
        }
        let meta = std::fs::symlink_metadata(path).map_err(failed)?;
        if !meta.file_type().is_socket() {
            return Err(SocketError::NotASocket { flag, path: path.into() });
        }
        // A datagram socket is refused by its type if somebody listens, and otherwise because nobody does. A
        // real connection would be taken for the frontend.
        let probe = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .map_err(|e| failed(e.into()))?;
        match connect(probe.as_raw_fd(), &address) {
            Err(Errno::ECONNREFUSED) => {}
            _ => return Err(SocketError::InUse { flag, path: path.into() }),
        }
        std::fs::remove_file(path).map_err(failed)?;
        bind(fd.as_raw_fd(), &address).map_err(|e| failed(e.into()))?;
    }
    let file = SocketFile::new(path);
    let backlog = Backlog::new(1).map_err(|e| failed(e.into()))?;
    listen(&fd, backlog).map_err(|e| failed(e.into()))?;
    Ok((fd, file))
}

/// Takes over an inherited descriptor: a listening stream socket or a connected `SOCK_SEQPACKET` socket.
fn inherited(flag: &'static str, fd: i32, kind: Kind) -> Result<OwnedFd, SocketError> {
    let (expected, listening) = match kind {
        Kind::Stream => ("listening unix socket", true),
        Kind::SeqPacket => ("connected SOCK_SEQPACKET unix socket", false),
    };
    let wrong = SocketError::Inherited { flag, fd, expected };
    if fd <= 2 {
        return Err(wrong);
    }
    // SAFETY: used for calls that answer EBADF when the descriptor is not open; nothing here closes it
    // meanwhile.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let fits = getsockopt(&borrowed, sockopt::SockType).is_ok_and(|t| t == kind.sock_type())
        && getsockopt(&borrowed, sockopt::AcceptConn).is_ok_and(|l| l == listening)
        && fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).is_ok();
    if !fits {
        return Err(wrong);
    }
    // SAFETY: the parent process has passed this descriptor for this flag, so that nobody else here owns it:
    // the flags are read first, and each descriptor is named by one flag.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Accepts one connection. Waits for it, unless the listener is non-blocking.
///
/// # Errors
/// As `accept4`.
pub fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    loop {
        match accept4(listener.as_fd().as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            // SAFETY: just returned by accept4, owned by nobody else.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            Err(Errno::EINTR | Errno::ECONNABORTED) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Accepts a connection if one waits.
pub(crate) fn accept_now(listener: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    match poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) {
        Ok(0) | Err(Errno::EINTR) => Ok(None),
        Ok(_) => accept(listener).map(Some),
        Err(errno) => Err(errno.into()),
    }
}
