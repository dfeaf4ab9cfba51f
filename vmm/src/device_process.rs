//! A device process of ours: started, greeted, watched and ended.
//!
//! In: program and arguments. Out: a connected vhost-user stream and an ft-ctl socket on which the process has said that it
//! is ready. Never: anything left behind; the socket's path is gone before the process runs, the process ends with its
//! [`DeviceProcess`], and one whose VMM was killed ends by itself because its connections close.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use device_counters::Page;
use ft_proto::device_ctl::{self, CTL_MAX, CTL_VERSION, DeviceInfo, Report};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::unistd::Pid;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use host_kit::log_limit::Limit;

/// Directory with the device programs; without it they are looked for beside the VMM and then in `PATH`.
pub const DIRECTORY_VARIABLE: &str = "POLLUX_DEVICE_DIR";
/// How long a process may take to open its image or tap.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long a process that has hung up may take to be gone, so that its last words can be told.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(3);
/// How long a process may take to end when asked to, before it is killed.
const END_LIMIT: Duration = Duration::from_secs(3);
/// How often to look for the end of a process that cannot be watched.
const REAP_AGAIN: Duration = Duration::from_millis(20);
/// So many of its lines are logged in a [`LINES_PERIOD`]: what it logs may be about what the guest does, as often as it likes.
const LINES_BURST: u32 = 100;
const LINES_PERIOD: Duration = Duration::from_secs(10);
/// How many of its last lines are kept for an error message.
const LAST_LINES: usize = 8;

/// Why a device process is not there.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The program is not installed.
    #[error("device {id}: no program {program} beside the VMM or in PATH; set {DIRECTORY_VARIABLE} to its directory")]
    NotFound {
        /// Device.
        id: String,
        /// Its program.
        program: String,
    },
    /// It could not be started.
    #[error("device {id}: cannot start {program}: {what}")]
    Start {
        /// Device.
        id: String,
        /// Its program.
        program: String,
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It ended before it was ready; its own words say why.
    #[error("device {id}: {program} ended ({status}): {words}")]
    Ended {
        /// Device.
        id: String,
        /// Its program.
        program: String,
        /// Exit status.
        status: String,
        /// The last it wrote to its standard error.
        words: String,
    },
    /// It runs but is not ready.
    #[error("device {id}: {program} is not ready after {} s", READY_LIMIT.as_secs())]
    Silent {
        /// Device.
        id: String,
        /// Its program.
        program: String,
    },
    /// It is of another version of Pollux.
    #[error("device {id}: {program} speaks version {found} of the control protocol, this VMM {CTL_VERSION}")]
    Version {
        /// Device.
        id: String,
        /// Its program.
        program: String,
        /// Its version.
        found: u16,
    },
    /// It answered something else than it should.
    #[error("device {id}: {program} does not greet as a device process does")]
    Greeting {
        /// Device.
        id: String,
        /// Its program.
        program: String,
    },
}

/// A device process that ended while it was needed.
#[derive(Clone, Debug)]
pub struct ChildExit {
    /// Device.
    pub id: String,
    /// How it ended.
    pub status: ExitStatus,
}

impl fmt::Display for ChildExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device process {} ended: {}", self.id, self.status)
    }
}

/// Where device processes that ended are reported.
pub struct ChildExits {
    event: EventFd,
    list: Mutex<Vec<ChildExit>>,
}

impl ChildExits {
    /// Nobody has ended yet.
    ///
    /// # Errors
    /// When there can be no more eventfds.
    pub fn new() -> io::Result<Self> {
        Ok(Self { event: EventFd::new(EFD_NONBLOCK)?, list: Mutex::default() })
    }

