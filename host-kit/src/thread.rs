//! Starts the threads of a process, each with a name that `top -H`, `perf` and debuggers show, and with what
//! it needs of the kernel.

use std::io;
use std::thread::{Builder, JoinHandle};

use crate::sandbox::{self, Needs};

/// Starts a thread that runs `body` and can ask of the kernel what it `needs`: see [`crate::sandbox`]. The
/// kernel shows the first 15 bytes of `name`; the name may come from a client.
///
/// The thread inherits the CPU of the calling one, not its priority: see [`crate::sched`].
///
/// # Errors
/// When the kernel has no thread left, or the calling thread has not what this one needs.
pub fn spawn<T: Send + 'static>(
    name: impl Into<String>,
    needs: Needs,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let filter = sandbox::prepared(needs)?;
    // The standard library panics on a name with such a character.
    Builder::new().name(name.into().replace('\0', "?")).spawn(move || {
        if let Some(filter) = filter {
            sandbox::begin(&filter);
        }
        body()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_its_name_whatever_that_is() {
        let shown = |name: &str| {
            let own = || std::fs::read_to_string("/proc/thread-self/comm").unwrap().trim_end().to_owned();
            spawn(name, Needs::FILES, own).unwrap().join().unwrap()
        };
        assert_eq!(shown("ft-send"), "ft-send");
        assert_eq!(shown("a\0name longer than the kernel's"), "a?name longer t");
        assert_eq!(shown("\0"), "?");
    }
}
