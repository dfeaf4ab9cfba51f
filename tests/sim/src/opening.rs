//! The thread on which a primary opens a session: the engine's own way, with calls that the world answers.
//! And who lets callers in.

use std::future::poll_fn;
use std::io;
use std::mem::replace;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ft::ProtectOptions;
use ft::sim::{AskWitness as _, BeatAddresses, Dialler, Message};
use ft_proto::witness::Claim;
use ft_proto::{Epoch, LinkId, Term, VmId, WitnessAnswer};
use ft_transport::dial::{Answer, GreetError, understand};
use ft_transport::frames::{Stamp, read_body, read_header, write_frame};
use ft_transport::listener::Incoming;
use ft_transport::stream::OpenError;
use ft_wire::packing::Unpacker;
use ft_wire::session::{Header, Hello, Kind, decode_body, encode_body};

use crate::body::{Effect, Shared};
use crate::driver::begin;
use crate::network::{Segment, StreamId, address_of, host_at};
use crate::platform::{SimStream, SimWitness};
use crate::process::Address;
use crate::world::{Event, World};

/// A peer that takes longer for a step is given up.
const PATIENCE: Duration = Duration::from_secs(1);

/// The thread.
pub(crate) type Opening = Pin<Box<dyn Future<Output = ()> + Send>>;
/// A frame that answers a greeting.
pub(crate) type Heard = Result<(Header, Vec<u8>), GreetError>;

/// What that thread waits for. The first that is said counts.
pub(crate) struct Slot<T>(Arc<Mutex<Said<T>>>);

enum Said<T> {
    Nothing,
    This(T),
    /// Nobody waits any more.
    Over,
}

impl<T> Slot<T> {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Said::Nothing)))
    }

    fn lock(&self) -> MutexGuard<'_, Said<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_open(&self) -> bool {
        matches!(*self.lock(), Said::Nothing)
    }

    fn say(&self, what: T) {
        let mut said = self.lock();
        if matches!(*said, Said::Nothing) {
            *said = Said::This(what);
        }
    }

    fn take(&self) -> Poll<T> {
        let mut said = self.lock();
        match replace(&mut *said, Said::Over) {
            Said::This(what) => Poll::Ready(what),
            other => {
                *said = other;
                Poll::Pending
            }
        }
    }
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// Calls other hosts of the world.
pub(crate) struct SimDialler(pub(crate) Shared);

impl SimDialler {
    /// What the world says by then, or that it said nothing.
    fn wait<T: Send + 'static>(&self, slot: Slot<T>, nothing: T) -> impl Future<Output = T> + Send + use<T> {
        let late = slot.clone();
        self.0.effect(Effect::Later(PATIENCE, Box::new(move || late.say(nothing))));
        poll_fn(move |_| slot.take())
    }
}

impl Dialler for SimDialler {
    type Connection = SimStream;
    type Beats = Option<usize>;
    type Witness = SimWitness;

    fn connect(&self, peer: SocketAddr) -> impl Future<Output = Result<SimStream, OpenError>> + Send {
        let (slot, shared) = (Slot::new(), self.0.clone());
        self.0.effect(Effect::Dial(host_at(peer), slot.clone()));
        let dialled = self.wait(slot, Err(io::ErrorKind::TimedOut.into()));
        async move { Ok(SimStream::new(dialled.await?, shared)) }
    }

    fn greet(
        &self,
        stream: &mut SimStream,
        hello: &Hello,
        term: Term,
    ) -> impl Future<Output = Result<Answer, GreetError>> + Send {
        let slot = Slot::new();
        self.0.effect(Effect::Write(stream.id(), frame(Kind::Hello, term, &encode_body(hello))));
        self.0.effect(Effect::Greet(stream.id(), slot.clone()));
        let heard = self.wait(slot, Err(silent("nobody answers")));
        async move {
            let (header, body) = heard.await?;
            Ok(understand(stream, header, &body)?)
        }
    }

    fn beats(&self, options: &ProtectOptions) -> io::Result<(Option<usize>, BeatAddresses)> {
        let host = self.0.lock().host;
        Ok((Some(host_at(options.peer)), LinkId::ALL.map(|link| address_of(host, link).to_string())))
    }

