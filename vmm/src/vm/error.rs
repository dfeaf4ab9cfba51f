//! Why a VM cannot be built or does not do what it was told.

use crate::boot::kernel::BootError;
use crate::devices::DeviceError;
use crate::legacy::serial::SerialError;
use crate::machine::bus::BusError;
use crate::machine::cpu::CpuError;
use crate::machine::irq::IrqError;
use crate::machine::kvm::KvmError;
use crate::machine::memory::guest::MemoryError;
use crate::machine::state::StateError;
use crate::vm::gate::NotHere;

/// Why a VM cannot be built or does not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// vCPUs.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// Interrupts.
    #[error(transparent)]
    Irq(#[from] IrqError),
    /// The address map.
    #[error("two devices claim the same address")]
    Bus(#[from] BusError),
    /// What to boot.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The serial line.
    #[error(transparent)]
    Serial(#[from] SerialError),
    /// Virtio devices and their processes.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Saved state.
    #[error(transparent)]
    State(#[from] StateError),
    /// It may not be changed here.
    #[error(transparent)]
    NotHere(#[from] NotHere),
    /// The CPUs' address space has no room for this much memory.
    #[error("memory.size {size} bytes does not fit the {phys_bits} physical address bits of this host's CPUs")]
    TooLarge {
        /// Bytes asked for.
        size: u64,
        /// What the CPUs have, with `cpus.max_phys_bits` as the limit.
        phys_bits: u8,
    },
}
