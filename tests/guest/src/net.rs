//! virtio-net and as much of Ethernet, ARP, IPv4, ICMP and UDP as a service behind one address needs.

use core::net::Ipv4Addr;

use crate::machine::Memory;
use crate::virtio::{Buffer, Device, Queue};

const KIND: u16 = 1;
const FEATURE_MAC: u64 = 1 << 5;
/// virtio-net header of a version 1 device.
const HEADER: usize = 12;
const BUFFER: usize = 2048;
const ETHERNET: usize = 14;
const UDP: usize = 8;
/// Longest payload of a datagram that we send.
pub const MAX_PAYLOAD: usize = 1472;

/// The network card.
pub struct Net {
    mac: [u8; 6],
    ip: Ipv4Addr,
    rx: Queue,
    tx: Queue,
    rx_buffers: &'static mut [u8],
    tx_buffers: &'static mut [u8],
    tx_free: [bool; 256],
    /// Frames received and sent.
    pub frames: [u64; 2],
}

impl Net {
    /// The first network card, with `ip` as our address.
    pub fn find(memory: &mut Memory, ip: Ipv4Addr) -> Option<Self> {
        let device = Device::find(memory, KIND)?;
        device.negotiate(FEATURE_MAC);
        let mac = core::array::from_fn(|i| device.config(i as u64));
        let (rx, tx) = (device.queue(memory, 0), device.queue(memory, 1));
        let mut net = Self {
            mac,
            ip,
            rx_buffers: memory.bytes(BUFFER * usize::from(rx.size)),
            tx_buffers: memory.bytes(BUFFER * usize::from(tx.size)),
            tx_free: core::array::from_fn(|i| i < usize::from(tx.size)),
            rx,
            tx,
            frames: [0; 2],
        };
        device.start();
        for head in 0..net.rx.size {
            net.offer(head);
        }
        net.rx.kick();
        Some(net)
    }

    /// Our MAC address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn offer(&mut self, head: u16) {
        let address = self.rx_buffers[usize::from(head) * BUFFER..].as_ptr() as u64;
        self.rx.add(head, &[Buffer { address, len: BUFFER as u32, writable: true }]);
    }

    fn send(&mut self, head: u16, len: usize) {
        let address = self.tx_buffers[usize::from(head) * BUFFER..].as_ptr() as u64;
        self.tx_free[usize::from(head)] = false;
        self.tx.add(head, &[Buffer { address, len: (HEADER + len) as u32, writable: false }]);
        self.tx.kick();
        self.frames[1] += 1;
    }

    /// Look for one frame, answer it. `service` gets the port and the payload of a datagram and a place for its
    /// answer; it returns the answer's length, if there is one. Does nothing while there is no room to answer.
    pub fn poll(&mut self, port: u16, service: Service) -> bool {
        while let Some((head, _)) = self.tx.take() {
            self.tx_free[usize::from(head)] = true;
        }
        let Some(slot) = self.tx_free[..usize::from(self.tx.size)].iter().position(|free| *free) else { return false };
        let Some((head, len)) = self.rx.take() else { return false };
        self.frames[0] += 1;
        let request = &self.rx_buffers[usize::from(head) * BUFFER..][..BUFFER];
        let reply = &mut self.tx_buffers[slot * BUFFER..][..BUFFER];
        reply[..HEADER].fill(0);
        let frame = request.get(HEADER..len as usize).unwrap_or_default();
        let sent = answer(self.mac, self.ip, port, frame, &mut reply[HEADER..], service);
        if let Some(len) = sent {
            self.send(slot as u16, len);
        }
        self.offer(head);
        self.rx.kick();
        true
    }

    /// Wait until the device has taken all that we sent.
    pub fn drain(&mut self, mut give_up: impl FnMut() -> bool) {
        while self.tx_free[..usize::from(self.tx.size)].iter().any(|free| !free) && !give_up() {
            while let Some((head, _)) = self.tx.take() {
                self.tx_free[usize::from(head)] = true;
            }
        }
    }
}

/// What answers datagrams: gets the payload and a place for the answer, returns the answer's length if there is one.
pub type Service<'a> = &'a mut dyn FnMut(&[u8], &mut [u8]) -> Option<usize>;

