//! The card with sockets for taps and without a worker thread, for the fuzz targets. Behind a feature: nobody
//! else puts a card together.

use std::io;
use std::os::fd::OwnedFd;

use clap::Parser;
use device_api::counters::{NetCounters, Page};
use device_kit::{Memory, Vring};
use ft_proto::Epoch;
use vm_memory::GuestMemoryAtomic;

use crate::args::Args;
use crate::backend::Net;
use crate::epoch_buffer::EpochBuffer;
use crate::gate::Gate;
use crate::ring::{HEADER_LEN, LEGACY_HEADER_LEN};
use crate::tap::Tap;

/// Bytes and frames that are held.
const HELD: (usize, usize) = (128 << 10, 8);

/// The card.
pub struct Card(Net);

impl Card {
    /// A card for a guest with this memory; each of `taps` carries whole frames and does not block.
    ///
    /// # Errors
    /// When descriptors or timers cannot be had.
    pub fn new(taps: Vec<OwnedFd>, memory: GuestMemoryAtomic<Memory>) -> io::Result<Self> {
        let pairs = taps.len().to_string();
        let args = ["card", "--socket", "/nowhere", "--num-queues", &pairs];
        let args = Args::try_parse_from(args).map_err(io::Error::other)?;
        let mut net = Net::new(&args, Tap::of_sockets(taps), NetCounters::new(Page::private()?))?;
        net.memory = memory;
        Ok(Self(net))
    }

    /// As a driver does that starts over, with these features; nothing is held.
    pub fn reset(&mut self, modern: bool, mergeable: bool) {
        let net = &mut self.0;
        net.mergeable = mergeable;
        net.header_len = if modern || mergeable { HEADER_LEN } else { LEGACY_HEADER_LEN };
        (net.pairs_set, net.guest_mac) = (None, None);
        net.gate = Gate::default();
        net.buffer = EpochBuffer::new(HELD.0, HELD.1);
        net.ports.iter_mut().for_each(|port| (port.frame_len, port.stalled, port.in_use) = (0, false, false));
    }

    /// From now on output belongs to `epoch`, and is held.
    pub fn hold(&mut self, epoch: Epoch) {
        self.0.gate.protect(epoch, true);
    }

    /// Frames that are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.0.buffer.frames()
    }

    /// `epoch` is committed.
    pub fn release(&mut self, epoch: Epoch) {
        self.0.buffer.release(epoch);
    }

    /// Writes some released frames to the taps.
    pub fn drain(&mut self) {
        self.0.drain();
    }

    /// Takes some frames from the guest.
    pub fn serve_output(&mut self, vrings: &[Vring], pair: usize) {
        self.0.serve_output(vrings, pair);
    }

    /// Moves some frames from a tap to the guest.
    pub fn serve_input(&mut self, vrings: &[Vring], port: usize) {
        self.0.serve_input(vrings, port);
    }

    /// Answers some of the driver's commands.
    pub fn serve_control(&mut self, vrings: &[Vring]) {
        self.0.serve_control_queue(vrings);
    }
}
