//! Who had this VMM do what: the audit log of the API.
//!
//! ```text
//!   http ──► Audit ──► queue ──► thread "audit": LogFile ──► file
//!            begun, ended, refused       adds the line, answers, then has it stored
//! ```
//! In: requests that change something, and those that are refused. Out: a line each, written before its
//! request is answered and stored right after. Never: a request that is not done, or waits for long, because
//! its entry cannot be written: that is counted, told, and added to the log as soon as it can be.

mod file;
mod parameters;

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use host_kit::sandbox::Needs;
use host_kit::sync::lock;
use host_kit::warn_limited;
pub use pollux_api::audit::Client;
use pollux_api::audit::{Call, Event, Outcome};
use tokio::sync::oneshot;

pub use self::file::AuditError;
use self::file::LogFile;
use self::parameters::parameters;

/// Entries that wait to be written; more are lost.
const QUEUE_MAX: usize = 1024;
/// How long a request waits for its entry to be written. When one has waited in vain, others do not wait
/// until the storage has caught up.
const WRITE_LIMIT: Duration = Duration::from_secs(1);
/// Longest path in the log, in bytes.
const PATH_MAX: usize = 256;
/// Longest method.
const METHOD_MAX: usize = 32;

/// Told when entries cannot be written, with the reason, and when they can be again, with `None`.
pub type Tell = Box<dyn Fn(Option<&str>) + Send + Sync>;

/// An entry, and who waits until it is written.
type Job = (Event, Option<oneshot::Sender<()>>);

/// A handle on the log; without a file, entries go nowhere.
#[derive(Clone, Debug, Default)]
pub struct Audit(Option<Arc<State>>);

struct State {
    jobs: Sender<Job>,
    /// Requests so far.
    calls: AtomicU64,
    written: AtomicU64,
    lost: AtomicU64,
    /// Lost ones that the log does not say yet, and why the last one was.
    untold: Mutex<(u64, String)>,
    /// The storage does not keep up.
    is_late: AtomicBool,
    tell: Tell,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("written", &self.written).field("lost", &self.lost).finish_non_exhaustive()
    }
}

/// The log of this process. Dropping it says in the log that the VMM has ended in order.
#[derive(Debug)]
pub struct AuditLog {
    audit: Audit,
    /// Closed when its thread has ended.
    ended: Receiver<()>,
}

impl AuditLog {
    /// Goes on with the log at `path`, or begins one.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn open(path: &Path, tell: Tell) -> Result<Self, AuditError> {
        let failed = |source| AuditError::File { path: path.to_owned(), source };
        let mut file = LogFile::open(path)?;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        file.add(Event::Opened { vmm: std::process::id(), version }).map_err(failed)?;
        file.sync().map_err(failed)?;
        let (jobs, queue) = bounded(QUEUE_MAX);
        let state = Arc::new(State {
            jobs,
            calls: AtomicU64::new(0),
            written: AtomicU64::new(1),
            lost: AtomicU64::new(0),
            untold: Mutex::default(),
            is_late: AtomicBool::new(false),
            tell,
        });
        let (alive, ended) = bounded(0);
        let of_thread = Arc::clone(&state);
        host_kit::thread::spawn("audit", Needs::FILES | Needs::STORAGE, move || {
            of_thread.write_all(&mut file, &queue);
            drop::<Sender<()>>(alive);
        })
        .map_err(failed)?;
        Ok(Self { audit: Audit(Some(state)), ended })
    }

    /// A handle on it.
    #[must_use]
    pub fn handle(&self) -> Audit {
        self.audit.clone()
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        let Some(state) = &self.audit.0 else { return };
        // A file server that hangs does not keep the VMM from ending.
        if state.jobs.send_timeout((Event::Closed, None), WRITE_LIMIT).is_ok() {
            let _ = self.ended.recv_timeout(WRITE_LIMIT);
        }
    }
}

