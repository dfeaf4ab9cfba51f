//! A peer on the mirror stream that breaks its bounds: what waits here is bounded all the same.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::hosts::{BOUND, Host};
use common::peer::{Peer, greeting, standby_with_peer};
use common::*;
use ft_proto::VmId;
use ft_wire::device_ctl::Report;
use ft_wire::mirror::{Answer, Begin, Frame, HEADER_LEN, Kind, Name, ResyncKind, decode, encode, encode_fields};
use vhost_user_blk_repl::image::regions::Regions;

const SIZE: usize = 2 << 20;

/// The most memory that a process has had.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn small_writes_without_end_take_no_more_memory_than_the_bound() {
    let dir = tempfile::tempdir().unwrap();
    let image = make_image(dir.path(), "disk", &[0; SIZE]);
    let standby = common::program::Host::start(&image, &["--standby", "--serial", "disk-1"]);
    let (ours, theirs) = tcp_pair();
    standby.vmm.receive(BOUND, theirs);
    let mut peer = Peer::new(ours, SIZE);
    peer.begin(1);
    peer.send(Kind::SyncDone, 1, 0, 0, &[]);
    let before = peak(standby.running.0.id());
    let frames: Vec<u8> =
        (0..512).flat_map(|sector| peer.bytes(Kind::Write, 3, sector * 512, 512, &[5; 512])).collect();
    let begun = std::time::Instant::now();
    // The stream is refused in the middle of it.
    while begun.elapsed() < LIMIT && peer.stream.write_all(&frames).is_ok() {}
    assert!(standby.vmm.until_lost().contains("bytes of uncommitted writes"));
    let taken = peak(standby.running.0.id()) - before;
    assert!(taken < BOUND + BOUND / 4, "{taken} bytes were held for a bound of {BOUND}");
}

#[test]
fn epochs_without_end_are_refused() {
    let (standby, mut peer) = standby_with_peer(SIZE);
    peer.end(3);
    for epoch in 4..2000 {
        let frame = peer.bytes(Kind::Write, epoch, 0, 512, &[5; 512]);
        if peer.stream.write_all(&frame).is_err() {
            break;
        }
        peer.end_if_open(epoch);
    }
    let lost = standby.vmm.until_lost();
    assert!(lost.contains("more than 1024 epochs"), "{lost}");
}

#[test]
fn questions_are_answered_one_after_the_other() {
    let (standby, mut peer) = standby_with_peer(SIZE);
    for base in 0..10_000 {
        let frame = peer.bytes(Kind::Persist, 3, 0, 0, &encode_fields(&Name { base }));
        if peer.stream.write_all(&frame).is_err() {
            break;
        }
    }
    assert!(standby.vmm.mirror_lost().contains("before it had the last answer"));
}

#[test]
fn comparisons_that_wait_are_bounded() {
    let mut image = None;
    let standby = Host::with(&[0; SIZE], Setup::default(), |path| {
        let gated = GatedImage::open(path);
        image = Some(gated.clone());
        gated
    });
    let image = image.unwrap();
    let (ours, theirs) = tcp_pair();
    standby.vmm.receive(1, theirs);
    let mut peer = Peer::new(ours, SIZE);
    peer.begin(1);
    image.set(Gate::Reads);
    peer.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let frame = peer.bytes(Kind::Hashes, 1, 0, 1 << 18, &[0; 1024]);
    let many = frame.repeat(1000);
    let mut sent = 0;
    while peer.stream.write_all(&many).is_ok() {
        sent += many.len();
        assert!(sent < 1 << 30, "it takes them without end");
    }
    image.set(Gate::Open);
}

#[test]
fn less_hashes_than_blocks_are_refused() {
    let standby = Host::new(&[0; SIZE]);
    let (ours, theirs) = tcp_pair();
    standby.vmm.receive(BOUND, theirs);
    let mut peer = Peer::new(ours, SIZE);
    peer.begin(1);
    peer.send(Kind::Hashes, 1, 0, 8192, &[0; 16]);
    assert!(standby.vmm.mirror_lost().contains("Hashes frame with a body of 16 bytes"));
}

#[test]
fn a_name_that_the_image_does_not_have_is_refused() {
    let standby = Host::new(&[0; SIZE]);
    let (ours, theirs) = tcp_pair();
    standby.vmm.receive(BOUND, theirs);
    let mut peer = Peer::new(ours, SIZE);
    peer.send(Kind::Hello, 1, 0, SIZE as u64, &greeting("disk-1", Some(VmId(3))));
    assert_eq!(peer.hear().0, Kind::Answer);
    let marks = Regions::new(SIZE as u64).to_bytes();
    let kind = ResyncKind::Incremental;
    let begin = Begin { kind, disk: 1, common: Some(9), marks, base: 2, generation: 3 };
    peer.send(Kind::Begin, 0, 0, 0, &encode_fields(&begin));
    assert!(standby.vmm.mirror_lost().contains("a state of this image that is not on record"));
}

fn hear(stream: &mut TcpStream) -> Kind {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).unwrap();
    let pending = decode(&header).unwrap();
    let mut body = vec![0; pending.body_len()];
    stream.read_exact(&mut body).unwrap();
    pending.finish(&body).unwrap().0.kind
}

/// A standby that answers what it was not asked.
#[test]
fn answers_that_nobody_asked_for_are_refused() {
    for kind in [Kind::Differ, Kind::Durable] {
        let primary = Host::new(&[1; SIZE]);
        let (ours, theirs) = tcp_pair();
        primary.vmm.mirror(1, BOUND, ours);
        let mut stream = TcpStream::from(theirs);
        assert_eq!(hear(&mut stream), Kind::Hello);
        let marks = Regions::new(SIZE as u64).to_bytes();
        let answer = Answer { disk: 1, vm: None, base: None, former: None, generation: 1, marks, empty: true };
        let mut say = |kind, body: &[u8]| {
            let (header, _) = encode(&Frame { kind, epoch: ft_proto::Epoch(0), offset: 0, len: 0 }, body);
            stream.write_all(&[&header[..], body].concat()).is_ok()
        };
        assert!(say(Kind::Answer, &encode_fields(&answer)));
        while say(kind, &[]) {}
        let reason = primary.vmm.until_lost();
        assert!(reason.contains(&format!("unexpected {kind:?}")) || reason.contains("not asked for"), "{reason}");
    }
}

#[test]
fn what_was_reported_is_what_is_lost() {
    let (standby, peer) = standby_with_peer(SIZE);
    drop(peer);
    assert!(matches!(standby.vmm.recv(), Report::MirrorLost { .. }));
}
