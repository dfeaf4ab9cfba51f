//! The thread on which a primary opens a session: the engine's own way, with calls that the world answers.
//! And who lets callers in.

use std::io;
use std::task::{Context, Waker};

use ft::sim::Message;
use ft_proto::LinkId;
use ft_transport::frames::{read_body, read_header};
use ft_transport::listener::Incoming;
use ft_wire::packing::Unpacker;
use ft_wire::session::{Header, Hello, Kind, decode_body};

use crate::dialler::silent;
use crate::driver::begin;
use crate::ends::SimStream;
use crate::network::{Segment, StreamId, address_of};
use crate::process::Address;
use crate::slot::{Opening, Slot};
use crate::world::{Event, World};

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
