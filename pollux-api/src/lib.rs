//! The types of the Pollux API, for the VMM that serves it, the clients that call it, and the tests of both.
//!
//! In: JSON, or the option strings of a command line. Out: the same, as checked Rust types, with their
//! defaults and limits. Never: sockets, files or names to resolve; nothing here does I/O.
#![forbid(unsafe_code)]

mod words;

pub mod audit;
pub mod blocker;
pub mod config;
pub mod event;
pub mod limits;
pub mod openapi;
pub mod options;
pub mod problem;
pub mod reason;
pub mod refused;
pub mod routes;
pub mod status;
pub mod vm;

pub use blocker::Blocker;
pub use event::EventRecord;
pub use refused::Refused;
pub use routes::Route;
pub use status::Status;
