//! What is known about an image: its record, the file that this is kept in, and why it is believed.
//!
//! ```text
//!   file ──► format ──► slot, slot_v1 ──► contents        bytes of the file ──► Record
//!     └────► proof ◄── trace                              is it about this image?
//! ```
//! `file` finds a record beside its image, decides whether the image may be used, and writes it; `show` only tells.

mod contents;
mod file;
mod format;
pub mod proof;
pub mod show;
mod slot;
mod slot_v1;
pub(crate) mod trace;

pub use contents::{Base, Record, RecordFault, Role, VERSION};
pub use file::{Opened, Purpose, RecordError, RecordFile, Refuse, beside, new_id};
pub use format::{FILE_MAX, decode};
pub use slot::encode;
