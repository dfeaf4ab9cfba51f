//! The device processes of this VM.

pub(crate) mod link;
