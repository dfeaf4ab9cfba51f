//! Loops that wait for events of several descriptors at once, on top of `event-manager`.
//!
//! For everything but the epoch path: there the order in which events of one wake-up are handled matters, and
//! it is the engine's own. A regular file has no events and cannot be waited for.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::thread::JoinHandle;

use event_manager::{Error, EventManager, EventOps, EventSet, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::sandbox::Needs;

pub use event_manager::Events;

/// The number of a loop's stop event; others are given numbers from 0.
const STOP: u32 = u32::MAX;

/// The event that `fd` can be read or is closed at its other end, as event `number`. Who owns `fd` must keep
/// it open.
#[must_use]
pub fn readable(fd: &impl AsRawFd, number: u32) -> Events {
    Events::with_data(fd, number, EventSet::IN)
}

/// Waits for `events` on the calling thread and calls `handle` with the number of each, until that breaks.
///
/// # Errors
/// Of epoll.
pub fn run(events: Vec<Events>, handle: impl FnMut(u32) -> ControlFlow<()>) -> io::Result<()> {
    let mut manager = EventManager::new_with_capacity(16).map_err(io_error)?;
    let id = manager.add_subscriber(Subscriber { events, handle, ended: false, failed: None });
    loop {
        let subscriber = manager.subscriber_mut(id).map_err(io_error)?;
        if let Some(error) = subscriber.failed.take() {
            return Err(io_error(error));
        }
        if subscriber.ended {
            return Ok(());
        }
        manager.run().map_err(io_error)?;
    }
}

/// A thread with a loop, which ends when this is dropped.
#[derive(Debug)]
pub struct EventLoop {
    name: &'static str,
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl EventLoop {
    /// Starts thread `name`, which needs what `handle` does, and calls `handle` with the number of each of
    /// `events`. `handle` owns their descriptors.
    ///
    /// # Errors
    /// When descriptors or threads have run out.
    pub fn start(
        name: &'static str,
        needs: Needs,
        mut events: Vec<Events>,
        mut handle: impl FnMut(u32) + Send + 'static,
    ) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let stopped = stop.try_clone()?;
        events.push(readable(&stopped, STOP));
        let thread = crate::thread::spawn(name, needs, move || {
            let _stopped = stopped;
            let ended = run(events, |number| {
                if number == STOP {
                    return ControlFlow::Break(());
                }
                handle(number);
                ControlFlow::Continue(())
            });
            if let Err(error) = ended {
                tracing::error!("thread {name} has ended: {error}");
            }
        })?;
        Ok(Self { name, stop, thread: Some(thread) })
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        if let Err(error) = self.stop.write(1) {
            tracing::warn!("thread {} cannot be stopped: {error}", self.name);
            return;
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("thread {} has panicked", self.name);
        }
    }
}

struct Subscriber<F> {
    events: Vec<Events>,
    handle: F,
    ended: bool,
    failed: Option<Error>,
}

impl<F: FnMut(u32) -> ControlFlow<()>> MutEventSubscriber for Subscriber<F> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for events in &self.events {
            if let Err(error) = ops.add(*events) {
                self.failed = Some(error);
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        self.ended = self.ended || (self.handle)(events.data()).is_break();
    }
}

fn io_error(error: Error) -> io::Error {
    match error {
        Error::Epoll(errno) => io::Error::from_raw_os_error(errno.errno()),
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn events_come_with_their_numbers_until_the_loop_is_dropped() {
        let [a, b] = [0, 1].map(|_| EventFd::new(EFD_NONBLOCK).unwrap());
        let ours = [a.try_clone().unwrap(), b.try_clone().unwrap()];
        let (sender, seen) = mpsc::channel();
        let events = vec![readable(&a, 0), readable(&b, 1)];
        let waiting = EventLoop::start("waiting", Needs::NOTHING, events, move |number| {
            let event = [&a, &b][number as usize];
            sender.send((number, event.read().unwrap())).unwrap();
        });
        let waiting = waiting.unwrap();
        ours[1].write(7).unwrap();
        assert_eq!(seen.recv().unwrap(), (1, 7));
        ours[0].write(3).unwrap();
        assert_eq!(seen.recv().unwrap(), (0, 3));
        drop(waiting);
        assert!(seen.recv().is_err(), "the thread is gone, and what it owned");
    }

    #[test]
    fn a_handler_ends_its_loop() {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        event.write(1).unwrap();
        let mut calls = 0;
        let count = |_| {
            calls += 1;
            if calls == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        // Nobody reads the event: it stays.
        run(vec![readable(&event, 5)], count).unwrap();
        assert_eq!(calls, 3);
    }

    #[test]
    fn what_has_no_events_is_an_error() {
        let file = File::open("/proc/self/exe").unwrap();
        let error = run(vec![readable(&file, 0)], |_| ControlFlow::Break(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }
}
