//! How the other threads reach the engine: a queue, and an event descriptor that wakes its epoll.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, unbounded};
use ft_proto::witness::Record;
use ft_proto::{Beat, LinkId, Time, WitnessAnswer};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::connect::Opened;
use crate::listener::Caller;
use crate::options::ProtectOptions;
use crate::receiver::Received;
use crate::sender::Sent;

/// Where the answer to a call goes; every reason if it cannot be done.
pub(crate) type Reply = Sender<Result<(), Vec<String>>>;

/// What other threads tell the engine. Those of a session carry its number, so that late ones are recognised.
#[derive(Debug)]
pub(crate) enum Message {
    /// The VMM: the VM has booted.
    VmStarted,
    /// The API: protect this VM, by the configured peers if no options are given.
    Protect(Option<ProtectOptions>, Reply),
    /// The API: end protection.
    Stop(Reply),
    /// The API: end protection for a while.
    Suspend(Reply),
    /// The API: end that while.
    Resume(Reply),
    /// The VMM: let the standby go on with the VM.
    HandOver(String, Reply),
    /// The API: move the VM to its standby.
    Switchover(Reply),
    /// The API: let the standby take over as if this host had died.
    TestFailover(Reply),
    /// The VMM: the VM has ended for good.
    VmEnded(Reply),
    /// The VMM: the engine shall end.
    Quit,
    /// The connecting thread is through. Without a reply nobody has asked: a standby is looked for.
    Opened(Result<Box<Opened>, Vec<String>>, Option<Reply>),
    /// Somebody said hello at the door.
    Caller(Box<Caller>),
    /// What the witness says about a caller who waits since then.
    Vouched(Box<Caller>, Time, Result<Option<Record>, String>),
    /// The receiving thread.
    Received(u64, Received),
    /// The sending thread.
    Sent(u64, Sent),
    /// The witness thread.
    Witness(WitnessAnswer),
    /// Another thread, by its name: something that it cannot help.
    Trouble(&'static str, String),
    /// The heartbeat thread.
    Beat(LinkId, Time, Beat),
}

/// The sending end; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Post {
    queue: Sender<Message>,
    wake: Arc<EventFd>,
}

impl Post {
    /// Queues a message that can wait until the engine looks for another reason.
    pub(crate) fn send_later(&self, message: Message) {
        let _ = self.queue.send(message);
    }

    /// Queues a message. After the engine has ended it is dropped.
    pub(crate) fn send(&self, message: Message) {
        if self.queue.send(message).is_ok() {
            // Fails only when the counter is full, and then the engine wakes anyway.
            let _ = self.wake.write(1);
        }
    }
}

/// The engine's end.
#[derive(Debug)]
pub(crate) struct Inbox {
    queue: Receiver<Message>,
    wake: Arc<EventFd>,
}

impl Inbox {
    pub(crate) fn new() -> io::Result<(Self, Post)> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let (sender, queue) = unbounded();
        Ok((Self { queue, wake: wake.clone() }, Post { queue: sender, wake }))
    }

    /// Before draining, so that a message queued meanwhile wakes again.
    pub(crate) fn acknowledge(&self) {
        let _ = self.wake.read();
    }

    pub(crate) fn next(&self) -> Option<Message> {
        self.queue.try_recv().ok()
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
