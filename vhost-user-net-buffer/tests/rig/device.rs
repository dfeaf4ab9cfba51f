//! The process under test, and the VMM's end of its ft-ctl link.

use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use ft_proto::Epoch;
use ft_wire::device_ctl::{CTL_MAX, Command as Ctl, QueueState, Report, decode, encode};

use super::{PATIENCE_MS, readable};

/// The binary under test.
pub struct Device {
    child: Child,
}

impl Device {
    /// Starts it with `args`; `fds` are inherited.
    pub fn spawn(args: &[&str], fds: Vec<RawFd>, stderr: Stdio) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-net-buffer"));
        command.args(args).stderr(stderr);
        // SAFETY: only fcntl between fork and exec.
        unsafe {
            command.pre_exec(move || {
                for fd in &fds {
                    libc::fcntl(*fd, libc::F_SETFD, 0);
                }
                Ok(())
            });
        }
        Self { child: command.spawn().unwrap() }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: our own child, not reaped yet.
        unsafe { libc::kill(self.pid(), signal) };
    }

    /// Stops it; it stands still when this returns.
    pub fn stop(&self) {
        self.signal(libc::SIGSTOP);
        let mut status = 0;
        // SAFETY: our own child; a place for the status. One that is stopped is not reaped.
        let pid = unsafe { libc::waitpid(self.pid(), &raw mut status, libc::WUNTRACED) };
        assert!(pid == self.pid() && libc::WIFSTOPPED(status), "the device has ended");
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        // SAFETY: a plain system call on our own child.
        let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid(), 0) } as RawFd;
        assert!(pidfd >= 0);
        // SAFETY: just opened.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        assert!(readable(pidfd.as_raw_fd(), PATIENCE_MS), "the device does not end");
        self.child.wait().unwrap()
    }

    /// Runs it to its end and returns what it said.
    pub fn fails(args: &[&str]) -> String {
        let mut device = Self::spawn(args, vec![], Stdio::piped());
        let status = device.ended();
        let mut text = String::new();
        device.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(status.code(), Some(1), "{text}");
        text
    }

    pub fn stderr(&mut self) -> std::process::ChildStderr {
        self.child.stderr.take().unwrap()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Harmless when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The VMM's end of ft-ctl.
pub struct Link(pub OwnedFd);

impl Link {
    pub fn pair() -> (Self, OwnedFd) {
        let mut fds = [0; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        // SAFETY: room for two descriptors.
        assert_eq!(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) }, 0);
        // SAFETY: just made.
        unsafe { (Self(OwnedFd::from_raw_fd(fds[0])), OwnedFd::from_raw_fd(fds[1])) }
    }

    pub fn send_raw(&self, bytes: &[u8]) {
        // SAFETY: reads `bytes`.
        let n = unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
        assert_eq!(n, bytes.len() as isize);
    }

    pub fn send(&self, command: &Ctl) {
        self.send_raw(encode(command, &mut vec![0; CTL_MAX]).unwrap());
    }

    /// Only the engine can make a `Release`, so this is what one looks like on the wire.
    pub fn release(&self, epoch: u8) {
        let bytes = [5, epoch];
        assert!(matches!(decode::<Ctl>(&bytes), Ok(Ctl::Release(r)) if r.epoch() == Epoch(u64::from(epoch))));
        self.send_raw(&bytes);
    }

    pub fn next(&self, ms: i32) -> Option<Report> {
        if !readable(self.0.as_raw_fd(), ms) {
            return None;
        }
        let mut buf = vec![0; CTL_MAX];
        // SAFETY: writes into `buf`.
        let n = unsafe { libc::recv(self.0.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), 0) };
        assert!(n > 0, "ft-ctl closed");
        Some(decode(&buf[..n as usize]).unwrap())
    }

    /// The next report, whatever it is.
    pub fn report(&self) -> Report {
        self.next(PATIENCE_MS).expect("a report")
    }

    /// Everything up to the first report that `wanted` accepts; the others must be `Held` or `Full`.
    pub fn wait<T>(&self, wanted: impl Fn(&Report) -> Option<T>) -> (T, Vec<Report>) {
        let mut before = Vec::new();
        loop {
            let report = self.report();
            if let Some(found) = wanted(&report) {
                return (found, before);
            }
            assert!(matches!(report, Report::Held { .. } | Report::Full { .. }), "{report:?}");
            before.push(report);
        }
    }

    /// Seals `epoch`: queue states, held frames, and what was reported before.
    pub fn seal(&self, epoch: u64) -> (Vec<QueueState>, u64, Vec<Report>) {
        self.send(&Ctl::Seal { epoch: Epoch(epoch), cpu: None });
        self.sealed(epoch)
    }

    /// The same when the command was sent.
    pub fn sealed(&self, epoch: u64) -> (Vec<QueueState>, u64, Vec<Report>) {
        let ((queues, held), before) = self.wait(|report| match report {
            Report::Sealed { epoch: e, queues, held_frames, in_flight, .. } => {
                assert_eq!(*e, Epoch(epoch));
                assert!(in_flight.is_empty());
                Some((queues.clone(), *held_frames))
            }
            _ => None,
        });
        (queues, held, before)
    }

    pub fn resume(&self) {
        self.send(&Ctl::Resume);
    }

    /// A round trip: whatever was sent before has been read and obeyed.
    pub fn sync(&self) -> Vec<Report> {
        self.send(&Ctl::Hello { version: 1 });
        self.wait(|report| matches!(report, Report::Ready { .. }).then_some(())).1
    }

    /// Only the engine can make the command that ends holding, so this is what one looks like on the wire.
    pub fn send_protect(&self, epoch: u8, hold: bool) {
        let bytes = [2, epoch, u8::from(hold)];
        assert!(matches!(decode::<Ctl>(&bytes), Ok(Ctl::Protect { hold: h, .. }) if h.is_on() == hold));
        self.send_raw(&bytes);
    }

    pub fn protect(&self, epoch: u8, hold: bool) {
        self.send_protect(epoch, hold);
        assert_eq!(self.sync(), []);
    }
}
