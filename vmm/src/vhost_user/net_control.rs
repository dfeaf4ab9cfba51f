//! The control queue of a network card, which stays in the VMM: number of queue pairs, and the announcement
//! after a move.

use std::io::{Read, Write};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
    VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

use crate::machine::memory::guest::GuestRam;
use crate::virtio::local_queue::Chain;

/// What the driver asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Command {
    /// It has announced the card's address, as the status asked it to.
    AnnounceAck,
    /// It wants to use this many queue pairs.
    SetPairs(u16),
}

/// Reads the command in `chain`, lets `handle` carry it out, and writes whether that went well. The bytes
/// written are returned; a chain that is not a command gets an error if it has room for one.
pub fn serve(chain: Chain<'_>, ram: &GuestRam, handle: impl FnOnce(Command) -> bool) -> u32 {
    let done = read(chain.clone(), ram).is_some_and(handle);
    let status = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR } as u8;
    let Ok(mut writer) = chain.writer(ram) else { return 0 };
    writer.write_all(&[status]).map_or(0, |()| 1)
}

fn read(chain: Chain<'_>, ram: &GuestRam) -> Option<Command> {
    let mut reader = chain.reader(ram).ok()?;
    let mut header = [0; 2];
    reader.read_exact(&mut header).ok()?;
    let [class, command] = header.map(u32::from);
    match (class, command) {
        (VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK) => Some(Command::AnnounceAck),
        (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
            let mut pairs = [0; 2];
            reader.read_exact(&mut pairs).ok()?;
            Some(Command::SetPairs(u16::from_le_bytes(pairs)))
        }
        _ => None,
    }
}