/// A request as it is logged.
#[derive(Clone, Debug)]
pub struct Asked {
    call: Call,
    since: Instant,
}

impl Audit {
    /// A request that has come, with as much of its body as there is.
    #[must_use]
    pub fn asked(&self, client: &Client, method: &str, path: &str, body: &[u8]) -> Option<Asked> {
        let state = self.0.as_ref()?;
        let cut = |text: &str, most| text[..text.floor_char_boundary(most)].to_owned();
        let call = Call {
            number: state.calls.fetch_add(1, Ordering::Relaxed) + 1,
            client: client.clone(),
            method: cut(method, METHOD_MAX),
            path: cut(path, PATH_MAX),
            parameters: parameters(body),
        };
        Some(Asked { call, since: Instant::now() })
    }

    /// It begins to be performed.
    pub async fn begun(&self, asked: Option<&Asked>) {
        if let (Some(state), Some(asked)) = (&self.0, asked) {
            state.log(Event::Begun(asked.call.clone())).await;
        }
    }

    /// It has been performed, or has failed.
    pub async fn ended(&self, asked: Option<Asked>, status: u16, code: Option<&str>) {
        if let (Some(state), Some(asked)) = (&self.0, asked) {
            let outcome = asked.outcome(status, code);
            state.log(Event::Ended { call: asked.call, outcome }).await;
        }
    }

    /// It is not performed at all.
    pub async fn refused(&self, asked: Option<Asked>, status: u16, code: Option<&str>) {
        if let (Some(state), Some(asked)) = (&self.0, asked) {
            let outcome = asked.outcome(status, code);
            state.log(Event::Refused { call: asked.call, outcome }).await;
        }
    }

    /// Entries that were written, and lost, by this process. `None` without a log.
    #[must_use]
    pub fn counters(&self) -> Option<[(&'static str, u64); 2]> {
        let state = self.0.as_ref()?;
        let [written, lost] = [&state.written, &state.lost].map(|counter| counter.load(Ordering::Relaxed));
        Some([("entries", written), ("lost_entries", lost)])
    }
}

impl Asked {
    fn outcome(&self, status: u16, code: Option<&str>) -> Outcome {
        let duration_us = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        Outcome { status, code: code.map(str::to_owned), duration_us }
    }
}

impl State {
    /// Returns when it is written, or is known not to be, or does not come to it in time.
    async fn log(&self, event: Event) {
        let (done, written) = oneshot::channel();
        match self.jobs.try_send((event, Some(done))) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return self.lose("the storage does not keep up"),
            Err(TrySendError::Disconnected(_)) => return self.lose("the VMM is ending"),
        }
        if self.is_late.load(Ordering::Relaxed) {
            return;
        }
        if tokio::time::timeout(WRITE_LIMIT, written).await.is_err() {
            warn_limited!("the audit log's storage has not answered within {} s", WRITE_LIMIT.as_secs());
            self.is_late.store(true, Ordering::Relaxed);
        }
    }

