//! What crosses the network and the control sockets, as bytes: codecs only, without sockets, threads or
//! clocks.
//!
//! ```text
//!  between two VMMs      session: frames, and the messages in them      state: the body of a `State` frame
//!                        pages: the body of `Pages` and `Copy`          beat: a heartbeat
//!                          '- delta: a page that has changed            packing: a body made shorter
//!  between two disks     mirror
//!  VMM to device process device_ctl
//! ```
//!
//! `hash` is the checksum of all of these, `nonce` a session's secret, `text` cleans what people will read.
//! What is decoded comes from outside: it is checked, never panics, and allocates no more than a checked
//! length.
#![forbid(unsafe_code)]

pub mod beat;
pub mod delta;
pub mod device_ctl;
pub mod hash;
pub mod mirror;
pub mod nonce;
pub mod packing;
mod page;
pub mod pages;
pub mod session;
pub mod state;
pub mod text;
