//! The engine as the VMM sees it: start it, call it, read its board.

use std::net::UdpSocket;
use std::thread;

use crossbeam_channel::bounded;
use ft_proto::{LinkId, NodeId};

use crate::beats::{BeatSocket, Beats};
use crate::clock::Clock;
use crate::engine::{Engine, EngineError, Parts};
use crate::guest::Guest;
use crate::inbox::{Inbox, Message, Post, Reply};
use crate::listener::Door;
use crate::options::{ProtectOptions, StandbyOptions};
use crate::status::{Board, EventRecord, Status};
use crate::witness::Asker;

/// A VM's fault tolerance. Dropping it ends its threads; a peer notices that as the end of this node.
#[derive(Debug)]
pub struct Ft {
    post: Post,
    board: Board,
    thread: Option<thread::JoinHandle<()>>,
}

impl Ft {
    /// For a VM that runs here, alone.
    ///
    /// # Errors
    /// When a thread or descriptor cannot be had.
    pub fn solo(guest: Box<dyn Guest>) -> Result<Self, EngineError> {
        Self::start(guest, None)
    }

    /// For a VM that is built here and waits for a primary.
    ///
    /// # Errors
    /// When an address cannot be bound, or a thread or descriptor cannot be had.
    pub fn standby(guest: Box<dyn Guest>, options: StandbyOptions) -> Result<Self, EngineError> {
        Self::start(guest, Some(options))
    }

    fn start(guest: Box<dyn Guest>, options: Option<StandbyOptions>) -> Result<Self, EngineError> {
        let (inbox, post) = Inbox::new()?;
        let (board, clock, node) = (Board::default(), Clock::new(), random_node());
        let beat_post = post.clone();
        let beats = Beats::start(node, clock, move |link, at, beat| beat_post.send(Message::Beat(link, at, beat)))?;
        let mut claims = None;
        let standby = match options {
            None => None,
            Some(options) => {
                beats.route(listen_for_beats(&options)?, None);
                claims = options.witness.as_ref().map(Asker::start).transpose()?;
                let caller_post = post.clone();
                let door =
                    Door::open(options.listen, move |caller| caller_post.send(Message::Caller(Box::new(caller))))
                        .map_err(|error| EngineError::Listen(options.listen, error))?;
                Some((options, door))
            }
        };
        let parts = Parts {
            guest,
            inbox,
            post: post.clone(),
            board: board.clone(),
            beats,
            clock,
            node,
            standby,
            witness: claims,
        };
        let mut engine = Engine::new(parts)?;
        engine.publish();
        let thread = thread::Builder::new().name("ft".to_owned()).spawn(move || engine.run())?;
        Ok(Self { post, board, thread: Some(thread) })
    }

    /// Protects the VM. Returns when a standby has accepted and the first copy has begun.
    ///
    /// # Errors
    /// Every reason why it cannot be protected, one sentence each.
    pub fn protect(&self, options: ProtectOptions) -> Result<(), Vec<String>> {
        self.call(|reply| Message::Protect(options, reply))
    }

    /// Ends protection; the VM goes on alone. Returns when it does.
    ///
    /// # Errors
    /// When it is not protected, or the witness gives the VM to the other node.
    pub fn stop(&self) -> Result<(), Vec<String>> {
        self.call(Message::Stop)
    }

    /// Stops the VM here and lets the standby go on with it.
    ///
    /// # Errors
    /// When it is not protected.
    pub fn hand_over(&self, reason: &str) -> Result<(), Vec<String>> {
        self.call(|reply| Message::HandOver(reason.to_owned(), reply))
    }

    /// The VM has ended for good: tells the witness.
    pub fn vm_ended(&self) {
        // A standby is told not to take over; having none is as good. An engine that has ended has nothing to tell.
        let _ = self.stop();
        let _ = self.call(Message::VmEnded);
    }

    /// The status, at most 100 ms old.
    #[must_use]
    pub fn status(&self) -> Status {
        self.board.status()
    }

    /// The last events, oldest first.
    #[must_use]
    pub fn events(&self) -> Vec<EventRecord> {
        self.board.events()
    }

    fn call(&self, message: impl FnOnce(Reply) -> Message) -> Result<(), Vec<String>> {
        let (reply, answer) = bounded(1);
        self.post.send(message(reply));
        answer.recv().unwrap_or_else(|_| Err(vec!["the fault-tolerance engine has ended".to_owned()]))
    }
}

impl Drop for Ft {
    fn drop(&mut self) {
        self.post.send(Message::Quit);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listen_for_beats(options: &StandbyOptions) -> Result<Vec<BeatSocket>, EngineError> {
    let bind = |(link, address)| {
        let socket = UdpSocket::bind(address).and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
        socket
            .map(|socket| BeatSocket { link, socket, peer: None })
            .map_err(|error| EngineError::Listen(address, error))
    };
    LinkId::ALL.into_iter().zip([options.listen, options.heartbeat]).map(bind).collect()
}

/// A name that no other process has, also not this one's next incarnation.
fn random_node() -> NodeId {
    use std::hash::{BuildHasher, Hasher};
    // Keyed by the kernel's random numbers; the process id separates forks of one image.
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    NodeId(hasher.finish().max(1))
}
