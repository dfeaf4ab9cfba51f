//! Log lines in the shape of Cloud Hypervisor's, on standard error or in a file.
//!
//! `pollux-vmm:   0.000112s: <main> INFO:vmm/src/main.rs:31 -- message`; the time counts from the start of
//! the process.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use host_kit::log_writer::LogWriter;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The log file cannot be created.
    #[error("the log file {path} cannot be created")]
    Create {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

struct Line {
    started: Instant,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let seconds = self.started.elapsed().as_secs_f64();
        let thread = std::thread::current();
        let meta = event.metadata();
        write!(out, "pollux-vmm: {seconds:10.6}s: <{}> {}:", thread.name().unwrap_or("anonymous"), meta.level())?;
        write!(out, "{}:{} -- ", meta.file().unwrap_or(meta.target()), meta.line().unwrap_or(0))?;
        context.field_format().format_fields(out.by_ref(), event)?;
        writeln!(out)
    }
}

/// Starts logging: warnings and errors, plus `info`, `debug`, `trace` for each step of verbosity. Once in a
/// process; later calls have no effect. Returns the descriptor that it goes to, which stays open.
///
/// # Errors
/// When the log file cannot be created.
pub fn start(verbosity: u8, file: Option<&Path>) -> Result<RawFd, LogError> {
    let level = match verbosity {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_ansi(false);
    // It would tell them on standard error, with a panic if that is gone.
    let builder = builder.log_internal_errors(false).event_format(Line { started: Instant::now() });
    let (log, started) = match file {
        None => (
            libc::STDERR_FILENO,
            builder.with_writer(Mutex::new(LogWriter::new("pollux-vmm", io::stderr()))).try_init(),
        ),
        Some(path) => {
            let create = |source| LogError::Create { path: path.to_owned(), source };
            let file = File::create(path).map_err(create)?;
            (file.as_raw_fd(), builder.with_writer(Mutex::new(LogWriter::new("pollux-vmm", file))).try_init())
        }
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
        return Ok(libc::STDERR_FILENO);
    }
    Ok(log)
}
