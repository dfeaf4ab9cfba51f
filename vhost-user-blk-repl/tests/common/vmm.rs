//! A toy VMM: its end of the ft-ctl socket.

use std::cell::Cell;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use ft_proto::Epoch;
use ft_wire::device_ctl::{CTL_MAX, Command, InFlight, QueueState, Release, Report, decode, encode};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair};

use super::{LIMIT, wait_readable};

/// The VMM's end of an ft-ctl socket.
pub struct Vmm {
    fd: OwnedFd,
    /// The last epoch of which the disk has said that it is complete: it does not hear of idle ones.
    pub told: Cell<u64>,
}

pub fn release(epoch: u64) -> Command {
    let mut buf = [0; 16];
    // A real one is made of a `Committed` token; tests go through the wire format, which has the same
    // content.
    let bytes = encode(&Epoch(epoch), &mut buf).unwrap();
    Command::Release(decode::<Release>(bytes).unwrap())
}

#[derive(Clone, Debug, Default)]
pub struct Sealed {
    pub queues: Vec<QueueState>,
    pub in_flight: Vec<InFlight>,
    pub held_bytes: u64,
    pub idle: bool,
}

impl Vmm {
    pub fn pair() -> (Self, OwnedFd) {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        (Self::from_fd(ours), theirs)
    }

    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd, told: Cell::new(0) }
    }

    pub fn send(&self, command: &Command) {
        self.send_with(command, None);
    }

    pub fn send_with(&self, command: &Command, fd: Option<OwnedFd>) {
        let mut buf = vec![0; CTL_MAX];
        self.send_bytes(encode(command, &mut buf).unwrap(), fd);
    }

    pub fn send_bytes(&self, bytes: &[u8], fd: Option<OwnedFd>) {
        let fds: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        sendmsg::<()>(self.fd.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::empty(), None).unwrap();
    }

    pub fn try_recv(&self, limit: Duration) -> Option<Report> {
        if !wait_readable(&self.fd, limit) {
            return None;
        }
        let mut buf = vec![0; CTL_MAX];
        let len = recv(self.fd.as_raw_fd(), &mut buf, MsgFlags::empty()).unwrap();
        assert!(len > 0, "the device closed the link");
        Some(decode(&buf[..len]).unwrap())
    }

    /// The next report that is not progress.
    pub fn recv(&self) -> Report {
        let end = Instant::now() + LIMIT;
        loop {
            match self.try_recv(end.saturating_duration_since(Instant::now())) {
                Some(Report::Resync { .. }) => {}
                Some(report) => return report,
                None => panic!("no report"),
            }
        }
    }

    /// Skips reports until one answers `pick`.
    pub fn until<T>(&self, mut pick: impl FnMut(&Report) -> Option<T>) -> T {
        loop {
            let report = self.recv();
            if let Some(answer) = pick(&report) {
                return answer;
            }
            assert!(!matches!(report, Report::Failed { .. } | Report::MirrorLost { .. }), "{report:?}");
        }
    }

    pub fn seal(&self, epoch: u64) -> Sealed {
        self.send(&Command::Seal { epoch: Epoch(epoch), cpu: None });
        self.until(|report| match report.clone() {
            Report::Sealed { epoch: sealed, queues, in_flight, held_bytes, idle, .. } => {
                assert_eq!(sealed, Epoch(epoch));
                Some(Sealed { queues, in_flight, held_bytes, idle })
            }
            _ => None,
        })
    }

    pub fn mirror(&self, epoch: u64, max_uncommitted: u64, stream: OwnedFd) {
        self.send_with(&Command::Mirror { epoch: Epoch(epoch), max_uncommitted, rate: 0 }, Some(stream));
    }

    pub fn receive(&self, max_uncommitted: u64, stream: OwnedFd) {
        self.send(&Command::Standby(true));
        self.send_with(&Command::Receive { max_uncommitted }, Some(stream));
    }

    pub fn in_sync(&self) {
        self.until(|report| matches!(report, Report::InSync).then_some(()));
    }

    pub fn complete(&self, epoch: u64) {
        self.until(|report| (*report == Report::Complete { epoch: Epoch(epoch) }).then_some(()));
        self.told.set(epoch);
    }

    pub fn discard(&self, after: u64) {
        self.send(&Command::Discard { after: Epoch(after) });
        self.until(|report| (*report == Report::Discarded).then_some(()));
    }

    pub fn mirror_lost(&self) -> String {
        match self.recv() {
            Report::MirrorLost { reason } => reason,
            report => panic!("expected MirrorLost, got {report:?}"),
        }
    }

    /// The reason why the stream is lost, whatever is reported before.
    pub fn until_lost(&self) -> String {
        loop {
            if let Report::MirrorLost { reason } = self.recv() {
                return reason;
            }
        }
    }

    pub fn failed(&self) -> String {
        match self.recv() {
            Report::Failed { reason } => reason,
            report => panic!("expected Failed, got {report:?}"),
        }
    }
}
