//! Serves the guest.

mod executor;
mod flight;
mod order;
mod request;
mod ring;
mod worker;

pub use ring::{Memory, Vring};
pub use worker::{Exit, SERIAL_LEN, Worker};
