//! The kicks of a device's queues: eventfds that the kernel signals when the guest writes to a doorbell.
//!
//! In: where the BAR answers, and which queues want a doorbell. Out: bindings in the kernel. A doorbell that
//! cannot be bound costs speed only: the write comes to the transport instead.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::virtio::pci_layout::{NOTIFY, NOTIFY_STRIDE};

/// Binds doorbells to eventfds inside the kernel.
pub trait Doorbells: Send + Sync {
    /// A write at `address` signals `kick`.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn bind(&self, address: u64, kick: &EventFd) -> io::Result<()>;
    /// It no longer does.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn unbind(&self, address: u64, kick: &EventFd) -> io::Result<()>;
}

impl Doorbells for kvm_ioctls::VmFd {
    fn bind(&self, address: u64, kick: &EventFd) -> io::Result<()> {
        let address = kvm_ioctls::IoEventAddress::Mmio(address);
        self.register_ioevent(kick, &address, kvm_ioctls::NoDatamatch).map_err(Into::into)
    }

    fn unbind(&self, address: u64, kick: &EventFd) -> io::Result<()> {
        let address = kvm_ioctls::IoEventAddress::Mmio(address);
        self.unregister_ioevent(kick, &address, kvm_ioctls::NoDatamatch).map_err(Into::into)
    }
}

/// One queue's.
struct Kick {
    /// For the life of the device.
    event: EventFd,
    /// The doorbell that is bound.
    bound: Option<u64>,
}

/// One for each queue.
pub(super) struct Kicks {
    kernel: Arc<dyn Doorbells>,
    kicks: Vec<Kick>,
}

impl Kicks {
    /// Of `queues` queues, none of which has a doorbell yet.
    pub(super) fn new(kernel: Arc<dyn Doorbells>, queues: usize) -> io::Result<Self> {
        let kick = |_| Ok(Kick { event: EventFd::new(EFD_NONBLOCK)?, bound: None });
        Ok(Self { kernel, kicks: (0..queues).map(kick).collect::<io::Result<_>>()? })
    }

    /// Number of queues.
    pub(super) fn count(&self) -> usize {
        self.kicks.len()
    }

    /// For whoever serves the queue.
    pub(super) fn share(&self, queue: usize) -> io::Result<EventFd> {
        self.kicks[queue].event.try_clone()
    }

    /// As if the guest had written to the doorbell. Queues that are not there are ignored.
    pub(super) fn kick(&self, queue: u16) {
        if let Some(kick) = self.kicks.get(usize::from(queue)) {
            // A full counter is a signal as well.
            let _ = kick.event.write(1);
        }
    }

    /// Forgets kicks that nobody has seen.
    pub(super) fn clear(&self) {
        for kick in &self.kicks {
            // Empty is what we want.
            let _ = kick.event.read();
        }
    }

    /// Binds the doorbells of the queues that are `wanted`, in a BAR at `base`, and unbinds all others.
    pub(super) fn follow(&mut self, device: &str, base: Option<u64>, wanted: impl Fn(u16) -> bool) {
        let warn = |verb, address: u64, e: io::Error| {
            host_kit::warn_limited!(device = device, "cannot {verb} the doorbell at {address:#x}: {e}");
        };
        for (queue, kick) in (0..).zip(&mut self.kicks) {
            let place = base.filter(|_| wanted(queue)).map(|base| doorbell(base, queue));
            if kick.bound == place {
                continue;
            }
            if let Some(old) = kick.bound.take()
                && let Err(e) = self.kernel.unbind(old, &kick.event)
            {
                warn("unbind", old, e);
            }
            if let Some(place) = place {
                match self.kernel.bind(place, &kick.event) {
                    Ok(()) => kick.bound = Some(place),
                    Err(e) => warn("bind", place, e),
                }
            }
        }
    }

    /// As [`Kicks::follow`] for doorbells that are `wanted` and were refused: tells why.
    pub(super) fn retry(&mut self, base: u64, wanted: impl Fn(u16) -> bool) -> io::Result<()> {
        for (queue, kick) in (0..).zip(&mut self.kicks).filter(|(queue, kick)| kick.bound.is_none() && wanted(*queue)) {
            let place = doorbell(base, queue);
            self.kernel.bind(place, &kick.event)?;
            kick.bound = Some(place);
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn event(&self, queue: usize) -> &EventFd {
        &self.kicks[queue].event
    }
}

/// Address of a queue's doorbell in a BAR at `base`.
fn doorbell(base: u64, queue: u16) -> u64 {
    base + NOTIFY + u64::from(queue) * NOTIFY_STRIDE
}
