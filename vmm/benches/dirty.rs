//! What it takes to find the dirty pages of an epoch in 4 GiB of memory, by itself. Needs any `/dev/kvm`.

use std::sync::Arc;

use criterion::Criterion;
use pollux_vmm::machine::kvm;
use pollux_vmm::machine::memory::dirty::{DirtySet, DirtyTracker, Watch};
use pollux_vmm::machine::memory::guest::{GuestMemory, RamOptions};

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("harvest of 4 GiB");
    let memory = GuestMemory::new(&RamOptions { size: 4 << 30, ..Default::default() }).expect("guest memory");
    let vm = Arc::new(kvm::open().expect("KVM").create_vm().expect("KVM_CREATE_VM"));
    memory.set_slots(&vm, 0).expect("memory slots");
    let mut tracker = DirtyTracker::new(vm, &memory);
    tracker.start().expect("dirty logging");
    let mut set = DirtySet::new(&memory);
    for pages in [0, 100, 10_000] {
        // Scattered over 2 GiB, as a device process reports them.
        let dirty: Vec<u64> = (0..pages).map(|page| page * 48).collect();
        group.bench_function(format!("{pages} dirty pages"), |bencher| {
            bencher.iter(|| {
                let mut devices =
                    |take: &mut dyn FnMut(u64, u64)| dirty.iter().for_each(|page| take(page & !63, 1 << (page % 64)));
                tracker.harvest(&mut set, Watch::All, &mut devices).expect("a harvest");
                assert_eq!(set.len(), dirty.len());
            });
        });
    }
    group.finish();
    criterion.final_summary();
}
