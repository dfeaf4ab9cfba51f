//! What the CPUID instruction tells the guest: the host's features as far as KVM supports them, our topology.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use zerocopy::{FromBytes, IntoBytes};

use super::error::CpuError;

const HYPERVISOR: u32 = 1 << 31;
const TSC_DEADLINE: u32 = 1 << 24;
const VMX: u32 = 1 << 5;
const HTT: u32 = 1 << 28;
const MTRR: u32 = 1 << 12;
const SVM: u32 = 1 << 2;
const CMP_LEGACY: u32 = 1 << 1;
const AMX_BITS: u32 = 1 << 22 | 1 << 24 | 1 << 25;
const INVARIANT_TSC: u32 = 1 << 8;
/// Leaf with the ratio of the TSC's frequency to that of the core crystal.
const TSC_LEAF: u32 = 0x15;
/// Leaf with frequencies in MHz.
const FREQUENCY_LEAF: u32 = 0x16;
/// "GenuineIntel" in the registers of leaf 0, ebx, edx, ecx.
const INTEL: [u32; 3] = [0x756e_6547, 0x4965_6e69, 0x6c65_746e];
/// Hypervisor leaf with the TSC's and the LAPIC timer's frequency in kHz.
const TIMING_LEAF: u32 = 0x4000_0010;
/// Of physical and linear addresses.
const ADDRESS_SIZES: u32 = 0x8000_0008;
const LAPIC_TIMER_KHZ: u32 = 1_000_000;
const HYPERVISOR_LEAF: u32 = 0x4000_0000;
/// KVM's own signature in the hypervisor leaf, "KVMKVMKVM".
const KVM_SIGNATURE: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x4d];

/// What is chosen about the CPU the guest sees.
#[derive(Clone, Copy, Debug)]
pub struct CpuidOptions {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Upper bound of physical address bits.
    pub max_phys_bits: u8,
    /// Show advanced matrix extensions.
    pub amx: bool,
    /// Show virtualisation extensions.
    pub nested: bool,
    /// The guest's TSC frequency, if known.
    pub tsc_khz: Option<u32>,
}

/// The physical address bits of this host's CPUs, `max` at most, as [`common`] shows them to the guest.
///
/// # Errors
/// When KVM does not tell what it supports.
pub fn phys_bits(kvm: &Kvm, max: u8) -> Result<u8, CpuError> {
    Ok(address_bits(&supported(kvm)?, max))
}

fn address_bits(supported: &CpuId, max: u8) -> u8 {
    let sizes = supported.as_slice().iter().find(|entry| entry.function == ADDRESS_SIZES);
    // Without the leaf, what every CPU of this architecture has.
    sizes.map_or(36, |entry| (entry.eax as u8).min(max).max(32))
}

fn supported(kvm: &Kvm) -> Result<CpuId, CpuError> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(CpuError::kvm("KVM_GET_SUPPORTED_CPUID"))
}

/// The table all vCPUs share, and the physical address bits in it.
///
/// # Errors
/// When KVM does not tell what it supports.
pub fn common(kvm: &Kvm, options: &CpuidOptions) -> Result<(Vec<kvm_cpuid_entry2>, u8), CpuError> {
    let supported = supported(kvm)?;
    // Topology leaves are ours.
    let ours = [0xb, 0x1f, 0x8000_0026];
    let mut table: Vec<_> = supported.as_slice().iter().copied().filter(|e| !ours.contains(&e.function)).collect();
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let phys_bits = address_bits(&supported, options.max_phys_bits);
    for entry in &mut table {
        match entry.function {
            1 => {
                entry.ecx |= HYPERVISOR | if deadline { TSC_DEADLINE } else { 0 };
                entry.edx |= MTRR;
                clear_unless(options.nested, &mut entry.ecx, VMX);
            }
            7 if entry.index == 0 => clear_unless(options.amx, &mut entry.edx, AMX_BITS),
            0x8000_0001 => clear_unless(options.nested, &mut entry.ecx, SVM),
            ADDRESS_SIZES => entry.eax = entry.eax & !0xff | u32::from(phys_bits),
            _ => {}
        }
    }
    copy_brand(&mut table);
    add_timing(&mut table, options.tsc_khz);
    add_topology(&mut table, options.vcpus);
    set_apic_id(&mut table, 0);
    Ok((table, phys_bits))
}

