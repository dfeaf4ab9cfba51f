//! Random numbers: names, identities and addresses that nobody else has.

use std::io;

/// `N` random bytes of the kernel.
///
/// # Errors
/// Practically never on Linux: when a sandbox forbids the call.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    fill(&mut bytes)?;
    Ok(bytes)
}

/// Fills `buffer` with random bytes of the kernel.
///
/// # Errors
/// As [`bytes`].
pub fn fill(buffer: &mut [u8]) -> io::Result<()> {
    Ok(getrandom::fill(buffer)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_are_alike() {
        assert_ne!(bytes::<16>().unwrap(), bytes::<16>().unwrap());
    }
}
