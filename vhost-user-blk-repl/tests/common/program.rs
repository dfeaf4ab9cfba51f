//! The program itself, with sockets left to it, and what a VMM does with it.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ft_proto::Epoch;
use ft_wire::device_ctl::{self, CTL_VERSION, Report, ResyncKind};
use tempfile::TempDir;

use super::{Guest, LIMIT, Vmm, soon, tcp_pair};

pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-blk-repl"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Ends the process if a test fails.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    pub fn exit_code(&mut self) -> Option<i32> {
        let status = std::cell::RefCell::new(&mut self.0);
        soon(|| status.borrow_mut().try_wait().unwrap()).code()
    }
}

/// Starts the program with `fds` left to it under the numbers 10, 11, …
pub fn start(args: &[&str], fds: Vec<OwnedFd>) -> Running {
    let mut command = program();
    command.args(args).stderr(Stdio::null());
    // Out of the way first: one of them may have a number that is meant for another.
    let away = |fd: &OwnedFd| nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(100)).unwrap();
    // SAFETY: fcntl has just made these descriptors; nobody else knows them.
    let fds: Vec<OwnedFd> = fds.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(away(fd)) }).collect();
    let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: dup2 is async-signal-safe and nothing else happens between fork and exec.
    unsafe {
        command.pre_exec(move || {
            for (fd, number) in raw.iter().zip(10..) {
                if libc::dup2(*fd, number) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    Running(command.spawn().unwrap())
}

/// A disk served by a process of its own, with its toy VMM.
pub struct Host {
    pub vmm: Vmm,
    pub running: Running,
    pub image: PathBuf,
    socket: PathBuf,
    _dir: TempDir,
}

impl Host {
    /// Serves `image`; the process must be ready in the end.
    pub fn start(image: &Path, flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let (vmm, theirs) = Vmm::pair();
        let args = ["--socket", "fd=10", "--ft-ctl", "fd=11", "--path", image.to_str().unwrap()];
        let running = start(&[&args[..], flags].concat(), vec![listener.into(), theirs]);
        vmm.send(&device_ctl::Command::Hello { version: CTL_VERSION });
        assert!(matches!(vmm.recv(), Report::Ready { .. }));
        Self { vmm, running, image: image.to_owned(), socket, _dir: dir }
    }

    /// The guest of this host.
    pub fn guest(&self) -> Guest {
        Guest::connect(&self.socket, 1, 0)
    }

    /// Ends the process in the middle of whatever it does.
    pub fn kill(mut self) -> PathBuf {
        self.running.0.kill().unwrap();
        self.running.0.wait().unwrap();
        self.image
    }

    /// Lets the process end in good order, which it does when its VMM is gone.
    pub fn end(self) -> PathBuf {
        let Self { vmm, mut running, image, .. } = self;
        drop(vmm);
        assert_eq!(running.exit_code(), Some(0));
        image
    }
}

/// What a resynchronisation came to.
#[derive(Clone, Copy, Debug)]
pub struct Resync {
    pub kind: ResyncKind,
    pub total: u64,
    pub sent: u64,
}

/// Makes `standby` the standby of `primary`, in sync.
pub fn protect(primary: &Host, standby: &Host, bound: u64) -> Resync {
    let (ours, theirs) = tcp_pair();
    standby.vmm.receive(bound, theirs);
    primary.vmm.mirror(1, bound, ours);
    let mut last = None;
    loop {
        match primary.vmm.try_recv(LIMIT).expect("no progress") {
            Report::Resync { kind, done, total, sent } => {
                assert!(done <= total);
                last = Some(Resync { kind, total, sent });
            }
            Report::InSync => return last.expect("no report of a resynchronisation"),
            report => panic!("{report:?}"),
        }
    }
}

/// The standby takes over after `committed`, with nothing in flight.
pub fn take_over(standby: &Host, committed: u64) -> Guest {
    let until = |wanted: Report| {
        loop {
            match standby.vmm.recv() {
                Report::Failed { reason } => panic!("{reason}"),
                report if report == wanted => break,
                // Of the session that is over.
                _ => {}
            }
        }
    };
    let told = committed.min(standby.vmm.told.get());
    standby.vmm.send(&device_ctl::Command::Discard { after: Epoch(told) });
    until(Report::Discarded);
    standby.vmm.send(&device_ctl::Command::Start { in_flight: vec![], macs: vec![] });
    until(Report::Started);
    standby.guest()
}
