//! Callers of every kind, and a kernel that has no descriptors.

use std::io::{Read, Write};
use std::process::Command;
use std::sync::mpsc;

use ft_proto::NodeId;
use ft_wire::nonce::Nonce;
use ft_wire::session::{Header, Purpose};
use nix::sys::resource::{Resource, setrlimit};

use super::*;
use crate::dial::{connect, read_message};
use crate::frames::read_frame;

/// Far more than anything takes here on a busy machine.
const LONG: Duration = Duration::from_secs(60);

fn local() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A listener that welcomes everybody, and where it is.
fn welcoming() -> (Listener, SocketAddr, mpsc::Receiver<String>) {
    let listener = TcpListener::bind(local()).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let (troubles, told) = mpsc::channel();
    let listener = Listener::open_with(listener, None, move |arrival| match arrival {
        Arrival::Incoming(caller) => drop(caller.welcome(&Welcome {
            node: NodeId::numbered(1, 1),
            session: 7,
            nonce: Nonce::new(8),
            kept: false,
        })),
        Arrival::TurnedAway(..) => {}
        Arrival::Trouble(reason) => troubles.send(reason).unwrap(),
    });
    (listener.unwrap(), address, told)
}

fn greeting() -> Vec<u8> {
    let hello = Hello {
        vm: None,
        node: NodeId::numbered(9, 1),
        purpose: Purpose::Disk { index: 0, session: 1, nonce: Nonce::new(2) },
    };
    let mut wire = Vec::new();
    let stamp = Stamp { kind: Kind::Hello, term: Term(3), epoch: Epoch(0) };
    write_frame(&mut wire, stamp, &[&encode_body(&hello)]).unwrap();
    wire
}

/// Says hello; returns the kind of the answer, if there is one.
fn call(address: SocketAddr) -> Option<Kind> {
    let mut stream = connect(address, LONG, None).ok()?;
    stream.write_all(&greeting()).ok()?;
    read_message(&stream, LONG).ok().map(|(header, _)| header.kind)
}

/// Reads until the other side closes.
fn read_all(mut stream: TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut all = Vec::new();
    if let Err(error) = stream.read_to_end(&mut all) {
        // A reset is an end, too.
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "it stays open");
    }
    all
}

#[test]
fn a_caller_that_says_nothing_keeps_nobody_waiting() {
    let (_listener, address, _) = welcoming();
    let begun = Instant::now();
    let mut slow = TcpStream::connect(address).unwrap();
    slow.write_all(&greeting()[..1]).unwrap();
    assert_eq!(call(address), Some(Kind::Welcome));
    assert!(begun.elapsed() < PATIENCE, "it waited for the silent one");
}

#[test]
fn a_greeting_that_drips_ends_at_its_deadline() {
    let (_listener, address, _) = welcoming();
    let mut slow = TcpStream::connect(address).unwrap();
    let header = Header { kind: Kind::Hello, term: Term(1), epoch: Epoch(0), len: 60_000, raw: 60_000, body_hash: 0 };
    slow.write_all(&header.encode()).unwrap();
    let begun = Instant::now();
    // Never so long between two bytes as the whole may take.
    let ended = (0..600).any(|_| {
        thread::sleep(Duration::from_millis(100));
        slow.write_all(&[0]).is_err()
    });
    assert!(ended && begun.elapsed() >= PATIENCE / 2, "still open after {:?}", begun.elapsed());
}

#[test]
fn idle_connections_by_the_hundred_shut_nobody_out() {
    let (_listener, address, _) = welcoming();
    let idle: Vec<_> = (0..200).map(|_| TcpStream::connect(address).unwrap()).collect();
    let begun = Instant::now();
    assert_eq!(call(address), Some(Kind::Welcome));
    assert!(begun.elapsed() < PATIENCE, "it waited for their deadline");
    // The oldest had to leave, without a word.
    assert_eq!(read_all(idle.into_iter().next().unwrap()), b"");
}

#[test]
fn whoever_has_most_connections_loses_one() {
    let (listener, fds) = (TcpListener::bind(local()).unwrap(), Vec::new());
    let mut acceptor = acceptor(Scripted { listener, errors: fds });
    let at = acceptor.listener.listener.local_addr().unwrap();
    let mut kept = Vec::new();
    let mut admit = |acceptor: &mut Acceptor<Scripted>, ip: [u8; 4], port| {
        kept.push(TcpStream::connect(at).unwrap());
        let (stream, _) = acceptor.listener.listener.accept().unwrap();
        let stage = Stage::Arriving(Box::new(Stream::accepted(stream, LONG, None).unwrap()));
        acceptor.admit(Greeting { address: (ip, port).into(), deadline: Instant::now() + LONG, stage });
    };
    admit(&mut acceptor, [10, 0, 0, 1], 1);
    (0..40).for_each(|port| admit(&mut acceptor, [10, 0, 0, 66], port));
    let left: Vec<_> = acceptor.greetings.iter().map(|greeting| greeting.address).collect();
    assert_eq!(left.len(), GREETINGS);
    assert_eq!((left[0], left[1]), (([10, 0, 0, 1], 1).into(), ([10, 0, 0, 66], 25).into()), "{left:?}");
}