    fn lose(&self, reason: &str) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        warn_limited!("an entry of the audit log is lost: {reason}");
        let mut untold = lock(&self.untold);
        let is_first = untold.0 == 0;
        *untold = (untold.0.saturating_add(1), reason.to_owned());
        drop(untold);
        if is_first {
            (self.tell)(Some(reason));
        }
    }

    /// Writes what comes, until the log is closed.
    fn write_all(&self, file: &mut LogFile, queue: &Receiver<Job>) {
        let mut is_stored = true;
        while let Ok((event, done)) = queue.recv() {
            let closes = event == Event::Closed;
            self.write(file, event);
            // Nobody waits any more for an entry that took too long.
            let _ = done.map(|done| done.send(()));
            if queue.is_empty() || closes {
                self.is_late.store(false, Ordering::Relaxed);
                is_stored = self.store(file, is_stored);
            }
            if closes {
                return;
            }
        }
    }

    /// Whether all is stored; `was_stored`: the same, of the time before.
    fn store(&self, file: &LogFile, was_stored: bool) -> bool {
        let error = file.sync().err().map(|error| format!("the audit log is not stored: {error}"));
        if let Some(error) = &error {
            warn_limited!("{error}");
        }
        if error.is_some() == was_stored {
            (self.tell)(error.as_deref());
        }
        error.is_none()
    }

    fn write(&self, file: &mut LogFile, event: Event) {
        self.tell_lost(file);
        match file.add(event) {
            Ok(()) => drop(self.written.fetch_add(1, Ordering::Relaxed)),
            Err(error) => self.lose(&error.to_string()),
        }
    }

    /// Says in the log that entries are missing, if there are any and it can.
    fn tell_lost(&self, file: &mut LogFile) {
        // Not locked while the storage is waited for: requests come here, too.
        let (entries, reason) = std::mem::take(&mut *lock(&self.untold));
        if entries == 0 {
            return;
        }
        if file.add(Event::Lost { entries, reason: reason.clone() }).is_ok() {
            self.written.fetch_add(1, Ordering::Relaxed);
            return (self.tell)(None);
        }
        let mut untold = lock(&self.untold);
        let meanwhile = std::mem::take(&mut *untold);
        *untold = if meanwhile.0 == 0 { (entries, reason) } else { (entries.saturating_add(meanwhile.0), meanwhile.1) };
    }
}

#[cfg(test)]
mod tests {
    use pollux_api::audit::{Entry, verify};

    use super::*;

    fn entries(path: &Path) -> Vec<Entry> {
        let text = std::fs::read_to_string(path).unwrap();
        verify([text.as_bytes()], |_| {}).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn run(future: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
    }

    #[test]
    fn an_entry_is_written_when_its_request_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = AuditLog::open(&path, Box::new(|_| {})).unwrap();
        let audit = log.handle();
        run(async {
            let asked = audit.asked(&Client::default(), "PUT", &"/".repeat(1000), b"{\"a\":1}");
            audit.begun(asked.as_ref()).await;
            assert_eq!(entries(&path).len(), 2);
            audit.ended(asked, 204, None).await;
            assert_eq!(entries(&path).len(), 3);
        });
        drop(log);
        let entries = entries(&path);
        assert_eq!(entries[3].event, Event::Closed);
        let Event::Ended { call, outcome } = &entries[2].event else { panic!("{entries:?}") };
        assert_eq!((call.path.len(), &call.parameters, outcome.status), (256, &serde_json::json!({"a": 1}), 204));
        assert_eq!(audit.counters(), Some([("entries", 4), ("lost_entries", 0)]));
    }

    #[test]
    fn entries_that_cannot_be_written_are_counted_told_and_made_known_in_the_log() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let also = Arc::clone(&told);
        let (jobs, _queue) = bounded(1);
        let tell = Box::new(move |reason: Option<&str>| also.lock().unwrap().push(reason.map(str::to_owned)));
        let state = State {
            jobs,
            calls: AtomicU64::new(0),
            written: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            untold: Mutex::default(),
            is_late: AtomicBool::new(false),
            tell,
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut file = LogFile::open(&path).unwrap();
        // Nobody writes: the first one waits in vain, the second one has no place in the queue.
        run(async {
            state.log(Event::Closed).await;
            assert!(state.is_late.load(Ordering::Relaxed));
            state.log(Event::Closed).await;
        });
        state.lose("no space left");
        assert_eq!(*told.lock().unwrap(), [Some("the storage does not keep up".to_owned())]);
        state.write(&mut file, Event::Closed);
        let entries = entries(&path);
        assert_eq!(entries[0].event, Event::Lost { entries: 2, reason: "no space left".to_owned() });
        assert_eq!((entries.len(), told.lock().unwrap().last()), (2, Some(&None)));
        assert_eq!(state.lost.load(Ordering::Relaxed), 2);
    }
}
