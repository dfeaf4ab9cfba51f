//! Heartbeats: one thread that sends ours on both links and passes the peer's on, with the time they arrived.
//!
//! A beat is one UDP datagram: a magic, the postcard of [`Beat`], and their XXH3. The thread stops beating when the engine
//! has not shown itself for [`HUNG`]: a process whose engine hangs is no use to its peer, however well its threads run.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use ft_proto::{Beat, LinkId, NodeId, Term, Time};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use twox_hash::XxHash3_64;

use crate::clock::Clock;

/// An engine that was not seen for this long counts as hung. Far above any pause, far below what an operator would wait.
const HUNG: Duration = Duration::from_secs(5);
/// How often to beat when nobody is suspected.
const LEISURE: Duration = Duration::from_millis(500);
const MAGIC: [u8; 4] = *b"PLXB";
const DATAGRAM_MAX: usize = 64;

/// What the beats say, kept current by the engine without locks.
#[derive(Debug, Default)]
struct Said {
    term: AtomicU64,
    runs: AtomicBool,
    engine_seen: AtomicU64,
    quit: AtomicBool,
}

/// One link's socket.
#[derive(Debug)]
pub struct BeatSocket {
    /// The link.
    pub link: LinkId,
    /// Non-blocking, bound on our side.
    pub socket: UdpSocket,
    /// The other side; without it the link only listens.
    pub peer: Option<SocketAddr>,
}

/// Where the beats go, and how often.
#[derive(Debug, Default)]
struct Route {
    sockets: Vec<BeatSocket>,
    interval: Duration,
}

/// The heartbeat thread; dropping it ends the thread.
#[derive(Debug)]
pub struct Beats {
    said: Arc<Said>,
    route: Arc<Mutex<Route>>,
    wake: Arc<EventFd>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Beats {
    /// Starts the thread, with no links yet; arriving beats go to `heard`.
    ///
    /// # Errors
    /// When the thread or its event descriptor cannot be made.
    pub fn start(node: NodeId, clock: Clock, heard: impl Fn(LinkId, Time, Beat) + Send + 'static) -> io::Result<Self> {
        let said = Arc::new(Said::default());
        let route = Arc::new(Mutex::new(Route { sockets: Vec::new(), interval: LEISURE }));
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let worker = Worker { node, clock, said: said.clone(), route: route.clone(), wake: wake.clone() };
        let thread = thread::Builder::new().name("ft-beat".to_owned()).spawn(move || {
            urgency::set(true);
            worker.run(&heard);
        })?;
        Ok(Self { said, route, wake, thread: Some(thread) })
    }

    /// Beats through these sockets from now on; a link without a peer address only listens.
    pub fn route(&self, sockets: Vec<BeatSocket>, interval: Option<Duration>) {
        *self.lock() = Route { sockets, interval: interval.unwrap_or(LEISURE) };
        self.wake();
    }

    /// Changes where the beats go to, and how often; the sockets stay.
    pub fn aim(&self, peers: [SocketAddr; LinkId::ALL.len()], interval: Option<Duration>) {
        let mut route = self.lock();
        for BeatSocket { link, peer, .. } in &mut route.sockets {
            *peer = Some(peers[*link as usize]);
        }
        route.interval = interval.unwrap_or(LEISURE);
        drop(route);
        self.wake();
    }

    /// What the beats say from now on; also the engine's sign of life.
    pub fn say(&self, Beat { term, runs, .. }: Beat, now: Time) {
        self.said.engine_seen.store(now.0, Ordering::Relaxed);
        let other_role = self.said.runs.swap(runs, Ordering::Relaxed) != runs;
        // A change is told at once: a fenced primary must not keep its standby waiting.
        if self.said.term.swap(term.0, Ordering::Release) != term.0 || other_role {
            self.wake();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Route> {
        self.route.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Fails only when the counter is full, and then the thread wakes anyway.
        let _ = self.wake.write(1);
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

struct Worker {
    node: NodeId,
    clock: Clock,
    said: Arc<Said>,
    route: Arc<Mutex<Route>>,
    wake: Arc<EventFd>,
}

impl Worker {
    fn run(&self, heard: &dyn Fn(LinkId, Time, Beat)) {
        let mut next = self.clock.now();
        while !self.said.quit.load(Ordering::Acquire) {
            let now = self.clock.now();
            let (sockets, interval) = self.snapshot();
            if now >= next {
                next = now + interval;
                self.send(&sockets, now);
            }
            let left = next.since(now).min(interval);
            if wait(&self.wake, &sockets, left) {
                let _ = self.wake.read();
                next = self.clock.now();
            }
            for BeatSocket { link, socket, .. } in &sockets {
                receive(*link, socket, &self.clock, heard);
            }
        }
    }

    /// The route, so that no lock is held while waiting.
    fn snapshot(&self) -> (Vec<BeatSocket>, Duration) {
        let route = self.route.lock().unwrap_or_else(PoisonError::into_inner);
        let sockets = route.sockets.iter();
        let clones = sockets.filter_map(|BeatSocket { link, socket, peer }| {
            Some(BeatSocket { link: *link, socket: socket.try_clone().ok()?, peer: *peer })
        });
        (clones.collect(), route.interval)
    }

    fn send(&self, sockets: &[BeatSocket], now: Time) {
        if now.since(Time(self.said.engine_seen.load(Ordering::Relaxed))) > HUNG {
            return;
        }
        let term = Term(self.said.term.load(Ordering::Acquire));
        let beat = Beat { from: self.node, term, runs: self.said.runs.load(Ordering::Relaxed) };
        let bytes = encode(&beat);
        for BeatSocket { socket, peer, .. } in sockets {
            if let Some(peer) = peer {
                // A beat that cannot be sent is a beat that is not heard: the detector's business.
                let _ = socket.send_to(&bytes, peer);
            }
        }
    }
}

fn wait(wake: &EventFd, sockets: &[BeatSocket], left: Duration) -> bool {
    let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(sockets.len() + 1);
    fds.push(PollFd::new(wake.as_fd(), PollFlags::POLLIN));
    for BeatSocket { socket, .. } in sockets {
        fds.push(PollFd::new(socket.as_fd(), PollFlags::POLLIN));
    }
    // Rounded up: a beat a millisecond late is better than a busy loop in the last one.
    let timeout = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
    let _ = poll(&mut fds, timeout);
    fds[0].any().unwrap_or(false)
}

fn receive(link: LinkId, socket: &UdpSocket, clock: &Clock, heard: &dyn Fn(LinkId, Time, Beat)) {
    let mut bytes = [0; DATAGRAM_MAX];
    while let Ok(len) = socket.recv(&mut bytes) {
        if let Some(beat) = decode(&bytes[..len]) {
            heard(link, clock.now(), beat);
        }
    }
}

fn encode(beat: &Beat) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(ft_proto::wire::encode_body(beat));
    let hash = XxHash3_64::oneshot(&bytes);
    bytes.extend(hash.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<Beat> {
    let (said, hash) = bytes.split_last_chunk::<8>()?;
    if XxHash3_64::oneshot(said) != u64::from_le_bytes(*hash) {
        return None;
    }
    postcard::from_bytes(said.strip_prefix(&MAGIC)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_come_back_and_noise_does_not() {
        let beat = Beat { from: NodeId::numbered(7, 1), term: Term(3), runs: true };
        let bytes = encode(&beat);
        assert_eq!(decode(&bytes), Some(beat));
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1;
            assert_eq!(decode(&wrong), None);
            assert_eq!(decode(&bytes[..at]), None);
        }
    }
}
