//! A device process of ours: started, greeted, watched and ended.
//!
//! In: program and arguments. Out: a connected vhost-user stream and an ft-ctl socket on which the process
//! has said that it is ready. Never: anything left behind; the socket's path is gone before the process runs,
//! the process ends with its [`DeviceProcess`], and one whose VMM was killed ends by itself because its
//! connections close.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use device_api::client::{self, HelloError};
use device_api::counters::Page;
use device_api::link::{Link, LinkError};
use ft_wire::device_ctl::DeviceInfo;
use host_kit::sandbox::{self, Needs};
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;

use crate::process::descriptors::private_listener;
use crate::process::error::{ProcessError, READY_LIMIT};
use crate::process::exits::ChildExits;
use crate::process::launcher::{FIRST_FD, launch};
use crate::process::supervisor::{Supervised, Watched, watch};

/// How long a process that has hung up may take to be gone, so that its last log lines can be reported.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(3);
/// How long a process may take to end when asked to, before it is killed.
const END_LIMIT: Duration = Duration::from_secs(3);
/// A running device process.
pub struct DeviceProcess {
    id: String,
    program: String,
    control: Link,
    stream: Option<UnixStream>,
    counters: Page,
    shared: Arc<Supervised>,
    watcher: Option<JoinHandle<()>>,
}

impl DeviceProcess {
    /// Starts `program` for device `id` with `arguments`, two inherited sockets and a page to count in. It is
    /// not ready yet: see [`DeviceProcess::greet`].
    ///
    /// # Errors
    /// When the program is missing or the system refuses.
    pub fn spawn(
        id: &str,
        program: &str,
        arguments: &[OsString],
        exits: &Arc<ChildExits>,
    ) -> Result<Self, ProcessError> {
        let start = |what| {
            move |source: io::Error| ProcessError::Start {
                id: id.to_owned(),
                program: program.to_owned(),
                what,
                source,
            }
        };
        let (listener, stream) = private_listener().map_err(start("cannot make its socket"))?;
        let (control, control_far) = Link::pair().map_err(start("cannot make its control socket"))?;
        let (counters, counters_file) = Page::create().map_err(start("cannot make its counters"))?;
        let (lines, stderr) =
            nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|e| start("cannot make its log")(e.into()))?;
        let inherited = [listener.as_fd(), control_far.as_fd(), counters_file.as_fd()];
        let first: [OsString; 8] = [
            "--socket".into(),
            format!("fd={FIRST_FD}").into(),
            "--ft-ctl".into(),
            format!("fd={}", FIRST_FD + 1).into(),
            "--counters".into(),
            format!("/proc/self/fd/{}", FIRST_FD + 2).into(),
            "--seccomp".into(),
            sandbox::mode().as_str().into(),
        ];
        let arguments: Vec<_> = first.iter().chain(arguments).cloned().collect();
        let child = launch(program, &arguments, (None, stderr.as_fd()), &inherited).map_err(|error| {
            if error.raw_os_error() == Some(libc::ENOENT) {
                return ProcessError::NotFound { id: id.to_owned(), program: program.to_owned() };
            }
            start("cannot start it")(error)
        })?;
        let watched = Watched { child, status: None, stopping: false, last_lines: VecDeque::new() };
        let shared = Arc::new(Supervised { state: Mutex::new(watched), ended: Condvar::new() });
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
        let exit = shared.lock().child.end().try_clone_to_owned().map_err(start("cannot watch it"))?;
        let (id_of_thread, exits) = (id.to_owned(), exits.clone());
        let watcher = host_kit::thread::spawn(id, Needs::CHILDREN, move || {
            watch(&id_of_thread, &shared, lines, &exit, &exits);
        });
        process.watcher = Some(watcher.map_err(start("cannot watch it"))?);
        Ok(process)
    }

    /// Waits until the process has opened what it needs, and learns what it is.
    ///
    /// # Errors
    /// When it ended, with its last log lines; or is not ready in time, or not one of ours.
    pub fn greet(&self) -> Result<DeviceInfo, ProcessError> {
        let (id, program) = (self.id.clone(), self.program.clone());
        client::hello(&self.control, READY_LIMIT).map_err(|error| match error {
            HelloError::Link(LinkError::Closed | LinkError::Socket(_)) => self.exit_error(),
            HelloError::Silent(_) => ProcessError::Silent { id, program },
            HelloError::Version(found) => ProcessError::Version { id, program, found },
            HelloError::Failed(output) => ProcessError::Ended { id, program, status: "failed".to_owned(), output },
            HelloError::Link(_) | HelloError::Unexpected => ProcessError::Greeting { id, program },
        })
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
        self.control.as_fd().try_clone_to_owned()
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
    fn exit_error(&self) -> ProcessError {
        let status = self.shared.wait(LAST_WORDS_LIMIT);
        let output: Vec<_> = self.shared.lock().last_lines.iter().cloned().collect();
        ProcessError::Ended {
            id: self.id.clone(),
            program: self.program.clone(),
            status: status.map_or_else(|| "still running".to_owned(), |status| status.to_string()),
            output: if output.is_empty() { "it said nothing".to_owned() } else { output.join("; ") },
        }
    }
}

impl Drop for DeviceProcess {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.stream = None;
        let Some(watcher) = self.watcher.take() else {
            // Nobody watches it: it was only just started.
            let state = self.shared.lock();
            state.child.signal(Signal::SIGKILL);
            let _ = state.child.wait();
            return;
        };
        self.shared.signal(Signal::SIGTERM);
        if self.shared.wait(END_LIMIT).is_none() {
            tracing::warn!(device = self.id, "device process did not end when asked to; killing it");
            self.shared.signal(Signal::SIGKILL);
        }
        // Ends when the process is reaped.
        let _ = watcher.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::supervisor::{REAP_AGAIN, reap};

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
        let (_directory, program) = script("exec sleep 1000");
        let process = DeviceProcess::spawn("_disk0", &program, &[], &exits).unwrap();
        process.shared.signal(Signal::SIGKILL);
        assert!(process.shared.wait(READY_LIMIT).is_some());
        // Reported after it is reaped.
        let until = std::time::Instant::now() + READY_LIMIT;
        let mut ended = Vec::new();
        while ended.is_empty() && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
            ended.extend(exits.take().iter().map(ToString::to_string));
        }
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
            script("ls -l /proc/self/fd | grep -e socket: -e memfd: >&2; echo \"$@\" >&2; exit 1");
        let process = DeviceProcess::spawn("_disk0", &program, &["--x".into()], &exits()).unwrap();
        let error = process.greet().err().unwrap().to_string();
        assert_eq!(error.matches("socket:").count(), 2, "{error}");
        assert!(error.contains("pollux-counters"), "{error}");
        assert!(error.contains("--ft-ctl fd=") && error.contains("--x"), "{error}");
    }
}
