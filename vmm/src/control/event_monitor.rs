//! The event stream that management tools follow: one pretty-printed JSON object an event, each followed by
//! an empty line.
//!
//! In: events from the control loop. Out: a file, or a FIFO that somebody reads. Never: waiting for the
//! reader, or half an event: a full FIFO loses events, with a log line, and a begun one is finished first.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::Serialize;

use host_kit::warn_limited;
use host_kit::whole_writer::WholeWriter;
use pollux_api::options::{OptionError, Options};

/// Why there is no event stream.
#[derive(Debug, thiserror::Error)]
#[error("the event monitor {path} cannot be opened")]
pub struct EventMonitorError {
    path: String,
    #[source]
    source: io::Error,
}

/// Where events go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventTarget {
    /// A file or FIFO.
    Path(PathBuf),
    /// An inherited file descriptor.
    Fd(RawFd),
}

impl EventTarget {
    /// From the text after `--event-monitor`.
    ///
    /// # Errors
    /// When neither `path=` nor `fd=` is given.
    pub fn from_option(text: &str) -> Result<Self, OptionError> {
        let options = Options::parse("--event-monitor", text, &["path", "fd"], &[])?;
        if let Some(fd) = options.value::<u16>("fd")? {
            return Ok(Self::Fd(fd.into()));
        }
        Ok(Self::Path(options.required("path")?))
    }
}

/// A handle on the event stream; without a target, events go nowhere.
#[derive(Clone, Debug, Default)]
pub struct EventMonitor(Option<Arc<Stream>>);

#[derive(Debug)]
struct Stream {
    started: Instant,
    out: Mutex<WholeWriter<File>>,
}

#[derive(Serialize)]
struct Event<'a> {
    timestamp: Timestamp,
    source: &'a str,
    event: &'a str,
    properties: Option<&'a BTreeMap<String, String>>,
}

#[derive(Serialize)]
struct Timestamp {
    secs: u64,
    nanos: u32,
}

impl EventMonitor {
    /// Opens the target. A FIFO blocks until somebody has opened its other end, as those who start us with
    /// one expect.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(target: &EventTarget) -> Result<Self, EventMonitorError> {
        let named = |path: String| move |source| EventMonitorError { path, source };
        let file = match target {
            EventTarget::Path(path) => open_path(path).map_err(named(path.display().to_string()))?,
            EventTarget::Fd(fd) => adopt(*fd).map_err(named(format!("fd {fd}")))?,
        };
        Ok(Self(Some(Arc::new(Stream { started: Instant::now(), out: Mutex::new(WholeWriter::new(file)) }))))
    }

    /// Writes an event without properties.
    pub fn event(&self, source: &str, event: &str) {
        self.write(source, event, None);
    }

    /// Writes an event with properties.
    pub fn event_with(&self, source: &str, event: &str, properties: &BTreeMap<String, String>) {
        self.write(source, event, Some(properties));
    }

    fn write(&self, source: &str, event: &str, properties: Option<&BTreeMap<String, String>>) {
        let Some(stream) = &self.0 else { return };
        let age = stream.started.elapsed();
        let timestamp = Timestamp { secs: age.as_secs(), nanos: age.subsec_nanos() };
        let mut text = match serde_json::to_vec_pretty(&Event { timestamp, source, event, properties }) {
            Ok(text) => text,
            Err(error) => return tracing::warn!("event {source}:{event} cannot be written: {error}"),
        };
        text.extend_from_slice(b"\n\n");
        let mut out = stream.out.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = out.write(&text) {
            warn_limited!("event {source}:{event} is lost: {error}");
        }
    }
}

fn open_path(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    set_nonblocking(&file)?;
    Ok(file)
}

fn adopt(fd: RawFd) -> io::Result<File> {
    // Duplicating proves that the number is an open descriptor, and gives us one that child processes do not
    // inherit. SAFETY: the borrow ends with the call; a number that is not open makes the kernel say EBADF.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    let own = borrowed.try_clone_to_owned()?;
    // SAFETY: the number was passed for us to own, it is open (the duplication succeeded), and nothing else
    // here uses it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    let file = File::from(own);
    set_nonblocking(&file)?;
    Ok(file)
}

fn set_nonblocking(file: &File) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(file.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(file.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_pretty_objects_with_an_empty_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        std::fs::write(&path, "from an earlier run").unwrap();
        let monitor = EventMonitor::open(&EventTarget::Path(path.clone())).unwrap();
        monitor.event("vmm", "starting");
        monitor.event_with("virtio-device", "activated", &[("id".to_owned(), "_disk0".to_owned())].into());
        let text = std::fs::read_to_string(&path).unwrap();
        let (first, rest) = text.split_once("\n\n").unwrap();
        let start = "{\n  \"timestamp\": {\n    \"secs\": 0,\n    \"nanos\": ";
        assert!(first.starts_with(start), "{first}");
        assert!(
            first.ends_with("\n  },\n  \"source\": \"vmm\",\n  \"event\": \"starting\",\n  \"properties\": null\n}")
        );
        assert!(rest.ends_with("\"properties\": {\n    \"id\": \"_disk0\"\n  }\n}\n\n"), "{rest}");
    }

    #[test]
    fn fifo_is_opened_when_there_is_a_reader_and_never_blocks_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let writer = {
            let target = EventTarget::Path(path.clone());
            std::thread::spawn(move || EventMonitor::open(&target).unwrap())
        };
        let mut reader = File::open(&path).unwrap();
        let monitor = writer.join().unwrap();
        // More than a FIFO takes (64 KiB): what does not fit is lost.
        for _ in 0..2000 {
            monitor.event("vm", "booted");
        }
        drop(monitor);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut reader, &mut text).unwrap();
        let whole = text.split_terminator("\n\n").map(|part| serde_json::from_str::<serde_json::Value>(part).unwrap());
        assert!((100..2000).contains(&whole.count()));
    }

    #[test]
    fn targets() {
        assert_eq!(EventTarget::from_option("path=/e"), Ok(EventTarget::Path("/e".into())));
        assert_eq!(EventTarget::from_option("fd=7"), Ok(EventTarget::Fd(7)));
        assert!(EventTarget::from_option("").is_err());
        assert!(EventMonitor::open(&EventTarget::Path("/nowhere/e".into())).is_err());
    }
}
