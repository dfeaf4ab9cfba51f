//! What a VMM and a device process share.
//!
//! - [`link`] is one end of the ft-ctl socket: whole messages, some with a descriptor.
//! - [`client`] is the VMM's end: commands out, reports in.
//! - [`counters`] is the page in which a device counts and the VMM reads (feature `counters`).
//!
//! The device's end, with everything else that a device process needs, is in `device-kit`. The messages are
//! in [`ft_wire::device_ctl`].

pub mod client;
#[cfg(feature = "counters")]
pub mod counters;
pub mod link;
