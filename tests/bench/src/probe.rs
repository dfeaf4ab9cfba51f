//! The smallest VM that dirties pages at native speed on any KVM, by raw ioctls. Each turn the guest stores
//! to every page of its set. What the host then has to do for a checkpoint, call by call and with nothing
//! around it, is the floor.

use std::sync::Arc;

use kvm_bindings::{
    KVM_MEM_LOG_DIRTY_PAGES, KVM_SYNC_X86_EVENTS, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, Msrs, kvm_msr_entry,
};
use kvm_ioctls::{VcpuFd, VmFd};
use pollux_vmm::machine::kvm;
use pollux_vmm::machine::memory::guest::{GuestMemory, RamOptions};
use pollux_vmm::machine::page_writer;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::ring::Ring;

const PAGE: u64 = 4096;
/// As many as a Linux guest's state has beyond the common registers.
const MSRS: [u32; 17] = [
    0x10,
    0x174,
    0x175,
    0x176,
    0x277,
    0x2ff,
    0x6e0,
    0x4b56_4d00,
    0x4b56_4d01,
    0x4b56_4d02,
    0x4b56_4d03,
    0x4b56_4d04,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0102,
];

/// How the probe learns which pages were written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Log {
    /// A bit for each page of memory.
    Bitmap,
    /// An entry for each page that was written.
    Ring,
}

/// The VM.
pub struct Probe {
    /// Before the vCPU, whose file it maps.
    ring: Option<Ring>,
    vm: Arc<VmFd>,
    vcpu: VcpuFd,
    memory: GuestMemory,
    msrs: Msrs,
    log: Vec<u64>,
    staging: Vec<u8>,
}

impl Probe {
    /// A guest with `mem_mib` of memory that dirties `pages` pages a turn, with a bitmap.
    pub fn new(mem_mib: u64, pages: u64) -> Self {
        Self::with(Log::Bitmap, mem_mib, pages).expect("every KVM has the bitmap")
    }

    /// As `new`; `None` if this KVM has no such log.
    pub fn with(log: Log, mem_mib: u64, pages: u64) -> Option<Self> {
        let size = mem_mib << 20;
        assert!(page_writer::FIRST + pages * PAGE <= size, "{pages} pages do not fit into {mem_mib} MiB");
        let kvm = kvm::open().expect("KVM");
        let vm = Arc::new(kvm.create_vm().expect("KVM_CREATE_VM"));
        match log {
            Log::Bitmap => assert!(kvm::enable_manual_dirty_log(&vm), "this KVM has no manual dirty log"),
            Log::Ring if Ring::enable(&vm) => {}
            Log::Ring => return None,
        }
        let memory = GuestMemory::new(&RamOptions { size, ..Default::default() }).expect("guest memory");
        let _irqs = pollux_vmm::machine::irq::IrqManager::new(vm.clone()).expect("split irqchip");
        memory.set_slots(&vm, 0).expect("memory slots");
        let vcpu = vm.create_vcpu(0).expect("KVM_CREATE_VCPU");
        let ring = (log == Log::Ring).then(|| Ring::of(&vcpu));
        let cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).expect("KVM_GET_SUPPORTED_CPUID");
        vcpu.set_cpuid2(&cpuid).expect("KVM_SET_CPUID2");
        let entries = MSRS.map(|index| kvm_msr_entry { index, ..Default::default() });
        let known: Vec<_> = entries
            .into_iter()
            .filter(|entry| vcpu.get_msrs(&mut Msrs::from_entries(&[*entry]).expect("one MSR")) == Ok(1))
            .collect();
        let msrs = Msrs::from_entries(&known).expect("a list of MSRs");
        let log = vec![0; usize::try_from(size.div_ceil(PAGE * 64)).expect("words of the log")];
        let staging = vec![0; usize::try_from(pages * PAGE).expect("bytes of staging")];
        let mut probe = Self { ring, vm, vcpu, memory, msrs, log, staging };
        page_writer::load(&probe.vcpu, &probe.memory, pages).expect("the guest");
        probe.turn();
        Some(probe)
    }

    /// Begins to log writes.
    pub fn start_log(&self) {
        self.memory.set_slots(&self.vm, KVM_MEM_LOG_DIRTY_PAGES).expect("dirty logging");
    }

    /// Lets the guest dirty its set once.
    pub fn turn(&mut self) {
        page_writer::turn(&mut self.vcpu).expect("a turn of the guest");
    }

    /// Reads all registers of the vCPU with as few calls as there can be.
    pub fn read_state(&mut self) {
        self.vcpu.get_mp_state().expect("KVM_GET_MP_STATE");
        let run = self.vcpu.get_kvm_run();
        run.kvm_valid_regs = u64::from(KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS);
        run.immediate_exit = 1;
        assert!(self.vcpu.run().is_err(), "an immediate exit is an error");
        self.vcpu.get_kvm_run().immediate_exit = 0;
        self.vcpu.get_xsave().expect("KVM_GET_XSAVE");
        let _ = self.vcpu.get_xcrs();
        let _ = self.vcpu.get_debug_regs();
        self.vcpu.get_lapic().expect("KVM_GET_LAPIC");
        self.vcpu.get_msrs(&mut self.msrs).expect("KVM_GET_MSRS");
        self.vm.get_clock().expect("KVM_GET_CLOCK");
    }

    /// Reads and clears the log of all memory; returns how many pages there were.
    pub fn harvest_log(&mut self) -> usize {
        if let Some(ring) = &mut self.ring {
            return ring.harvest(&self.vm);
        }
        let mut count = 0;
        for (slot, region) in (0..).zip(self.memory.ram().iter()) {
            let take = |_, word: u64| count += word.count_ones() as usize;
            harvest_slot(&self.vm, slot, region.len() / PAGE, &mut self.log, take);
        }
        count
    }

    /// Reads the log, copies the pages out, clears the log; returns how many there were.
    pub fn harvest(&mut self) -> usize {
        let pages = self.memory.size() / PAGE;
        let host = self.memory.ram().iter().next().expect("a region").as_ptr();
        let (staging, mut count) = (&mut self.staging, 0);
        harvest_slot(&self.vm, 0, pages, &mut self.log, |at, mut bits| {
            while bits != 0 {
                let page = at * 64 + bits.trailing_zeros() as usize;
                let Some(into) = staging.chunks_exact_mut(4096).nth(count) else { return };
                // SAFETY: the log names pages of the region, which stays mapped; `into` is ours and one page
                // long.
                unsafe { std::ptr::copy_nonoverlapping(host.add(page * 4096), into.as_mut_ptr(), 4096) };
                count += 1;
                bits &= bits - 1;
            }
        });
        count
    }
}

/// Reads the bitmap of one slot, gives each word that is not zero and its number to `take`, and clears what
/// lies between them.
fn harvest_slot(vm: &VmFd, slot: u32, pages: u64, log: &mut [u64], mut take: impl FnMut(usize, u64)) {
    let log = &mut log[..usize::try_from(pages.div_ceil(64)).expect("words of the log")];
    kvm::get_dirty_log(vm, slot, pages, log).expect("KVM_GET_DIRTY_LOG");
    let (mut first, mut end) = (usize::MAX, 0);
    for (at, word) in log.iter().enumerate().filter(|(_, word)| **word != 0) {
        (first, end) = (first.min(at), at + 1);
        take(at, *word);
    }
    if first < end {
        let pages = u32::try_from((end - first) * 64).expect("pages");
        kvm::clear_dirty_log(vm, slot, first as u64 * 64, pages, &log[first..end]).expect("KVM_CLEAR_DIRTY_LOG");
    }
}