    /// Readable when [`ChildExits::take`] has something.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Those that have ended since the last call.
    pub fn take(&self) -> Vec<ChildExit> {
        // Empty is fine: it only says that there may be something.
        let _ = self.event.read();
        std::mem::take(&mut *self.list.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn report(&self, exit: ChildExit) {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).push(exit);
        // A full counter is a signal as well.
        let _ = self.event.write(1);
    }
}

/// What the watching thread and the owner share.
struct Shared {
    state: Mutex<Watched>,
    ended: Condvar,
}

struct Watched {
    child: Child,
    /// Set once the process is reaped; signals are only sent before.
    status: Option<ExitStatus>,
    /// The owner wants it to end: no report.
    stopping: bool,
    last_lines: VecDeque<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the process is reaped, at most for `limit`.
    fn wait(&self, limit: Duration) -> Option<ExitStatus> {
        let state = self.lock();
        let (state, _) = self
            .ended
            .wait_timeout_while(state, limit, |state| state.status.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        state.status
    }

    fn signal(&self, signal: Signal) {
        let state = self.lock();
        if state.status.is_none() {
            // Not reaped yet, so the number is still its own.
            let _ = kill(Pid::from_raw(state.child.id().cast_signed()), signal);
        }
    }
}

/// A running device process.
pub struct DeviceProcess {
    id: String,
    program: String,
    control: OwnedFd,
    stream: Option<UnixStream>,
    counters: Page,
    shared: Arc<Shared>,
    watcher: Option<JoinHandle<()>>,
}

impl DeviceProcess {
    /// Starts `program` for device `id` with `arguments`, two inherited sockets and a page to count in. It is not ready yet: see
    /// [`DeviceProcess::greet`].
    ///
    /// # Errors
    /// When the program is missing or the system refuses.
    pub fn spawn(
        id: &str,
        program: &str,
        arguments: &[OsString],
        exits: &Arc<ChildExits>,
    ) -> Result<Self, ProcessError> {
        let path =
            find(program).ok_or_else(|| ProcessError::NotFound { id: id.to_owned(), program: program.to_owned() })?;
        let start = |what| {
            move |source: io::Error| ProcessError::Start {
                id: id.to_owned(),
                program: program.to_owned(),
                what,
                source,
            }
        };
        let (listener, stream) = private_listener().map_err(start("cannot make its socket"))?;
        let (control, control_far) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(|e| start("cannot make its control socket")(e.into()))?;
        let (counters, counters_file) = Page::create().map_err(start("cannot make its counters"))?;
        let inherited = [listener.as_raw_fd(), control_far.as_raw_fd(), counters_file.as_raw_fd()];
        let mut command = Command::new(&path);
        command.arg("--socket").arg(format!("fd={}", inherited[0]));
        command.arg("--ft-ctl").arg(format!("fd={}", inherited[1]));
        command.arg("--counters").arg(format!("/proc/self/fd/{}", inherited[2]));
        // What it logs is passed on as text.
        command.env("NO_COLOR", "1");
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // Its own process group: an interrupt from the terminal is for the VMM, which ends its devices in order.
        command.process_group(0);
        // SAFETY: runs between fork and exec and makes only system calls that are safe there.
        unsafe { command.pre_exec(move || inherit(inherited)) };
        let mut child = command.spawn().map_err(start("cannot execute it"))?;
        let errors = child.stderr.take();
        let watched = Watched { child, status: None, stopping: false, last_lines: VecDeque::new() };
        let shared = Arc::new(Shared { state: Mutex::new(watched), ended: Condvar::new() });
        // From here on dropping it ends the process.
        let mut process = Self {
            id: id.to_owned(),
            program: program.to_owned(),
            control,
            stream: Some(stream),
            counters,
            shared: shared.clone(),
            watcher: None,
        };
        let pid = shared.lock().child.id().cast_signed();
        let exit = pidfd_open(pid).map_err(start("cannot watch it"))?;
        let (id_of_thread, exits) = (id.to_owned(), exits.clone());
        let watcher = host_kit::thread::spawn(id, move || {
            watch(&id_of_thread, &shared, errors, &exit, &exits);
        });
        process.watcher = Some(watcher.map_err(start("cannot watch it"))?);
        Ok(process)
    }

