//! The engine's epoll: what it waits for, by name.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::devices::DeviceKey;

/// What is told at once at most; the rest is told the next time.
const EVENTS_MAX: usize = 16;
/// The first number of a device.
const DEVICES: u64 = 3;

/// What epoll says is ready.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Token {
    Inbox,
    Timer,
    Stream,
    Device(DeviceKey),
}

impl Token {
    fn data(self) -> u64 {
        match self {
            Self::Inbox => 0,
            Self::Timer => 1,
            Self::Stream => 2,
            Self::Device(key) => DEVICES + key.number(),
        }
    }

    fn from_data(data: u64) -> Self {
        match data {
            0 => Self::Inbox,
            1 => Self::Timer,
            2 => Self::Stream,
            device => Self::Device(DeviceKey::from_number(device - DEVICES)),
        }
    }
}

/// The epoll; clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Poller(Arc<Epoll>);

/// What was ready.
pub(crate) struct Ready {
    events: [EpollEvent; EVENTS_MAX],
    count: usize,
}

impl Ready {
    pub(crate) fn new() -> Self {
        Self { events: [EpollEvent::empty(); EVENTS_MAX], count: 0 }
    }

    pub(crate) fn get(&self, at: usize) -> Option<Token> {
        self.events[..self.count].get(at).map(|event| Token::from_data(event.data()))
    }
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?)))
    }

    pub(crate) fn watch(&self, token: Token, fd: impl AsFd) -> io::Result<()> {
        Ok(self.0.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token.data()))?)
    }

    pub(crate) fn unwatch(&self, fd: BorrowedFd<'_>) {
        // Not watched any more after its end was read.
        let _ = self.0.delete(fd);
    }

    /// Waits until something is ready.
    pub(crate) fn wait(&self, ready: &mut Ready) -> Result<(), Errno> {
        ready.count = 0;
        ready.count = self.0.wait(&mut ready.events, EpollTimeout::NONE)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_what_it_was() {
        let device = |number| Token::Device(DeviceKey::from_number(number));
        for token in [Token::Inbox, Token::Timer, Token::Stream, device(0), device(1), device(1 << 40)] {
            assert_eq!(Token::from_data(token.data()), token);
        }
    }
}
