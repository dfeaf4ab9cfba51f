//! virtio-net: frames in and out of two rings, as the stack wants them.
//!
//! Where the device can, it computes the checksums of TCP and cuts large segments, as it does for any guest
//! of today.

use core::num::{NonZeroU16, NonZeroUsize};

use smoltcp::phy::{Checksum, Device as Phy, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::machine::Memory;
use crate::virtio::{Buffer, Device, Queue};

const KIND: u16 = 1;
const FEATURE_CSUM: u64 = 1;
const FEATURE_MAC: u64 = 1 << 5;
const FEATURE_HOST_TSO4: u64 = 1 << 11;
const OFFLOADS: u64 = FEATURE_CSUM | FEATURE_HOST_TSO4;
/// virtio-net header of a version 1 device.
const HEADER: usize = 12;
/// Without that version it lacks the number of buffers.
const BARE_HEADER: usize = 10;
const BUFFER: usize = 2048;
/// Ethernet header and the usual MTU.
const FRAME: usize = 1514;
/// The largest frame that the device cuts.
const LARGE_FRAME: usize = 65535;
const LARGE_BUFFER: usize = 17 * 4096;
/// Of those there are fewer.
const LARGE_BUFFERS: usize = 32;
/// Where TCP begins behind an Ethernet and an IPv4 header, and its checksum in it.
const TCP: usize = 34;
const TCP_CHECKSUM: usize = 16;
/// Without it some networks take a frame for damaged.
const FRAME_MIN: usize = 60;

/// The network card.
pub struct Card {
    mac: [u8; 6],
    rx: Receiver,
    tx: Sender,
}

struct Receiver {
    queue: Queue,
    /// Bytes of the virtio-net header.
    header: usize,
    buffers: &'static mut [u8],
    /// Whether the ring has something that the device was not told of.
    news: bool,
}

struct Sender {
    queue: Queue,
    /// Bytes of the virtio-net header.
    header: usize,
    buffers: &'static mut [u8],
    /// Bytes of one buffer.
    each: usize,
    free: [bool; 256],
    offloads: bool,
    news: bool,
}

impl Card {
    /// The first one, with what it can do of `OFFLOADS` if that is wanted; `bare`: without any feature.
    pub fn find(memory: &mut Memory, offloads: bool, bare: bool) -> Option<Self> {
        let device = Device::find(memory, KIND)?;
        let wanted = if offloads { OFFLOADS } else { 0 };
        let offloads = device.negotiate(FEATURE_MAC | wanted, bare) & OFFLOADS == OFFLOADS;
        let header = if bare { BARE_HEADER } else { HEADER };
        let mac = core::array::from_fn(|i| device.config(i as u64));
        let (rx, tx) = (device.queue(memory, 0), device.queue(memory, 1));
        let rx = Receiver { buffers: memory.bytes(BUFFER * usize::from(rx.size)), queue: rx, header, news: false };
        let mut card = Self { mac, rx, tx: Sender::new(memory, tx, header, offloads) };
        device.start();
        for head in 0..card.rx.queue.size {
            card.rx.offer(head);
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
        self.rx.queue.has_used()
    }

    /// Tell the device what is new in the rings.
    pub fn kick(&mut self) {
        if core::mem::take(&mut self.tx.news) {
            self.tx.queue.kick();
        }
        if core::mem::take(&mut self.rx.news) {
            self.rx.queue.kick();
        }
    }

    /// Whether so many frames can be sent at once.
    pub fn has_room(&mut self, frames: usize) -> bool {
        self.tx.reclaim();
        self.tx.free.iter().filter(|free| **free).count() >= frames
    }

    /// Whether the device has not yet taken all that we sent.
    pub fn is_busy(&mut self) -> bool {
        self.tx.reclaim();
        self.tx.free[..self.tx.buffers.len() / self.tx.each].iter().any(|free| !free)
    }
}

impl Receiver {
    fn offer(&mut self, head: u16) {
        let address = self.buffers[usize::from(head) * BUFFER..].as_ptr() as u64;
        self.queue.add(head, &[Buffer { address, len: BUFFER as u32, writable: true }]);
        self.news = true;
    }
}

impl Sender {
    fn new(memory: &mut Memory, queue: Queue, header: usize, offloads: bool) -> Self {
        let all = usize::from(queue.size);
        let (each, count) = if offloads { (LARGE_BUFFER, LARGE_BUFFERS.min(all)) } else { (BUFFER, all) };
        let free = core::array::from_fn(|i| i < count);
        Self { queue, header, buffers: memory.bytes(each * count), each, free, offloads, news: false }
    }

    fn reclaim(&mut self) {
        while let Some((head, _)) = self.queue.take() {
            self.free[usize::from(head)] = true;
        }
    }

    /// A buffer to send from.
    fn room(&mut self) -> Option<Sending<'_>> {
        self.reclaim();
        let slot = self.free.iter().position(|free| *free)?;
        Some(Sending { tx: self, slot, segment: None })
    }
}

/// A frame that came in.
pub struct Received<'a> {
    rx: &'a mut Receiver,
    head: u16,
    len: usize,
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        let buffer = &self.rx.buffers[usize::from(self.head) * BUFFER..][..BUFFER];
        let result = take(buffer.get(self.rx.header..self.len).unwrap_or_default());
        self.rx.offer(self.head);
        result
    }
}

