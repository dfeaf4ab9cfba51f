//! A process that the launcher has started for this one, whose child it is.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

/// A child. To drop it does not end it.
#[derive(Debug)]
pub(crate) struct Child {
    pid: u32,
    /// Readable when it has ended.
    end: OwnedFd,
}

impl Child {
    pub(super) fn new(pid: u32, end: OwnedFd) -> Self {
        Self { pid, end }
    }

    pub(super) fn id(&self) -> u32 {
        self.pid
    }

    /// Readable when it has ended.
    pub(super) fn end(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }

    /// Nothing happens to one that has ended.
    pub(crate) fn signal(&self, signal: Signal) {
        // SAFETY: no memory is passed.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.end.as_raw_fd(), signal as i32, 0_usize, 0) };
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When that was asked before.
    pub(super) fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        self.status(WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG)
    }

    /// Waits for it to end.
    ///
    /// # Errors
    /// As [`Child::try_wait`].
    pub(crate) fn wait(&self) -> io::Result<ExitStatus> {
        loop {
            match self.status(WaitPidFlag::WEXITED) {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn status(&self, flags: WaitPidFlag) -> io::Result<Option<ExitStatus>> {
        match waitid(Id::PIDFd(self.end.as_fd()), flags) {
            // As wait(2) encodes it.
            Ok(WaitStatus::Exited(_, code)) => Ok(Some(ExitStatus::from_raw((code & 0xff) << 8))),
            Ok(WaitStatus::Signaled(_, signal, core)) => {
                Ok(Some(ExitStatus::from_raw(signal as i32 | i32::from(core) << 7)))
            }
            Ok(_) | Err(Errno::EAGAIN) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}