/// The table of one vCPU.
///
/// # Errors
/// When the table is longer than KVM takes.
pub fn for_vcpu(common: &[kvm_cpuid_entry2], vcpu: u32) -> Result<CpuId, CpuError> {
    let mut table = CpuId::from_entries(common).map_err(|_| CpuError::CpuidTooLong)?;
    set_apic_id(table.as_mut_slice(), vcpu);
    Ok(table)
}

/// Says in a table whose it is. KVM leaves the id of the host CPU there that it was asked on.
fn set_apic_id(table: &mut [kvm_cpuid_entry2], id: u32) {
    for entry in table {
        match entry.function {
            1 => entry.ebx = entry.ebx & 0x00ff_ffff | id << 24,
            0xb | 0x1f => entry.edx = id,
            0x8000_001e => {
                entry.eax = id;
                // One thread a core: the core's number is the vCPU's.
                entry.ebx = id & 0xff;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
}

/// A table as bytes, to be compared with another host's.
#[must_use]
pub fn to_bytes(table: &[kvm_cpuid_entry2]) -> Vec<u8> {
    table.as_bytes().to_vec()
}

/// The table in `bytes`; `None` when they are none.
#[must_use]
pub fn from_bytes(bytes: &[u8]) -> Option<Vec<kvm_cpuid_entry2>> {
    let (entries, tail) = bytes.as_chunks::<{ size_of::<kvm_cpuid_entry2>() }>();
    if !tail.is_empty() || entries.len() > KVM_MAX_CPUID_ENTRIES {
        return None;
    }
    entries.iter().map(|entry| kvm_cpuid_entry2::read_from_bytes(entry).ok()).collect()
}

/// Feature leaves: each set bit in one of these registers is something the guest may use.
const FEATURE_LEAVES: [(u32, u32, &[Register]); 10] = [
    (1, 0, &[Register::Ecx, Register::Edx]),
    (6, 0, &[Register::Eax]),
    (7, 0, &[Register::Ebx, Register::Ecx, Register::Edx]),
    (7, 1, &[Register::Eax]),
    (0xd, 0, &[Register::Eax, Register::Edx]),
    (0xd, 1, &[Register::Eax]),
    (0x4000_0001, 0, &[Register::Eax]),
    (0x8000_0001, 0, &[Register::Ecx, Register::Edx]),
    (0x8000_0007, 0, &[Register::Edx]),
    (0x8000_0008, 0, &[Register::Ebx]),
];

#[derive(Clone, Copy, Debug)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    fn of(self, entry: &kvm_cpuid_entry2) -> u32 {
        match self {
            Self::Eax => entry.eax,
            Self::Ebx => entry.ebx,
            Self::Ecx => entry.ecx,
            Self::Edx => entry.edx,
        }
    }
}

/// What a guest that was started with the features of `guest` would miss on a host whose own table is `here`:
/// one line a register.
#[must_use]
pub fn missing(guest: &[kvm_cpuid_entry2], here: &[kvm_cpuid_entry2]) -> Vec<String> {
    let entry = |table: &[kvm_cpuid_entry2], function, index| {
        table.iter().find(|e| e.function == function && e.index == index).copied().unwrap_or_default()
    };
    let mut lines = Vec::new();
    let vendor = |table| [Register::Ebx, Register::Edx, Register::Ecx].map(|r| r.of(&entry(table, 0, 0)));
    if vendor(guest) != vendor(here) {
        lines.push("the CPUs are of different vendors".to_owned());
    }
    for (function, index, registers) in FEATURE_LEAVES {
        for register in registers {
            let bits = register.of(&entry(guest, function, index)) & !register.of(&entry(here, function, index));
            if bits != 0 {
                lines.push(format!("CPU features {register:?} {bits:#x} of leaf {function:#x}.{index} are missing"));
            }
        }
    }
    let bits = |table| entry(table, 0x8000_0008, 0).eax & 0xff;
    // The places of devices depend on them.
    if bits(guest) != bits(here) {
        let (guest, here) = (bits(guest), bits(here));
        lines.push(format!(
            "the guest has {guest} physical address bits, this host gives it {here}: start both hosts with max_phys_bits={}",
            guest.min(here)
        ));
    }
    lines
}

fn clear_unless(keep: bool, register: &mut u32, bits: u32) {
    if !keep {
        *register &= !bits;
    }
}

fn find(table: &mut [kvm_cpuid_entry2], function: u32) -> Option<&mut kvm_cpuid_entry2> {
    table.iter_mut().find(|e| e.function == function && e.index == 0)
}

/// KVM leaves out the processor's name; take the host's.
fn copy_brand(table: &mut Vec<kvm_cpuid_entry2>) {
    if find(table, 0x8000_0000).is_none_or(|e| e.eax < 0x8000_0004) {
        return;
    }
    for function in 0x8000_0002..=0x8000_0004 {
        let host = core::arch::x86_64::__cpuid(function);
        let entry = kvm_cpuid_entry2 {
            function,
            eax: host.eax,
            ebx: host.ebx,
            ecx: host.ecx,
            edx: host.edx,
            ..Default::default()
        };
        table.retain(|e| e.function != function);
        table.push(entry);
    }
}

/// Frequencies, for a TSC that never changes its own.
fn add_timing(table: &mut Vec<kvm_cpuid_entry2>, tsc_khz: Option<u32>) {
    let invariant = find(table, 0x8000_0007).is_some_and(|e| e.edx & INVARIANT_TSC != 0);
    let Some(khz) = tsc_khz.filter(|_| invariant) else { return };
    add_intel_timing(table, khz);
    let Some(signature) = find(table, HYPERVISOR_LEAF) else { return };
    if [signature.ebx, signature.ecx, signature.edx] != KVM_SIGNATURE {
        return;
    }
    signature.eax = signature.eax.max(TIMING_LEAF);
    table.retain(|e| e.function != TIMING_LEAF);
    table.push(kvm_cpuid_entry2 { function: TIMING_LEAF, eax: khz, ebx: LAPIC_TIMER_KHZ, ..Default::default() });
}

/// The frequency in Intel's own leaves, for guests that look there and nowhere else. The crystal is what
/// drives KVM's LAPIC timer.
///
/// Guests compute with 32 bits, so the ratio is in whole MHz, or tens of them. Where that is not exact the
/// crystal's frequency is left out: a guest takes what it computes for an estimate then, and measures.
fn add_intel_timing(table: &mut Vec<kvm_cpuid_entry2>, khz: u32) {
    const CRYSTAL_MHZ: u32 = LAPIC_TIMER_KHZ / 1000;
    let Some(first) = find(table, 0).filter(|e| [e.ebx, e.edx, e.ecx] == INTEL) else { return };
    first.eax = first.eax.max(FREQUENCY_LEAF);
    let unit_mhz = if khz < 4_000_000 { 1 } else { 10 };
    let units = (khz + 500 * unit_mhz) / (1000 * unit_mhz);
    let mhz = units * unit_mhz;
    let crystal_hz = if mhz * 1000 == khz { LAPIC_TIMER_KHZ * 1000 } else { 0 };
    table.retain(|e| e.function != TSC_LEAF && e.function != FREQUENCY_LEAF);
    table.extend([
        kvm_cpuid_entry2 {
            function: TSC_LEAF,
            eax: CRYSTAL_MHZ / unit_mhz,
            ebx: units,
            ecx: crystal_hz,
            ..Default::default()
        },
        // Base and highest frequency, and that of the bus.
        kvm_cpuid_entry2 { function: FREQUENCY_LEAF, eax: mhz, ebx: mhz, ecx: 100, ..Default::default() },
    ]);
}

/// One package of `vcpus` cores with one thread each; APIC id = vCPU number.
fn add_topology(table: &mut Vec<kvm_cpuid_entry2>, vcpus: u32) {
    let id_bits = vcpus.next_power_of_two().trailing_zeros();
    for entry in table.iter_mut() {
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & !0x00ff_0000 | vcpus.next_power_of_two().min(255) << 16;
                entry.edx = if vcpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
            }
            // Who shares a cache: all its cores for the third level, nobody below.
            4 | 0x8000_001d if entry.eax & 0x1f != 0 => {
                let sharers = if entry.eax >> 5 & 7 >= 3 { vcpus.next_power_of_two() - 1 } else { 0 };
                entry.eax = entry.eax & 0x3fff | sharers << 14;
                if entry.function == 4 {
                    entry.eax |= (vcpus.next_power_of_two() - 1).min(63) << 26;
                }
            }
            0x8000_0001 => {
                entry.ecx = if vcpus > 1 { entry.ecx | CMP_LEGACY } else { entry.ecx & !CMP_LEGACY };
            }
            0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | id_bits << 12 | (vcpus - 1).min(255),
            _ => {}
        }
    }
    let max_leaf = find(table, 0).map_or(0, |e| e.eax);
    for function in [0xb, 0x1f] {
        if function > max_leaf {
            continue;
        }
        let level = |index, kind: u32, shift, count| kvm_cpuid_entry2 {
            function,
            index,
            flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: count,
            ecx: index | kind << 8,
            ..Default::default()
        };
        table.extend([level(0, 1, 0, 1), level(1, 2, id_bits, vcpus), level(2, 0, 0, 0)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(vcpus: u32) -> CpuidOptions {
        CpuidOptions { vcpus, max_phys_bits: 46, amx: false, nested: false, tsc_khz: Some(2_000_000) }
    }

    fn get(table: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *table.iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    #[test]
    fn shared_table_does_not_tell_which_host_cpu_it_was_made_on() {
        let made_on = |cpu: u32| {
            let leaf = |function, eax, ebx| kvm_cpuid_entry2 { function, eax, ebx, ..kvm_cpuid_entry2::default() };
            let mut table = [leaf(1, 7, cpu << 24 | 0x0800), leaf(0x8000_001e, cpu, 0x100 | cpu)];
            set_apic_id(&mut table, 0);
            to_bytes(&table)
        };
        assert_eq!(made_on(0), made_on(1));
    }

    #[test]
    fn every_vcpu_has_its_own_apic_id() {
        let kvm = crate::machine::kvm::open().unwrap();
        let (table, phys_bits) = common(&kvm, &options(6)).unwrap();
        assert!((32..=46).contains(&phys_bits));
        assert_eq!(get(&table, 0x8000_0008, 0).eax as u8, phys_bits);
        for vcpu in 0..6 {
            let own = for_vcpu(&table, vcpu).unwrap();
            let leaf = get(own.as_slice(), 1, 0);
            assert_eq!(leaf.ebx >> 24, vcpu);
            assert_eq!(leaf.ebx >> 16 & 0xff, 8);
            assert_eq!(leaf.ecx & HYPERVISOR, HYPERVISOR);
            assert_eq!(leaf.ecx & VMX, 0);
            if get(&table, 0, 0).eax >= 0xb {
                let cores = get(own.as_slice(), 0xb, 1);
                assert_eq!((cores.edx, cores.eax, cores.ebx, cores.ecx), (vcpu, 3, 6, 0x201));
            }
        }
    }

    /// What Linux makes of the leaves (native_calibrate_tsc): TSC and LAPIC timer in kHz, and whether it
    /// believes that.
    fn linux_calibrates(table: &[kvm_cpuid_entry2]) -> (u32, u32, bool) {
        let (ratio, base) = (get(table, TSC_LEAF, 0), get(table, FREQUENCY_LEAF, 0));
        let mut crystal = ratio.ecx / 1000;
        let known = crystal != 0;
        if !known {
            crystal = base.eax.checked_mul(1000 * ratio.eax).unwrap() / ratio.ebx;
        }
        (crystal.checked_mul(ratio.ebx).unwrap() / ratio.eax, crystal, known)
    }

    #[test]
    fn intel_guests_find_the_frequency_in_their_own_leaves() {
        let entry = |function, eax, [ebx, edx, ecx]: [u32; 3], edx_too| kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx: edx | edx_too,
            ..Default::default()
        };
        let exact = [2_600_000, 800_000, 3_999_000, 4_200_000, 5_800_000].map(|khz| (khz, khz, true));
        let estimates = [(2_299_998, 2_300_000, false), (4_295_000, 4_300_000, false), (5_803_000, 5_800_000, false)];
        for (khz, told, known) in exact.into_iter().chain(estimates) {
            let mut table = vec![
                entry(0, 0xd, INTEL, 0),
                entry(HYPERVISOR_LEAF, 0x4000_0001, [KVM_SIGNATURE[0], KVM_SIGNATURE[2], KVM_SIGNATURE[1]], 0),
                entry(0x8000_0007, 0, [0; 3], INVARIANT_TSC),
            ];
            add_timing(&mut table, Some(khz));
            assert_eq!(linux_calibrates(&table), (told, LAPIC_TIMER_KHZ, known));
            assert_eq!(get(&table, 0, 0).eax, 0x16);
            assert_eq!(get(&table, TIMING_LEAF, 0).eax, khz);
        }
        // Others have no such leaves.
        let mut table = vec![entry(0, 0xd, [1; 3], 0), entry(0x8000_0007, 0, [0; 3], INVARIANT_TSC)];
        add_timing(&mut table, Some(2_600_000));
        assert_eq!((table.len(), get(&table, 0, 0).eax), (2, 0xd));
    }

    #[test]
    fn what_a_guest_would_miss_is_named() {
        let kvm = crate::machine::kvm::open().unwrap();
        let (table, _) = common(&kvm, &options(2)).unwrap();
        assert_eq!(from_bytes(&to_bytes(&table)).unwrap(), table);
        assert!(from_bytes(&to_bytes(&table)[1..]).is_none());
        assert_eq!(missing(&table, &table), Vec::<String>::new());
        let mut less = table.clone();
        find(&mut less, 1).unwrap().ecx &= !HYPERVISOR;
        find(&mut less, 0).unwrap().ebx ^= 1;
        let expected = ["the CPUs are of different vendors", "CPU features Ecx 0x80000000 of leaf 0x1.0 are missing"];
        assert_eq!(missing(&table, &less), expected);
        assert_eq!(missing(&less, &table), expected[..1]);
        let mut narrow = table.clone();
        find(&mut narrow, 0x8000_0008).unwrap().eax -= 1;
        for (guest, here) in [(&table, &narrow), (&narrow, &table)] {
            assert!(missing(guest, here)[0].contains("physical address bits"));
        }
    }

    #[test]
    fn one_vcpu_is_not_a_multicore_package() {
        let kvm = crate::machine::kvm::open().unwrap();
        let (table, _) = common(&kvm, &options(1)).unwrap();
        assert_eq!(get(&table, 1, 0).edx & HTT, 0);
        assert_eq!(get(&table, 0x8000_0008, 0).ecx & 0xf0ff, 0);
    }
}
