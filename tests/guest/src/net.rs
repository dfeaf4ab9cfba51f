//! The network: smoltcp on the card, a UDP service, and two TCP ports, one that swallows a stream and one
//! that never ends.
//!
//! ARP and ICMP echo are answered by smoltcp. Streams carry the library's stream pattern: the guest checks
//! what it swallows.

use pollux_guest::pattern::{check_stream, fill_stream};
use pollux_guest::wire::{SINK_PORT, SOURCE_PORT};
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr};

use crate::card::Card;
use crate::config::Config as Settings;
use crate::machine::Memory;

/// Longest payload of a datagram that we send.
const MAX_PAYLOAD: usize = 1472;
/// Datagrams that may wait, each way.
const DATAGRAMS: usize = 64;
/// The window of a stream: what a client can have on the way before an epoch is committed.
const WINDOW: usize = 1 << 20;
/// The service's and the streams', each of which sends at most one packet when the stack is asked once.
const SOCKETS: usize = 3;

/// What answers datagrams: gets the payload and a place for the answer, returns the answer's length if there
/// is one.
pub type Service<'a> = &'a mut dyn FnMut(&[u8], &mut [u8]) -> Option<usize>;

/// The network card, the stack on it, and its sockets.
pub struct Net {
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    service: SocketHandle,
    port: u16,
    sink: Stream,
    source: Stream,
    /// When the stack was last asked.
    polled: Instant,
    /// When the stack has something to do again without a frame coming in.
    due: Instant,
    /// Pieces of streams that were not what they must be.
    pub violations: u64,
}

/// One of the TCP ports.
struct Stream {
    socket: SocketHandle,
    port: u16,
    position: u64,
}

impl Net {
    /// The first network card, with the address, the service's port and the offloads of `settings`.
    pub fn find(memory: &mut Memory, settings: &Settings, seed: u64, now: u64) -> Option<Self> {
        let mut card = Card::find(memory, settings.offloads, settings.bare)?;
        let mut config = Config::new(EthernetAddress(card.mac()).into());
        config.random_seed = seed;
        let now = Instant::from_micros(now.cast_signed());
        let mut interface = Interface::new(config, &mut card, now);
        interface.update_ip_addrs(|addresses| _ = addresses.push(IpCidr::new(settings.ip.into(), 24)));
        let mut sockets = SocketSet::new(memory.keep([const { SocketStorage::EMPTY }; SOCKETS]).as_mut_slice());
        let mut datagrams = || {
            let metadata = memory.keep([udp::PacketMetadata::EMPTY; DATAGRAMS]).as_mut_slice();
            udp::PacketBuffer::new(metadata, memory.bytes(DATAGRAMS * 2048))
        };
        let service = sockets.add(udp::Socket::new(datagrams(), datagrams()));
        let mut stream = |port, receive, send| {
            let [receive, send] = [receive, send].map(|len| tcp::SocketBuffer::new(memory.bytes(len)));
            Stream { socket: sockets.add(tcp::Socket::new(receive, send)), port, position: 0 }
        };
        let (sink, source) = (stream(SINK_PORT, WINDOW, 4096), stream(SOURCE_PORT, 4096, WINDOW));
        let port = settings.port;
        Some(Self { card, interface, sockets, service, port, sink, source, polled: now, due: now, violations: 0 })
    }

    /// Our MAC address.
    pub fn mac(&self) -> [u8; 6] {
        self.card.mac()
    }

    /// Takes what has come in and answers it. `now` is in microseconds.
    pub fn poll(&mut self, now: u64, service: Service) {
        let now = Instant::from_micros(now.cast_signed());
        if !self.card.has_input() && now < self.due {
            return;
        }
        self.polled = now;
        self.receive(now);
        self.answer(service);
        self.swallow();
        self.produce();
        self.send(now);
        self.due = self.interface.poll_at(now, &self.sockets).unwrap_or(Instant::from_micros(i64::MAX));
    }

    /// Send what waits and wait until the device has taken it all. After a boot the peer's address may have
    /// to be asked for first.
    pub fn drain(&mut self, mut give_up: impl FnMut() -> bool) {
        let now = self.polled;
        self.send(now);
        let waits = |net: &mut Self| net.card.is_busy() || net.sockets.get::<udp::Socket>(net.service).send_queue() > 0;
        while waits(self) && !give_up() {
            self.receive(now);
            self.send(now);
        }
    }

    fn receive(&mut self, now: Instant) {
        let (card, sockets) = (&mut self.card, &mut self.sockets);
        while self.interface.poll_ingress_single(now, card, sockets) != PollIngressSingleResult::None {}
    }

    /// As much as there is room for. The stack is not asked for what the card could refuse: a fast retransmit
    /// that is refused is never tried again, and its stream stands still.
    fn send(&mut self, now: Instant) {
        while self.card.has_room(SOCKETS)
            && self.interface.poll_egress(now, &mut self.card, &mut self.sockets) != PollResult::None
        {}
        self.card.kick();
    }

    fn answer(&mut self, service: Service) {
        let socket = self.sockets.get_mut::<udp::Socket>(self.service);
        if !socket.is_open() {
            socket.bind(self.port).expect("a port that is not 0");
        }
        let mut request = [0; 2048];
        // One that cannot be answered now waits.
        while socket.can_send() {
            let Ok((len, from)) = socket.recv_slice(&mut request) else { break };
            let mut reply = [0; MAX_PAYLOAD];
            if let Some(len) = service(&request[..len], &mut reply) {
                // No room: lost, as a datagram may be.
                let _ = socket.send_slice(&reply[..len], from);
            }
        }
    }

    fn swallow(&mut self) {
        let stream = &mut self.sink;
        let socket = self.sockets.get_mut::<tcp::Socket>(stream.socket);
        stream.reopen(socket);
        while let Ok(len @ 1..) = socket.recv(|bytes| {
            self.violations += u64::from(!check_stream(stream.position, bytes));
            (bytes.len(), bytes.len())
        }) {
            stream.position += len as u64;
        }
        if socket.state() == tcp::State::CloseWait {
            socket.close();
        }
    }

    fn produce(&mut self) {
        let stream = &mut self.source;
        let socket = self.sockets.get_mut::<tcp::Socket>(stream.socket);
        stream.reopen(socket);
        if socket.state() == tcp::State::CloseWait {
            socket.abort();
        }
        while let Ok(len @ 1..) = socket.send(|room| {
            fill_stream(stream.position, room);
            (room.len(), room.len())
        }) {
            stream.position += len as u64;
        }
    }
}

impl Stream {
    /// Listens for the next client once the last one is gone.
    fn reopen(&mut self, socket: &mut tcp::Socket) {
        if !socket.is_open() {
            self.position = 0;
            socket.listen(self.port).expect("a port that is not 0");
        }
    }
}
