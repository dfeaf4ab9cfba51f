//! The hash of everything that crosses the network or is kept on disk: XXH3, 64 bits.

use std::hash::Hasher;

use twox_hash::xxhash3_64::{RawHasher, SecretBuffer};

/// Hash of what `parts` are one after the other. Allocates nothing.
#[must_use]
pub fn hash_of_parts(parts: &[&[u8]]) -> u64 {
    let mut hasher = RawHasher::new(SecretBuffer::default());
    parts.iter().for_each(|part| hasher.write(part));
    hasher.finish()
}
