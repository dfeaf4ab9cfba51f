//! The outside observer: a UDP client that knows what the guest must answer and panics when it does not.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use pollux_guest::pattern::{chain_next, mix, set_digest};
use pollux_guest::wire::{PORT, REPLY_MAGIC, REQUEST_MAGIC, Reply, Request, flag, op};

use crate::Netns;

/// After this long without an answer a request is sent again, unless a client is told otherwise.
const REPEAT: Duration = Duration::from_millis(40);
const RESET_REPEAT: Duration = Duration::from_secs(5);
/// After this long the guest is dead.
const LIMIT: Duration = Duration::from_secs(60);

/// A client of the guest's service. It expects to be the only one that asks for work.
pub struct Client {
    /// Not connected: the network may come up after the client.
    socket: UdpSocket,
    guest: SocketAddr,
    id: u64,
    /// Requests done, and what they add up to.
    seq: u64,
    chain: u64,
    rewrites: u64,
    echo_seq: u64,
    /// The latest of the other requests that has been answered: replies to requests sent twice come twice.
    answered: u64,
    last: Option<Reply>,
    /// After this long without an answer a request is sent again.
    pub repeat_after: Duration,
    /// Longest time from the first sending of a request to its reply, since the start or the last reading.
    pub longest: Duration,
    /// Requests that were sent more than once.
    pub repeated: u64,
}

