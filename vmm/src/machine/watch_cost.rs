//! What it costs on this host to watch a page, and not to: measured once, with a VM of a few pages.
//!
//! Watching a page costs the guest a fault when it writes to it. Not watching it costs a copy and a
//! comparison in each epoch in which it is not written. What a fault costs depends on the host more than on
//! anything else: docs/lab-notebook.md has hosts with 2, 26 and 31 µs.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use host_kit::error::chain;
use kvm_ioctls::{Kvm, VcpuFd};

use super::irq::{IrqError, IrqManager};
use super::memory::dirty::{DirtyError, DirtySet, DirtyTracker, Watch};
use super::memory::foresight::Prices;
use super::memory::guest::{GuestMemory, MemoryError, RamOptions};
use super::memory::layout::PAGE_SIZE;
use super::memory::view::MemoryView;
use super::page_writer::{self, WriterError};

/// Why the costs of this host are not known.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error(transparent)]
    Kvm(#[from] kvm_ioctls::Error),
    #[error(transparent)]
    Irq(#[from] IrqError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Writer(#[from] WriterError),
    #[error(transparent)]
    Dirty(#[from] DirtyError),
}

/// Costs of one page on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchCost {
    /// Of the guest's first write to it while it is watched.
    pub fault: Duration,
    /// Of copying it and finding that nothing in it has changed.
    pub copy: Duration,
}

/// Roughly those of a host with hardware that walks the guest's page tables.
const ASSUMED: WatchCost = WatchCost { fault: Duration::from_micros(1), copy: Duration::from_nanos(250) };
/// A copy costs more than its time here: the page is not in a cache, and the guest stands still for it.
const WEIGHT_OF_COPIES: u32 = 2;
/// Of sending a page: 4 KiB at 32 Gbit/s, or two copies and two hashes of it.
const SENT: Duration = Duration::from_micros(1);

impl WatchCost {
    /// Of this host. The first who asks measures it, which takes some milliseconds. On a host that cannot be
    /// measured usual figures are assumed.
    pub fn of_this_host(kvm: &Kvm) -> Self {
        static MEASURED: OnceLock<WatchCost> = OnceLock::new();
        *MEASURED.get_or_init(|| match Probe::new(kvm).and_then(|mut probe| probe.measure()) {
            Ok(cost) => {
                tracing::info!("a write fault costs {:?} here, an unchanged page {:?}", cost.fault, cost.copy);
                cost
            }
            Err(error) => {
                tracing::warn!("cannot measure write faults, assuming {:?}: {}", ASSUMED.fault, chain(&error));
                ASSUMED
            }
        })
    }

    /// What it costs to take a page for dirty that is not.
    #[must_use]
    pub fn prices(self) -> Prices {
        let copy = self.copy * WEIGHT_OF_COPIES;
        Prices::new(self.fault, copy, copy + SENT)
    }
}

/// Pages that the guest writes to in each round.
const PAGES: u64 = 256;
/// The fastest of them is the one that nothing disturbed.
const ROUNDS: u32 = 5;
/// A round that a signal interrupts is begun again so often.
const TRIES: u32 = 5;
const SIZE: u64 = 4 << 20;

/// The VM that is measured.
struct Probe {
    vcpu: VcpuFd,
    tracker: DirtyTracker,
    set: DirtySet,
    memory: GuestMemory,
}

impl Probe {
    fn new(kvm: &Kvm) -> Result<Self, ProbeError> {
        let vm = Arc::new(kvm.create_vm()?);
        let memory = GuestMemory::new(&RamOptions { size: SIZE, ..RamOptions::default() })?;
        // As real ones have it: a vCPU without its local APIC takes other ways in KVM.
        let _irqs = IrqManager::new(vm.clone())?;
        memory.set_slots(&vm, 0)?;
        let vcpu = vm.create_vcpu(0)?;
        page_writer::load(&vcpu, &memory, PAGES)?;
        let tracker = DirtyTracker::new(vm, &memory);
        Ok(Self { vcpu, tracker, set: DirtySet::new(&memory), memory })
    }

    fn measure(&mut self) -> Result<WatchCost, ProbeError> {
        self.round()?;
        self.tracker.start()?;
        self.round()?;
        let (mut watched, mut unwatched) = (Duration::MAX, Duration::MAX);
        for _ in 0..ROUNDS {
            self.tracker.harvest(&mut self.set, Watch::All, &mut |_| ())?;
            watched = watched.min(self.round()?);
            unwatched = unwatched.min(self.round()?);
        }
        let fault = watched.saturating_sub(unwatched) / PAGES as u32;
        Ok(WatchCost { fault, copy: self.copy() })
    }

    /// The guest writes to all pages once.
    fn round(&mut self) -> Result<Duration, WriterError> {
        let began = Instant::now();
        for _ in 0..TRIES {
            match page_writer::turn(&mut self.vcpu) {
                Err(WriterError::Kvm(error)) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {}
                turned => return turned.map(|()| began.elapsed()),
            }
        }
        Err(kvm_ioctls::Error::new(libc::EINTR).into())
    }

    /// The pages are copied, and compared with what they were.
    fn copy(&self) -> Duration {
        let view = MemoryView::new(&self.memory);
        let gfns: Vec<_> = (page_writer::FIRST / PAGE_SIZE..).take(PAGES as usize).collect();
        let mut before = vec![0; (PAGES * PAGE_SIZE) as usize];
        view.copy_out(&gfns, &mut before);
        let mut now = vec![0xff; before.len()];
        let rounds = (0..ROUNDS).map(|_| {
            let began = Instant::now();
            view.copy_out(&gfns, &mut now);
            std::hint::black_box(before == now);
            began.elapsed()
        });
        rounds.min().unwrap_or_default() / PAGES as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_writes_to_its_pages_and_the_costs_are_known() {
        let mut probe = Probe::new(&crate::machine::kvm::open().unwrap()).unwrap();
        let cost = probe.measure().unwrap();
        println!("{cost:?}: {:?}", cost.prices());
        assert!(!cost.copy.is_zero());
        probe.tracker.harvest(&mut probe.set, Watch::All, &mut |_| ()).unwrap();
        // A host that walks the guest's tables in hardware may count that as writes to them.
        let first = page_writer::FIRST / PAGE_SIZE;
        let written: Vec<_> = probe.set.gfns().iter().copied().filter(|gfn| *gfn >= first).collect();
        assert_eq!(written, (first..).take(PAGES as usize).collect::<Vec<_>>());
    }

    #[test]
    fn prices_are_parts_of_a_fault() {
        let prices = |fault, copy| {
            let cost = WatchCost { fault: Duration::from_nanos(fault), copy: Duration::from_nanos(copy) };
            (cost.prices().compared, cost.prices().sent)
        };
        assert_eq!([prices(2_200, 230), prices(26_000, 250), prices(1 << 40, 1)], [(13, 42), (1, 3), (1, 1)]);
        // Nothing is dearer than the most that a page can have in its account.
        assert_eq!(prices(0, 250), prices(1, 250));
    }
}
