//! Serves the guest: takes requests from the queues, performs them in the right order, and answers.
//!
//! ```text
//!   avail ring ──► server ──request──► pending ──► flight (order) ──► executor ──► image
//!                    ▲                                 └──► mirror                   │
//!   used ring ◄──────┴───────────────────── finished ◄───────────────────────────────┘
//! ```
//! All on the vhost worker thread, but for the executor's threads.

mod executor;
mod flight;
mod order;
mod pending;
mod request;
mod ring;
mod server;

pub use ring::Memory;
pub use server::Server;
