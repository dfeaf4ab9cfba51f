//! The only code with sockets between hosts: connecting, listening, framing, heartbeats.
//!
//! ```text
//!   dial ------> stream <------ listener       of a session, of a mirrored disk, or to ask
//!                  |- frames: what the two VMMs read and write on it
//!                  |- path: what may be wrong with the way
//!                  '- (its descriptor) --> mirror: the same stream in a disk's process
//!   beats: datagrams on two links
//! ```
//!
//! `connection` and `heartbeats` are the traits by which the engine uses them: the simulator has streams and
//! beats of its own. `ft_wire` says what the bytes mean.
#![forbid(unsafe_code)]

pub mod addresses;
pub mod beats;
pub mod connection;
pub mod dial;
pub mod frames;
pub mod heartbeats;
pub mod listener;
pub mod mirror;
mod path;
pub mod stream;
mod tally;
pub mod tls;
