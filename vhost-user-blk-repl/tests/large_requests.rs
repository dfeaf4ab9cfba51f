//! Requests beyond what the disk tells the guest to send, from drivers that have not taken notice: served in
//! pieces.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::hosts::*;
use common::*;
use ft_proto::Epoch;
use ft_wire::device_ctl::{Command, InFlight, Report};
use vhost_user_blk_repl::image::FileImage;
use vm_memory::{Bytes, GuestAddress};

const SIZE: usize = 16 << 20;
const LEN: usize = 12 << 20;
/// Where the data of the requests is in guest memory.
const DATA: u64 = 16 << 20;
const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;

/// 12 MiB in odd parts, none of which ends where a piece does.
fn spans() -> Vec<(u64, u32)> {
    let mut spans = vec![(DATA, 1_000_000), (DATA + 1_000_000, 1), (DATA + 1_000_001, 7_000_000)];
    spans.push((DATA + 8_000_001, LEN as u32 - 8_000_001));
    spans
}

fn data(guest: &Guest) -> Vec<u8> {
    let mut data = vec![0; LEN];
    guest.mem.read_slice(&mut data, GuestAddress(DATA)).unwrap();
    data
}

/// Used length and status of the one request.
fn finish(guest: &mut Guest) -> (u32, u8) {
    let (head, len) = guest.try_used(0, LIMIT).unwrap();
    assert_eq!(head, 0);
    (len, guest.status(0, 0))
}

#[test]
fn limits_bind_those_who_have_taken_notice() {
    let content = Rng(3).bytes(SIZE);
    let dir = tempfile::tempdir().unwrap();
    for (dropped, status) in [(0, 1), (F_SIZE_MAX | F_SEG_MAX, 0), (F_SIZE_MAX, 0), (F_SEG_MAX, 0)] {
        let path = make_image(dir.path(), &format!("disk-{dropped}"), &content);
        let served = Served::new(Arc::new(FileImage::open(&path, false, false).unwrap()), Setup::default(), None);
        let mut guest = Guest::connect(&served.socket, 1, dropped);
        guest.post_spans(0, T_IN, 5, &spans());
        assert_eq!(finish(&mut guest), (if status == 0 { LEN as u32 + 1 } else { 1 }, status), "{dropped:#x}");
        if status == 0 {
            assert!(data(&guest) == content[5 * 512..5 * 512 + LEN]);
            guest.post_spans(0, T_IN, (SIZE - LEN) as u64 / 512 + 1, &spans());
            assert_eq!(finish(&mut guest), (1, 1), "beyond the end");
        }
        drop(guest);
        served.join();
    }
}

#[test]
fn long_writes_land_whole_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = make_image(dir.path(), "disk", &vec![0; SIZE]);
    let image = GatedImage::open(&path);
    let served = Served::new(image.clone(), Setup::default(), None);
    let mut guest = Guest::connect(&served.socket, 1, F_SIZE_MAX | F_SEG_MAX);
    let content = Rng(4).bytes(LEN);
    guest.mem.write_slice(&content, GuestAddress(DATA)).unwrap();
    guest.take_slot(0, 0);
    image.set(Gate::All);
    guest.post_spans(0, T_OUT, 0, &spans());
    image.wait_for_waiting(1);
    // In the last piece of it, which is not under way yet.
    let later = guest.post(0, T_OUT, LEN as u64 / 512 - 1, &[7; 512], 0);
    guest.kick(0);
    image.set(Gate::Open);
    assert_eq!(guest.try_used(0, LIMIT), Some((0, 1)));
    assert_eq!(guest.try_used(0, LIMIT), Some((later * 3, 1)));
    let mut expected = content;
    expected[LEN - 512..].fill(7);
    assert!(std::fs::read(&path).unwrap()[..LEN] == expected);
    // Data that is not there is found before its piece is written, and is an error of the whole request.
    let mut bad = spans();
    bad.last_mut().unwrap().0 = MEM_SIZE;
    guest.post_spans(0, T_OUT, 0, &bad);
    assert_eq!(finish(&mut guest), (1, 1));
    assert_eq!(guest.write(0, 0, &[1; 512]), 0);
}

