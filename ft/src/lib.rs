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

mod beats;
mod clock;
mod connect;
mod device_link;
pub mod guest;
mod image;
mod listener;
mod options;
mod receiver;
mod sender;
mod staging;
mod status;
mod transport;
mod witness;
