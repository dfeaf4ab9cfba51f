//! Private network namespaces without names: they go when the last process in them and the last handle are
//! gone.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace.
pub struct Netns {
    file: File,
}

impl Netns {
    /// An empty one, with `lo` up.
    #[must_use]
    pub fn new() -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("new network namespace");
            File::open("/proc/thread-self/ns/net").expect("network namespace of a thread")
        });
        let netns = Self { file: file.join().expect("thread that makes a namespace") };
        netns.ip("link set lo up");
        netns
    }

    /// Run `ip` commands in it, one per line, without the leading `ip`.
    ///
    /// # Panics
    /// If one fails.
    pub fn ip(&self, commands: &str) {
        let mut ip = Command::new("ip");
        ip.args(["-batch", "-"]).stdin(Stdio::piped());
        self.enter_on_exec(&mut ip);
        let mut child = ip.spawn().unwrap_or_else(|error| panic!("ip (iproute2) does not start: {error}"));
        child.stdin.take().expect("pipe").write_all(commands.as_bytes()).expect("write to ip");
        let status = child.wait().expect("wait for ip");
        assert!(status.success(), "ip: {status}: {commands}");
    }

    /// A cable: `name` here and `peer_name` in `peer`, both up.
    pub fn veth(&self, name: &str, peer: &Self, peer_name: &str) {
        let fd = format!("/proc/{}/fd/{}", std::process::id(), peer.file.as_raw_fd());
        self.ip(&format!("link add {name} type veth peer name {peer_name} netns {fd}\nlink set {name} up\n"));
        peer.ip(&format!("link set {peer_name} up\n"));
    }

    /// Let `command` run in this namespace.
    pub fn enter_on_exec(&self, command: &mut Command) {
        let fd: RawFd = self.file.as_raw_fd();
        // SAFETY: setns is async-signal-safe; the descriptor stays open in the child until exec.
        unsafe {
            command.pre_exec(move || {
                let file = std::os::fd::BorrowedFd::borrow_raw(fd);
                Ok(setns(file, CloneFlags::CLONE_NEWNET)?)
            });
        }
    }

    /// Run `work` in this namespace, in a thread of its own: what it opens stays in it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).expect("enter a network namespace");
                work()
            });
            thread.join().expect("thread in a namespace")
        })
    }

    /// A second handle of the same namespace.
    #[must_use]
    pub fn handle(&self) -> Self {
        Self { file: self.file.try_clone().expect("a second handle of a namespace") }
    }

    /// Names of the interfaces, but for `lo`.
    #[must_use]
    pub fn interfaces(&self) -> Vec<String> {
        let list =
            self.run(|| std::fs::read_to_string("/proc/thread-self/net/dev").expect("/proc/thread-self/net/dev"));
        let names = list.lines().skip(2).filter_map(|line| line.split_once(':'));
        names.map(|(name, _)| name.trim().to_owned()).filter(|name| name != "lo").collect()
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}
