//! End-to-end harness: two hosts and a client as network namespaces, a stock Debian guest, real faults.
//!
//! Reading order: [`scenario`] is what a run does; [`topology`], [`host`] and [`workload`] are its parts;
//! [`report`] is what it says. Everything it makes (namespaces, processes, files) is gone when its owner is
//! dropped.

pub mod agent;
pub mod artifacts;
pub mod chaos;
pub mod error;
pub mod host;
pub mod image;
pub mod namespace;
pub mod nfs;
pub mod process;
pub mod report;
pub mod resp;
pub mod scenario;
pub mod topology;
pub mod wait;
pub mod witness;
pub mod workload;

pub use error::{Error, Result};
