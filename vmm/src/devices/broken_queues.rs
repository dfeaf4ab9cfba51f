//! A thread that hears from backends which queues the driver has broken, and has their devices ask for a
//! reset.
//!
//! In: the error eventfds of vhost-user. Out: calls of the transports. Never: a device kept alive by being
//! watched.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::virtio::pci_transport::VirtioPci;

/// A device and the event that says that one of its queues is broken.
pub(super) struct Watched {
    /// Of the device.
    pub(super) event: EventFd,
    /// The device.
    pub(super) transport: Weak<Mutex<VirtioPci>>,
}

/// The thread; ends when this is dropped.
pub(super) struct BrokenQueues {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl BrokenQueues {
    /// Watches `devices`.
    ///
    /// # Errors
    /// When descriptors or threads have run out.
    pub(super) fn watch(devices: Vec<Watched>) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let stopped = stop.try_clone()?;
        let thread = host_kit::thread::spawn("broken-queues", move || watch(&stopped, &devices))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for BrokenQueues {
    fn drop(&mut self) {
        if let Err(e) = self.stop.write(1) {
            tracing::warn!("the watch of broken queues cannot be stopped: {e}");
            return;
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the watch of broken queues has panicked");
        }
    }
}

fn watch(stop: &EventFd, devices: &[Watched]) {
    let events = std::iter::once(stop).chain(devices.iter().map(|device| &device.event));
    // SAFETY: the descriptors are open as long as their owners are borrowed.
    let events: Vec<_> = events.map(|event| unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }).collect();
    loop {
        let mut fds: Vec<_> = events.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::Error::EINTR) => continue,
            Err(e) => {
                tracing::error!("broken queues are not heard of any more: {e}");
                return;
            }
            Ok(_) => {}
        }
        if fds[0].any().unwrap_or(true) {
            return;
        }
        for (device, _) in devices.iter().zip(&fds[1..]).filter(|(_, fd)| fd.any().unwrap_or(true)) {
            match device.transport.upgrade() {
                Some(transport) => transport.lock().unwrap_or_else(PoisonError::into_inner).check_queues(),
                // Nobody reads the event any more.
                None => drop(device.event.read()),
            }
        }
    }
}
