//! The listening socket: accepts connections, reads their greetings side by side, passes them to the engine,
//! which answers.
//!
//! Anybody can call. So what a caller may take is bounded before it has said who it is: [`GREETINGS`] at a
//! time, each with [`PATIENCE`] for its TLS handshake and its whole greeting, which is a short frame. When
//! there are more, one that is not through with its greeting has to leave, the oldest of the address that has
//! most of them. To refuse the newcomer instead would let [`GREETINGS`] idle connections shut everybody out;
//! so, whoever wants to keep an honest caller from being heard has to open as many connections, from as many
//! addresses, within the two round trips that its handshake and greeting take. No thread waits for a single
//! caller, and no error ends the one that waits for all.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ft_proto::{Epoch, Term};
use ft_wire::session::{Hello, Kind, Refusal, Standing, Welcome, WireError, decode_body, encode_body};
use host_kit::error::chain;
use host_kit::sandbox::Needs;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::connection::Connection;
use crate::frames::{FrameReader, RecvNow, Stamp, TransportError, write_frame};
use crate::stream::{Arriving, OpenError, Stream};
use crate::tally::Tally;
use crate::tls::TlsError;
use crate::tls::credentials::Credentials;

/// How long a caller may take to say who it is, from first to last byte.
const PATIENCE: Duration = Duration::from_secs(5);
/// Callers whose greetings are being read.
const GREETINGS: usize = 16;
/// Callers who said hello and have no answer yet.
const WAITING: usize = 16;
/// And from the same address: an honest one calls again only after it has given up.
const WAITING_PER_ADDRESS: usize = 4;
/// Connections accepted before those that are open are looked at again.
const BURST: usize = 64;
/// The first pause after a failure to accept; doubled up to the longest one.
const PAUSE: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Between two words to the engine about such failures.
const TELL_AGAIN: Duration = Duration::from_secs(10);
/// And about callers that are turned away.
const TELL_TURNED_AWAY_AGAIN: Duration = Duration::from_secs(3600);

/// Somebody who said hello.
#[derive(Debug)]
pub struct Incoming<C> {
    /// The connection.
    pub stream: C,
    /// Where from.
    pub address: SocketAddr,
    /// Its term.
    pub term: Term,
    /// Who and what for.
    pub hello: Hello,
    /// Its slot among those that wait for an answer.
    _slot: Option<Slot>,
}

impl<C: Connection> Incoming<C> {
    /// Somebody who has said `hello` on a stream that is not a [`Listener`]'s.
    pub fn new(stream: C, address: SocketAddr, term: Term, hello: Hello) -> Self {
        Self { stream, address, term, hello, _slot: None }
    }

    /// Accepts; the connection goes on as what the caller wanted.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn welcome(mut self, welcome: &Welcome) -> Result<C, TransportError> {
        let stamp = Stamp { kind: Kind::Welcome, term: self.term, epoch: Epoch(0) };
        write_frame(&mut self.stream, stamp, &[&encode_body(welcome)])?;
        self.stream.end_greeting()?;
        Ok(self.stream)
    }

    /// Says what this node does about the VM.
    pub fn tell(mut self, standing: &Standing) {
        let stamp = Stamp { kind: Kind::Standing, term: standing.term, epoch: Epoch(0) };
        // The caller may be gone; it will find out by itself.
        let _ = write_frame(&mut self.stream, stamp, &[&encode_body(standing)]);
        self.stream.finish();
    }

    /// Refuses, with every reason.
    pub fn refuse(mut self, reasons: Vec<String>) {
        refuse(&mut self.stream, self.term, reasons);
    }
}

/// Where those come from who wait for an answer.
#[derive(Clone, Debug, Default)]
struct Waiting(Arc<Mutex<Vec<IpAddr>>>);

/// A slot among them, until it is dropped.
#[derive(Debug)]
struct Slot {
    address: IpAddr,
    all: Waiting,
}

