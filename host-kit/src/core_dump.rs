//! What a core dump of this process leaves out.

use std::fs;

/// Shared memory: without a file, with one, and of huge pages (bits of `coredump_filter`).
const SHARED: u32 = 1 << 1 | 1 << 3 | 1 << 6;
const FILTER: &str = "/proc/self/coredump_filter";

/// Leaves out memory that is shared with other processes, as a guest's is. What is copied out of it on its
/// way to a disk, a network or another host is not.
pub fn leave_out_shared_memory() {
    let now = fs::read_to_string(FILTER).ok();
    let Some(now) = now.and_then(|text| u32::from_str_radix(text.trim(), 16).ok()) else {
        return tracing::info!("{FILTER} cannot be read: core dumps may have the guest's memory in them");
    };
    if let Err(error) = fs::write(FILTER, format!("{:#x}", now & !SHARED)) {
        tracing::info!("{FILTER}: {error}: core dumps may have the guest's memory in them");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_is_left_out() {
        leave_out_shared_memory();
        let now = fs::read_to_string(FILTER).unwrap();
        assert_eq!(u32::from_str_radix(now.trim(), 16).unwrap() & SHARED, 0);
    }
}
