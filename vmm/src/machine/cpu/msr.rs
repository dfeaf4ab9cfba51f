//! Which model-specific registers make up a vCPU, and their values at boot.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

/// Time stamp counter.
pub const IA32_TSC: u32 = 0x10;
/// When the LAPIC timer fires, in TSC ticks.
pub const IA32_TSC_DEADLINE: u32 = 0x6e0;
const IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;
const MTRR_CAP: u32 = 0xfe;
/// The ones that Linux expects to find zero: SYSENTER_{CS,ESP,EIP}, STAR, CSTAR, KERNEL_GS_BASE,
/// SYSCALL_MASK, LSTAR.
const ZERO_AT_BOOT: [u32; 8] = [0x174, 0x175, 0x176, 0xc000_0081, 0xc000_0083, 0xc000_0102, 0xc000_0084, 0xc000_0082];
/// Hyper-V's own, which no guest of ours is told of.
const HYPERV: std::ops::Range<u32> = 0x4000_0000..0x4000_0200;

/// Memory type registers; KVM keeps them but does not list them.
fn mtrrs() -> impl Iterator<Item = u32> {
    let variable = 0x200..0x210;
    let fixed = [0x250, 0x258, 0x259].into_iter().chain(0x268..0x270);
    variable.chain(fixed).chain([MTRR_DEF_TYPE])
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, data, ..Default::default() }
}

/// The registers of a checkpoint: what KVM lists plus the MTRRs, less what this host cannot read or will not
/// take back. Tried once, on a fresh vCPU. The TSC is first and the deadline last, as the deadline is in
/// ticks of the TSC.
///
/// # Errors
/// When KVM does not list any.
pub fn saved_msrs(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Vec<u32>, kvm_ioctls::Error> {
    let list = kvm.get_msr_index_list()?;
    let listed = list.as_slice().iter().copied().filter(|index| !HYPERV.contains(index));
    let mut indices: Vec<u32> =
        listed.chain(mtrrs()).filter(|index| *index != IA32_TSC && *index != MTRR_CAP).collect();
    indices.sort_unstable();
    indices.dedup();
    indices.insert(0, IA32_TSC);
    indices.sort_by_key(|index| *index == IA32_TSC_DEADLINE);
    indices.retain(|index| is_kept(vcpu, *index));
    Ok(indices)
}

/// Whether a register can be read and its value written back.
fn is_kept(vcpu: &VcpuFd, index: u32) -> bool {
    let Ok(mut msrs) = Msrs::from_entries(&[entry(index, 0)]) else { return false };
    vcpu.get_msrs(&mut msrs) == Ok(1) && vcpu.set_msrs(&msrs) == Ok(1)
}

/// Sets the registers a fresh vCPU starts with. Those this host does not know are left out.
///
/// # Errors
/// When KVM does not take the time stamp counter, which every host has.
pub fn set_boot_msrs(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut values: Vec<_> = ZERO_AT_BOOT.iter().map(|index| (*index, 0)).collect();
    values.push((IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING));
    values.push((MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK));
    values.push((IA32_TSC, 0));
    for (index, value) in values {
        let msrs = Msrs::from_entries(&[entry(index, value)]).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))?;
        match vcpu.set_msrs(&msrs) {
            Ok(1) => {}
            Err(e) if index == IA32_TSC => return Err(e),
            _ => tracing::debug!("msr {index:#x} is not set at boot: this host does not have it"),
        }
    }
    Ok(())
}
