//! One program of ours in its own process group: started in a namespace, signalled as a whole, gone on drop.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::namespace::Namespace;
use crate::{Error, Result, wait};

/// A running program and all it starts.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `program` inside `namespace`, its output going to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start<A: AsRef<OsStr> + Sync>(
        namespace: &Namespace,
        program: &Path,
        args: &[A],
        log: &Path,
    ) -> Result<Self> {
        let out = File::create(log).map_err(Error::file("create", log))?;
        let err = out.try_clone().map_err(Error::file("open", log))?;
        let child = namespace.run(|| {
            let mut command = Command::new(program);
            // That of the run, beside its programs.
            command.env("POLLUX_PAIRS", program.with_file_name("pairs"));
            command.args(args).stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
            command.spawn().map_err(Error::file("start", program))
        })?;
        Ok(Self { child, log: log.to_owned(), ended: None })
    }

    /// Process id of the program itself.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ids and names of the processes it has started, children of children too.
    #[must_use]
    pub fn descendants(&self) -> Vec<(u32, String)> {
        let mut found: Vec<(u32, String)> = vec![];
        let mut parents = vec![self.pid()];
        while let Some(parent) = parents.pop() {
            for pid in children(parent) {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
                found.push((pid, name));
                parents.push(pid);
            }
        }
        found
    }

    /// Sends `signal` to the program alone.
    ///
    /// # Errors
    /// When it is not there any more.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        signal_one(self.pid(), signal)
    }

    /// Sends `signal` to the program and all it has started, at once: device processes have groups of their
    /// own.
    ///
    /// # Errors
    /// When the program is not there any more.
    pub fn signal_all(&self, signal: Signal) -> Result<()> {
        let started = self.descendants();
        self.signal(signal)?;
        for (pid, _) in started {
            // Whoever has ended meanwhile needs no signal.
            let _ = signal_one(pid, signal);
        }
        Ok(())
    }

    /// How the program ended, if it has.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().map_err(Error::io("cannot wait for a program"))?;
        }
        Ok(self.ended)
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("end of process {}", self.pid());
        wait::until(&what, limit, || self.ended())
    }

    /// The end of what it has printed.
    #[must_use]
    pub fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    fn group(&self) -> Pid {
        Pid::from_raw(self.pid().cast_signed())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.ended(), Ok(None)) {
            let _ = self.signal_all(Signal::SIGKILL);
        }
        // Whatever else is in its group. ESRCH just means that nobody is.
        let _ = killpg(self.group(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// Sends `signal` to one process.
///
/// # Errors
/// When it is not there any more.
pub fn signal_one(pid: u32, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(pid.cast_signed()), signal)
        .map_err(|e| Error::io(format!("cannot signal process {pid}"))(e.into()))
}

/// Whether the process exists and has not ended (a zombie has).
#[must_use]
pub fn alive(pid: u32) -> bool {
    state(pid).is_some_and(|state| !['Z', 'X'].contains(&state))
}

/// Whether each thread of the process is stopped by a signal. Until the one that it was given to has run, the
/// others go on.
#[must_use]
pub fn stopped(pid: u32) -> bool {
    let tasks = format!("/proc/{pid}/task");
    fs::read_dir(tasks)
        .is_ok_and(|mut tasks| tasks.all(|task| task.is_ok_and(|task| state_in(&task.path()) == Some('T'))))
}

fn state(pid: u32) -> Option<char> {
    state_in(&PathBuf::from(format!("/proc/{pid}")))
}

fn state_in(folder: &Path) -> Option<char> {
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return vec![] };
    let lists = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()).collect()
}