impl Waiting {
    fn take_slot(&self, address: IpAddr) -> Option<Slot> {
        let mut all = self.lock();
        let same = all.iter().filter(|other| **other == address).count();
        if all.len() >= WAITING || same >= WAITING_PER_ADDRESS {
            return None;
        }
        all.push(address);
        Some(Slot { address, all: self.clone() })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<IpAddr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        if let Some(at) = all.iter().position(|address| *address == self.address) {
            all.swap_remove(at);
        }
    }
}

/// What the listener tells.
#[derive(Debug)]
pub enum Arrival {
    /// Somebody said hello.
    Incoming(Box<Incoming<Stream>>),
    /// Somebody was turned away, for this reason. Told once an hour at most; all are counted.
    TurnedAway(&'static str, SocketAddr),
    /// Nobody can be let in, for this reason; it is tried again.
    Trouble(String),
}

/// Whether some process of this host listens at `address`, or keeps others from it.
#[must_use]
pub fn is_taken(address: SocketAddr) -> bool {
    // What else is wrong with the address is told when it is needed.
    TcpListener::bind(address).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// The accepting thread; dropping it closes the socket.
#[derive(Debug)]
pub struct Listener {
    quit: Arc<AtomicBool>,
    wake: Arc<EventFd>,
    turned_away: Arc<AtomicU64>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Listener {
    /// Listens at `address`; callers go to `tell`. With `tls` only those who are of this host's pair.
    ///
    /// # Errors
    /// When the address cannot be bound, or a descriptor cannot be had.
    pub fn open(
        address: SocketAddr,
        tls: Option<Credentials>,
        tell: impl Fn(Arrival) + Send + 'static,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Self::open_with(listener, tls, tell)
    }

    fn open_with(
        listener: impl Accept + Send + 'static,
        tls: Option<Credentials>,
        tell: impl Fn(Arrival) + Send + 'static,
    ) -> io::Result<Self> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let quit = Arc::new(AtomicBool::new(false));
        let mut acceptor = Acceptor {
            listener,
            tls,
            reserve: Some(reserve()?),
            greetings: Vec::with_capacity(GREETINGS),
            waiting: Waiting::default(),
            paused: None,
            pause: PAUSE,
            told: None,
            turned_away: TurnedAway::default(),
            tally: Tally::new("callers turned away"),
        };
        let (ending, woken) = (quit.clone(), wake.clone());
        let turned_away = acceptor.turned_away.count.clone();
        let thread = host_kit::thread::spawn("ft-listen", Needs::ACCEPT | Needs::MESSAGES | Needs::FILES, move || {
            while !ending.load(Ordering::Acquire) {
                acceptor.turn(&woken, &tell);
            }
        })?;
        Ok(Self { quit, wake, turned_away, thread: Some(thread) })
    }

    /// Callers that were turned away, as it goes on counting.
    #[must_use]
    pub fn turned_away(&self) -> Arc<AtomicU64> {
        self.turned_away.clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.quit.store(true, Ordering::Release);
        // Fails only when the counter is full, and then the thread wakes anyway.
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A listening socket, that does not block.
trait Accept {
    fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)>;
    fn fd(&self) -> BorrowedFd<'_>;
}

impl Accept for TcpListener {
    fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        Self::accept(self)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }
}

/// A caller that is still speaking, or that reads why it is not listened to.
struct Greeting {
    address: SocketAddr,
    deadline: Instant,
    stage: Stage,
}

enum Stage {
    /// It proves who it is.
    Arriving(Box<Arriving>),
    /// It says what it wants.
    Speaking(Stream, FrameReader),
    /// It was refused, and reads why.
    Refused(Stream),
}

/// What a caller made of its greeting.
enum Step {
    /// It is not through yet.
    More,
    /// It said hello.
    Hello(Term, Box<Hello>),
    /// Its protocol is another version of ours, which is the one thing that it is told.
    OtherVersion(WireError),
    /// It has not proved who it is. TLS has told it so.
    Refuse(&'static str),
    /// It is not worth an answer, or gone.
    Leave(&'static str),
}

impl Greeting {
    fn fd(&self) -> BorrowedFd<'_> {
        match &self.stage {
            Stage::Arriving(arriving) => arriving.as_fd(),
            Stage::Speaking(stream, _) | Stage::Refused(stream) => stream.as_fd(),
        }
    }

    fn step(&mut self) -> Step {
        if let Stage::Arriving(arriving) = &mut self.stage {
            match arriving.step() {
                Ok(Some(stream)) => self.stage = Stage::Speaking(stream, FrameReader::default()),
                Ok(None) => return Step::More,
                Err(error @ OpenError::Tls(_)) => return Step::Refuse(cause(&error)),
                Err(error) => return Step::Leave(cause(&error)),
            }
        }
        match &mut self.stage {
            Stage::Speaking(stream, reader) => hear(stream, reader),
            Stage::Refused(stream) => drain(stream),
            Stage::Arriving(_) => Step::More,
        }
    }

    /// It has some time to read why.
    fn refused(mut self) -> Option<Self> {
        let stream = match self.stage {
            Stage::Arriving(arriving) => arriving.give_up(),
            Stage::Speaking(stream, _) | Stage::Refused(stream) => stream,
        };
        stream.set_nonblocking().ok()?;
        self.stage = Stage::Refused(stream);
        Some(self)
    }
}

fn hear(stream: &Stream, reader: &mut FrameReader) -> Step {
    match reader.poll(stream) {
        Ok(None) => Step::More,
        Ok(Some((header, body))) if header.kind == Kind::Hello && reader.is_empty() => decode_body(header.kind, &body)
            .map_or(Step::Leave(STRANGE), |hello| Step::Hello(header.term, Box::new(hello))),
        Ok(Some(_)) => Step::Leave(STRANGE),
        Err(TransportError::Wire(error @ WireError::Version { .. })) => Step::OtherVersion(error),
        Err(TransportError::Tls(error)) => Step::Leave(tls_cause(&error)),
        Err(TransportError::Wire(_) | TransportError::Misbehaves(_)) => Step::Leave(STRANGE),
        Err(TransportError::Closed | TransportError::Io(_) | TransportError::Late) => Step::Leave(HUNG_UP),
    }
}

/// To close a connection with bytes that nobody has read resets it, and the caller may not see why it was
/// refused.
fn drain(stream: &Stream) -> Step {
    let mut unread = [0; 4096];
    match stream.recv_now(&mut unread) {
        Ok(1..) => Step::More,
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Step::More,
        Ok(_) | Err(_) => Step::Leave(""),
    }
}

/// Why a caller is turned away that has not proved who it is.
fn cause(error: &OpenError) -> &'static str {
    match error {
        OpenError::Io(_) => HUNG_UP,
        OpenError::Tls(error) => tls_cause(error),
        OpenError::Credentials(_) => "since this host cannot say who it is",
    }
}

fn tls_cause(error: &TlsError) -> &'static str {
    match error {
        TlsError::HungUp => HUNG_UP,
        TlsError::NotTls => "without TLS",
        TlsError::Alert(_) => "that do not take us for their pair",
        TlsError::Handshake(_) => "of another pair",
        TlsError::Record | TlsError::Unexpected(_) => "that break TLS",
    }
}

const STRANGE: &str = "not of our protocol";
const CROWDED: &str = "too many at once";
const HUNG_UP: &str = "that hung up";

struct Acceptor<L> {
    listener: L,
    /// Who this host is, and whom it believes; `None`: anybody.
    tls: Option<Credentials>,
    /// Given up to accept, and close, when there are no descriptors: a caller that is not let in must not
    /// wait to be.
    reserve: Option<File>,
    /// Oldest first.
    greetings: Vec<Greeting>,
    waiting: Waiting,
    /// Nobody is accepted before this.
    paused: Option<Instant>,
    pause: Duration,
    /// When the engine was last told that nobody can be let in.
    told: Option<Instant>,
    turned_away: TurnedAway,
    tally: Tally,
}

/// Callers that were turned away.
#[derive(Debug, Default)]
struct TurnedAway {
    count: Arc<AtomicU64>,
    /// Since the engine was told of one: the last one.
    last: Option<(&'static str, SocketAddr)>,
    told: Option<Instant>,
}

impl TurnedAway {
    fn tell(&mut self, now: Instant, tell: &dyn Fn(Arrival)) {
        if self.told.is_some_and(|told| now.duration_since(told) < TELL_TURNED_AWAY_AGAIN) {
            return;
        }
        if let Some((cause, address)) = self.last.take() {
            self.told = Some(now);
            tell(Arrival::TurnedAway(cause, address));
        }
    }
}

impl<L: Accept> Acceptor<L> {
    /// Waits until there is something to do, and does it.
    fn turn(&mut self, wake: &EventFd, tell: &dyn Fn(Arrival)) {
        self.wait(wake);
        let now = Instant::now();
        self.listen(now, tell);
        if self.paused.is_none_or(|until| until <= now) {
            self.paused = None;
            if let Err(error) = self.accept_some(now) {
                self.rest(now, &error, tell);
            }
        }
        self.turned_away.tell(now, tell);
        if let Some(line) = self.tally.line(now) {
            tracing::warn!(target: "ft", "{line}");
        }
    }

