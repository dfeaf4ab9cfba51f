//! What is said of a system call that its thread's filter does not allow, before it ends the process.
//!
//! The kernel sends SIGSYS instead of carrying the call out. The handler writes one line and makes another
//! such call: a SIGSYS that comes while its handler runs does what it does by default.

use std::fmt::{self, Write};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::OnceLock;

use super::calls::name_of;

/// Who reports, and where.
static REPORT: OnceLock<(&'static str, RawFd)> = OnceLock::new();

pub(super) fn report(program: &'static str, log: RawFd) -> io::Result<()> {
    // It was set before: it stays as it is.
    let _ = REPORT.set((program, log));
    // SAFETY: a structure of integers and of a set of bits, for which zero is a value.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = on_violation as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: `action` is valid, and its handler has the type that its flags say.
    match unsafe { libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the kernel tells of a call (`siginfo_t` of SIGSYS), which libc has no fields for.
#[repr(C)]
struct Told {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    call_address: *mut libc::c_void,
    call: libc::c_int,
}

/// Only what a signal handler may do: no memory is allocated and no lock is taken. It does not return.
extern "C" fn on_violation(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes the information of a SIGSYS, whose beginning has this layout.
    let call = unsafe { (*info.cast::<Told>()).call };
    // SAFETY: the kernel passes the registers of the interrupted thread.
    let registers = unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let [first, second, third] = [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX].map(|at| registers[at as usize]);
    let mut name = [0_u8; 16];
    // SAFETY: it writes at most 16 bytes, with a zero at the end.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let name = name.split(|byte| *byte == 0).next().and_then(|name| str::from_utf8(name).ok()).unwrap_or("?");
    let (program, log) = REPORT.get().copied().unwrap_or(("?", libc::STDERR_FILENO));
    let mut line = Line::default();
    // It is cut where it does not fit.
    let _ = writeln!(
        line,
        "{program}: thread {name} made system call {call} ({}, {first:#x}, {second:#x}, {third:#x}), which its seccomp \
         filter does not allow: ending",
        name_of(call.into())
    );
    // SAFETY: the bytes are valid.
    unsafe { libc::write(log, line.bytes.as_ptr().cast(), line.len) };
    // SAFETY: it is in no group, and is not carried out; if it were, no memory is passed.
    unsafe { libc::syscall(libc::SYS_execve, 0_usize, 0_usize, 0_usize) };
}

/// Text without an allocation.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; 256], len: 0 }
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.len..self.len + text.len()).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}
