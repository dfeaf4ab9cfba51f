//! From flags to a served disk: opens everything before anything is started.

use std::io;
use std::sync::Arc;

use device_kit::ProcessError;
use device_kit::process::Process;
use host_kit::capabilities::Capability;
use nix::sys::signal::{SigSet, Signal};
use tracing::info;

use crate::args::Args;
use crate::image::{FileImage, OpenError};
use crate::record::{Purpose, RecordError, RecordFile, Refuse, beside};
use crate::{Options, served};

/// I/O threads: enough to keep a disk busy, few enough to cost nothing.
const THREADS: usize = 4;

/// Real-time priority, and the record in its folder, whoever owns that.
const KEPT: [Capability; 3] = [Capability::CAP_SYS_NICE, Capability::CAP_DAC_OVERRIDE, Capability::CAP_FOWNER];

/// Why the disk is not served (any more).
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The image.
    #[error(transparent)]
    Image(#[from] OpenError),
    /// Its record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Signals.
    #[error("cannot block signals")]
    Signals(#[source] io::Error),
    /// The process.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// Serves the disk until the frontend disconnects, the ft-ctl link closes or a signal comes.
///
/// # Errors
/// See [`RunError`].
pub fn run(args: &Args) -> Result<(), RunError> {
    let (image, options) = options(args)?;
    // An image at the limit of file sizes is an error of one request, not the end.
    SigSet::from(Signal::SIGXFSZ).thread_block().map_err(|e| RunError::Signals(e.into()))?;
    let places = options.record.as_ref().map(|record| record.places()).unwrap_or_default();
    let process = Process::open(&args.common, places, &KEPT)?;
    let disk = served(Arc::new(image), options).map_err(ProcessError::from)?;
    info!("serving {}", args.path.display());
    Ok(process.serve(disk)?)
}

/// Opens everything.
fn options(args: &Args) -> Result<(FileImage, Options), RunError> {
    let image = FileImage::open(&args.path, args.readonly, args.direct)?;
    let path = args.record.clone().unwrap_or_else(|| beside(&args.path));
    let purpose = match args {
        Args { standby: true, .. } => Purpose::StandBy,
        Args { force: true, .. } => Purpose::Serve(Refuse::Nothing),
        Args { elected: true, .. } => Purpose::Serve(Refuse::Half),
        _ => Purpose::Serve(Refuse::Stale),
    };
    let record = RecordFile::open(&args.path, path, &image, purpose)?;
    let options = Options {
        block_size: image.block_size(),
        read_only: args.readonly,
        serial: args.serial.clone(),
        queues: args.num_queues,
        queue_size: args.queue_size,
        threads: THREADS,
        record: Some(record).filter(|_| !args.readonly),
        counters: Some(args.common.page().map_err(ProcessError::from)?),
    };
    Ok((image, options))
}
