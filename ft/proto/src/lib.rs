//! The Pollux fault-tolerance protocol as pure state machines: no I/O, no clock, no threads.
#![forbid(unsafe_code)]

pub mod device_ctl;
mod ids;

pub use ids::{Committed, Epoch, NodeId, Term};
