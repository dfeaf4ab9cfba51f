//! What a disk is stored in, as the rest of the process sees it.

use std::io;

use crate::image::stamp::{Moment, Stamp};

/// What the image's size and every request is a multiple of, in bytes.
pub const SECTOR: u64 = 512;

/// Storage behind the disk. Calls come from several threads at once; offsets and lengths are checked by the
/// caller.
pub trait Image: Send + Sync + 'static {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    /// Of the medium.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes all of `data` at `offset`.
    ///
    /// # Errors
    /// Of the medium.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes `len` bytes at `offset` read as zero; `unmap` lets the space go.
    ///
    /// # Errors
    /// Of the medium.
    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;
    /// Makes completed writes durable.
    ///
    /// # Errors
    /// Of the medium.
    fn sync(&self) -> io::Result<()>;
    /// End of the hole that `offset` lies in, if it lies in one.
    fn hole_end(&self, offset: u64) -> Option<u64>;
    /// Which file it is and when it was last changed; `None` where that is not known.
    ///
    /// # Errors
    /// Of the kernel.
    fn stamp(&self) -> io::Result<Option<Stamp>>;
    /// When it was last changed, as [`Image::stamp`] has it.
    ///
    /// # Errors
    /// Of the kernel.
    fn changed(&self) -> io::Result<Option<Moment>>;
}

/// An operation that the local image refused.
#[derive(Debug, thiserror::Error)]
#[error("{what} of {len} bytes at offset {offset} of the local image failed: {source}")]
pub struct OpError {
    /// What.
    pub what: &'static str,
    /// Byte offset.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// The kernel's answer.
    pub source: io::Error,
}
