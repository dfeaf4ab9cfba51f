//! Guests of different sizes that do the same: what a checkpoint, the first copy and both hosts' memory
//! depend on.

use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use engine_tests::{Pair, Vm, VmOptions};
use serde_json::json;

use crate::load::{Effort, requests};
use crate::protected::spread;
use crate::record::Report;
use crate::setup::Setup;

/// Pages that the guest writes once and then only reads: what it has is more than what the programs around it
/// need.
const TOUCHED: u64 = (512 << 20) / 4096;
/// Memory below the hole; the working set of a larger guest is above it.
const LOW_MIB: u64 = 3 << 10;

/// Measures guests of 1, 4 and 16 GiB, then one of 16 GiB with all the vCPUs that there can be.
pub fn measure(effort: &Effort, report: &mut Report) {
    let setup = |mem_gib: u64, vcpus| Setup { pages: 100, vcpus, mem_mib: mem_gib << 10 };
    let mut smallest = None;
    for setup in [setup(1, 1), setup(4, 1), setup(16, 1), setup(16, 8)] {
        let reference = smallest.filter(|_| setup.vcpus == 1);
        let pause = one(&setup, effort, reference, report);
        smallest.get_or_insert(pause);
        eprintln!("bench: {} GiB, {} vCPUs done", setup.mem_mib >> 10, setup.vcpus);
    }
}

/// Returns the median pause.
fn one(setup: &Setup, effort: &Effort, smallest: Option<f64>, report: &mut Report) -> f64 {
    let pair = Pair::new();
    let options = options(setup);
    let (vm, standby) = (pair.boot(0, &options), pair.standby(1, &options));
    let mut client = pair.client();
    client.echo();
    let start = Instant::now();
    pair.protect(&vm, 1, &json!({}));
    let first_copy = start.elapsed();
    requests(&mut client, setup.pages, effort);
    // The status is brought up to date every 100 ms.
    thread::sleep(Duration::from_millis(150));
    let pause = spread(&vm.api().get("ft.status").ok(), "pause_us");
    let touched = touched(&vm);
    report.add(setup, "scale_pause", "us", pause, smallest);
    report.add_one(setup, "scale_first_copy", "ms", first_copy.as_secs_f64() * 1e3, None);
    report.add_one(setup, "scale_touched", "MiB", touched, None);
    for (name, host) in [("scale_memory_primary", &vm), ("scale_memory_standby", &standby)] {
        let resident = resident(host);
        report.add_one(setup, name, "MiB", resident, resident / touched);
    }
    pause.p50
}

fn options(setup: &Setup) -> VmOptions {
    // Each vCPU but the first has pages of its own, if there are several.
    let touched = TOUCHED / u64::from(setup.vcpus - 1).max(1);
    let high = u8::from(setup.mem_mib > LOW_MIB);
    setup.options(false).guest(&format!("bg_pages={touched} rate=0 high={high}"))
}

/// MiB of guest memory that exist on the host of `vm`.
fn touched(vm: &Vm) -> f64 {
    let file = std::fs::metadata(vm.memory_file()).expect("the memory file of a VMM");
    file.blocks() as f64 * 512.0 / f64::from(1 << 20)
}

/// MiB of memory that a VMM and its device processes have, guest memory included; what they share counts
/// once.
fn resident(vm: &Vm) -> f64 {
    let share = |pid| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        proportional_kib(&text).unwrap_or_else(|| panic!("process {pid} has no memory"))
    };
    vm.processes().into_iter().map(share).sum::<u64>() as f64 / 1024.0
}

/// The `Pss` of a `smaps_rollup`.
fn proportional_kib(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_the_proportional_share() {
        let text = "5581bd000000-7ffd000 ---p 00000000 00:00 0   [rollup]\nRss:     8844 kB\nPss:     3073 kB\nPss_Dirty:  9 kB\n";
        assert_eq!(proportional_kib(text), Some(3073));
        assert_eq!(proportional_kib("Rss: 1 kB\n"), None);
    }
}