    fn wait(&self, wake: &EventFd) {
        let mut fds = Vec::with_capacity(2 + GREETINGS);
        fds.push(PollFd::new(wake.as_fd(), PollFlags::POLLIN));
        fds.extend(self.greetings.iter().map(|greeting| PollFd::new(greeting.fd(), PollFlags::POLLIN)));
        if self.paused.is_none() {
            fds.push(PollFd::new(self.listener.fd(), PollFlags::POLLIN));
        }
        let deadlines = self.greetings.iter().map(|greeting| greeting.deadline);
        let next = deadlines.chain(self.paused).chain(self.tally.due()).min();
        // Rounded up: not a busy loop in the last millisecond.
        let left = |at: Instant| at.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
        let timeout = next.map_or(PollTimeout::NONE, |at| left(at).try_into().unwrap_or(PollTimeout::MAX));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            // The kernel has no memory; it may have some later.
            Err(_) => thread::sleep(PAUSE),
        }
    }

    /// Hears what has arrived of the greetings.
    fn listen(&mut self, now: Instant, tell: &dyn Fn(Arrival)) {
        let mut open = Vec::with_capacity(GREETINGS);
        for mut greeting in std::mem::take(&mut self.greetings) {
            match greeting.step() {
                Step::More if greeting.deadline > now => open.push(greeting),
                Step::More if matches!(greeting.stage, Stage::Refused(_)) => {}
                Step::More => self.count("too slow", greeting.address),
                Step::Hello(term, hello) => self.pass_on(greeting, term, *hello, tell),
                Step::OtherVersion(error) => {
                    self.count("of another version", greeting.address);
                    let mut refused = greeting.refused();
                    if let Some(Greeting { stage: Stage::Refused(stream), .. }) = &mut refused {
                        refuse(stream, Term(0), vec![error.to_string()]);
                    }
                    open.extend(refused);
                }
                Step::Refuse(cause) => {
                    self.count(cause, greeting.address);
                    open.extend(greeting.refused());
                }
                Step::Leave("") => {}
                Step::Leave(cause) => self.count(cause, greeting.address),
            }
        }
        self.greetings = open;
    }

