//! Which datagrams are passed on, and what a flood does.

use std::sync::LazyLock;

use crossbeam_channel::{Receiver, unbounded};

use ft_proto::{NodeId, VmId};

use ft_wire::nonce::Nonce;

use super::*;

/// Far more than anything takes here on a busy machine.
const LONG: Duration = Duration::from_secs(60);

fn now() -> Time {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    Time((1 << 40) + u64::try_from(START.elapsed().as_nanos()).unwrap())
}

const ME: NodeId = NodeId::numbered(1, 11);
const PEER: NodeId = NodeId::numbered(2, 22);

fn key() -> BeatKey {
    BeatKey { vm: VmId(7), session: 8, nonce: Nonce::new(1 << 100), me: ME, peer: PEER }
}

/// The session as its peer sees it.
fn theirs() -> BeatKey {
    BeatKey { me: PEER, peer: ME, ..key() }
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// Beats of a standby that were heard.
fn listening() -> (Beats, SocketAddr, Receiver<Beat>) {
    let (tell, heard) = unbounded();
    let beats = Beats::start(now, || false, move |_, _, beat| tell.send(beat).unwrap()).unwrap();
    let socket = socket();
    let address = socket.local_addr().unwrap();
    beats.route(vec![BeatSocket { link: LinkId::Heartbeat, socket: Arc::new(socket), peer: None }], None);
    (beats, address, heard)
}

fn wait(so: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !so() {
        assert!(Instant::now() < deadline, "still not so");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn whoever_does_not_know_the_session_is_not_heard_however_high_its_term() {
    let (beats, at, heard) = listening();
    let out = socket();
    let number = AtomicU64::new(0);
    let say = |key: &BeatKey, term| {
        let number = number.fetch_add(1, Ordering::Relaxed);
        out.send_to(&encode(key, LinkId::Heartbeat, number, Term(term), true), at).unwrap()
    };
    say(&theirs(), 1 << 40);
    wait(|| beats.ignored().unexpected == 1);
    beats.key(Some(key()));
    // What was on its way is judged by what held before.
    wait(|| {
        say(&theirs(), 4);
        heard.recv_timeout(Duration::from_millis(10)).is_ok()
    });
    let unexpected = beats.ignored().unexpected;
    for forged in [
        BeatKey { vm: VmId(70), ..theirs() },
        BeatKey { session: 80, ..theirs() },
        BeatKey { nonce: Nonce::NONE, ..theirs() },
        BeatKey { me: NodeId::numbered(2, 23), ..theirs() },
        BeatKey { me: NodeId::numbered(3, 22), ..theirs() },
        // Our own, that somebody sends back.
        key(),
    ] {
        say(&forged, 1 << 40);
    }
    out.send_to(b"PLXB hello", at).unwrap();
    say(&theirs(), Term::MAX.0 + 1);
    say(&theirs(), 5);
    let mut beats_heard = std::iter::from_fn(|| heard.recv_timeout(LONG).ok());
    let beat = beats_heard.find(|beat| beat.term != Term(4)).unwrap();
    assert_eq!(beat, Beat { from: PEER, term: Term(5), runs: true });
    assert!(heard.is_empty());
    let ignored =
        Ignored { malformed: 2, unexpected, other_vm: 1, other_session: 1, other_node: 3, forged: 1, replayed: 0 };
    assert_eq!(beats.ignored(), ignored);
}

#[test]
fn a_flood_does_not_keep_our_beats_from_leaving() {
    const BEATS: usize = 20;
    let (tell, heard) = unbounded();
    let beats = Beats::start(now, || false, move |_, _, beat| tell.send(beat).unwrap()).unwrap();
    let (ours, peer) = (socket(), socket());
    let at = ours.local_addr().unwrap();
    let to = peer.local_addr().ok();
    beats.key(Some(key()));
    let route = vec![BeatSocket { link: LinkId::Replication, socket: Arc::new(ours), peer: to }];
    beats.route(route, Some(Duration::from_millis(10)));
    let quit = AtomicBool::new(false);
    let garbage = encode(&BeatKey { nonce: Nonce::new(1), ..theirs() }, LinkId::Replication, 7, Term(9), true);
    thread::scope(|scope| {
        // More at any time than one look at the socket takes.
        for _ in 0..3 {
            scope.spawn(|| {
                let out = UdpSocket::bind("127.0.0.1:0").unwrap();
                while !quit.load(Ordering::Relaxed) {
                    let _ = out.send_to(&garbage, at);
                }
            });
        }
        wait(|| beats.ignored().forged > 1000);
        let deadline = Instant::now() + LONG;
        let mut left = BEATS;
        let (mut bytes, mut filter) = ([0; 200], BeatFilter::default());
        filter.set_key(Some(theirs()));
        while left > 0 && Instant::now() < deadline {
            beats.say(Beat { from: ME, term: Term(4), runs: true }, now());
            match peer.recv(&mut bytes) {
                Ok(len) => {
                    assert!(filter.pass(&bytes[..len], LinkId::Replication).is_ok());
                    left -= 1;
                }
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
        quit.store(true, Ordering::Relaxed);
        assert_eq!(left, 0, "beats are kept from leaving");
    });
    assert!(heard.is_empty());
}

/// Hears nothing.
type Deaf = fn(LinkId, Time, Beat);

/// One that does nothing by itself.
fn idle_worker<B: Fn() -> bool>(busy: B) -> Worker<fn() -> Time, B, Deaf> {
    let route = Route { sockets: Vec::new(), interval: LEISURE, key: None };
    Worker {
        now,
        said: Arc::default(),
        route: Arc::new(Mutex::new(Arc::new(route))),
        wake: Arc::new(EventFd::new().unwrap()),
        filter: BeatFilter::default(),
        sent: 0,
        tally: Tally::new("heartbeats ignored"),
        busy,
        heard: |_, _, _| {},
    }
}

#[test]
fn an_engine_that_waits_for_a_device_beats_on_and_one_that_hangs_does_not() {
    let busy = AtomicBool::new(false);
    let mut worker = idle_worker(|| busy.load(Ordering::Relaxed));
    let (ours, peer) = (socket(), socket());
    let to = peer.local_addr().ok();
    let sockets = vec![BeatSocket { link: LinkId::Replication, socket: Arc::new(ours), peer: to }];
    let route = Route { sockets, interval: LEISURE, key: Some(key()) };
    let seen = Time(1 << 40);
    worker.said.engine_seen.store(seen.0, Ordering::Relaxed);
    let mut beats_after = |unseen| {
        worker.send(&route, seen + unseen);
        // On loopback it is there when it is sent.
        peer.recv(&mut [0; 200]).is_ok()
    };
    for waits in [false, true] {
        busy.store(waits, Ordering::Relaxed);
        assert!(beats_after(HUNG));
        assert_eq!(beats_after(HUNG * 2), waits);
        assert_eq!(beats_after(BUSY), waits);
        assert!(!beats_after(BUSY * 2), "nobody waits for a device for so long");
    }
}

#[test]
fn one_look_at_a_socket_ends_although_there_is_more() {
    let mut worker = idle_worker(|| false);
    let (socket, out) = (socket(), socket());
    for _ in 0..3 * BURST {
        out.send_to(&[0; 8], socket.local_addr().unwrap()).unwrap();
    }
    assert!(worker.receive(LinkId::Replication, &socket));
    assert_eq!(worker.said.ignored[0].load(Ordering::Relaxed), BURST as u64);
}

#[test]
fn what_a_beat_says_was_said_as_a_whole() {
    for (term, runs) in [(Term(0), true), (Term(7), false), (Term::MAX, true)] {
        assert_eq!(unpack(pack(term, runs)), (term, runs));
    }
    // A standby that takes over goes from one to the other; a mixture of both would be a lie.
    let (before, after) = ((Term(4), false), (Term(5), true));
    let said = AtomicU64::new(pack(before.0, before.1));
    let rounds = 100_000;
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..rounds {
                let (term, runs) = if round % 2 == 0 { after } else { before };
                said.store(pack(term, runs), Ordering::Relaxed);
            }
        });
        for _ in 0..rounds {
            let seen = unpack(said.load(Ordering::Relaxed));
            assert!(seen == before || seen == after, "{seen:?}");
        }
    });
}
