//! How the other threads reach the engine: a queue, and an event descriptor that wakes its epoll.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, unbounded};
use ft_proto::{Beat, Epoch, LinkId, Time, WitnessAnswer};
use ft_transport::listener::Incoming;
use host_kit::sync::lock;
use nix::sys::eventfd::{EfdFlags, EventFd};
use pollux_api::Refused;

use crate::devices::DeviceEnd;
use crate::options::ProtectOptions;
use crate::peers::application::Unopened;
use crate::platform::{OpenedOn, Platform};
use crate::stream::ends::{Received, Sent};
use crate::witness::Stored;

/// Where the answer to a call goes.
pub type Reply = Sender<Result<(), Refused>>;

/// What other threads tell the engine. Those of a session carry its number, so that late ones are recognised.
#[derive(Debug)]
pub enum Message<P: Platform> {
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
    Opened(Result<Box<OpenedOn<P>>, Unopened>, Option<Reply>),
    /// Somebody has connected and said what for.
    Incoming(Box<Incoming<P::Connection>>),
    /// What the witness says about a caller who waits since then.
    WitnessRead(Box<Incoming<P::Connection>>, Time, Result<Option<Stored>, String>),
    /// The witness's record was read, to see what it says of this VM.
    RecordRead(Result<Option<Stored>, String>),
    /// The receiving thread.
    Received(u64, Received),
    /// The sending thread.
    Sent(u64, Sent),
    /// The witness thread.
    Witness(WitnessAnswer),
    /// Another thread, by its name: something that it cannot help.
    LocalError(&'static str, String),
    /// There may be more on the stream than its descriptor shows.
    ReadOn,
    /// The heartbeat thread.
    Beat(LinkId, Time, Beat),
    /// The VMM: something that is no device process holds the first output of this epoch.
    OutputHeld(Epoch),
    /// The VMM: a device has joined the VM.
    DeviceJoined(DeviceEnd<P::Control>, Reply),
    /// The VMM: the device of this id has left it.
    DeviceLeft(String, Reply),
}

/// The last beat of each link: one that is not read before the next one arrives is of no interest any more,
/// and so, however many there are, they take no room.
type LastBeats = Mutex<[Option<(Time, Beat)>; LinkId::ALL.len()]>;

/// The sending end; cheap to clone.
#[derive(Debug)]
pub struct Post<P: Platform> {
    queue: Sender<Message<P>>,
    beats: Arc<LastBeats>,
    /// The last epoch of which output is held, as told by the VMM; 0: that was read.
    held: Arc<AtomicU64>,
    wake: Arc<EventFd>,
}

impl<P: Platform> Clone for Post<P> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), beats: self.beats.clone(), held: self.held.clone(), wake: self.wake.clone() }
    }
}

impl<P: Platform> Post<P> {
    /// Queues a message that can wait until the engine looks for another reason.
    pub fn send_later(&self, message: Message<P>) {
        let _ = self.queue.send(message);
    }

    /// A beat has arrived.
    pub fn heard(&self, link: LinkId, at: Time, beat: Beat) {
        let waits = lock(&self.beats)[link as usize].replace((at, beat)).is_some();
        if !waits {
            let _ = self.wake.write(1);
        }
    }

    /// Output of an epoch is held: told on the thread that writes it, without a lock.
    pub fn output_held(&self, epoch: Epoch) {
        if self.held.swap(epoch.0, Ordering::AcqRel) == 0 {
            let _ = self.wake.write(1);
        }
    }

    /// Queues a message. After the engine has ended it is dropped.
    pub fn send(&self, message: Message<P>) {
        if self.queue.send(message).is_ok() {
            // Fails only when the counter is full, and then the engine wakes anyway.
            let _ = self.wake.write(1);
        }
    }
}

/// The engine's end.
#[derive(Debug)]
pub struct Inbox<P: Platform> {
    queue: Receiver<Message<P>>,
    beats: Arc<LastBeats>,
    held: Arc<AtomicU64>,
    /// Beats that are still read before the other messages have their turn again.
    beats_left: Cell<usize>,
    wake: Arc<EventFd>,
}

impl<P: Platform> Inbox<P> {
    /// Both ends.
    ///
    /// # Errors
    /// When there is no descriptor for it.
    pub fn new() -> io::Result<(Self, Post<P>)> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let (sender, queue) = unbounded();
        let beats = Arc::<LastBeats>::default();
        let held = Arc::new(AtomicU64::new(0));
        let beats_left = Cell::new(0);
        let inbox = Self { queue, beats: beats.clone(), held: held.clone(), beats_left, wake: wake.clone() };
        Ok((inbox, Post { queue: sender, beats, held, wake }))
    }

    /// Before draining, so that a message queued meanwhile wakes again.
    pub fn acknowledge(&self) {
        let _ = self.wake.read();
        self.beats_left.set(LinkId::ALL.len());
    }

    /// What waits, beats first.
    pub fn next(&self) -> Option<Message<P>> {
        self.next_beat().or_else(|| self.next_held()).or_else(|| self.queue.try_recv().ok())
    }

    fn next_held(&self) -> Option<Message<P>> {
        // Most rounds find nothing: to look costs less than to write.
        let held = self.held.load(Ordering::Acquire) != 0;
        let epoch = if held { self.held.swap(0, Ordering::AcqRel) } else { 0 };
        (epoch != 0).then_some(Message::OutputHeld(Epoch(epoch)))
    }

    fn next_beat(&self) -> Option<Message<P>> {
        let left = self.beats_left.get().checked_sub(1)?;
        let mut beats = lock(&self.beats);
        let (link, (at, beat)) = LinkId::ALL.into_iter().find_map(|link| Some((link, beats[link as usize].take()?)))?;
        self.beats_left.set(left);
        Some(Message::Beat(link, at, beat))
    }
}

impl<P: Platform> AsFd for Inbox<P> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use ft_proto::{NodeId, Term};

    use super::*;
    use crate::platform::linux::Linux;

    #[test]
    fn of_output_that_is_held_the_last_epoch_is_told_once() {
        let (inbox, post) = Inbox::<Linux>::new().unwrap();
        for epoch in 2..1000 {
            post.output_held(Epoch(epoch));
        }
        inbox.acknowledge();
        let told: Vec<_> = std::iter::from_fn(|| inbox.next()).collect();
        assert!(matches!(told[..], [Message::OutputHeld(Epoch(999))]), "{told:?}");
    }

    #[test]
    fn beats_that_nobody_reads_take_no_room_and_the_last_one_is_read() {
        let (inbox, post) = Inbox::<Linux>::new().unwrap();
        let beat = |term| Beat { from: NodeId::numbered(1, 1), term: Term(term), runs: true };
        for n in 0..100_000 {
            post.heard(LinkId::Replication, Time(n), beat(n));
            post.heard(LinkId::Heartbeat, Time(n), beat(n));
        }
        inbox.acknowledge();
        let told: Vec<_> = std::iter::from_fn(|| inbox.next()).collect();
        let [Message::Beat(LinkId::Replication, Time(99_999), one), Message::Beat(LinkId::Heartbeat, _, other)] =
            &told[..]
        else {
            panic!("{told:?}");
        };
        assert_eq!((one.term, other.term), (Term(99_999), Term(99_999)));
    }
}
