//! The smallest guest that writes to pages at native speed on any KVM: one vCPU, in ring 3 from its first
//! instruction. It tells what a host takes for such writes, without anything around them.
//!
//! ```text
//! again: mov rdi, rsi        rsi: the first page
//!        mov rcx, rdx        rdx: how many
//! page:  mov [rdi], rcx
//!        add rdi, 4096
//!        dec rcx
//!        jnz page
//!        out 0x10, al
//!        jmp again
//! ```

use kvm_bindings::kvm_segment;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::memory::guest::GuestMemory;
use super::memory::layout::PAGE_SIZE;

const CODE: [u8; 25] = [
    0x48, 0x89, 0xf7, 0x48, 0x89, 0xd1, 0x48, 0x89, 0x0f, 0x48, 0x81, 0xc7, 0, 0x10, 0, 0, 0x48, 0xff, 0xc9, 0x75,
    0xf1, 0xe6, PORT, 0xeb, 0xe7,
];
const PORT: u8 = 0x10;
const TABLES: u64 = 0x1000;
const CODE_AT: u64 = 0x1_0000;
/// The first page that it writes to.
pub const FIRST: u64 = 0x20_0000;
/// Present, writable, for ring 3, accessed and written.
const ENTRY: u64 = 0x67;
const LARGE: u64 = 1 << 7;

/// Why there is no such guest here.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// KVM refuses.
    #[error(transparent)]
    Kvm(#[from] kvm_ioctls::Error),
    /// The memory is too small.
    #[error("cannot write the guest's program")]
    Memory(#[from] GuestMemoryError),
    /// It did something else.
    #[error("the guest left by {0}")]
    Exit(String),
}

/// Makes `vcpu`, which has not run yet, write to `pages` pages from [`FIRST`] on in each [`turn`].
///
/// # Errors
/// When KVM refuses its registers, or it does not fit into `memory`.
pub fn load(vcpu: &VcpuFd, memory: &GuestMemory, pages: u64) -> Result<(), WriterError> {
    let store = |at: u64, value: u64| memory.ram().write_obj(value, GuestAddress(at));
    store(TABLES, (TABLES + PAGE_SIZE) | ENTRY)?;
    store(TABLES + PAGE_SIZE, (TABLES + 2 * PAGE_SIZE) | ENTRY)?;
    for i in 0..512 {
        store(TABLES + 2 * PAGE_SIZE + 8 * i, (i << 21) | ENTRY | LARGE)?;
    }
    memory.ram().write_slice(&CODE, GuestAddress(CODE_AT))?;
    let mut sregs = vcpu.get_sregs()?;
    let code = kvm_segment { limit: u32::MAX, selector: 0x33, type_: 11, ..segment() };
    let data = kvm_segment { limit: u32::MAX, selector: 0x2b, type_: 3, l: 0, db: 1, ..segment() };
    (sregs.cs, sregs.ss, sregs.ds, sregs.es) = (code, data, data, data);
    // Protected mode with paging and native FPU errors; physical address extension; long mode.
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8000_0033, TABLES, 0x20, 0x500);
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    // Ring 3 may use ports.
    (regs.rip, regs.rflags, regs.rsi, regs.rdx) = (CODE_AT, 0x3002, FIRST, pages);
    Ok(vcpu.set_regs(&regs)?)
}

/// Lets the guest write to all of its pages once.
///
/// # Errors
/// When it does anything else. It goes on where it was if a signal came: the turn may be called again.
pub fn turn(vcpu: &mut VcpuFd) -> Result<(), WriterError> {
    match vcpu.run()? {
        VcpuExit::IoOut(port, _) if port == u16::from(PORT) => Ok(()),
        other => Err(WriterError::Exit(format!("{other:?}"))),
    }
}

fn segment() -> kvm_segment {
    kvm_segment { present: 1, dpl: 3, s: 1, l: 1, g: 1, ..kvm_segment::default() }
}
