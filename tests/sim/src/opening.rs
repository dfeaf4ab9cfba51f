//! The way to a session, which production goes on a thread of its own: own the VM at the witness, greet a
//! standby, connect its disk. Follows `ft/src/peers/connect.rs`. And who lets callers in.

use std::time::Duration;

use ft::Blocker;
use ft::ProtectOptions;
use ft::sim::{Message, SessionKey, Unopened};
use ft_proto::witness::{Claim, Verdict};
use ft_proto::{Epoch, LinkId, Term};
use ft_transport::frames::{Stamp, read_body, read_header, write_frame};
use ft_transport::listener::Incoming;
use ft_wire::packing::Unpacker;
use ft_wire::session::{Header, Hello, Kind, Refusal, Welcome, decode_body, encode_body};

use crate::body::{Accepted, OpenedTo, Opener, Question, Said, Told};
use crate::network::{Payload, StreamId, address_of, host_at};
use crate::platform::SimStream;
use crate::process::{Address, Asks, Opening, Stage};
use crate::world::{Event, World};

/// A peer that takes longer to greet is given up.
const PATIENCE: Duration = Duration::from_secs(1);

/// The frames in some bytes.
pub(crate) fn parse(mut bytes: &[u8]) -> Option<(Header, Vec<u8>)> {
    let mut body = Vec::new();
    let header = read_header(&mut bytes).ok()?;
    read_body(&mut bytes, &header, &mut body, &mut Unpacker::new().ok()?).ok()?;
    Some((header, body))
}

impl World {
    pub(crate) fn open(&mut self, address: Address, me: Opener, peers: Vec<ProtectOptions>, done: OpenedTo) {
        let Some(process) = self.process(address) else { return };
        process.opened += 1;
        let (number, term) = (process.opened, me.term);
        let claim = Claim::Own { node: me.introduction.node, term, first: me.first };
        let opening = Opening { number, me, peers: peers.into(), done, term, stage: Stage::Owning };
        process.opening = Some(opening);
        self.after(PATIENCE, Event::OpeningTimeout(address, number));
        self.ask_witness(address, Question::Claim(claim), Asks::Opener(number));
    }

    fn opening(&mut self, address: Address) -> Option<&mut Opening> {
        self.process(address)?.opening.as_mut()
    }

    pub(crate) fn opening_timeout(&mut self, address: Address, number: u64) {
        if self.opening(address).is_some_and(|opening| opening.number == number) {
            self.opening_failed(address, silent("nobody answers"));
        }
    }

    /// Nothing comes of it, or of this peer: the next one is asked.
    fn opening_failed(&mut self, address: Address, why: Unopened) {
        let Some(opening) = self.process(address).and_then(|process| process.opening.take()) else { return };
        match opening.stage {
            Stage::Owning => {}
            Stage::Checking(stream) | Stage::Greeting(stream) => self.close(address.0, stream),
            Stage::Disk(stream, disk, _) => [stream, disk].into_iter().for_each(|one| self.close(address.0, one)),
        }
        let Opening { me, mut peers, done, .. } = opening;
        peers.pop_front();
        if peers.is_empty() {
            done(Err(why));
            return self.work(address);
        }
        self.open(address, me, peers.into(), done);
    }

    /// The witness has answered the claim to own the VM.
    pub(crate) fn owned(&mut self, address: Address, number: u64, told: Told) {
        let Some(opening) = self.opening(address).filter(|opening| opening.number == number) else { return };
        match told {
            // An older one answers an old question: that term has had its session.
            Ok(Said::Verdict(Verdict::Granted(record))) if record.term() > opening.me.term => {
                opening.term = record.term();
                if let Some(stream) = self.greet(address, true) {
                    self.stage(address, Stage::Checking(stream));
                }
            }
            Ok(told) => {
                let record = format!("the witness says {told:?}");
                self.opening_failed(address, Blocker::RefusedByWitness { record }.into());
            }
            Err(reason) => {
                let blocker = Blocker::WitnessUnreachable { witness: "witness".to_owned(), reason };
                self.opening_failed(address, blocker.into());
            }
        }
    }

    fn stage(&mut self, address: Address, stage: Stage) {
        if let Some(opening) = self.opening(address) {
            opening.stage = stage;
        }
    }

    /// Says hello to the peer, on a new stream.
    fn greet(&mut self, address: Address, check: bool) -> Option<StreamId> {
        let Opening { me, peers, .. } = self.opening(address)?;
        let options = peers.front()?;
        let beats = LinkId::ALL.map(|link| address_of(address.0, link).to_string());
        let hello = me.introduction.session(check, options, beats);
        self.call_peer(address, &hello)
    }

    fn call_peer(&mut self, address: Address, hello: &Hello) -> Option<StreamId> {
        let Opening { peers, term, .. } = self.opening(address)?;
        let (target, term) = (host_at(peers.front()?.peer), *term);
        let callee = self.address(target);
        let stream = self.network.connect(address, callee);
        let bytes = frame(Kind::Hello, term, &encode_body(hello));
        self.send(address.0, stream, Payload::Bytes(bytes));
        Some(stream)
    }

    /// A stream of the opening brought something, or its end.
    pub(crate) fn opening_hears(&mut self, address: Address, bytes: Option<&[u8]>) {
        let Some(opening) = self.opening(address) else { return };
        let stage = opening.stage.clone();
        let Some((header, body)) = bytes.and_then(parse) else {
            return self.opening_failed(address, silent("the connection broke"));
        };
        if header.kind != Kind::Welcome {
            let reasons = decode_body(header.kind, &body).map_or_else(|_| Vec::new(), |Refusal { reasons }| reasons);
            let refused = |reason| Blocker::RefusedByStandby { peer: "peer".to_owned(), reason };
            return self.opening_failed(address, Unopened { blockers: reasons.into_iter().map(refused).collect() });
        }
        let Ok(welcome) = decode_body::<Welcome>(header.kind, &body) else { return };
        match stage {
            Stage::Owning => {}
            Stage::Checking(stream) => {
                self.close(address.0, stream);
                if let Some(stream) = self.greet(address, false) {
                    self.stage(address, Stage::Greeting(stream));
                }
            }
            Stage::Greeting(stream) => {
                let key = SessionKey { session: welcome.session, nonce: welcome.nonce };
                let Some(hello) = self.opening(address).map(|opening| opening.me.introduction.disk(0, key)) else {
                    return;
                };
                if let Some(disk) = self.call_peer(address, &hello) {
                    self.stage(address, Stage::Disk(stream, disk, welcome));
                }
            }
            Stage::Disk(stream, disk, welcome) => self.opened(address, stream, disk, welcome),
        }
    }

    fn opened(&mut self, address: Address, stream: StreamId, disk: StreamId, welcome: Welcome) {
        let Some(opening) = self.process(address).and_then(|process| process.opening.take()) else { return };
        let Opening { mut peers, done, term, .. } = opening;
        let Some(options) = peers.pop_front() else { return };
        done(Ok(Accepted { options, stream, disk, welcome, term }));
        self.work(address);
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
fn silent(reason: &str) -> Unopened {
    Blocker::StandbySilent { peer: "peer".to_owned(), reason: reason.to_owned() }.into()
}
