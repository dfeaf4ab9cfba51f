//! More descriptors for the worker's epoll instance, and fewer again.
//!
//! The daemon only registers through a handle that owns the backend; a duplicate of the descriptor avoids that circle.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// The worker's epoll instance.
#[derive(Debug)]
pub struct Poller(OwnedFd);

impl Poller {
    /// Wraps an epoll descriptor.
    #[must_use]
    pub fn new(epoll: OwnedFd) -> Self {
        Self(epoll)
    }

    /// Reports `fd` as `token` as long as it can be read.
    ///
    /// # Errors
    /// As `epoll_ctl`.
    pub fn add(&self, fd: RawFd, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        // SAFETY: the event lives through the call; a wrong descriptor is an error, not a danger.
        let result = unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Does not report `fd` any more. One that was not reported is all the same.
    pub fn remove(&self, fd: RawFd) {
        // SAFETY: as above; the event argument is ignored for a removal.
        unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut()) };
    }
}
