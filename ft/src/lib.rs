//! The fault-tolerance engine: performs what `ft_proto` decides, on real sockets, devices and memory.

mod clock;
mod device_link;
pub mod guest;
mod transport;
mod witness;
