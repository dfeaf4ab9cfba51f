//! The Pollux fault-tolerance protocol as pure state machines: no I/O, no clock, no threads.
//!
//! ```text
//! Input ---> Node { role: Solo | Primary | Standby | Fenced } ---> Action
//!              |- primary, standby: the two halves of a session; pipeline: epochs that are not committed yet
//!              |- commit_rule: which replicas' acknowledgements commit an epoch
//!              |- failure_detector: may the peer be dead
//!              '- witness: who may run, as a pure compare-and-swap
//! ```
//!
//! How any of this is encoded is not known here. Bulk data never enters the state machines: they handle epoch
//! numbers, the engine (`ft`) moves bytes.
#![forbid(unsafe_code)]

pub mod commit_rule;
mod events;
mod failure_detector;
mod ids;
mod node;
mod pace;
mod pipeline;
mod primary;
mod session;
mod standby;
mod time;
pub mod witness;

pub use events::{Action, Alone, Beat, CutKind, Event, Input, OnPartition, Settings, WitnessAnswer};
pub use failure_detector::{FailureDetector, Light, LinkId};
pub use ids::{Committed, Epoch, HostId, NameError, NodeId, Term, VmId};
pub use node::{Node, State};
pub use time::Time;
