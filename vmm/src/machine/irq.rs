//! The split interrupt controller: LAPICs in the kernel, everything reaches them as an MSI.
//!
//! In: eventfds that are signalled (by us or by a device process) and MSI messages. Out: interrupts in the
//! guest. Never: a lost signal; one that arrives while its line is masked stays in the eventfd and fires at
//! unmask.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_msi, kvm_irq_routing_msi__bindgen_ty_1, kvm_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The first GSIs are the pins of the IOAPIC; MSI lines come after them.
pub const IOAPIC_PINS: u32 = 24;
/// KVM's limit of routing entries.
const GSI_END: u32 = 4096;

/// What the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum IrqError {
    /// No split irqchip.
    #[error("cannot set up the split interrupt controller")]
    Irqchip(#[source] io::Error),
    /// The routing table was not taken.
    #[error("cannot set interrupt routes")]
    Routes(#[source] io::Error),
    /// An eventfd could not be made, read or written.
    #[error("interrupt eventfd failed")]
    EventFd(#[source] io::Error),
    /// The eventfd could not be bound to or released from its GSI.
    #[error("cannot bind interrupt {gsi} to its eventfd")]
    Irqfd {
        /// The line's global interrupt number.
        gsi: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// An MSI was not taken.
    #[error("cannot signal an interrupt message")]
    Signal(#[source] io::Error),
    /// All GSIs are in use.
    #[error("no free interrupt line is left")]
    Exhausted,
}

struct Routes {
    /// GSI -> (address, data); an allocated GSI without a message yet is `None`.
    lines: BTreeMap<u32, Option<(u64, u32)>>,
}

/// The VM's interrupt controller as the VMM sees it; shared in an `Arc`.
pub struct IrqManager {
    vm: Arc<VmFd>,
    routes: Mutex<Routes>,
}

impl IrqManager {
    /// Sets up the split irqchip. Must come before the first vCPU is created.
    ///
    /// # Errors
    /// When the kernel has no split irqchip.
    pub fn new(vm: Arc<VmFd>) -> Result<Self, IrqError> {
        let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
        cap.args[0] = IOAPIC_PINS.into();
        vm.enable_cap(&cap).map_err(|e| IrqError::Irqchip(e.into()))?;
        Ok(Self { vm, routes: Mutex::new(Routes { lines: BTreeMap::new() }) })
    }

    /// A new line, masked and without a message.
    ///
    /// # Errors
    /// When GSIs or file descriptors have run out.
    pub fn allocate_msi(self: &Arc<Self>) -> Result<MsiLine, IrqError> {
        let fd = EventFd::new(EFD_NONBLOCK).map_err(IrqError::EventFd)?;
        let mut routes = self.lock();
        let gsi = (IOAPIC_PINS..GSI_END).find(|gsi| !routes.lines.contains_key(gsi)).ok_or(IrqError::Exhausted)?;
        routes.lines.insert(gsi, None);
        Ok(MsiLine { irq: self.clone(), fd, gsi, bound: Mutex::new(false) })
    }

    /// Delivers one message at once, without a line.
    ///
    /// # Errors
    /// When the kernel does not take it. A message that the guest's LAPIC ignores is not an error.
    pub fn signal_msi(&self, address: u64, data: u32) -> Result<(), IrqError> {
        let msi =
            kvm_msi { address_lo: address as u32, address_hi: (address >> 32) as u32, data, ..Default::default() };
        self.vm.signal_msi(msi).map(|_| ()).map_err(|e| IrqError::Signal(e.into()))
    }

    fn lock(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives `gsi` its message; the kernel only takes whole tables.
    fn set_route(&self, gsi: u32, message: (u64, u32)) -> Result<(), IrqError> {
        let mut routes = self.lock();
        if routes.lines.insert(gsi, Some(message)) == Some(Some(message)) {
            return Ok(());
        }
        let entries: Vec<_> =
            routes.lines.iter().filter_map(|(gsi, message)| message.map(|m| route_entry(*gsi, m))).collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| IrqError::Exhausted)?;
        self.vm.set_gsi_routing(&table).map_err(|e| IrqError::Routes(e.into()))
    }
}

fn route_entry(gsi: u32, (address, data): (u64, u32)) -> kvm_irq_routing_entry {
    let msi = kvm_irq_routing_msi {
        address_lo: address as u32,
        address_hi: (address >> 32) as u32,
        data,
        __bindgen_anon_1: kvm_irq_routing_msi__bindgen_ty_1 { pad: 0 },
    };
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
        ..Default::default()
    }
}

/// One interrupt line: a GSI with an eventfd that anybody who holds the fd may signal.
///
/// Masked means that the eventfd is not bound to the GSI: signals stay pending in it and fire as one at
/// unmask.
pub struct MsiLine {
    irq: Arc<IrqManager>,
    fd: EventFd,
    gsi: u32,
    bound: Mutex<bool>,
}

impl MsiLine {
    /// The eventfd to signal; a device process gets a copy of it.
    pub fn fd(&self) -> &EventFd {
        &self.fd
    }

    /// Sets the message (as in an MSI-X table entry) and the mask.
    ///
    /// # Errors
    /// When the kernel refuses the route or the binding.
    pub fn set(&self, address: u64, data: u32, masked: bool) -> Result<(), IrqError> {
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        let irqfd = |e: kvm_ioctls::Error| IrqError::Irqfd { gsi: self.gsi, source: e.into() };
        if masked {
            if *bound {
                self.irq.vm.unregister_irqfd(&self.fd, self.gsi).map_err(irqfd)?;
                *bound = false;
            }
            return Ok(());
        }
        // The route first: binding fires what is pending in the eventfd.
        self.irq.set_route(self.gsi, (address, data))?;
        if !*bound {
            self.irq.vm.register_irqfd(&self.fd, self.gsi).map_err(irqfd)?;
            *bound = true;
        }
        Ok(())
    }

    /// Signals the line; stays pending while it is masked.
    ///
    /// # Errors
    /// When the eventfd cannot be written.
    pub fn trigger(&self) -> Result<(), IrqError> {
        match self.fd.write(1) {
            // Full: more signals than a counter holds are pending, which is as good as one.
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => Err(IrqError::EventFd(e)),
            _ => Ok(()),
        }
    }

    /// Takes back signals that a masked line holds; true when there were any.
    pub fn take_pending(&self) -> bool {
        let bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        !*bound && self.fd.read().is_ok()
    }
}

impl Drop for MsiLine {
    fn drop(&mut self) {
        if *self.bound.get_mut().unwrap_or_else(PoisonError::into_inner)
            && let Err(e) = self.irq.vm.unregister_irqfd(&self.fd, self.gsi)
        {
            host_kit::warn_limited!("interrupt {} stays bound: {e}", self.gsi);
        }
        self.irq.lock().lines.remove(&self.gsi);
    }
}
