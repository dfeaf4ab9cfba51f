//! The card with sockets for taps and without a worker thread, for the fuzz targets. Behind a feature: nobody
//! else puts a card together.

use std::io;
use std::os::fd::OwnedFd;

use device_api::counters::{NetCounters, Page};
use device_kit::gate::Gate;
use device_kit::{Memory, Vmm, Vring};
use ft_proto::Epoch;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF};
use vm_memory::GuestMemoryAtomic;

use crate::announce::Announcer;
use crate::control_queue;
use crate::driver::Driver;
use crate::epoch_buffer::EpochBuffer;
use crate::input::Input;
use crate::output::{Context, Output};
use crate::ports::Ports;
use crate::tap::Tap;

/// Bytes and frames that are held.
const HELD: (usize, usize) = (128 << 10, 8);

/// The card.
pub struct Card {
    ports: Ports,
    driver: Driver,
    input: Input,
    output: Output,
    gate: Gate,
    announcer: Announcer,
    vmm: Vmm,
    counters: NetCounters,
}

impl Card {
    /// A card for a guest with this memory; each of `taps` carries whole frames and does not block.
    ///
    /// # Errors
    /// When descriptors or timers cannot be had.
    pub fn new(taps: Vec<OwnedFd>, memory: GuestMemoryAtomic<Memory>) -> io::Result<Self> {
        let ports = Ports::new(Tap::of_sockets(taps));
        let mut driver = Driver::new(ports.count());
        driver.set_memory(memory);
        Ok(Self {
            output: output(&ports),
            ports,
            driver,
            input: Input::default(),
            gate: Gate::default(),
            announcer: Announcer::new(None)?,
            vmm: Vmm::default(),
            counters: NetCounters::new(Page::private()?),
        })
    }

    /// As a driver does that starts over, with these features; nothing is held.
    pub fn reset(&mut self, modern: bool, mergeable: bool) {
        let bit = |has: bool, bit: u32| u64::from(has) << bit;
        let features = bit(modern, VIRTIO_F_VERSION_1) | bit(mergeable, VIRTIO_NET_F_MRG_RXBUF);
        self.driver.start_over(features | bit(true, VIRTIO_NET_F_MQ));
        if let Ok(announcer) = Announcer::new(None) {
            self.announcer = announcer;
        }
        self.gate = Gate::default();
        self.output = output(&self.ports);
        self.ports.drop_frames();
    }

    /// From now on output belongs to `epoch`, and is held.
    pub fn hold(&mut self, epoch: Epoch) {
        self.output.set_hold(epoch, true);
        self.gate.begin(epoch);
    }

    /// Frames that are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.output.waiting().0 as usize
    }

    /// `epoch` is committed.
    pub fn release(&mut self, epoch: Epoch) {
        self.output.release(epoch);
    }

    /// Writes some released frames to the taps.
    pub fn drain(&mut self) {
        self.output.drain(self.ports.tap(), &self.counters);
    }

    /// Takes some frames from the guest.
    pub fn serve_output(&mut self, vrings: &[Vring], pair: usize) {
        let mut cx = Context {
            driver: &self.driver,
            tap: self.ports.tap(),
            gate: &mut self.gate,
            vmm: &self.vmm,
            announcer: &mut self.announcer,
            counters: &self.counters,
        };
        self.output.serve(vrings, pair, &mut cx);
    }

    /// Moves some frames from a tap to the guest.
    pub fn serve_input(&mut self, vrings: &[Vring], port: usize) {
        self.input.serve(vrings, port, &mut self.ports, &mut self.driver, &self.counters);
    }

    /// Answers some of the driver's commands.
    pub fn serve_control(&mut self, vrings: &[Vring]) {
        control_queue::serve(vrings, &mut self.driver, &self.counters);
    }
}

fn output(ports: &Ports) -> Output {
    Output::new(ports.count(), EpochBuffer::new(HELD.0, HELD.1))
}
