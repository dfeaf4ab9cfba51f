//! What the figures depend on more than on Pollux: processor, kernel, kind of KVM, cost of a write fault.

use std::fs;
use std::path::Path;

use pollux_vmm::machine::kvm;
use pollux_vmm::machine::watch_cost::WatchCost;

/// One line about this host.
pub fn describe() -> String {
    let model = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "an unknown processor".to_owned());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let kernel = kernel.unwrap_or_default();
    let cost = kvm::open().map(|kvm| WatchCost::of_this_host(&kvm));
    let cost = cost.map_or_else(
        |error| format!("no KVM: {error}"),
        |WatchCost { fault, copy }| format!("write fault {fault:.1?}, copy of an unchanged page {copy:.2?}"),
    );
    format!("{model}, {cores} cores; Linux {kernel}; {}; {cost}", paging())
}

/// How KVM translates the guest's addresses, as its module says. Inside a virtual machine that answer is as
/// much about the hypervisor around it.
fn paging() -> String {
    let modules = [("kvm_intel", "ept", "EPT"), ("kvm_amd", "npt", "NPT")];
    let loaded = modules.iter().find_map(|(module, parameter, name)| {
        let value = fs::read_to_string(format!("/sys/module/{module}/parameters/{parameter}")).ok()?;
        let paging = if matches!(value.trim(), "Y" | "1") { name } else { "shadow paging" };
        Some(format!("KVM with {paging}"))
    });
    let unknown = || match Path::new("/sys/module/kvm_pvm").exists() {
        true => "KVM without help of the processor (PVM)".to_owned(),
        false => "KVM of an unknown kind".to_owned(),
    };
    let mut text = loaded.unwrap_or_else(unknown);
    if field("/proc/cpuinfo", "flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")) {
        text += ", in a virtual machine";
    }
    text
}

fn field(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
