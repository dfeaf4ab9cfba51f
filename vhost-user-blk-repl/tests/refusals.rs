//! Streams that a standby refuses, and what becomes of them on both sides.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::net::Shutdown;
use std::sync::Arc;

use common::hosts::*;
use common::peer::{Peer, standby_with_peer};
use common::*;
use ft_proto::Epoch;
use ft_wire::device_ctl::{Command, Report};
use ft_wire::mirror::{HEADER_LEN, Kind};
use vhost_user_blk_repl::image::FileImage;

const SIZE: usize = 2 << 20;

#[test]
fn the_standby_can_refuse_and_the_primary_says_why() {
    let primary = Host::new(&[0; SIZE]);
    for (standby, reason) in [
        (Host::new(&[0; SIZE / 2]), "make both images the same size"),
        (
            Host::with(&[0; SIZE], Setup { serial: "other", ..Setup::default() }, |path| {
                Arc::new(FileImage::open(path, false, false).unwrap())
            }),
            "give both the same --serial",
        ),
    ] {
        let before = standby.content();
        begin_mirror(&primary, &standby, BOUND);
        let here = standby.vmm.mirror_lost();
        assert!(here.contains(reason), "{here}");
        let there = loop {
            match primary.vmm.recv() {
                Report::MirrorLost { reason } => break reason,
                report => assert_eq!(report, Report::InSync),
            }
        };
        assert!(there.contains(reason), "{there}");
        assert!(standby.content() == before);
    }
    // A disk that serves its guest is no standby.
    primary.vmm.send_with(&Command::Receive { max_uncommitted: BOUND }, Some(tcp_pair().0));
    assert!(primary.vmm.mirror_lost().contains("not a standby"));
    primary.vmm.send(&Command::Mirror { epoch: Epoch(1), max_uncommitted: BOUND, rate: 0 });
    assert!(primary.vmm.mirror_lost().contains("without a stream"));
}

#[test]
fn bad_streams_are_refused_and_nothing_open_is_applied() {
    type Spoil = fn(&mut Peer);
    let cases: [(&str, Spoil); 10] = [
        ("checksum", |peer| {
            let mut bytes = peer.bytes(Kind::Write, 3, 0, 512, &[9; 512]);
            bytes[100] ^= 1;
            peer.stream.write_all(&bytes).unwrap();
        }),
        ("bad magic", |peer| peer.stream.write_all(&[0; 64]).unwrap()),
        ("version 2", |peer| {
            let mut bytes = peer.bytes(Kind::Write, 3, 0, 512, &[9; 512]);
            bytes[4] = 2;
            peer.stream.write_all(&bytes).unwrap();
        }),
        ("does not fit the disk", |peer| peer.send(Kind::Write, 3, SIZE as u64, 512, &[9; 512])),
        ("does not fit the disk", |peer| peer.send(Kind::Zeroes, 3, 0, u64::MAX, &[])),
        ("frame of epoch 2 in epoch 3", |peer| peer.write(2, 0, 9)),
        ("should have", |peer| peer.send(Kind::End, 3, 2, 0, &[])),
        ("the copy is done", |peer| peer.send(Kind::Copy, 3, 0, 512, &[9; 512])),
        ("second greeting", |peer| peer.greet(3)),
        ("frame of a primary", |peer| peer.send(Kind::Refused, 3, 0, 0, b"no")),
    ];
    for (reason, spoil) in cases {
        let (standby, mut peer) = standby_with_peer(SIZE);
        spoil(&mut peer);
        let told = standby.vmm.mirror_lost();
        assert!(told.contains(reason), "{reason}: {told}");
        assert_eq!(peer.refusal(), told);
        // Epoch 2 was complete: it may still be released. Of epoch 3 nothing is left.
        standby.vmm.send(&release(2));
        standby.vmm.discard(2);
        let content = standby.content();
        assert_eq!((content[0], content[512], content[1024]), (1, 2, 0), "{reason}");
        standby.vmm.send(&Command::Discard { after: Epoch(3) });
        assert!(standby.vmm.failed().contains("epoch 3 has not completely arrived"));
    }
}

#[test]
fn truncated_streams_are_refused() {
    for cut in [1, HEADER_LEN, HEADER_LEN + 511] {
        let (standby, mut peer) = standby_with_peer(SIZE);
        let bytes = peer.bytes(Kind::Write, 3, 0, 512, &[9; 512]);
        peer.stream.write_all(&bytes[..cut]).unwrap();
        peer.stream.shutdown(Shutdown::Write).unwrap();
        assert!(standby.vmm.mirror_lost().contains("middle of a frame"));
        standby.vmm.send(&release(2));
        standby.vmm.discard(2);
        assert_eq!(standby.content()[..512], [1; 512]);
    }
}

#[test]
fn more_than_the_bound_is_a_violation() {
    let (standby, mut peer) = standby_with_peer(SIZE);
    // The bound of this standby is 64 MiB; nothing is released after epoch 1.
    let body = vec![5; SIZE];
    for _ in 0..(BOUND as usize / SIZE) {
        let bytes = peer.bytes(Kind::Write, 3, 0, SIZE as u64, &body);
        if peer.stream.write_all(&bytes).is_err() {
            break;
        }
    }
    assert!(standby.vmm.mirror_lost().contains("uncommitted writes"));
    standby.vmm.send(&release(2));
    standby.vmm.discard(2);
    assert_eq!(standby.content()[..512], [1; 512]);
}