#[test]
fn who_waits_for_an_answer_is_counted_until_it_has_one() {
    let waiting = Waiting::default();
    let [one, other] = [IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])];
    let slots: Vec<_> = std::iter::from_fn(|| waiting.take_slot(one)).collect();
    assert_eq!(slots.len(), WAITING_PER_ADDRESS);
    assert!(waiting.take_slot(other).is_some());
    drop(slots);
    assert!(waiting.take_slot(one).is_some() && waiting.lock().is_empty());
}

#[test]
fn only_another_version_is_named() {
    let (_listener, address, _) = welcoming();
    let mut garbage = TcpStream::connect(address).unwrap();
    garbage.write_all(&[0x47; 600]).unwrap();
    assert_eq!(read_all(garbage), b"", "it was told something");
    let mut pages = TcpStream::connect(address).unwrap();
    let header = Header { kind: Kind::Pages, term: Term(1), epoch: Epoch(1), len: 1 << 24, raw: 1 << 24, body_hash: 0 };
    pages.write_all(&header.encode()).unwrap();
    assert_eq!(read_all(pages), b"");
    let mut older = TcpStream::connect(address).unwrap();
    let mut hello = greeting();
    hello[4] = hello[4].wrapping_sub(1);
    // As long as greetings are, so that its end is not read together with its header.
    hello.resize(60_000, 0);
    older.write_all(&hello).unwrap();
    let mut body = Vec::new();
    let answer = read_frame(&mut older, &mut body).unwrap();
    let Refusal { reasons } = decode_body(answer.kind, &body).unwrap();
    assert!(reasons[0].contains("install the same release"), "{reasons:?}");
}

/// A listening socket that fails as it is told, last first.
struct Scripted {
    listener: TcpListener,
    errors: Vec<Errno>,
}

impl Accept for Scripted {
    fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        match self.errors.pop() {
            Some(errno) => Err(errno.into()),
            None => self.listener.accept(),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

fn acceptor<L>(listener: L) -> Acceptor<L> {
    Acceptor {
        listener,
        tls: None,
        reserve: reserve().ok(),
        greetings: Vec::new(),
        waiting: Waiting::default(),
        paused: None,
        pause: PAUSE,
        told: None,
        turned_away: TurnedAway::default(),
        tally: Tally::new("callers turned away"),
    }
}

#[test]
fn no_error_of_accept_ends_the_thread() {
    let listener = TcpListener::bind(local()).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    use Errno as E;
    let errors = vec![E::EINVAL, E::EPERM, E::ENOMEM, E::ENOBUFS, E::ENETDOWN, E::EPROTO, E::ECONNABORTED, E::EINTR];
    let (troubles, told) = mpsc::channel();
    let welcome = Welcome { node: NodeId::numbered(1, 1), session: 7, nonce: Nonce::new(8), kept: false };
    let _listener = Listener::open_with(Scripted { listener, errors }, None, move |arrival| match arrival {
        Arrival::Incoming(caller) => drop(caller.welcome(&welcome)),
        Arrival::TurnedAway(..) => {}
        Arrival::Trouble(reason) => troubles.send(reason).unwrap(),
    });
    assert_eq!(call(address), Some(Kind::Welcome));
    let reason = told.recv_timeout(LONG).unwrap();
    assert!(reason.contains("cannot be let in"), "{reason}");
    assert!(told.try_recv().is_err(), "once is enough");
}

/// What the next test runs as a process of its own, since the limit is that of a process.
#[test]
#[ignore = "run by descriptors_run_out_and_come_back"]
fn in_a_process_with_few_descriptors() {
    let (_listener, address, troubles) = welcoming();
    // Before there are none left: connecting takes one, too.
    let callers: Vec<_> =
        (0..3).map(|_| socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap()).collect();
    let mut fill = Vec::new();
    setrlimit(Resource::RLIMIT_NOFILE, 64, 64).unwrap();
    while let Ok(file) = File::open("/dev/null") {
        fill.push(file);
    }
    for caller in callers {
        caller.connect(&address.into()).unwrap();
        assert_eq!(read_all(caller.into()), b"", "it was let out at once");
    }
    let reason = troubles.recv_timeout(LONG).unwrap();
    assert!(reason.contains("Too many open files"), "{reason}");
    drop(fill);
    assert_eq!(call(address), Some(Kind::Welcome), "the thread has ended");
}

#[test]
fn descriptors_run_out_and_come_back() {
    let test = "listener::tests::in_a_process_with_few_descriptors";
    let child = Command::new(std::env::current_exe().unwrap()).args(["--exact", test, "--ignored"]).output().unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    assert!(String::from_utf8_lossy(&child.stdout).contains("1 passed"), "no such test");
}