    /// Waits until the process has opened what it needs, and learns what it is.
    ///
    /// # Errors
    /// When it ended, with its own words; or is not ready in time, or not one of ours.
    pub fn greet(&self) -> Result<DeviceInfo, ProcessError> {
        let (id, program) = (self.id.clone(), self.program.clone());
        let mut buffer = vec![0; CTL_MAX];
        let hello = device_ctl::Command::Hello { version: CTL_VERSION };
        let Ok(bytes) = device_ctl::encode(&hello, &mut buffer) else {
            return Err(ProcessError::Greeting { id, program });
        };
        if send(self.control.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL).is_err() {
            return Err(self.last_words());
        }
        let timeout = PollTimeout::try_from(READY_LIMIT).unwrap_or(PollTimeout::MAX);
        let ready = loop {
            match poll(&mut [PollFd::new(self.control.as_fd(), PollFlags::POLLIN)], timeout) {
                Err(Errno::EINTR) => {}
                ready => break ready.unwrap_or(0),
            }
        };
        if ready == 0 {
            return Err(ProcessError::Silent { id, program });
        }
        let len = match recv(self.control.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) | Err(_) => return Err(self.last_words()),
            Ok(len) => len,
        };
        match device_ctl::decode(&buffer[..len]) {
            Ok(Report::Ready { version: CTL_VERSION, info }) => Ok(info),
            Ok(Report::Ready { version, .. }) => Err(ProcessError::Version { id, program, found: version }),
            Ok(Report::Failed { reason }) => {
                Err(ProcessError::Ended { id, program, status: "failed".to_owned(), words: reason })
            }
            _ => Err(ProcessError::Greeting { id, program }),
        }
    }

    /// The vhost-user connection; there is one.
    pub fn take_stream(&mut self) -> Option<UnixStream> {
        self.stream.take()
    }

    /// Another descriptor of the ft-ctl socket.
    ///
    /// # Errors
    /// When descriptors have run out.
    pub fn control(&self) -> io::Result<OwnedFd> {
        self.control.try_clone()
    }

    /// What it counts.
    #[must_use]
    pub fn counters(&self) -> &Page {
        &self.counters
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.shared.lock().child.id()
    }

    /// The error of a process that has hung up.
    fn last_words(&self) -> ProcessError {
        let status = self.shared.wait(LAST_WORDS_LIMIT);
        let words: Vec<_> = self.shared.lock().last_lines.iter().cloned().collect();
        ProcessError::Ended {
            id: self.id.clone(),
            program: self.program.clone(),
            status: status.map_or_else(|| "still running".to_owned(), |status| status.to_string()),
            words: if words.is_empty() { "it said nothing".to_owned() } else { words.join("; ") },
        }
    }
}

impl Drop for DeviceProcess {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.stream = None;
        let Some(watcher) = self.watcher.take() else {
            // Nobody watches it: it was only just started.
            let mut state = self.shared.lock();
            let _ = state.child.kill();
            let _ = state.child.wait();
            return;
        };
        self.shared.signal(Signal::SIGTERM);
        if self.shared.wait(END_LIMIT).is_none() {
            tracing::warn!(device = self.id, "device process does not end when asked to; it is killed");
            self.shared.signal(Signal::SIGKILL);
        }
        // Ends when the process is reaped.
        let _ = watcher.join();
    }
}

/// A listening socket with a connection to it already made. Its path is gone when this returns, so nothing can be left
/// behind and nobody else can connect.
fn private_listener() -> io::Result<(UnixListener, UnixStream)> {
    let directory = tempfile::Builder::new().prefix("pollux-").tempdir()?;
    let path = directory.path().join("device");
    let listener = UnixListener::bind(&path)?;
    let stream = UnixStream::connect(&path)?;
    directory.close()?;
    Ok((listener, stream))
}