    fn pass_on(&mut self, greeting: Greeting, term: Term, hello: Hello, tell: &dyn Fn(Arrival)) {
        let Greeting { stage: Stage::Speaking(stream, _), address, .. } = greeting else { return };
        let Some(slot) = self.waiting.take_slot(address.ip()) else { return self.count(CROWDED, address) };
        tell(Arrival::Incoming(Box::new(Incoming { stream, address, term, hello, _slot: Some(slot) })));
    }

    /// Lets in who waits, but not for ever.
    fn accept_some(&mut self, now: Instant) -> io::Result<()> {
        let mut want = None;
        for _ in 0..BURST {
            match self.listener.accept() {
                Ok((stream, address)) => {
                    self.pause = PAUSE;
                    match Stream::accepted(stream, PATIENCE, self.tls.as_ref()) {
                        Ok(arriving) => {
                            let stage = Stage::Arriving(Box::new(arriving));
                            self.admit(Greeting { address, deadline: now + PATIENCE, stage });
                        }
                        Err(error) => self.count(cause(&error), address),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if is_of_the_peer(&error) => {
                    self.tally.add(HUNG_UP, || error.to_string());
                }
                Err(error) if is_want_of_descriptors(&error) && self.shed() => want = Some(error),
                Err(error) => return Err(error),
            }
        }
        // The next ones would find no descriptor, either: not at the speed at which they come.
        want.map_or(Ok(()), Err)
    }

    fn admit(&mut self, greeting: Greeting) {
        if self.greetings.len() >= GREETINGS {
            let of = |ip: IpAddr| self.greetings.iter().filter(|other| other.address.ip() == ip).count();
            let most = self.greetings.iter().map(|other| of(other.address.ip())).max();
            let oldest = self.greetings.iter().position(|other| Some(of(other.address.ip())) == most);
            let leaves = self.greetings.remove(oldest.unwrap_or(0));
            self.count(CROWDED, leaves.address);
        }
        self.greetings.push(greeting);
    }

    /// There are no descriptors: one that is kept for this lets the next caller in, and out. Returns whether
    /// it did.
    fn shed(&mut self) -> bool {
        let kept = self.reserve.take();
        let had_one = kept.is_some();
        drop(kept);
        let shed = if had_one { self.listener.accept().ok() } else { None };
        let address = shed.map(|(stream, address)| {
            drop(stream);
            address
        });
        self.reserve = reserve().ok();
        address.map(|address| self.count("for want of descriptors", address)).is_some()
    }

    /// Nobody is let in for a while.
    fn rest(&mut self, now: Instant, error: &io::Error, tell: &dyn Fn(Arrival)) {
        if self.told.is_none_or(|told| now.duration_since(told) > TELL_AGAIN) {
            self.told = Some(now);
            tell(Arrival::Trouble(format!("callers cannot be let in: {}", chain(error))));
        }
        self.paused = Some(now + self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    fn count(&mut self, cause: &'static str, address: SocketAddr) {
        self.turned_away.count.fetch_add(1, Ordering::Relaxed);
        self.turned_away.last = Some((cause, address));
        self.tally.add(cause, || address.to_string());
    }
}

fn reserve() -> io::Result<File> {
    File::open("/dev/null")
}

/// Errors of a connection that are told by accept(2): the next one may be well.
fn is_of_the_peer(error: &io::Error) -> bool {
    use Errno as E;
    let errno = error.raw_os_error().map(Errno::from_raw);
    let of_the_peer = [
        E::EINTR,
        E::ECONNABORTED,
        E::EPROTO,
        E::ENOPROTOOPT,
        E::EOPNOTSUPP,
        E::EHOSTDOWN,
        E::EHOSTUNREACH,
        E::ENETDOWN,
        E::ENETUNREACH,
        E::ENONET,
    ];
    errno.is_some_and(|errno| of_the_peer.contains(&errno))
}

fn is_want_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EMFILE | Errno::ENFILE))
}

fn refuse(stream: &mut impl Connection, term: Term, reasons: Vec<String>) {
    let stamp = Stamp { kind: Kind::Refuse, term, epoch: Epoch(0) };
    // The caller may be gone; it will find out by itself.
    let _ = write_frame(stream, stamp, &[&encode_body(&Refusal { reasons })]);
    stream.finish();
}

#[cfg(test)]
mod tests;
