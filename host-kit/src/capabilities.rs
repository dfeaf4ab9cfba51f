//! What root may do that others may not: a process keeps the little of it that it needs.
//!
//! A process without capabilities, as one of another user, has nothing to give up.

use std::io;

pub use caps::Capability;
use caps::{CapSet, CapsHashSet, errors::CapsError};

/// Gives up all but `kept`, for the calling thread and those that it starts. What a service manager has given
/// so that programs have it too (ambient) stays so, as far as it is kept.
///
/// # Errors
/// When the kernel refuses.
pub fn keep(kept: &[Capability]) -> io::Result<()> {
    keep_only(kept).map_err(io::Error::other)
}

fn keep_only(kept: &[Capability]) -> Result<(), CapsError> {
    let kept: CapsHashSet = kept.iter().copied().collect();
    for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &(&caps::read(None, set)? & &kept))?;
    }
    Ok(())
}

/// Whether the calling thread can make use of `one`.
#[must_use]
pub fn holds(one: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, one).unwrap_or(false)
}

/// No program that the calling thread executes gets others than `kept`, whoever its user is.
///
/// # Errors
/// When the kernel refuses.
pub fn limit_programs(kept: &[Capability]) -> io::Result<()> {
    let limit = || {
        // Without it there is no way to get more by executing a program, which sets no_new_privs.
        if !caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
            return Ok(());
        }
        let all: CapsHashSet = caps::runtime::thread_all_supported();
        all.into_iter().filter(|one| !kept.contains(one)).try_for_each(|one| caps::drop(None, CapSet::Bounding, one))
    };
    limit().map_err(|error: CapsError| io::Error::other(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_what_it_names_and_no_more() {
        let thread = std::thread::spawn(|| {
            let before = caps::read(None, CapSet::Permitted).unwrap();
            limit_programs(&[Capability::CAP_SYS_NICE]).unwrap();
            keep(&[Capability::CAP_SYS_NICE]).unwrap();
            let sets = [CapSet::Effective, CapSet::Permitted, CapSet::Bounding];
            (before, sets.map(|set| caps::read(None, set).unwrap()))
        });
        let (before, [effective, permitted, bounding]) = thread.join().unwrap();
        let kept = &before & &[Capability::CAP_SYS_NICE].into();
        assert_eq!((&effective, &permitted), (&kept, &kept));
        assert!(!before.contains(&Capability::CAP_SETPCAP) || bounding == [Capability::CAP_SYS_NICE].into());
    }
}