    fn claim(
        &self,
        witness: &SimWitness,
        vm: VmId,
        claim: Claim,
    ) -> impl Future<Output = WitnessAnswer> + Send + use<> {
        let slot = Slot::new();
        let told = slot.clone();
        witness.ask(vm, claim, move |answer| told.say(answer));
        self.wait(slot, WitnessAnswer::Unreachable(claim, "no answer".to_owned()))
    }
}

/// The frames in some bytes.
pub(crate) fn parse(mut bytes: &[u8]) -> Option<(Header, Vec<u8>)> {
    let mut body = Vec::new();
    let header = read_header(&mut bytes).ok()?;
    read_body(&mut bytes, &header, &mut body, &mut Unpacker::new().ok()?).ok()?;
    Some((header, body))
}

impl World {
    /// The thread begins.
    pub(crate) fn open(&mut self, address: Address, opening: Opening) {
        let soon = self.rng.micros(5, 50);
        if let Some(process) = self.process(address) {
            process.opening = Some(opening);
            self.after(soon, Event::Later(address, Box::new(|| ())));
        }
    }

    /// The thread goes on as far as it can.
    pub(crate) fn go_on_opening(&mut self, address: Address) {
        let (now, local) = (self.now, self.local(address.0));
        let Some(process) = self.process(address).filter(|process| process.paused_until <= now) else { return };
        let Some(mut opening) = process.opening.take() else { return };
        // The engine's thread may have spent more of the time.
        let engine = begin(&mut process.body(), now, local);
        if opening.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            process.opening = Some(opening);
        }
        let effects = {
            let mut body = process.body();
            (body.now, body.local, body.spent) = engine;
            std::mem::take(&mut body.effects)
        };
        effects.into_iter().for_each(|(_, effect)| self.happens(address, effect));
    }

    /// A connection to a host is asked for: it has one as soon as it can be reached, if it is up.
    pub(crate) fn dial(&mut self, address: Address, peer: usize, slot: Slot<io::Result<StreamId>>) {
        if self.process(address).is_none() || !slot.is_open() {
            return;
        }
        let blocked = |from, to| self.network.is_blocked(from, to, LinkId::Replication, self.now);
        if blocked(address.0, peer) || blocked(peer, address.0) {
            let again = self.rng.micros(2000, 12_000);
            return self.after(again, Event::Dial(address, peer, slot));
        }
        let callee = self.address(peer);
        slot.say(match self.process(callee) {
            Some(_) => Ok(self.network.connect(address, callee)),
            None => Err(io::ErrorKind::ConnectionRefused.into()),
        });
        self.go_on_opening(address);
        self.work(address);
    }

    /// What somebody who was greeted says, if that was to come on this stream.
    pub(crate) fn greeting_heard(&mut self, address: Address, stream: StreamId, segment: &Segment) -> bool {
        let Some(slot) = self.process(address).and_then(|process| process.greetings.remove(&stream)) else {
            return false;
        };
        let heard = match segment {
            Segment::Data(crate::network::Payload::Bytes(bytes)) => parse(bytes),
            Segment::Data(_) | Segment::Corrupt | Segment::Fin => None,
        };
        slot.say(heard.ok_or_else(|| silent("the connection broke")));
        self.go_on_opening(address);
        self.work(address);
        true
    }

    /// Somebody says hello to a host.
    pub(crate) fn caller(&mut self, address: Address, stream: StreamId, from: usize, bytes: &[u8]) {
        if self.hosts[address.0].full_until > self.now {
            // It waits in the kernel, and is gone when somebody looks.
            return;
        }
        let Some(process) = self.process(address) else { return };
        let Some((header, body)) = parse(bytes).filter(|(header, _)| header.kind == Kind::Hello) else { return };
        let Ok(hello) = decode_body::<Hello>(header.kind, &body) else { return };
        process.greeted.insert(stream);
        let stream = SimStream::new(stream, process.shared.clone());
        let incoming = Incoming::new(stream, address_of(from, LinkId::Replication), header.term, hello);
        self.say_to(address, Message::Incoming(Box::new(incoming)));
    }
}

/// A frame of its own.
pub(crate) fn frame(kind: Kind, term: Term, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, Stamp { kind, term, epoch: Epoch(0) }, &[body]).expect("memory takes all");
    bytes
}

/// A peer that says nothing, or nothing more.
fn silent(reason: &str) -> GreetError {
    GreetError::Unanswered(reason.to_owned())
}
