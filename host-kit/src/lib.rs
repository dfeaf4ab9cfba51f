//! What every process of Pollux needs of its host, once for all of them.
//!
//! - [`thread`] starts threads and names them; [`sandbox`] limits what each may ask of the kernel.
//! - [`sched`] gives a thread real-time priority and pins it to a CPU; [`cpu_load`] finds the
//!   least busy CPU.
//! - [`landlock`] limits which files can be opened by name; [`capabilities`] what root may do;
//!   [`namespaces`] what can be seen at all.
//! - [`core_dump`] keeps guest memory out of core dumps.
//! - [`sync`] locks.
//! - [`random`] is the one source of random numbers.
//! - [`error`] writes an error with its causes.
//! - [`file`] opens what an operator names, without waiting for it, and finds the folder of a file.
//! - `event_loop` waits for several descriptors at once (feature `event-loop`).
//! - [`log_writer`] writes the log without waiting and without failing; [`log_limit`] keeps others from
//!   filling it.
//! - [`whole_writer`] writes pieces of text as a whole or not at all.
//! - [`backoff`] spaces out repeated tries of what keeps failing.
//!
//! Never: anything about guests, epochs or devices.

pub mod backoff;
pub mod capabilities;
pub mod core_dump;
pub mod cpu_load;
pub mod error;
#[cfg(feature = "event-loop")]
pub mod event_loop;
pub mod file;
pub mod landlock;
pub mod log_limit;
pub mod log_writer;
pub mod namespaces;
pub mod random;
pub mod sandbox;
pub mod sched;
pub mod sync;
pub mod thread;
pub mod whole_writer;