/// Build the answer to `frame`, if it gets one; returns its length.
fn answer(mac: [u8; 6], ip: Ipv4Addr, port: u16, frame: &[u8], out: &mut [u8], service: Service) -> Option<usize> {
    let (ethernet, packet) = frame.split_at_checked(ETHERNET)?;
    if ethernet[..6] != mac && ethernet[..6] != [0xff; 6] {
        return None;
    }
    let (head, rest) = out.split_at_mut(ETHERNET);
    head[..6].copy_from_slice(&ethernet[6..12]);
    head[6..12].copy_from_slice(&mac);
    head[12..].copy_from_slice(&ethernet[12..]);
    let len = match ethernet[12..] {
        [0x08, 0x06] => answer_arp(mac, ip, packet, rest)?,
        [0x08, 0x00] => answer_ipv4(ip, port, packet, rest, service)?,
        _ => return None,
    };
    Some((ETHERNET + len).max(60))
}

fn answer_arp(mac: [u8; 6], ip: Ipv4Addr, packet: &[u8], out: &mut [u8]) -> Option<usize> {
    let packet = packet.get(..28)?;
    if packet[..8] != [0, 1, 8, 0, 6, 4, 0, 1] || packet[24..28] != ip.octets() {
        return None;
    }
    out[..46].fill(0);
    out[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
    out[8..14].copy_from_slice(&mac);
    out[14..18].copy_from_slice(&ip.octets());
    out[18..28].copy_from_slice(&packet[8..18]);
    Some(28)
}

fn answer_ipv4(ip: Ipv4Addr, port: u16, packet: &[u8], out: &mut [u8], service: Service) -> Option<usize> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    let (head, body) = packet.get(..total)?.split_at_checked(header.max(20))?;
    let fragment = u16::from_be_bytes([head[6], head[7]]) & 0x3fff;
    if head[0] >> 4 != 4 || head[16..20] != ip.octets() || fragment != 0 || checksum(0, head) != 0 {
        return None;
    }
    let (out_head, out_body) = out.split_at_mut(20);
    out_head.fill(0);
    out_head[0] = 0x45;
    out_head[8] = 64;
    out_head[9] = head[9];
    out_head[12..16].copy_from_slice(&ip.octets());
    out_head[16..20].copy_from_slice(&head[12..16]);
    let len = match head[9] {
        1 => answer_icmp(body, out_body)?,
        17 => answer_udp(port, head, body, out_head, out_body, service)?,
        _ => return None,
    };
    out_head[2..4].copy_from_slice(&(20 + len as u16).to_be_bytes());
    let sum = checksum(0, out_head);
    out_head[10..12].copy_from_slice(&sum.to_be_bytes());
    Some(20 + len)
}

fn answer_icmp(body: &[u8], out: &mut [u8]) -> Option<usize> {
    if body.len() < 8 || body.len() > MAX_PAYLOAD || body[0] != 8 || checksum(0, body) != 0 {
        return None;
    }
    let out = &mut out[..body.len()];
    out.copy_from_slice(body);
    out[0] = 0;
    out[2..4].fill(0);
    let sum = checksum(0, out);
    out[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(body.len())
}

fn answer_udp(port: u16, head: &[u8], body: &[u8], out_head: &[u8], out: &mut [u8], service: Service) -> Option<usize> {
    let (udp, _) = body.split_at_checked(UDP)?;
    let len = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
    let datagram = body.get(..len)?;
    let checked = udp[6..8] == [0, 0] || checksum(pseudo(&head[12..20], len), datagram) == 0;
    if udp[2..4] != port.to_be_bytes() || !checked {
        return None;
    }
    let (out_udp, payload) = out.split_at_mut(UDP);
    let len = UDP + service(datagram.get(UDP..)?, &mut payload[..MAX_PAYLOAD])?;
    out_udp[..2].copy_from_slice(&udp[2..4]);
    out_udp[2..4].copy_from_slice(&udp[..2]);
    out_udp[4..6].copy_from_slice(&(len as u16).to_be_bytes());
    out_udp[6..8].fill(0);
    let sum = checksum(pseudo(&out_head[12..20], len), &out[..len]);
    // A sum of zero is sent as its other representation: zero means none.
    out[6..8].copy_from_slice(&if sum == 0 { [0xff; 2] } else { sum.to_be_bytes() });
    Some(len)
}

/// Start value of a UDP checksum: addresses, protocol and length.
fn pseudo(addresses: &[u8], len: usize) -> u32 {
    17 + len as u32 + sum(0, addresses)
}

fn sum(start: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<2>();
    let sum = words.iter().fold(start, |sum, word| sum + u32::from(u16::from_be_bytes(*word)));
    sum + rest.first().map_or(0, |byte| u32::from(*byte) << 8)
}

/// Internet checksum; 0 over data that contains a right one.
fn checksum(start: u32, bytes: &[u8]) -> u16 {
    let mut total = sum(start, bytes);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}
