//! Descriptor chains of the network card, both directions and the control queue, with a socket for a tap.
//!
//! Input: settings, the length of a frame from outside, then guest memory from address 0 on (see
//! `guest_ring`): receive, transmit, receive, transmit, control.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use ft_proto::Epoch;
use ft_wire::device_ctl::{Command, Hold, decode};
use vhost_user_net_buffer::Card;

use crate::bytes::Bytes;
use crate::guest_ring::Rings;

const PAIRS: usize = 2;
/// The virtio-net header.
const HEADER: usize = 12;
/// The shortest frame on a tap, with its header.
const SHORTEST: usize = HEADER + 14;
/// Turns in which the card is done with what a guest has made available that adds nothing.
const TURNS_MAX: usize = 64;

/// Virtio features: version 1, mergeable buffers, several queues, and all offloads, both ways.
const VERSION_1: u64 = 1 << 32;
const MERGEABLE: u64 = 1 << 15;
const QUEUES: u64 = 1 << 22 | 1 << 17;
const OFFLOADS: u64 = 0b1111_1111_1000_0011;

struct Rig {
    rings: Rings,
    frame: Vec<u8>,
}

/// A card, and the other ends of its taps.
struct Run<'a> {
    card: Card,
    outside: Vec<UnixDatagram>,
    rings: &'a Rings,
    frame: &'a mut [u8],
}

impl Rig {
    fn new() -> Self {
        Self { rings: Rings::new(2 * PAIRS + 1), frame: vec![0; 1 << 17] }
    }

    fn serve(&mut self, mut bytes: Bytes<'_>) {
        let (settings, frame) = (bytes.u8(), usize::from(bytes.u16()));
        let has = |bit: u8| settings & 1 << bit != 0;
        self.rings.set_up(bytes.rest(), has(1));
        let mut run = Run::new(&self.rings, &mut self.frame);
        let feature = |bit, features| if has(bit) { features } else { 0 };
        let features = feature(2, VERSION_1) | feature(3, MERGEABLE) | feature(4, OFFLOADS & !MERGEABLE);
        run.card.driver_starts_over(features | QUEUES);
        if has(0) { run.protected(frame) } else { run.alone(frame) }
        (0..self.rings.vrings.len()).for_each(|queue| self.rings.check(queue));
    }
}

impl<'a> Run<'a> {
    fn new(rings: &'a Rings, frame: &'a mut [u8]) -> Self {
        let (taps, outside): (Vec<OwnedFd>, Vec<_>) = (0..PAIRS)
            .map(|_| {
                let (tap, outside) = UnixDatagram::pair().unwrap();
                [&tap, &outside].into_iter().for_each(|end| end.set_nonblocking(true).unwrap());
                (tap.into(), outside)
            })
            .unzip();
        let mut card = Card::on_sockets(taps).unwrap();
        card.set_memory(rings.memory.clone());
        Self { card, outside, rings, frame }
    }

    /// Everything that waits is served; returns how many frames have left.
    fn work(&mut self, frame: usize) -> usize {
        for port in 0..PAIRS {
            let mut incoming = vec![0xaa; frame];
            incoming.iter_mut().take(HEADER).for_each(|byte| *byte = 0);
            let _ = self.outside[port].send(&incoming);
            self.card.tap_readable(port);
        }
        (0..self.rings.vrings.len()).for_each(|queue| self.card.kicked(queue));
        self.rest()
    }

    /// The card works until it is done; returns how many frames have left.
    fn rest(&mut self) -> usize {
        let mut frames = 0;
        for _ in 0..TURNS_MAX {
            let more = self.card.turn(&self.rings.vrings);
            for outside in &self.outside {
                while let Ok(len) = outside.recv(self.frame) {
                    assert!(len >= SHORTEST, "a frame of {len} bytes");
                    assert_eq!((self.frame[0] & !1, &self.frame[10..12]), (0, &[0, 0][..]), "what is not the driver's");
                    frames += 1;
                }
            }
            if !more {
                return frames;
            }
        }
        panic!("the card finds no rest");
    }

    fn command(&mut self, command: Command) {
        self.card.command(command, &self.rings.vrings);
    }

    fn alone(&mut self, frame: usize) {
        self.work(frame);
        assert_eq!(self.card.held(), 0);
    }

    fn protected(&mut self, frame: usize) {
        self.command(Command::Protect { epoch: Epoch(1), hold: Hold::on() });
        assert_eq!(self.work(frame), 0, "frames have left before they were released");
        let held = self.card.held();
        self.command(Command::Seal { epoch: Epoch(1), cpu: None });
        assert_eq!((self.work(frame), self.card.held()), (0, held), "it serves while it is sealed");
        self.command(Command::Resume);
        // Only the engine can make a `Release`, so this is what one looks like on the wire.
        self.command(decode(&[5, 1]).unwrap());
        assert_eq!(self.rest(), held, "held frames that never left");
        self.command(Command::Seal { epoch: Epoch(2), cpu: None });
        self.command(Command::Discard { after: Epoch(1) });
        assert_eq!((self.rest(), self.card.held()), (0, 0), "what was never committed");
    }
}

thread_local! {
    static RIG: RefCell<Rig> = RefCell::new(Rig::new());
}

/// Serves the queues.
pub fn run(input: &[u8]) {
    RIG.with_borrow_mut(|rig| rig.serve(Bytes::new(input)));
}
