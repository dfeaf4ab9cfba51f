//! Headers of frames that no driver writes: they cost their frame, and nothing else.

#![allow(clippy::unwrap_used)] // Helpers of tests panic as tests do.

mod rig;

use std::io::Read;

use device_api::counters::{NetCounters, Page};
use rig::*;

/// What the card has counted under this name.
fn counted(page: &Page, name: &str) -> u64 {
    NetCounters::list(page).into_iter().find(|(counter, _)| *counter == name).unwrap().1
}

/// Flags, type, header length, segment size, start and offset of the checksum.
fn header(flags: u8, kind: u8, len: u16, segment: u16, start: u16, offset: u16) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    (header[0], header[1]) = (flags, kind);
    for (at, word) in (2..).step_by(2).zip([len, segment, start, offset]) {
        header[at..at + 2].copy_from_slice(&word.to_le_bytes());
    }
    // The number of buffers, which a driver has no business with.
    header[10..].fill(0xff);
    header
}

fn queue(rig: &mut Rig, header: &[u8; HEADER], frame: &[u8]) {
    let at = rig.room(HEADER + frame.len());
    rig.guest.write(at, header);
    rig.guest.write(at + HEADER as u64, frame);
    rig.guest.add(&mut rig.queues[1], &[(at, (HEADER + frame.len()) as u32, 0)]);
}

/// Headers that are wrong with a driver that has taken checksums and TCP over IPv4, before a frame of 100
/// bytes that is neither.
const WRONG: [(u8, u8, u16, u16, u16, u16); 12] = [
    (1, 0, 0, 0, 99, 0),
    (1, 0, 0, 0, 0xffff, 0xffff),
    (1, 0, 0, 0, 0, 2),
    (1, 1, 54, 1448, 34, 16),
    (0, 1, 54, 1448, 34, 16),
    (1, 1, 54, 0, 34, 16),
    (1, 1, 54, 0xffff, 34, 16),
    (1, 1, 0xffff, 1, 34, 16),
    (1, 4, 74, 1440, 54, 16),
    (1, 3, 42, 1480, 34, 6),
    (1, 5, 42, 1480, 34, 6),
    (1, 0x81, 54, 1448, 34, 16),
];

#[test]
fn a_header_that_asks_for_what_cannot_be_costs_its_frame_only() {
    for held in [false, true] {
        if !ready() {
            return;
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let page = Page::open(file.path()).unwrap();
        let mut rig = Rig::new(MRG_RXBUF | CSUM_TSO, held, &["--counters", file.path().to_str().unwrap()]);
        if held {
            rig.link().protect(1, true);
        }
        let mut sent = 0;
        for (flags, kind, len, segment, start, offset) in WRONG {
            queue(&mut rig, &header(flags, kind, len, segment, start, offset), &frame(99, 100));
            rig.queue_output(0, &frame(sent, 100));
            sent += 1;
        }
        // Whatever means nothing does no harm.
        for (flags, len, segment, start, offset) in [(0xfe, 0xffff, 9, 0xffff, 0xffff), (0xff, 0xffff, 0, 20, 60)] {
            queue(&mut rig, &header(flags, 0, len, segment, start, offset), &frame(sent, 100));
            sent += 1;
        }
        rig.queues[1].kick();
        rig.guest.used(&mut rig.queues[1], WRONG.len() as u16 + sent as u16);
        if held {
            let (_, frames, _) = rig.link().seal(1);
            assert_eq!(frames, u64::from(sent));
            rig.link().resume();
            rig.link().release(1);
        }
        for id in 0..sent {
            assert_eq!(rig.wire.next(), frame(id, 100), "frame {id}");
        }
        assert!(rig.wire.is_silent() && !rig.queues[1].is_broken(0));
        let wrong = WRONG.len() as u64;
        // A frame that has left is counted after it was sent.
        while counted(&page, "tx_frames") < u64::from(sent) {}
        assert_eq!((counted(&page, "malformed"), counted(&page, "tx_dropped")), (wrong, wrong));
    }
}

#[test]
fn a_driver_that_has_taken_no_offload_is_given_none() {
    if !ready() {
        return;
    }
    for features in [MRG_RXBUF, NO_VERSION_1] {
        let mut rig = Rig::new(features, false, &[]);
        let length = if features == NO_VERSION_1 { 10 } else { HEADER };
        for bytes in [header(1, 0, 0, 0, 20, 10), header(1, 1, 54, 1448, 34, 16), [0; HEADER]] {
            let at = rig.room(4096);
            rig.guest.write(at, &bytes[..length]);
            rig.guest.write(at + length as u64, &frame(5, 100));
            rig.guest.add(&mut rig.queues[1], &[(at, (length + 100) as u32, 0)]);
        }
        rig.queues[1].kick();
        rig.guest.used(&mut rig.queues[1], 3);
        assert_eq!(rig.wire.next(), frame(5, 100));
        assert!(rig.wire.is_silent());
    }
}

#[test]
fn a_guest_cannot_fill_the_log_with_wrong_headers() {
    if !ready() {
        return;
    }
    let mut rig = Rig::logged(MRG_RXBUF);
    for _ in 0..200 {
        for _ in 0..32 {
            queue(&mut rig, &header(1, 0, 0, 0, 0, 0), &frame(0, 100));
        }
        rig.queues[1].kick();
        rig.guest.used(&mut rig.queues[1], 32);
    }
    let mut stderr = rig.device.stderr();
    drop(rig);
    let mut log = String::new();
    stderr.read_to_string(&mut log).unwrap();
    assert!(log.contains("which the driver has not negotiated"), "{log}");
    assert!(log.lines().count() < 100, "{} lines", log.lines().count());
}
