//! What is taken from a queue in one turn, without a frontend.

#![allow(clippy::unwrap_used, reason = "a panic is how tests fail")]

use std::os::fd::BorrowedFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vm_memory::{Bytes, GuestMemoryAtomic, GuestMemoryMmap};

use super::*;
use crate::image::FileImage;

/// The largest queue that there is, all of it requests for the serial number, which are answered at once.
const ENTRIES: u16 = 32768;
const AVAIL: u64 = 0x8_0000;
const USED: u64 = 0xa_0000;
const REQUEST: u64 = 0x10_0000;
const MEMORY: usize = 2 << 20;
const GET_ID: u32 = 8;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

fn full_queue() -> (Memory, Vring) {
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap());
    let ram = memory.memory();
    let put = |at: u64, bytes: &[u8]| ram.write_slice(bytes, GuestAddress(at)).unwrap();
    put(REQUEST, &GET_ID.to_le_bytes());
    for (table, (address, len, flags, next)) in
        [(0, (REQUEST, 16_u32, NEXT, 1_u16)), (16, (REQUEST + 64, 21, WRITE, 0))]
    {
        put(table, &address.to_le_bytes());
        put(table + 8, &len.to_le_bytes());
        put(table + 12, &[flags.to_le_bytes(), next.to_le_bytes()].concat());
    }
    put(AVAIL + 2, &ENTRIES.to_le_bytes());
    let vring = Vring::new(memory.clone(), ENTRIES).unwrap();
    vring.set_queue_size(ENTRIES);
    vring.set_queue_info(0, AVAIL, USED).unwrap();
    vring.set_queue_ready(true);
    vring.set_enabled(true);
    (memory, vring)
}

fn is_readable(fd: RawFd) -> bool {
    // SAFETY: the descriptor is open while the server is.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() == 1
}

#[test]
fn others_have_their_turn_before_a_long_queue_is_served_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, [0; 4096]).unwrap();
    let image: Arc<dyn Image> = Arc::new(FileImage::open(&path, false, false).unwrap());
    let options = Options {
        block_size: 512,
        read_only: false,
        serial: "serial".to_owned(),
        queues: 1,
        queue_size: ENTRIES,
        threads: 1,
        record: None,
        counters: None,
    };
    let mut replication = Replication::new(image.clone(), None).unwrap();
    let mut server = Server::new(image, options, false).unwrap();
    let (memory, vring) = full_queue();
    server.set_memory(memory);
    server.set_vrings(std::slice::from_ref(&vring));
    server.serve(0, &replication);
    for turn in 1..=usize::from(ENTRIES) / TURN {
        assert_eq!(usize::from(vring.get_ref().get_queue().next_used()), turn * TURN);
        let more = turn * TURN < usize::from(ENTRIES);
        assert!(is_readable(server.event()) || !more, "nothing brings the server back to the queue");
        server.collect(&mut replication);
    }
    assert_eq!(vring.get_ref().get_queue().next_used(), ENTRIES);
}
