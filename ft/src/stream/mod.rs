//! The replication stream: the threads at both of its ends, and what they make of checkpoints and frames.

pub(crate) mod adaptive_compression;
pub(crate) mod coder;
pub(crate) mod ends;
pub(crate) mod history;
pub(crate) mod image;
pub(crate) mod intake;
pub(crate) mod outgoing;
pub(crate) mod receiver;
pub(crate) mod sender;
mod spare_buffers;
