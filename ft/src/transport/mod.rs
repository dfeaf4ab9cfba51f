//! The code with sockets between hosts: framing, heartbeats, the listener, addresses.

pub(crate) mod addresses;
pub(crate) mod beats;
pub(crate) mod connection;
pub(crate) mod frames;
pub(crate) mod heartbeats;
pub(crate) mod listener;
pub(crate) mod path;
pub(crate) mod tally;
