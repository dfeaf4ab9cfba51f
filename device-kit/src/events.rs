//! What wakes the worker thread beside the queues: the control link, and events of the device's own.
//!
//! They are registered with the library's epoll instance. The library only registers through a handle that owns the device; a
//! duplicate of the descriptor avoids that circle.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

/// What has happened, as `handle_event` is told it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event {
    /// The driver has kicked this queue.
    Queue(usize),
    /// Something is to be had from the control link.
    Control,
    /// An event of the device's own, by the number that it was registered with.
    Own(usize),
}

impl Event {
    /// Event `number` of a device with `queues` queues.
    #[must_use]
    pub fn of(number: u16, queues: usize) -> Option<Self> {
        let number = usize::from(number);
        match number.checked_sub(queues) {
            None => Some(Self::Queue(number)),
            // The library's own.
            Some(0) => None,
            Some(1) => Some(Self::Control),
            Some(own) => Some(Self::Own(own - 2)),
        }
    }

    fn number(self, queues: usize) -> usize {
        match self {
            Self::Queue(number) => number,
            Self::Control => queues + 1,
            Self::Own(own) => queues + 2 + own,
        }
    }
}

/// The worker's epoll instance.
#[derive(Clone, Debug)]
pub struct Events {
    epoll: Arc<Epoll>,
    queues: usize,
}

impl Events {
    /// Of the worker with `handler`, for a device with `queues` queues.
    pub(crate) fn of(handler: &impl AsRawFd, queues: usize) -> io::Result<Self> {
        let epoll = borrowed(handler).try_clone_to_owned()?;
        Ok(Self { epoll: Arc::new(Epoll(epoll)), queues })
    }

    /// Reports [`Event::Own`] with number `own` as long as `fd` can be read.
    ///
    /// # Errors
    /// As `epoll_ctl`.
    pub fn watch(&self, fd: &impl AsRawFd, own: usize) -> io::Result<()> {
        self.add(fd, Event::Own(own))
    }

    pub(crate) fn watch_control(&self, fd: &impl AsRawFd) -> io::Result<()> {
        self.add(fd, Event::Control)
    }

    /// Does not report `fd` any more. One that was not reported is all the same.
    pub fn unwatch(&self, fd: &impl AsRawFd) {
        match self.epoll.delete(borrowed(fd)) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => tracing::debug!("epoll: {errno}"),
        }
    }

    fn add(&self, fd: &impl AsRawFd, event: Event) -> io::Result<()> {
        let number = event.number(self.queues) as u64;
        Ok(self.epoll.add(borrowed(fd), EpollEvent::new(EpollFlags::EPOLLIN, number))?)
    }
}

/// What ends the worker when the device is dropped: the answer of every device's `exit_event`.
#[must_use]
pub fn exit_event() -> Option<(EventConsumer, EventNotifier)> {
    new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)
        .inspect_err(|error| tracing::error!("no exit event: {error}"))
        .ok()
}

/// The library's event counters have no other way to be borrowed.
fn borrowed(fd: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor's owner is borrowed for as long; a number that is no open descriptor is an error of epoll, not a
    // danger.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_has_a_number_of_its_own() {
        let all = [Event::Queue(0), Event::Queue(2), Event::Control, Event::Own(0), Event::Own(7)];
        let numbers = all.map(|event| event.number(3));
        assert_eq!(numbers, [0, 2, 4, 5, 12]);
        assert_eq!(numbers.map(|number| Event::of(number as u16, 3)), all.map(Some));
        assert_eq!(Event::of(3, 3), None, "the library's");
    }
}
