//! Inner parts that read what a guest or a peer has written, for the fuzz targets. Behind a feature: nobody
//! else puts a disk together.

pub use crate::frame_socket::{FrameSocket, ReadError, Received};
pub use crate::receive::{Change, Incoming, Step};
pub use crate::serve::Worker;
