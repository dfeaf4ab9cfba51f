//! Page-aligned byte buffers, because direct I/O asks for alignment.

use std::ops::{Deref, DerefMut};

const ALIGN: usize = 4096;

/// A zero-filled buffer whose first byte is page-aligned.
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// `len` zero bytes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let bytes = vec![0; len + ALIGN];
        let start = (ALIGN - bytes.as_ptr().addr() % ALIGN) % ALIGN;
        Self { bytes, start, len }
    }

    /// Whether every byte is zero.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.chunks(64).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_and_zero() {
        for len in [0, 1, 512, 4096, 70_000] {
            let mut buffer = Buffer::zeroed(len);
            assert_eq!(buffer.as_ptr().addr() % ALIGN, 0);
            assert_eq!(buffer.len(), len);
            assert!(buffer.is_zero());
            if let Some(last) = buffer.last_mut() {
                *last = 1;
                assert!(!buffer.is_zero());
            }
        }
    }
}
