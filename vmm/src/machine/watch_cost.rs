//! What it costs on this host to watch a page, and not to: measured once, with a VM of a few pages.
//!
//! Watching a page costs the guest a fault when it writes to it. Not watching it costs a copy and a
//! comparison in each epoch in which it is not written. How dear a fault is depends on the host more than all else: 1 to
//! 2 µs where hardware walks the guest's page tables, 26 µs where KVM shadows them.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::dirty::{DirtyError, DirtySet, DirtyTracker, Watch};
use super::guest::{GuestMemory, MemoryError, RamOptions};
use super::layout::PAGE_SIZE;
use super::view::MemoryView;

/// Why the costs of this host are not known.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error(transparent)]
    Kvm(#[from] kvm_ioctls::Error),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("cannot write the guest's program")]
    Write(#[from] GuestMemoryError),
    #[error(transparent)]
    Dirty(#[from] DirtyError),
    #[error("the guest ended with {0}")]
    Exit(String),
}

/// Costs of one page on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchCost {
    /// Of the guest's first write to it while it is watched.
    pub fault: Duration,
    /// Of copying it and finding that nothing in it has changed.
    pub copy: Duration,
}

/// Where page tables are in hardware, about.
const UNKNOWN: WatchCost = WatchCost { fault: Duration::from_micros(2), copy: Duration::from_nanos(250) };

impl WatchCost {
    /// Of this host. It is measured by the first who asks, which takes some milliseconds; a host that cannot
    /// be measured is taken for a usual one.
    pub fn of_this_host(kvm: &Kvm) -> Self {
        static MEASURED: OnceLock<WatchCost> = OnceLock::new();
        *MEASURED.get_or_init(|| {
            let cost = Probe::new(kvm).and_then(|mut probe| probe.measure()).unwrap_or_else(|error| {
                tracing::warn!("cannot measure what a write fault costs here: {}", host_kit::error::chain(&error));
                UNKNOWN
            });
            tracing::info!("a write fault costs {:?} here, an unchanged page {:?}", cost.fault, cost.copy);
            cost
        })
    }

    /// For how many epochs a page may be copied in vain until that has cost as much as a fault.
    #[must_use]
    pub fn break_even(self) -> u16 {
        let ratio = self.fault.as_nanos() / self.copy.as_nanos().max(1);
        u16::try_from(ratio).unwrap_or(u16::MAX)
    }
}

/// Pages that the guest writes to in each round.
const PAGES: u64 = 256;
/// Each round is long enough to be told from noise; the fastest is the one that nothing disturbed.
const ROUNDS: u32 = 5;
/// The guest's memory: tables and code in the first 2 MiB, which are one page of its tables, as is the rest.
const SIZE: u64 = 4 << 20;
const TABLES: [u64; 3] = [0x1000, 0x2000, 0x3000];
const CODE: u64 = 0x4000;
const DATA: u64 = 2 << 20;
const PORT: u8 = 0x10;

/// The guest: it writes to all pages, says so, and does it again.
///
/// ```text
/// again: mov rdi, DATA
/// next:  mov byte [rdi], 1
///        add rdi, 4096
///        cmp rdi, DATA + 4096 * PAGES
///        jne next
///        out PORT, al
///        jmp again
/// ```
const PROGRAM: [u8; 30] = {
    let (first, end) = ((DATA as u32).to_le_bytes(), ((DATA + PAGE_SIZE * PAGES) as u32).to_le_bytes());
    [
        0x48, 0xc7, 0xc7, first[0], first[1], first[2], first[3], // mov
        0xc6, 0x07, 0x01, // mov
        0x48, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add
        0x48, 0x81, 0xff, end[0], end[1], end[2], end[3], // cmp
        0x75, 0xed, // jne
        0xe6, PORT, // out
        0xeb, 0xe2, // jmp
    ]
};

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
        memory.set_slots(&vm, 0)?;
        // Tables of one entry each, and a last of two: present, writable, the user's, accessed, dirty.
        let write = |at, value: u64| memory.ram().write_obj(value, GuestAddress(at));
        write(TABLES[0], TABLES[1] | 0x67)?;
        write(TABLES[1], TABLES[2] | 0x67)?;
        write(TABLES[2], 0xe7)?;
        write(TABLES[2] + 8, DATA | 0xe7)?;
        memory.ram().write_slice(&PROGRAM, GuestAddress(CODE))?;
        let vcpu = vm.create_vcpu(0)?;
        let mut sregs = vcpu.get_sregs()?;
        enter_ring_3(&mut sregs);
        vcpu.set_sregs(&sregs)?;
        // Of the flags the one that is always set, and the right to use ports.
        vcpu.set_regs(&kvm_regs { rip: CODE, rflags: 0x3002, ..kvm_regs::default() })?;
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
    fn round(&mut self) -> Result<Duration, ProbeError> {
        let began = Instant::now();
        match self.vcpu.run()? {
            VcpuExit::IoOut(port, _) if port == u16::from(PORT) => Ok(began.elapsed()),
            other => Err(ProbeError::Exit(format!("{other:?}"))),
        }
    }

    /// The pages are copied, and compared with what they were.
    fn copy(&self) -> Duration {
        let view = MemoryView::new(&self.memory);
        let gfns: Vec<_> = (DATA / PAGE_SIZE..).take(PAGES as usize).collect();
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

/// Long mode with the tables of [`Probe::new`], in the ring where every kind of KVM runs a guest by itself.
fn enter_ring_3(sregs: &mut kvm_sregs) {
    let segment = |selector, kind, long: bool| kvm_segment {
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        dpl: 3,
        db: (!long).into(),
        s: 1,
        l: long.into(),
        g: 1,
        ..kvm_segment::default()
    };
    let data = segment(0x1b, 3, false);
    sregs.cs = segment(0x23, 11, true);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { selector: 0x28, limit: 0x67, type_: 11, present: 1, ..kvm_segment::default() };
    sregs.ldt = kvm_segment { unusable: 1, ..kvm_segment::default() };
    sregs.cr3 = TABLES[0];
    // Physical address extension.
    sregs.cr4 = 1 << 5;
    // Protected mode, with paging; the rest is as after a reset of every CPU of the last thirty years.
    sregs.cr0 = 1 << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1;
    // Long mode, enabled and active.
    sregs.efer = 1 << 8 | 1 << 10;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_costs_something_and_more_than_a_write() {
        let mut probe = Probe::new(&crate::machine::kvm::open().unwrap()).unwrap();
        let cost = probe.measure().unwrap();
        println!("{cost:?}: {} copies for a fault", cost.break_even());
        assert!(!cost.fault.is_zero() && !cost.copy.is_zero());
        // All pages of the last round, and nothing else: the guest is what it is taken for.
        probe.tracker.harvest(&mut probe.set, Watch::All, &mut |_| ()).unwrap();
        let written: Vec<_> = (DATA / PAGE_SIZE..).take(PAGES as usize).collect();
        assert_eq!(probe.set.gfns(), written);
    }

    #[test]
    fn as_many_copies_as_a_fault_costs() {
        let cost = |fault, copy| {
            WatchCost { fault: Duration::from_nanos(fault), copy: Duration::from_nanos(copy) }.break_even()
        };
        assert_eq!([cost(26_000, 250), cost(100, 250), cost(1, 0), cost(1 << 40, 1)], [104, 0, 1, u16::MAX]);
    }
}