/// Room for a frame to send.
pub struct Sending<'a> {
    tx: &'a mut Sender,
    slot: usize,
    /// The device cuts the frame into segments of this many bytes.
    segment: Option<NonZeroU16>,
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let buffer = &mut self.tx.buffers[self.slot * self.tx.each..][..self.tx.each];
        let address = buffer.as_ptr() as u64;
        let (header, frame) = buffer.split_at_mut(self.tx.header);
        header.fill(0);
        let result = fill(&mut frame[..len]);
        if self.tx.offloads && is_tcp(&frame[..len]) {
            offload(header, &mut frame[..len], self.segment);
        }
        frame[len..].iter_mut().take(FRAME_MIN.saturating_sub(len)).for_each(|byte| *byte = 0);
        let len = (self.tx.header + len.max(FRAME_MIN)) as u32;
        self.tx.free[self.slot] = false;
        self.tx.queue.add(self.slot as u16, &[Buffer { address, len, writable: false }]);
        self.tx.news = true;
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size;
    }
}

fn is_tcp(frame: &[u8]) -> bool {
    frame.len() > TCP && frame[12..14] == [8, 0] && frame[14] == 0x45 && frame[23] == 6
}

/// Asks the device for the checksum of a TCP frame, and to cut it if need be. It adds the checksum to that of
/// the pseudo header.
fn offload(header: &mut [u8], frame: &mut [u8], segment: Option<NonZeroU16>) {
    let len = frame.len() - TCP;
    let words = frame[26..TCP].chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let mut sum = words.sum::<u32>() + 6 + len as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[TCP + TCP_CHECKSUM..][..2].copy_from_slice(&(sum as u16).to_be_bytes());
    // VIRTIO_NET_HDR_F_NEEDS_CSUM
    header[0] = 1;
    header[6..8].copy_from_slice(&(TCP as u16).to_le_bytes());
    header[8..10].copy_from_slice(&(TCP_CHECKSUM as u16).to_le_bytes());
    let headers = TCP + usize::from(frame[TCP + 12] >> 4) * 4;
    if let Some(segment) = segment.filter(|segment| frame.len() > headers + usize::from(segment.get())) {
        // VIRTIO_NET_HDR_GSO_TCPV4
        header[1] = 1;
        header[2..4].copy_from_slice(&(headers as u16).to_le_bytes());
        header[4..6].copy_from_slice(&segment.get().to_le_bytes());
    }
}

impl Phy for Card {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Sending<'a>;

    /// Nothing is taken while there is no room to answer.
    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        let sending = self.tx.room()?;
        let (head, len) = self.rx.queue.take()?;
        Some((Received { rx: &mut self.rx, head, len: (len as usize).min(BUFFER) }, sending))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        self.tx.room()
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        if self.tx.offloads {
            capabilities.checksum.tcp = Checksum::Rx;
            capabilities.segmentation.tcpv4 = NonZeroUsize::new(LARGE_FRAME);
        }
        capabilities
    }
}
