//! Network namespaces: made with iproute2, entered by a thread, removed on drop.

use std::fs::File;
use std::io::Write;
use std::ops::Deref;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::{Error, Result};

/// One network namespace, removed on drop with everything in it.
#[derive(Debug)]
pub struct Namespace(Entrance);

/// The way into a namespace, for those who do not own it.
#[derive(Clone, Debug)]
pub struct Entrance {
    name: String,
}

impl Namespace {
    /// Makes a namespace with its loopback up.
    ///
    /// # Errors
    /// When `ip` fails (not root, name taken).
    pub fn new(name: String) -> Result<Self> {
        ip(&["netns", "add", &name], "")?;
        let namespace = Self(Entrance { name });
        namespace.ip("link set lo up\n")?;
        Ok(namespace)
    }
}

impl Deref for Namespace {
    type Target = Entrance;

    fn deref(&self) -> &Entrance {
        &self.0
    }
}

impl Entrance {
    /// Its name, as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` commands, one per line, inside.
    ///
    /// # Errors
    /// When one fails.
    pub fn ip(&self, batch: &str) -> Result<()> {
        ip(&["-n", &self.name, "-batch", "-"], batch)
    }

    /// Runs `tc` commands, one per line, inside.
    ///
    /// # Errors
    /// When one fails.
    pub fn tc(&self, batch: &str) -> Result<()> {
        iproute2("tc", &["-n", &self.name, "-batch", "-"], batch)
    }

    /// Runs `work` on a thread inside: sockets opened and processes started there stay in the namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered, and what `work` returns.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = Path::new("/run/netns").join(&self.name);
        let file = File::open(&path).map_err(Error::file("open", &path))?;
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(&file, CloneFlags::CLONE_NEWNET).map_err(|e| Error::io("cannot enter namespace")(e.into()))?;
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", &self.name], "") {
            eprintln!("namespace {} stays behind: {}", self.name, error.chain());
        }
    }
}

fn ip(args: &[&str], input: &str) -> Result<()> {
    iproute2("ip", args, input)
}

/// Runs a program of iproute2 with `input` on its stdin.
fn iproute2(program: &str, args: &[&str], input: &str) -> Result<()> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(Error::io(format!("cannot run {program} (package iproute2)")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A batch that fails early closes the pipe: its exit status says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(Error::io(format!("cannot wait for {program}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command: format!("{program} {} <<< {input:?}", args.join(" ")),
        status: output.status.to_string(),
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
