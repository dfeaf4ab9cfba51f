//! A thread that hears from backends which queues the driver has broken, and has their devices ask for a
//! reset.
//!
//! In: the error eventfds of vhost-user. Out: calls of the transports. Never: a device kept alive by being
//! watched.

use std::io;
use std::sync::{Mutex, PoisonError, Weak};

use host_kit::event_loop::{EventLoop, readable};
use host_kit::sandbox::Needs;
use vmm_sys_util::eventfd::EventFd;

use crate::virtio::pci_transport::VirtioPci;

/// A device and the event that says that one of its queues is broken.
pub(super) struct Watched {
    /// Of the device.
    pub(super) event: EventFd,
    /// The device.
    pub(super) transport: Weak<Mutex<VirtioPci>>,
}

/// The thread; ends when this is dropped.
pub(super) struct BrokenQueues(#[expect(dead_code, reason = "kept, so that the thread runs")] EventLoop);

impl BrokenQueues {
    /// Watches `devices`.
    ///
    /// # Errors
    /// When descriptors or threads have run out.
    pub(super) fn watch(devices: Vec<Watched>) -> io::Result<Self> {
        let events = devices.iter().zip(0..).map(|(device, number)| readable(&device.event, number)).collect();
        let check = move |number: u32| match devices[number as usize].transport.upgrade() {
            Some(transport) => transport.lock().unwrap_or_else(PoisonError::into_inner).check_queues(),
            // Nobody reads the event any more.
            None => drop(devices[number as usize].event.read()),
        };
        EventLoop::start("broken-queues", Needs::MESSAGES | Needs::VCPU, events, check).map(Self)
    }
}
