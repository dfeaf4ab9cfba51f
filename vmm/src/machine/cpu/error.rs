//! What fails on the vCPUs.

use std::io;

use super::options::VCPUS_MAX;
use super::state::VcpuStateError;

/// What failed on the vCPUs.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// A number of vCPUs that cannot be.
    #[error("cpus boot_vcpus {0} must be from 1 to {VCPUS_MAX}")]
    Count(u32),
    /// The kernel refused a call.
    #[error("{call} failed")]
    Kvm {
        /// The call.
        call: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// More CPUID leaves than KVM takes.
    #[error("the CPUID table has too many entries")]
    CpuidTooLong,
    /// Registers could not be read or written.
    #[error("vCPU {vcpu}: cannot {what}")]
    State {
        /// Which vCPU.
        vcpu: u32,
        /// What was done.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: VcpuStateError,
    },
    /// No thread.
    #[error("cannot start the thread of vCPU {vcpu}")]
    Thread {
        /// Which vCPU.
        vcpu: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The signal that stops vCPUs.
    #[error("cannot install the handler of the vCPU signal")]
    Signal(#[source] io::Error),
}

impl CpuError {
    /// Wraps the kernel's answer to `call`.
    pub fn kvm(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |e| Self::Kvm { call, source: e.into() }
    }
}
