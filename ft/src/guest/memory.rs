//! Guest memory as the engine's threads see it, and why the VMM could not do something.

use std::ops::Range;

/// The VMM could not do what the engine asked: a local failure, not the peer's.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct GuestError {
    what: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl GuestError {
    /// `what` failed because of `source`.
    pub fn new(what: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { what: what.into(), source: Some(source.into()) }
    }

    /// `what` failed.
    pub fn plain(what: impl Into<String>) -> Self {
        Self { what: what.into(), source: None }
    }
}

/// Guest memory by page number (guest-physical address / 4096). Shared between the engine's threads.
///
/// Copies may race with a running guest; a page that was torn by that is marked dirty and sent again.
pub trait Memory: Send + Sync {
    /// The page numbers that are RAM.
    fn ranges(&self) -> Vec<Range<u64>>;
    /// The part of them that was ever touched; the rest reads as zeroes and costs nothing.
    ///
    /// # Errors
    /// When the kernel does not tell.
    fn populated(&self) -> Result<Vec<Range<u64>>, GuestError>;
    /// Copies a page out; `into` is one page long.
    ///
    /// # Errors
    /// When the page is not RAM.
    fn copy_out(&self, page: u64, into: &mut [u8]) -> Result<(), GuestError>;
    /// Overwrites a page; `from` is one page long.
    ///
    /// # Errors
    /// When the page is not RAM.
    fn copy_in(&self, page: u64, from: &[u8]) -> Result<(), GuestError>;
    /// Makes a page zero.
    ///
    /// # Errors
    /// When the page is not RAM.
    fn zero(&self, page: u64) -> Result<(), GuestError>;
    /// Makes all memory zero and gives it back to the host.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn clear(&self) -> Result<(), GuestError>;
}
