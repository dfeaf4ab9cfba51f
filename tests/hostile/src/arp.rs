//! ARP: something that a network card can send, and that is answered.

use crate::device::Device;
use crate::machine::{Machine, Width};
use crate::ring::Ring;

/// Bytes of the virtio-net header, and of an ARP frame behind it.
pub(crate) const HEADER: u64 = 12;
pub(crate) const ARP: u32 = 60;

/// Puts an ARP request, with its virtio-net header, to `at`: who on the network has the other address?
pub(crate) fn put_request(machine: &mut dyn Machine, card: &Device, at: u64) {
    let [own, other] = machine.addresses();
    let mac: [u8; 6] = core::array::from_fn(|i| machine.read(card.config + i as u64, Width::Byte) as u8);
    let mut frame = [0; (HEADER + ARP as u64) as usize];
    let mut rest = &mut frame[HEADER as usize..];
    let parts: [&[u8]; 8] = [&[0xff; 6], &mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &mac, &own, &[0; 6], &other, &[0; 18]];
    for part in parts {
        let (to, behind) = rest.split_at_mut(part.len());
        to.copy_from_slice(part);
        rest = behind;
    }
    for (offset, byte) in (0..).zip(frame) {
        machine.write(at + offset, Width::Byte, byte.into());
    }
}

/// Sends an ARP request from an empty transmit queue, so that something comes in.
pub(crate) fn provoke(machine: &mut dyn Machine, card: &Device, mut transmit: Ring) {
    put_request(machine, card, transmit.page);
    transmit.offer_one(machine, 0, (transmit.page, HEADER as u32 + ARP, 0));
    card.kick(machine, transmit.queue);
}

/// Whether the frame with its header at `at` is an answer to an ARP request.
pub(crate) fn is_answer(machine: &mut dyn Machine, at: u64, len: u32) -> bool {
    let frame = at + HEADER;
    // EtherType and operation.
    u64::from(len) >= HEADER + 42
        && machine.read(frame + 12, Width::Word) == 0x0608
        && machine.read(frame + 20, Width::Word) == 0x0200
}
