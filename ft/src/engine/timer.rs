//! The engine's timer.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use ft_proto::Time;
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// The timer, and when it fires.
pub(super) struct Timer {
    timer: TimerFd,
    at: Option<Time>,
}

impl Timer {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        Ok(Self { timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?, at: None })
    }

    /// It has fired, or may have.
    pub(super) fn acknowledge(&mut self) {
        // Read so that the descriptor is quiet again; its count is of no interest.
        let _ = self.timer.wait();
        self.at = None;
    }

    /// Has it fire then. To fire too early now and then costs less than to be set anew after each event.
    pub(super) fn arm(&mut self, next: Option<Time>, now: Time) -> Result<(), Errno> {
        if self.at.is_some_and(|at| next.is_none_or(|next| at <= next)) {
            return Ok(());
        }
        self.at = next;
        let armed = match next {
            // Zero would disarm it.
            Some(at) => {
                let left = at.since(now).max(Duration::from_nanos(1));
                self.timer.set(Expiration::OneShot(TimeSpec::from_duration(left)), TimerSetTimeFlags::empty())
            }
            None => self.timer.unset(),
        };
        armed.inspect_err(|_| self.at = None)
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}
