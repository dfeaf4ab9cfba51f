//! The fault-tolerance engine: performs what `ft_proto` decides, on real sockets, devices and memory.
//!
//! ```text
//!  API --> Ft --> engine (one thread) --- node (ft_proto): what to do next
//!                   |- session: primary: capture -> sender == TCP ==> receiver -> image: standby
//!                   |    (sender and receiver are threads)
//!                   |- devices: one socket to each device process
//!                   |- beats thread (ft_transport): heartbeats on two links
//!                   '- witness thread: who may run
//! ```
#![forbid(unsafe_code)]

mod checkpoint;
mod claims;
mod clock;
mod context;
mod devices;
mod engine;
pub mod guest;
mod handle;
mod identity;
pub mod needs;
mod note;
mod options;
mod peers;
mod platform;
mod progress_meter;
mod session;
#[cfg(feature = "sim")]
pub mod sim;
mod start;
mod status;
mod stream;
pub mod witness;

pub use engine::EngineError;
pub use ft_transport::addresses::resolve;
pub use ft_transport::tls::credentials::pairs;
pub use guest::staging::{PORTION_PAGES, Portion, Staging};
pub use handle::{Call, Control, Ft, Setup};
pub use identity::{default_host, incarnation_of, new_vm};
pub use options::{NodeOptions, ProtectOptions, StandbyOptions, on_partition};
pub use peers::tls::{PLAIN, PeerTls, TlsChoice};
pub use pollux_api::options::{StartRole, Tuning};
pub use pollux_api::{Blocker, EventRecord, Refused, Status};
pub use start::{Candidate, NodeTerm, Part, StartError, check_alone, give_back, part};
pub use status::Board;
pub use witness::{Stored, WitnessAddress};
