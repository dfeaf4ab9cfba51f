//! The session between two VMMs: frames, and the messages in them.

mod frame;
mod message;

pub use frame::{BODY_MAX, Digest, HEADER_LEN, Header, Kind, MESSAGE_MAX, VERSION, WireError};
pub use message::{
    CopyProgress, DiskProgress, EpochEnd, Hello, Part, Purpose, Refusal, Standing, TookOver, Welcome, Yielding,
    decode_body, encode_body,
};
