//! virtio-net: frames in and out of two rings, as the stack wants them.

use smoltcp::phy::{Device as Phy, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::machine::Memory;
use crate::virtio::{Buffer, Device, Queue};

const KIND: u16 = 1;
const FEATURE_MAC: u64 = 1 << 5;
/// virtio-net header of a version 1 device.
const HEADER: usize = 12;
const BUFFER: usize = 2048;
/// Ethernet header and the usual MTU.
const FRAME: usize = 1514;
/// Without it some networks take a frame for damaged.
const FRAME_MIN: usize = 60;

/// The network card.
pub struct Card {
    mac: [u8; 6],
    rx: Queue,
    tx: Queue,
    rx_buffers: &'static mut [u8],
    tx_buffers: &'static mut [u8],
    tx_free: [bool; 256],
    /// Whether rings have something that the device was not told of.
    rx_news: bool,
    tx_news: bool,
}

impl Card {
    /// The first one.
    pub fn find(memory: &mut Memory) -> Option<Self> {
        let device = Device::find(memory, KIND)?;
        device.negotiate(FEATURE_MAC);
        let mac = core::array::from_fn(|i| device.config(i as u64));
        let (rx, tx) = (device.queue(memory, 0), device.queue(memory, 1));
        let mut card = Self {
            mac,
            rx_buffers: memory.bytes(BUFFER * usize::from(rx.size)),
            tx_buffers: memory.bytes(BUFFER * usize::from(tx.size)),
            tx_free: core::array::from_fn(|i| i < usize::from(tx.size)),
            rx,
            tx,
            rx_news: true,
            tx_news: false,
        };
        device.start();
        for head in 0..card.rx.size {
            offer(&mut card.rx, card.rx_buffers, head);
        }
        card.kick();
        Some(card)
    }

    /// Its address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Whether a frame has come in.
    pub fn has_input(&self) -> bool {
        self.rx.has_used()
    }

    /// Tell the device what is new in the rings.
    pub fn kick(&mut self) {
        if core::mem::take(&mut self.tx_news) {
            self.tx.kick();
        }
        if core::mem::take(&mut self.rx_news) {
            self.rx.kick();
        }
    }

    /// Wait until the device has taken all that we sent.
    pub fn drain(&mut self, mut give_up: impl FnMut() -> bool) {
        while self.tx_free[..usize::from(self.tx.size)].iter().any(|free| !free) && !give_up() {
            self.reclaim();
        }
    }

    fn reclaim(&mut self) {
        while let Some((head, _)) = self.tx.take() {
            self.tx_free[usize::from(head)] = true;
        }
    }

    /// A buffer to send from.
    fn room(&mut self) -> Option<u16> {
        self.reclaim();
        self.tx_free.iter().position(|free| *free).map(|slot| slot as u16)
    }
}

fn offer(rx: &mut Queue, buffers: &[u8], head: u16) {
    let address = buffers[usize::from(head) * BUFFER..].as_ptr() as u64;
    rx.add(head, &[Buffer { address, len: BUFFER as u32, writable: true }]);
}

/// A frame that came in.
pub struct Received<'a> {
    rx: &'a mut Queue,
    buffers: &'a mut [u8],
    news: &'a mut bool,
    head: u16,
    len: usize,
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        let buffer = &self.buffers[usize::from(self.head) * BUFFER..][..BUFFER];
        let result = take(buffer.get(HEADER..self.len).unwrap_or_default());
        offer(self.rx, self.buffers, self.head);
        *self.news = true;
        result
    }
}

/// Room for a frame to send.
pub struct Sending<'a> {
    tx: &'a mut Queue,
    buffers: &'a mut [u8],
    free: &'a mut [bool],
    news: &'a mut bool,
    slot: u16,
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let buffer = &mut self.buffers[usize::from(self.slot) * BUFFER..][..BUFFER];
        buffer[..HEADER].fill(0);
        let result = fill(&mut buffer[HEADER..HEADER + len]);
        buffer[HEADER + len..].iter_mut().take(FRAME_MIN.saturating_sub(len)).for_each(|byte| *byte = 0);
        self.free[usize::from(self.slot)] = false;
        let len = (HEADER + len.max(FRAME_MIN)) as u32;
        self.tx.add(self.slot, &[Buffer { address: buffer.as_ptr() as u64, len, writable: false }]);
        *self.news = true;
        result
    }
}

impl Phy for Card {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Sending<'a>;

    /// Nothing is taken while there is no room to answer.
    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        let slot = self.room()?;
        let (head, len) = self.rx.take()?;
        let Self { rx, tx, rx_buffers, tx_buffers, tx_free, rx_news, tx_news, .. } = self;
        let received = Received { rx, buffers: rx_buffers, news: rx_news, head, len: (len as usize).min(BUFFER) };
        Some((received, Sending { tx, buffers: tx_buffers, free: tx_free, news: tx_news, slot }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        let slot = self.room()?;
        let Self { tx, tx_buffers, tx_free, tx_news, .. } = self;
        Some(Sending { tx, buffers: tx_buffers, free: tx_free, news: tx_news, slot })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        capabilities
    }
}
