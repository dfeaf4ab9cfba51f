//! What every process of Pollux needs of its host, once for all of them.
//!
//! - [`thread`] starts threads and names them.
//! - [`sched`] gives a thread real-time priority and pins it to a CPU; [`cpu_load`] finds the CPU that has
//!   least to do.
//! - [`random`] is the one source of random numbers.
//! - [`error`] writes an error with its causes.
//! - `event_loop` waits for several descriptors at once (feature `event-loop`).
//! - [`log_limit`] keeps others from filling the log.
//! - [`backoff`] keeps tries of what fails again and again apart.
//!
//! Never: anything about guests, epochs or devices.

pub mod backoff;
pub mod cpu_load;
pub mod error;
#[cfg(feature = "event-loop")]
pub mod event_loop;
pub mod log_limit;
pub mod random;
pub mod sched;
pub mod thread;
