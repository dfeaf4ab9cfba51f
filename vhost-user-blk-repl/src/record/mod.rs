//! The record of an image: its contents, the file that it is kept in, and the evidence that it describes the
//! image.
//!
//! ```text
//!   file ──► format ──► slot, slot_v1 ──► contents        bytes of the file ──► Record
//!     └────► proof ◄── trace                              does it describe this image?
//! ```
//! `file` locates a record beside its image, decides whether the image may be used, and writes the record;
//! `show` displays it.

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
