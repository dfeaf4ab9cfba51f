//! What a device process inherits, and how its end is seen.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

/// A listening socket with a connection to it already made. Its path is gone when this returns, so nothing
/// can be left behind and nobody else can connect.
pub(super) fn private_listener() -> io::Result<(UnixListener, UnixStream)> {
    let directory = tempfile::Builder::new().prefix("pollux-").tempdir()?;
    let path = directory.path().join("device");
    let listener = UnixListener::bind(&path)?;
    let stream = UnixStream::connect(&path)?;
    directory.close()?;
    Ok((listener, stream))
}

/// Keeps `fds` open across exec.
pub(super) fn inherit(fds: [RawFd; 3]) -> io::Result<()> {
    for fd in fds {
        // SAFETY: no memory is passed.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Readable when the process `pid`, a child of ours, has ended.
pub(super) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed; a descriptor of our own comes back.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: just opened, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
