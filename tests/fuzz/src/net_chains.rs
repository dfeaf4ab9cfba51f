//! Descriptor chains of the network card, both directions and the control queue, with a socket for a tap.
//!
//! Input: settings, the length of a frame from outside, then guest memory from address 0 on (see
//! `guest_ring`): receive, transmit, receive, transmit, control.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use ft_proto::Epoch;
use vhost_user_net_buffer::fuzzing::Card;

use crate::bytes::Bytes;
use crate::guest_ring::Rings;

const PAIRS: usize = 2;
/// The shortest frame on a tap, with its header.
const SHORTEST: usize = 12 + 14;

struct Rig {
    rings: Rings,
    card: Card,
    outside: Vec<UnixDatagram>,
    frame: Vec<u8>,
}

impl Rig {
    fn new() -> Self {
        let (taps, outside): (Vec<OwnedFd>, Vec<_>) = (0..PAIRS)
            .map(|_| {
                let (tap, outside) = UnixDatagram::pair().unwrap();
                [&tap, &outside].into_iter().for_each(|end| end.set_nonblocking(true).unwrap());
                (tap.into(), outside)
            })
            .unzip();
        let rings = Rings::new(2 * PAIRS + 1);
        let card = Card::new(taps, rings.memory.clone()).unwrap();
        Self { rings, card, outside, frame: vec![0; 1 << 17] }
    }

    fn serve(&mut self, mut bytes: Bytes<'_>) {
        let (settings, frame, epoch) = (bytes.u8(), usize::from(bytes.u16()), Epoch(1));
        let held = settings & 1 != 0;
        self.rings.set_up(bytes.rest(), settings & 2 != 0);
        self.card.reset(settings & 4 != 0, settings & 8 != 0);
        if held {
            self.card.hold(epoch);
        }
        self.card.serve_control(&self.rings.vrings);
        for pair in 0..PAIRS {
            self.card.serve_output(&self.rings.vrings, pair);
            let sent = self.drain();
            assert!(!held || sent == 0, "{sent} frames have left before they were released");
            let _ = self.outside[pair].send(&vec![0xaa; frame]);
            self.card.serve_input(&self.rings.vrings, pair);
        }
        if held {
            let frames = self.card.held();
            self.card.release(epoch);
            assert_eq!(self.drain(), frames, "held frames that never left");
        }
        (0..self.rings.vrings.len()).for_each(|queue| self.rings.check(queue));
    }

    /// Reads what has left through the taps, all of it; how many frames.
    fn drain(&mut self) -> usize {
        let mut frames = 0;
        loop {
            let before = frames;
            self.card.drain();
            for outside in &self.outside {
                while let Ok(len) = outside.recv(&mut self.frame) {
                    assert!(len >= SHORTEST, "a frame of {len} bytes");
                    frames += 1;
                }
            }
            if frames == before {
                return frames;
            }
        }
    }
}

thread_local! {
    static RIG: RefCell<Rig> = RefCell::new(Rig::new());
}

/// Serves the queues.
pub fn run(input: &[u8]) {
    RIG.with_borrow_mut(|rig| rig.serve(Bytes::new(input)));
}
