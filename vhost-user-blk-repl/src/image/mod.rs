//! The raw image: the file or block device behind the disk, what its inode says, and the units that it is
//! counted in.
//!
//! `storage` is the trait that everybody uses, `file` what implements it, `synced` what puts it on stable
//! storage; `stamp` identity and change times; `range`, `regions` and `buffer` bytes of an image: their
//! place, equal parts of it, and memory for them.

pub(crate) mod buffer;
mod file;
pub(crate) mod range;
pub mod regions;
pub mod stamp;
mod storage;
mod synced;

pub use file::{FileImage, OpenError};
pub use storage::{Image, OpError, SECTOR};
pub(crate) use synced::SyncedImage;
