//! Output-buffering network card: a vhost-user backend that holds the guest's frames until their epoch is
//! committed.
//!
//! In: a virtio-net device's queues (vhost-user), the VMM's ft-ctl commands, a tap. Out: frames. Never: a
//! held frame before its release, and guest memory touched between `Seal` and `Resume`.
//!
//! Reading order: `backend` (events), `card` (ft-ctl, and the order of work), `output` and `input`
//! (frames), then what they are made of: `driver` (the guest's side), `ports` (the host's), `header`,
//! `epoch_buffer` and `work` (pure), `ring`, `tap`, `announce`, `relay`.

pub mod announce;
pub mod args;
pub mod backend;
mod card;
mod control_queue;
mod driver;
pub mod epoch_buffer;
mod header;
mod input;
mod output;
mod ports;
mod relay;
pub mod ring;
pub mod tap;
mod work;

use std::io;

use device_api::counters::NetCounters;
use device_kit::process::Process;
use device_kit::{ProcessError, Served};
use host_kit::capabilities::Capability;

use crate::args::Args;
use crate::backend::Net;
#[cfg(feature = "fuzzing")]
pub use crate::card::Card;
use crate::tap::Tap;

/// Why the card could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No tap.
    #[error(transparent)]
    Tap(#[from] tap::TapError),
    /// The process, its sockets or its frontend.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The host is out of something.
    #[error("a timer or event counter cannot be created")]
    Host(#[source] io::Error),
}

/// Runs the card until its frontend disconnects, its ft-ctl link closes, or SIGTERM or SIGINT arrives.
///
/// # Errors
/// When it cannot start, or the frontend breaks the protocol.
pub fn run(args: &Args) -> Result<(), Error> {
    let counters = NetCounters::new(args.common.page().map_err(ProcessError::from)?);
    let tap = Tap::open(args)?;
    let process = Process::open(&args.common, Vec::new(), &[Capability::CAP_SYS_NICE])?;
    tracing::info!("tap {}, {} queue pairs", tap.name(), args.num_queues);
    let net = Net::new(args, tap, counters).map_err(Error::Host)?;
    let net = Served::new("vhost-user-net", net).map_err(ProcessError::from)?;
    Ok(process.serve(net)?)
}