/// Keeps `fds` open across exec.
fn inherit(fds: [RawFd; 3]) -> io::Result<()> {
    for fd in fds {
        // SAFETY: no memory is passed.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed; a descriptor of our own comes back.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: just opened, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The program's file: in the directory of the environment, beside the VMM (or one above, where test binaries are), in PATH.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let is_file = |path: PathBuf| path.is_file().then_some(path);
    if let Some(directory) = std::env::var_os(DIRECTORY_VARIABLE).filter(|directory| !directory.is_empty()) {
        return is_file(Path::new(&directory).join(program));
    }
    let executable = std::env::current_exe().ok();
    let near = executable.iter().flat_map(|path| path.ancestors().skip(1).take(2)).map(Path::to_owned);
    let path = std::env::var_os("PATH").unwrap_or_default();
    near.chain(std::env::split_paths(OsStr::new(&path))).find_map(|directory| is_file(directory.join(program)))
}

/// Passes on what the process writes to its standard error, and reaps it.
fn watch(id: &str, shared: &Shared, errors: Option<ChildStderr>, exit: &OwnedFd, exits: &ChildExits) {
    let mut lines = errors.map(Lines::new);
    let limit = Limit::new(LINES_BURST, LINES_PERIOD);
    loop {
        let mut fds = vec![PollFd::new(exit.as_fd(), PollFlags::POLLIN)];
        fds.extend(lines.as_ref().map(|lines| PollFd::new(lines.source.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            // Its last lines are lost, but not its end.
            Err(error) => {
                tracing::error!("what device process {id} logs is not passed on any more: {error}");
                break;
            }
            Ok(_) => {}
        }
        let gone = fds[0].any().unwrap_or(true);
        let open = lines.as_mut().is_some_and(|lines| lines.pass_on(|line| note(id, shared, &limit, line)));
        if gone {
            break;
        }
        if !open {
            lines = None;
        }
    }
    if let Some((status, stopping)) = reap(shared)
        && !stopping
    {
        exits.report(ChildExit { id: id.to_owned(), status });
    }
    shared.ended.notify_all();
}

/// Waits for the end of the process without the lock, which those need who send it signals; and tells whether that was wanted.
fn reap(shared: &Shared) -> Option<(ExitStatus, bool)> {
    loop {
        let mut state = shared.lock();
        match state.child.try_wait() {
            Ok(Some(status)) => {
                state.status = Some(status);
                return Some((status, state.stopping));
            }
            // It has ended, as a rule; if not, it could not be watched.
            Ok(None) => drop(state),
            Err(error) => {
                tracing::error!("a device process cannot be waited for: {error}");
                return None;
            }
        }
        std::thread::sleep(REAP_AGAIN);
    }
}

/// Logs a line as loud as the process meant it, and keeps it for an error message if it may be part of one.
fn note(id: &str, shared: &Shared, limit: &Limit, line: &str) {
    if line.is_empty() {
        return;
    }
    let has = |level: &str| line.split_ascii_whitespace().take(3).any(|word| word == level);
    if has("DEBUG") || has("TRACE") {
        return tracing::debug!("{id}: {line}");
    }
    if let Some(left_out) = limit.admit() {
        if left_out > 0 {
            tracing::warn!("{id}: {left_out} lines were left out");
        }
        match () {
            () if has("INFO") => tracing::info!("{id}: {line}"),
            () if has("ERROR") => tracing::error!("{id}: {line}"),
            () => tracing::warn!("{id}: {line}"),
        }
    }
    if has("INFO") {
        return;
    }
    let mut state = shared.lock();
    if state.last_lines.len() == LAST_LINES {
        state.last_lines.pop_front();
    }
    state.last_lines.push_back(line.to_owned());
}

/// Lines from a pipe that is never waited for.
struct Lines {
    source: ChildStderr,
    partial: Vec<u8>,
}

impl Lines {
    fn new(source: ChildStderr) -> Self {
        // Without this a read could block past the process's end; then its last lines are lost, which is bearable.
        if let Ok(flags) = fcntl(&source, FcntlArg::F_GETFL) {
            let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
            let _ = fcntl(&source, FcntlArg::F_SETFL(flags));
        }
        Self { source, partial: Vec::new() }
    }

    /// Hands over the lines that are there; false when there will be no more.
    fn pass_on(&mut self, mut take: impl FnMut(&str)) -> bool {
        let mut buffer = [0; 4096];
        loop {
            let open = match self.source.read(&mut buffer) {
                Ok(0) => false,
                Ok(len) => {
                    self.partial.extend_from_slice(&buffer[..len]);
                    true
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => false,
            };
            while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.partial.drain(..=end).collect();
                take(String::from_utf8_lossy(&line).trim_end());
            }
            if !open || self.partial.len() > 64 << 10 {
                if !self.partial.is_empty() {
                    take(String::from_utf8_lossy(&self.partial).trim_end());
                    self.partial.clear();
                }
                if !open {
                    return false;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that is a shell script, in a directory of its own.
    fn script(body: &str) -> (tempfile::TempDir, String) {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("device");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let program = path.to_str().unwrap().to_owned();
        (directory, program)
    }

    fn exits() -> Arc<ChildExits> {
        Arc::new(ChildExits::new().unwrap())
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = DeviceProcess::spawn("_disk0", "no-such-device-program", &[], &exits()).err().unwrap();
        assert!(matches!(error, ProcessError::NotFound { .. }));
        assert!(error.to_string().contains("no-such-device-program"), "{error}");
    }

    #[test]
    fn its_own_words_are_the_error() {
        let (_directory, program) = script("echo 'image is in use' >&2; exit 3");
        let process = DeviceProcess::spawn("_disk0", &program, &[], &exits()).unwrap();
        let error = process.greet().err().unwrap().to_string();
        assert!(error.contains("image is in use") && error.contains("exit status: 3"), "{error}");
    }

    #[test]
    fn an_end_is_reported_unless_it_was_wanted() {
        let exits = exits();
        let (_directory, program) = script("kill -9 $$");
        let process = DeviceProcess::spawn("_disk0", &program, &[], &exits).unwrap();
        assert!(process.shared.wait(READY_LIMIT).is_some());
        let ended: Vec<_> = exits.take().iter().map(ToString::to_string).collect();
        assert_eq!(ended, ["device process _disk0 ended: signal: 9 (SIGKILL)"]);
        drop(process);
        let (_directory, program) = script("exec sleep 1000");
        drop(DeviceProcess::spawn("_net1", &program, &[], &exits).unwrap());
        assert!(exits.take().is_empty());
    }

    #[test]
    fn any_id_is_a_thread_name() {
        let (_directory, program) = script("exec sleep 1000");
        drop(DeviceProcess::spawn("a\0b", &program, &[], &exits()).unwrap());
    }

    #[test]
    fn whoever_waits_for_its_end_does_not_keep_others_from_ending_it() {
        let (_directory, program) = script("exec sleep 1000");
        let process = DeviceProcess::spawn("_disk0", &program, &[], &exits()).unwrap();
        // As the watching thread does when it cannot watch any more.
        let shared = process.shared.clone();
        let waiting = std::thread::spawn(move || reap(&shared));
        std::thread::sleep(REAP_AGAIN * 2);
        process.shared.signal(Signal::SIGKILL);
        drop(process);
        waiting.join().unwrap();
    }

    #[test]
    fn it_gets_two_sockets_and_a_page() {
        let (_directory, program) =
            script("ls -l /proc/$$/fd | grep -e socket: -e memfd: >&2; echo \"$@\" >&2; exit 1");
        let process = DeviceProcess::spawn("_disk0", &program, &["--x".into()], &exits()).unwrap();
        let error = process.greet().err().unwrap().to_string();
        assert_eq!(error.matches("socket:").count(), 2, "{error}");
        assert!(error.contains("pollux-counters"), "{error}");
        assert!(error.contains("--ft-ctl fd=") && error.contains("--x"), "{error}");
    }
}
