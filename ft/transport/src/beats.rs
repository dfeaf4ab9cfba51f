//! Heartbeats: one thread that sends ours on both links and passes the peer's on, with the time they arrived.
//!
//! A datagram that is not a [beat](ft_wire::beat) of the peer's in the open session is dropped before
//! anything is made of it, and counted. What is passed on is bounded by whoever takes it: of each link only
//! the last beat matters.
//!
//! The thread stops beating when the engine has not shown itself for [`HUNG`]: a process whose engine hangs
//! is no use to its peer, however well its threads run. An engine that waits for a device that still has time
//! to answer does not hang; it has until [`BUSY`].

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ft_proto::{Beat, LinkId, Term, Time};
use ft_wire::beat::{BeatFilter, BeatKey, Cause, LEN, encode};
use host_kit::sandbox::Needs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::addresses::{any_port, anywhere};
use crate::heartbeats::{Heartbeats, Ignored};
use crate::tally::Tally;

/// An engine that was not seen for this long counts as hung. Far above any pause, far below what an operator
/// would wait.
const HUNG: Duration = Duration::from_secs(5);
/// An engine that was not seen for this long counts as hung even while a device still has time to answer.
/// Longer than any device has.
const BUSY: Duration = Duration::from_secs(75);
/// How often to beat when nobody is suspected.
const LEISURE: Duration = Duration::from_millis(500);
/// Datagrams read from a link before the clock is looked at again: a flood must not keep ours from leaving.
const BURST: usize = 64;

/// What the beats say, kept current by the engine without locks.
#[derive(Debug, Default)]
struct Said {
    /// Term and whether it runs the VM, in one: what is sent was said, both of it.
    beat: AtomicU64,
    engine_seen: AtomicU64,
    quit: AtomicBool,
    ignored: [AtomicU64; Cause::ALL.len()],
}

/// A term and whether its node runs the VM, in one word.
fn pack(term: Term, runs: bool) -> u64 {
    // No believable term comes near the top bit.
    (term.0 << 1) | u64::from(runs)
}

fn unpack(packed: u64) -> (Term, bool) {
    (Term(packed >> 1), packed & 1 == 1)
}

/// One link's socket.
#[derive(Clone, Debug)]
pub struct BeatSocket {
    link: LinkId,
    /// Non-blocking, bound on our side.
    socket: Arc<UdpSocket>,
    /// The other side; without it the link only listens.
    peer: Option<SocketAddr>,
}

impl BeatSocket {
    /// Where beats of `link` are awaited, from whoever sends them.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn listen(link: LinkId, address: SocketAddr) -> io::Result<Self> {
        Self::bind(link, address, None)
    }

    /// The end of `link` on this side, when `peer` is the other one.
    ///
    /// # Errors
    /// When no address of this host reaches it.
    pub fn towards(link: LinkId, peer: SocketAddr) -> io::Result<Self> {
        // Connecting a throw-away socket asks the routing table which of our addresses faces the peer.
        let probe = UdpSocket::bind(anywhere(peer))?;
        probe.connect(peer)?;
        Self::bind(link, any_port(probe.local_addr()?), Some(peer))
    }

    fn bind(link: LinkId, address: SocketAddr, peer: Option<SocketAddr>) -> io::Result<Self> {
        let socket = UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        Ok(Self { link, socket: socket.into(), peer })
    }

    /// The address on this side.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

/// Where the beats go, how often, and of which session they are.
#[derive(Clone, Debug)]
struct Route {
    sockets: Vec<BeatSocket>,
    interval: Duration,
    key: Option<BeatKey>,
}

/// The heartbeat thread; dropping it ends the thread.
#[derive(Debug)]
pub struct Beats {
    said: Arc<Said>,
    /// Replaced as a whole: the thread holds on to what it works with, and no lock while it does.
    route: Arc<Mutex<Arc<Route>>>,
    wake: Arc<EventFd>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Beats {
    /// Starts the thread, with no links and no session yet. `now` is the time; arriving beats go to `heard`.
    /// `busy` tells whether an engine that has not been seen for long waits for something that has a limit.
    ///
    /// # Errors
    /// When the thread or its event descriptor cannot be made.
    pub fn start(
        now: impl Fn() -> Time + Send + 'static,
        busy: impl Fn() -> bool + Send + 'static,
        heard: impl Fn(LinkId, Time, Beat) + Send + 'static,
    ) -> io::Result<Self> {
        let said = Arc::new(Said::default());
        let route = Route { sockets: Vec::new(), interval: LEISURE, key: None };
        let route = Arc::new(Mutex::new(Arc::new(route)));
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let (said_too, route_too, woken) = (said.clone(), route.clone(), wake.clone());
        let thread = host_kit::thread::spawn("ft-beat", Needs::MESSAGES | Needs::SCHEDULE, move || {
            host_kit::sched::set_realtime(true);
            let tally = Tally::new("heartbeats ignored");
            let (filter, sent) = (BeatFilter::default(), 0);
            Worker { now, said: said_too, route: route_too, wake: woken, filter, sent, tally, busy, heard }.run();
        })?;
        Ok(Self { said, route, wake, thread: Some(thread) })
    }

    fn change(&self, change: impl FnOnce(&mut Route)) {
        change(Arc::make_mut(&mut self.route.lock().unwrap_or_else(PoisonError::into_inner)));
        self.wake();
    }

    fn wake(&self) {
        // Fails only when the counter is full, and then the thread wakes anyway.
        let _ = self.wake.write(1);
    }
}

impl Heartbeats for Beats {
    type Sockets = Vec<BeatSocket>;

