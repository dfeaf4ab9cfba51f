//! The fault-tolerance engine: performs what `ft_proto` decides, on real sockets, devices and memory.
//!
//! ```text
//!  API --> Ft --> engine (one thread) --- node (ft_proto): what to do next
//!                   |- primary: capture -> staging -> sender thread ==== TCP ===> receiver thread -> image :standby
//!                   |- device_link: one socket to each device process
//!                   |- beats thread: heartbeats on two links
//!                   '- witness thread: who may run
//! ```
#![forbid(unsafe_code)]

mod addresses;
mod admission;
mod alike;
mod ask;
mod beats;
mod bounds;
mod capture;
mod claims;
mod clock;
mod coder;
mod connect;
mod copies;
mod course;
mod device_link;
mod engine;
mod first_copy;
pub mod guest;
mod handle;
mod history;
mod identity;
mod image;
mod inbox;
mod listener;
mod options;
mod ownership;
mod packing_judge;
mod path;
mod place;
mod planned;
mod primary_side;
mod receiver;
mod search;
mod sender;
mod situation;
mod staging;
mod standby_side;
mod start;
mod status;
mod tally;
mod transport;
mod troubles;
pub mod witness;

pub use addresses::resolve;
pub use engine::EngineError;
pub use handle::{Ft, Setup};
pub use identity::{default_host, incarnation_of, new_vm};
pub use options::{Compression, NodeOptions, ProtectOptions, Role, StandbyOptions};
pub use staging::{PORTION_PAGES, Portion, Staging};
pub use start::{Candidate, Part, Reign, StartError, check_alone, give_back, part};
pub use status::{Board, EventRecord, Status};
pub use witness::{Stored, WitnessAddress};