impl Client {
    /// A client in `netns` of the guest at `ip`.
    #[must_use]
    pub fn new(netns: &Netns, ip: Ipv4Addr) -> Self {
        let socket = netns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("UDP socket"));
        let id = mix(u64::from(socket.local_addr().expect("local address").port())) | 1;
        Self {
            socket,
            guest: (ip, PORT).into(),
            id,
            seq: 0,
            chain: 0,
            rewrites: 0,
            echo_seq: 0,
            answered: 0,
            last: None,
            repeat_after: REPEAT,
            longest: Duration::ZERO,
            repeated: 0,
        }
    }

    /// A client on the host whose VM was started with [`crate::VmOptions::local_tap`].
    #[must_use]
    pub fn of_local_tap(netns: &Netns) -> Self {
        Self::new(netns, crate::vm::GUEST_IP)
    }

    /// What the guest said last.
    ///
    /// # Panics
    /// If it never did.
    #[must_use]
    pub fn last(&self) -> Reply {
        self.last.expect("a reply")
    }

    /// Have `pages` pages rewritten and `blocks` disk blocks written and flushed, exactly once. Sends the
    /// request again until it is answered.
    pub fn work(&mut self, pages: u64, blocks: u64) -> Reply {
        let seq = self.seq + 1;
        let word = mix(seq ^ self.id);
        let request = Request { op: op::WORK, seq, pages, blocks, word, ..self.request() };
        let reply = self.exchange(&request);
        assert!(reply.flags & !flag::DUPLICATE == 0, "request {seq} was not done: {reply:?}");
        self.seq = seq;
        self.chain = chain_next(self.chain, seq, word);
        self.rewrites += pages;
        assert_eq!(reply.chain, self.chain, "the guest lost or repeated a request: {reply:?}");
        assert_eq!((reply.handled, reply.rewrites), (seq, self.rewrites), "{reply:?}");
        self.check(&reply);
        reply
    }

    /// Ask for the counters. Also the way to wait for a guest that boots.
    pub fn echo(&mut self) -> Reply {
        self.ask(op::ECHO, 0)
    }

    /// Ask for something else of [`op`].
    pub fn ask(&mut self, op: u64, word: u64) -> Reply {
        self.echo_seq += 1;
        let request = Request { op, seq: self.echo_seq, word, ..self.request() };
        let reply = self.exchange(&request);
        self.answered = request.seq;
        self.check(&reply);
        reply
    }

    /// Have the guest reset itself. Its answer may be lost with it; then the next boot is asked once more,
    /// but not sooner: a request that waits in the tap would reset that one too.
    pub fn reset(&mut self, how: u64) {
        self.start_over();
        let repeat_after = std::mem::replace(&mut self.repeat_after, RESET_REPEAT);
        self.ask(op::RESET, how);
        self.repeat_after = repeat_after;
        self.start_over();
    }

    fn start_over(&mut self) {
        (self.seq, self.chain, self.rewrites, self.last) = (0, 0, 0, None);
    }

    /// Send one request for the counters and do not wait; returns its number.
    pub fn send(&mut self) -> u64 {
        self.send_only(op::ECHO)
    }

    /// As [`Self::work`], but do not wait. Nothing else may be asked of this client afterwards.
    pub fn send_work(&mut self, pages: u64, blocks: u64) {
        let request = Request { op: op::WORK, seq: self.seq + 1, pages, blocks, ..self.request() };
        self.socket.send_to(&request.encode(), self.guest).expect("send a datagram");
    }

    /// Send one request that is not answered, or whose answer [`Self::receive`] shall get; returns its
    /// number.
    pub fn send_only(&mut self, op: u64) -> u64 {
        self.echo_seq += 1;
        let request = Request { op, seq: self.echo_seq, ..self.request() };
        self.socket.send_to(&request.encode(), self.guest).expect("send a datagram");
        self.echo_seq
    }

    /// Wait for the next reply to a request that has none yet, up to `limit`.
    pub fn receive(&mut self, limit: Duration) -> Option<Reply> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.checked_duration_since(Instant::now())?;
            let reply = self.receive_any(left)?;
            let answered = if reply.op == op::WORK { self.seq } else { self.answered };
            if reply.seq > answered {
                return Some(reply);
            }
        }
    }

    fn receive_any(&mut self, limit: Duration) -> Option<Reply> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            self.socket.set_read_timeout(Some(left)).expect("timeout of a socket");
            let mut datagram = [0; 2048];
            match self.socket.recv_from(&mut datagram) {
                Ok((len, from)) => {
                    assert_eq!(from, self.guest);
                    let reply = Reply::decode(&datagram[..len]).filter(|reply| reply.magic == REPLY_MAGIC);
                    return Some(reply.expect("a well-formed reply"));
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => panic!("receive a datagram: {error}"),
            }
        }
    }

    fn request(&self) -> Request {
        Request { magic: REQUEST_MAGIC, client: self.id, ..Request::default() }
    }

    fn exchange(&mut self, request: &Request) -> Reply {
        let start = Instant::now();
        loop {
            // Not reachable before the tap is up: as good as lost.
            let _ = self.socket.send_to(&request.encode(), self.guest);
            let sent = Instant::now();
            while let Some(left) = self.repeat_after.checked_sub(sent.elapsed()) {
                let Some(reply) = self.receive(left) else { continue };
                if (reply.op, reply.seq, reply.client) == (request.op, request.seq, request.client) {
                    self.longest = self.longest.max(start.elapsed());
                    return reply;
                }
            }
            self.repeated += 1;
            assert!(start.elapsed() < LIMIT, "the guest does not answer request {}", request.seq);
        }
    }

    /// What holds of every reply.
    fn check(&mut self, reply: &Reply) {
        assert_eq!((reply.violations, reply.disk_violations, reply.backwards), (0, 0, 0), "{reply:?}");
        if reply.flags & flag::DUPLICATE == 0 {
            assert_eq!(reply.digest, set_digest(reply.pages, reply.rewrites), "{reply:?}");
            if let Some(last) = &self.last {
                let fields = |r: &Reply| {
                    [
                        r.handled,
                        r.rewrites,
                        r.tsc,
                        r.nanoseconds,
                        r.ticks,
                        r.checked,
                        r.background,
                        r.disk_done,
                        r.disk_issued,
                        r.disk_checked,
                    ]
                };
                assert_eq!(reply.boot, last.boot, "the guest started over: {reply:?}");
                let back = fields(reply).iter().zip(fields(last)).any(|(now, before)| *now < before);
                assert!(!back && reply.echoes >= last.echoes, "acknowledged state is lost: {reply:?} after {last:?}");
            }
            self.last = Some(*reply);
        }
    }
}
