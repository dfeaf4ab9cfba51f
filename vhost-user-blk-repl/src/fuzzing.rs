//! Inner parts that read what a guest or a peer has written, for the fuzz targets. Behind a feature: nobody
//! else puts a disk together.

pub use crate::disk::Disk;
pub use crate::image::range::Range;
pub use crate::receive::{Change, Incoming, Step};
