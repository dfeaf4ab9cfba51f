//! Log lines in the shape of Cloud Hypervisor's, on standard error or in a file.
//!
//! `pollux-vmm:   0.000112s: <main> INFO:vmm/src/main.rs:31 -- message`; the time counts from the start of
//! the process.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// So many bytes a pipe takes without waiting, if it can be written to at all.
const PIECE: usize = libc::PIPE_BUF;

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

/// A log that nobody reads must not hold up who writes to it, which may be a vCPU: a line that would have to
/// wait is left out.
struct NeverWaits<F> {
    file: F,
    left_out: u64,
    /// The end of the last line is missing.
    cut: bool,
}

impl<F: AsFd> NeverWaits<F> {
    fn new(file: F) -> Self {
        Self { file, left_out: 0, cut: false }
    }

    /// Whether the kernel takes a [`PIECE`] now. A pipe says so if it does without waiting; a file always
    /// does.
    fn takes_a_piece(&self) -> bool {
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
        // Where it cannot be asked, it can be written to.
        poll(&mut fds, PollTimeout::ZERO).map_or(true, |ready| ready > 0)
    }
}

impl<F: AsFd + Write> Write for NeverWaits<F> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.left_out > 0 && self.takes_a_piece() {
            let end = if std::mem::take(&mut self.cut) { "\n" } else { "" };
            let left_out = std::mem::take(&mut self.left_out);
            writeln!(self.file, "{end}pollux-vmm: {left_out} log lines are lost: nobody read the log")?;
        }
        let mut rest = line;
        while let Some(piece) = rest.split_off(..rest.len().min(PIECE)).filter(|piece| !piece.is_empty()) {
            if !self.takes_a_piece() {
                self.left_out += 1;
                self.cut |= rest.len() + piece.len() < line.len();
                break;
            }
            self.file.write_all(piece)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
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
/// process; later calls have no effect.
///
/// # Errors
/// When the log file cannot be created.
pub fn start(verbosity: u8, file: Option<&Path>) -> Result<(), LogError> {
    let level = match verbosity {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let builder =
        tracing_subscriber::fmt().with_max_level(level).with_ansi(false).event_format(Line { started: Instant::now() });
    let started = match file {
        None => builder.with_writer(Mutex::new(NeverWaits::new(io::stderr()))).try_init(),
        Some(path) => {
            let create = |source| LogError::Create { path: path.to_owned(), source };
            builder.with_writer(Mutex::new(NeverWaits::new(File::create(path).map_err(create)?))).try_init()
        }
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_log_that_nobody_reads_holds_nobody_up() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let (mut reader, mut log) = (File::from(reader), NeverWaits::new(File::from(writer)));
        let line = [b'x'; 999].iter().chain(b"\n").copied().collect::<Vec<u8>>();
        for _ in 0..1000 {
            log.write_all(&line).unwrap();
        }
        let (mut buffer, lost) = (vec![0; 64 << 10], log.left_out);
        assert!((900..1000).contains(&lost), "{lost}");
        let len = reader.read(&mut buffer).unwrap();
        assert!(buffer[..len].chunks(1000).all(|read| read == line), "lines are cut");
        log.write_all(b"again\n").unwrap();
        drop(log);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert!(
            rest.ends_with(&format!("pollux-vmm: {lost} log lines are lost: nobody read the log\nagain\n")),
            "{rest}"
        );
    }

    #[test]
    fn a_long_line_is_written_whole_if_there_is_room() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut log = NeverWaits::new(file.reopen().unwrap());
        log.write_all(&[b'x'; 100_000]).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), [b'x'; 100_000]);
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let (mut reader, mut log) = (File::from(reader), NeverWaits::new(File::from(writer)));
        log.write_all(&[b'x'; 100_000]).unwrap();
        reader.read_exact(&mut [0; 60_000]).unwrap();
        log.write_all(b"next\n").unwrap();
        drop(log);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert!(rest.ends_with("x\npollux-vmm: 1 log lines are lost: nobody read the log\nnext\n"));
    }
}
