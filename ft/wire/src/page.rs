//! A page of guest memory: what page lists and deltas are made of.

/// Bytes in a page.
pub const PAGE: usize = 4096;

/// The bytes of a page.
pub type Page = [u8; PAGE];