    fn key(&self, key: Option<BeatKey>) {
        self.change(|route| route.key = key);
    }

    fn route(&self, sockets: Self::Sockets, interval: Option<Duration>) {
        self.change(|route| (route.sockets, route.interval) = (sockets, interval.unwrap_or(LEISURE)));
    }

    fn aim(&self, peers: [SocketAddr; LinkId::ALL.len()], interval: Option<Duration>) {
        self.change(|route| {
            for BeatSocket { link, peer, .. } in &mut route.sockets {
                *peer = Some(peers[*link as usize]);
            }
            route.interval = interval.unwrap_or(LEISURE);
        });
    }

    fn say(&self, Beat { term, runs, .. }: Beat, now: Time) {
        self.said.engine_seen.store(now.0, Ordering::Relaxed);
        let packed = pack(term, runs);
        // A change is told at once: a fenced primary must not keep its standby waiting.
        if self.said.beat.swap(packed, Ordering::Relaxed) != packed {
            self.wake();
        }
    }

    fn ignored(&self) -> Ignored {
        let [malformed, unexpected, other_vm, other_session, other_node, forged, replayed] =
            Cause::ALL.map(|cause| self.said.ignored[cause as usize].load(Ordering::Relaxed));
        Ignored { malformed, unexpected, other_vm, other_session, other_node, forged, replayed }
    }
}

impl Drop for Beats {
    fn drop(&mut self) {
        self.said.quit.store(true, Ordering::Release);
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker<N, B, H> {
    now: N,
    said: Arc<Said>,
    route: Arc<Mutex<Arc<Route>>>,
    wake: Arc<EventFd>,
    filter: BeatFilter,
    /// Beats sent so far, each by its number.
    sent: u64,
    tally: Tally,
    busy: B,
    heard: H,
}

impl<N: Fn() -> Time, B: Fn() -> bool, H: Fn(LinkId, Time, Beat)> Worker<N, B, H> {
    /// Ends when it is told to, and for no other reason.
    fn run(mut self) {
        let mut next = (self.now)();
        // A link whose socket fails is left alone until the next beat: its error would wake us again at once.
        let mut failed = [false; LinkId::ALL.len()];
        while !self.said.quit.load(Ordering::Acquire) {
            let now = (self.now)();
            let route = self.route.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if now >= next {
                next = now + route.interval;
                failed = Default::default();
                self.send(&route, now);
            }
            let left = next.since(now).min(route.interval);
            if self.wait(&route, &failed, left) {
                let _ = self.wake.read();
                next = (self.now)();
            }
            self.filter.set_key(route.key);
            for BeatSocket { link, socket, .. } in &route.sockets {
                let at = *link as usize;
                failed[at] = failed[at] || !self.receive(*link, socket);
            }
            if let Some(line) = self.tally.line(Instant::now()) {
                tracing::warn!(target: "ft", "{line}");
            }
        }
    }

    fn send(&mut self, route: &Route, now: Time) {
        let Some(key) = &route.key else { return };
        let unseen = now.since(Time(self.said.engine_seen.load(Ordering::Relaxed)));
        if unseen > BUSY || unseen > HUNG && !(self.busy)() {
            return;
        }
        let (term, runs) = unpack(self.said.beat.load(Ordering::Relaxed));
        self.sent += 1;
        for BeatSocket { link, socket, peer } in &route.sockets {
            if let Some(peer) = peer {
                let datagram = encode(key, *link, self.sent, term, runs);
                // A beat that cannot be sent is a beat that is not heard: the detector's business.
                let _ = socket.send_to(&datagram, peer);
            }
        }
    }

    /// Returns whether something has changed that is to be said.
    fn wait(&self, route: &Route, failed: &[bool], left: Duration) -> bool {
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(route.sockets.len() + 1);
        fds.push(PollFd::new(self.wake.as_fd(), PollFlags::POLLIN));
        for BeatSocket { link, socket, .. } in &route.sockets {
            if !failed[*link as usize] {
                fds.push(PollFd::new(socket.as_fd(), PollFlags::POLLIN));
            }
        }
        // Rounded up: a beat a millisecond late is better than a busy loop in the last one.
        let timeout = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        if poll(&mut fds, timeout).is_err() {
            // Interrupted, or the kernel has no memory: the sockets are looked at anyway, and not too often.
            thread::sleep(Duration::from_millis(1));
        }
        fds[0].any().unwrap_or(false)
    }

    /// Reads what has arrived, up to [`BURST`]. Returns whether the socket works.
    fn receive(&mut self, link: LinkId, socket: &UdpSocket) -> bool {
        // One more than a beat has: what is longer is not cut to the right length.
        let mut bytes = [0; LEN + 1];
        for _ in 0..BURST {
            match socket.recv_from(&mut bytes) {
                Ok((len, from)) => match self.filter.pass(&bytes[..len], link) {
                    Ok(beat) => (self.heard)(link, (self.now)(), beat),
                    Err(cause) => {
                        self.said.ignored[cause as usize].fetch_add(1, Ordering::Relaxed);
                        self.tally.add(cause.name(), || format!("from {from}"));
                    }
                },
                Err(error) => return matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
            }
        }
        true
    }
}

#[cfg(test)]
mod tests;