/// Takes reports until one of them is the answer to a seal; a wish to cut is what it may be about.
fn cut(primary: &Host, standby: &Host, epoch: u64) -> Vec<InFlight> {
    primary.vmm.send(&Command::Seal { epoch: Epoch(epoch), cpu: None });
    let in_flight = primary.vmm.until(|report| match report {
        Report::Sealed { in_flight, .. } => Some(in_flight.clone()),
        _ => None,
    });
    primary.vmm.send(&Command::Resume);
    standby.vmm.complete(epoch);
    for host in [primary, standby] {
        host.vmm.send(&release(epoch));
    }
    in_flight
}

#[test]
fn a_long_write_goes_through_the_mirror_over_several_epochs() {
    let (primary, standby) = (Host::new(&vec![1; SIZE]), Host::new(&vec![2; SIZE]));
    let mut guest = Guest::connect(&primary.served.socket, 1, F_SIZE_MAX | F_SEG_MAX);
    // Room for one piece, not for two.
    let bound = 20 << 20;
    begin_mirror(&primary, &standby, bound);
    primary.vmm.in_sync();
    let content = Rng(5).bytes(LEN);
    guest.mem.write_slice(&content, GuestAddress(DATA)).unwrap();
    guest.post_spans(0, T_OUT, 16, &spans());
    assert!(primary.vmm.until(|report| matches!(report, Report::Full { .. }).then_some(true)));
    assert_eq!(guest.used_index(0), 0);
    // Not finished: whoever takes over here does it again, from its beginning.
    assert_eq!(cut(&primary, &standby, 1), [InFlight { queue: 0, head: 0 }]);
    assert_eq!(finish(&mut guest), (1, 0));
    assert_eq!(cut(&primary, &standby, 2), []);
    standby.vmm.discard(2);
    assert!(primary.content()[8192..8192 + LEN] == content);
    assert!(standby.content() == primary.content());
}

#[test]
fn a_long_write_is_done_again_after_a_takeover() {
    let (primary, standby) = (Host::new(&vec![1; SIZE]), Host::new(&vec![2; SIZE]));
    let mut guest = Guest::connect(&primary.served.socket, 1, F_SIZE_MAX | F_SEG_MAX);
    begin_mirror(&primary, &standby, 20 << 20);
    primary.vmm.in_sync();
    let content = Rng(6).bytes(LEN);
    guest.mem.write_slice(&content, GuestAddress(DATA)).unwrap();
    guest.post_spans(0, T_OUT, 16, &spans());
    primary.vmm.until(|report| matches!(report, Report::Full { .. }).then_some(()));
    primary.vmm.send(&Command::Seal { epoch: Epoch(1), cpu: None });
    let (in_flight, queues) = primary.vmm.until(|report| match report {
        Report::Sealed { in_flight, queues, .. } => Some((in_flight.clone(), queues.clone())),
        _ => None,
    });
    let memory = copy_memory(&guest.snapshot());
    standby.vmm.complete(1);
    standby.vmm.send(&release(1));
    drop(primary);
    standby.vmm.mirror_lost();
    standby.vmm.discard(1);
    assert!(standby.content()[8192..] != content[..]);
    standby.vmm.send(&Command::Start { in_flight, macs: vec![] });
    standby.vmm.until(|report| (*report == Report::Started).then_some(()));
    let mut guest = Guest::with_memory(&standby.served.socket, 1, F_SIZE_MAX | F_SEG_MAX, memory, &queues);
    guest.kick(0);
    assert_eq!(finish(&mut guest), (1, 0));
    assert!(standby.content()[8192..8192 + LEN] == content);
}

#[test]
fn a_ring_is_taken_away_in_the_middle_of_a_long_write() {
    let (primary, standby) = (Host::new(&vec![1; SIZE]), Host::new(&vec![2; SIZE]));
    let mut guest = Guest::connect(&primary.served.socket, 1, F_SIZE_MAX | F_SEG_MAX);
    begin_mirror(&primary, &standby, 20 << 20);
    primary.vmm.in_sync();
    guest.post_spans(0, T_OUT, 16, &spans());
    primary.vmm.until(|report| matches!(report, Report::Full { .. }).then_some(()));
    // Only the VMM could make room, and it is the one who asks.
    guest.restart(0);
    cut(&primary, &standby, 1);
    assert_eq!(guest.write(0, 16, &[7; 512]), 0);
    cut(&primary, &standby, 2);
    standby.vmm.discard(2);
    assert!(standby.content() == primary.content());
}
