//! System call filters (seccomp): a thread can ask of the kernel what its work needs, and nothing else.
//!
//! In: what each thread needs, named where it is started ([`crate::thread::spawn`]). Out: threads that a
//! system call outside of that ends, with their process. Never: a thread with more than the one that started
//! it, which the kernel would not give it either; a thread without a filter, once the process has called
//! [`confine`].
//!
//! [`needs`] the groups; [`calls`] the system calls of each; [`mode`] what becomes of others; [`filter`] the
//! program for the kernel; [`violation`] what is said of a call that is not allowed.

mod calls;
mod filter;
mod mode;
mod needs;
mod violation;

use std::cell::Cell;
use std::io;
use std::os::fd::RawFd;
use std::sync::OnceLock;

pub use mode::Mode;
pub use needs::Needs;

/// Set once, by [`start`].
static MODE: OnceLock<Mode> = OnceLock::new();

thread_local! {
    static CONFINED_TO: Cell<Option<Needs>> = const { Cell::new(None) };
}

/// Decides for the whole process, once, before it starts threads. `program` begins what is said of a
/// violation, on `log`, which stays open. No program that this one executes gains privileges any more.
///
/// # Errors
/// When the kernel refuses.
pub fn start(program: &'static str, mode: Mode, log: RawFd) -> io::Result<()> {
    nix::sys::prctl::set_no_new_privs()?;
    if MODE.set(mode).is_ok() && mode == Mode::True {
        violation::report(program, log)?;
    }
    Ok(())
}

/// What [`start`] has decided; before, that there are no filters.
#[must_use]
pub fn mode() -> Mode {
    MODE.get().copied().unwrap_or(Mode::False)
}

/// Leaves the calling thread, and those that it starts, what it `needs`. Without [`start`] it does nothing.
///
/// # Errors
/// When the kernel has no filters, or the thread has less than that already.
pub fn confine(needs: Needs) -> io::Result<()> {
    let Some(filter) = prepared(needs)? else { return Ok(()) };
    filter.install()?;
    CONFINED_TO.set(Some(needs));
    Ok(())
}

/// The filter for a thread that the calling one starts, if it gets one.
pub(crate) fn prepared(needs: Needs) -> io::Result<Option<filter::Filter>> {
    let mode = mode();
    if mode == Mode::False {
        return Ok(None);
    }
    // The kernel would give neither.
    let wanted = needs | Needs::THREADS;
    if let Some(more) = CONFINED_TO.get().map(|own| wanted - own).filter(|more| !more.is_empty()) {
        let text = format!("a thread would need {more:?}, which the one that starts it does not have");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    filter::Filter::new(needs, mode).map(Some)
}

/// The calling thread has just been started with `filter`, and goes no further without it.
pub(crate) fn begin(filter: &filter::Filter) {
    if let Err(error) = filter.install() {
        tracing::error!("a thread cannot be given its system call filter: {error}");
        std::process::abort();
    }
    CONFINED_TO.set(Some(filter.needs()));
}

#[cfg(test)]
mod tests;
