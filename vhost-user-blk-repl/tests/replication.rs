//! Primary and standby disk over a TCP stream, each with its toy VMM, and the primary with a toy guest.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::hosts::*;
use common::peer::Peer;
use common::*;
use ft_proto::Epoch;
use ft_wire::device_ctl::{CTL_VERSION, Command, DeviceInfo, Hold, InFlight, Report};
use ft_wire::mirror::Kind;
use vhost_user_blk_repl::image::{FileImage, Image};

const SIZE: usize = 2 << 20;

#[test]
fn says_what_it_is() {
    let host = Host::new(&[0; SIZE]);
    host.vmm.send(&Command::Hello { version: CTL_VERSION });
    let serial = "disk-1".to_owned();
    let info = DeviceInfo::Disk { size: SIZE as u64, read_only: false, serial, block_size: 512 };
    assert_eq!(host.vmm.recv(), Report::Ready { version: CTL_VERSION, info });
}

#[test]
fn sealed_disks_do_not_touch_guest_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = make_image(dir.path(), "disk", &Rng(1).bytes(SIZE));
    let image = GatedImage::open(&path);
    let (vmm, fd) = Vmm::pair();
    let served = Served::new(image.clone(), Setup::default(), Some(fd));
    let mut guest = Guest::connect(&served.socket, 1, 0);
    guest.start_log();

    assert_eq!(guest.read(0, 0, 512).0, 0);
    image.set(Gate::All);
    let mut posted: Vec<u16> = (0..3).map(|i| guest.post(0, T_IN, i * 8, &[], 4096)).collect();
    posted.push(guest.post(0, T_OUT, 100, &[7; 512], 0));
    guest.kick(0);
    image.wait_for_waiting(4);

    let sealed = vmm.seal(1);
    let before = guest.snapshot();
    let dirty = guest.dirty_pages();
    let heads: Vec<u16> = sealed.in_flight.iter().map(|request| request.head).collect();
    assert_eq!(heads, posted.iter().map(|slot| slot * 3).collect::<Vec<_>>());
    assert_eq!((sealed.queues.len(), sealed.queues[0].next_avail, sealed.queues[0].next_used), (1, 5, 1));

    // The disk finishes, and a request is posted and kicked: the guest must see nothing of either.
    image.set(Gate::Open);
    let late = guest.post(0, T_IN, 0, &[], 512);
    let mut posted_memory = guest.snapshot();
    guest.kick(0);
    // Another seal is answered after everything that had come before it was looked at.
    assert_eq!(vmm.seal(2).in_flight, sealed.in_flight);
    while std::fs::read(&path).unwrap()[51200] != 7 {
        std::thread::yield_now();
    }
    assert_eq!(vmm.seal(3).in_flight, sealed.in_flight);
    assert!(guest.snapshot() == posted_memory, "guest memory changed while sealed");
    assert_eq!(guest.dirty_pages(), dirty);
    // Only what the guest itself posted.
    posted_memory[0x1_0000..0x2_0000].copy_from_slice(&before[0x1_0000..0x2_0000]);
    let at = slot_at(0, late) as usize;
    posted_memory[at..at + 8192].copy_from_slice(&before[at..at + 8192]);
    assert!(posted_memory == before);

    vmm.send(&Command::Resume);
    let mut finished: Vec<u16> = (0..5)
        .map(|_| guest.finish(0))
        .map(|(slot, status, _)| {
            assert_eq!(status, 0);
            slot
        })
        .collect();
    finished.sort_unstable();
    posted.push(late);
    posted.sort_unstable();
    assert_eq!(finished, posted);
}

#[test]
fn a_ring_stopped_while_sealed_stays_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let path = make_image(dir.path(), "disk", &Rng(1).bytes(SIZE));
    let image = GatedImage::open(&path);
    let (vmm, fd) = Vmm::pair();
    let served = Served::new(image.clone(), Setup::default(), Some(fd));
    let mut guest = Guest::connect(&served.socket, 1, 0);
    image.set(Gate::All);
    guest.post(0, T_IN, 0, &[], 4096);
    guest.kick(0);
    image.wait_for_waiting(1);
    assert_eq!(vmm.seal(1).in_flight.len(), 1);
    let before = guest.snapshot();
    assert_eq!(vhost::VhostBackend::get_vring_base(&guest.frontend, 0).unwrap(), 1);
    image.set(Gate::Open);
    vmm.send(&Command::Resume);
    assert_eq!(vmm.seal(2).in_flight, []);
    assert!(guest.snapshot() == before);
}

#[test]
fn the_initial_copy_runs_beside_the_guests_writes() {
    let mut rng = Rng::from_env("the_initial_copy_runs_beside_the_guests_writes");
    // Data, holes and zeroes.
    let mut content = rng.bytes(SIZE);
    content[SIZE / 4..SIZE / 2].fill(0);
    content[SIZE / 2..SIZE / 2 + 100_000].fill(0);
    let primary = Host::with(&content, Setup::default(), |path| {
        let image = FileImage::open(path, false, false).unwrap();
        image.zero(SIZE as u64 / 4, SIZE as u64 / 4, true).unwrap();
        Arc::new(image)
    });
    let standby = Host::new(&rng.bytes(SIZE));
    let mut guest = Guest::connect(&primary.served.socket, 1, 0);
    let (ours, theirs) = tcp_pair();
    standby.vmm.receive(BOUND, theirs);
    primary.vmm.mirror(1, BOUND, ours);
    let mut epoch = 0;
    let mut synced = false;
    while !synced || epoch < 20 {
        random_writes(&mut rng, &mut guest, &mut content);
        epoch += 1;
        primary.vmm.send(&Command::Seal { epoch: Epoch(epoch), cpu: None });
        primary.vmm.until(|report| {
            synced |= *report == Report::InSync;
            matches!(report, Report::Sealed { .. }).then_some(())
        });
        primary.vmm.send(&Command::Resume);
        standby.vmm.complete(epoch);
        standby.vmm.send(&release(epoch));
        primary.vmm.send(&release(epoch));
    }
    standby.vmm.discard(epoch);
    assert!(standby.content() == content, "standby differs");
    assert!(primary.content() == content, "primary differs");
}

/// Primary on a gated image, standby, both before the mirror begins.
fn gated_pair() -> (Host, Arc<GatedImage>, Guest, Host) {
    let mut image = None;
    let primary = Host::with(&Rng(7).bytes(SIZE), Setup::default(), |path| {
        let gated = GatedImage::open(path);
        image = Some(gated.clone());
        gated
    });
    let guest = Guest::connect(&primary.served.socket, 1, 0);
    (primary, image.unwrap(), guest, Host::new(&[0; SIZE]))
}

fn equal_after_commit(primary: &Host, standby: &Host) {
    commit(primary, standby, 1);
    standby.vmm.discard(1);
    assert!(standby.content() == primary.content());
}

#[test]
fn the_copy_waits_for_writes_from_before_the_mirror() {
    let (primary, image, mut guest, standby) = gated_pair();
    image.set(Gate::Writes);
    guest.post(0, T_OUT, 0, &[1; 512], 0);
    guest.kick(0);
    image.wait_for_waiting(1);
    begin_mirror(&primary, &standby, BOUND);
    // This write is not in the stream, so the copy must not go past it.
    assert!(matches!(primary.vmm.try_recv(LIMIT), Some(Report::Resync { done: 0, .. })));
    assert_eq!(primary.vmm.try_recv(Duration::from_millis(100)), None);
    image.set(Gate::Open);
    assert_eq!(guest.finish(0).1, 0);
    primary.vmm.in_sync();
    equal_after_commit(&primary, &standby);
}

#[test]
fn the_copy_never_overwrites_a_newer_write() {
    let (primary, image, mut guest, standby) = gated_pair();
    image.set(Gate::Reads);
    begin_mirror(&primary, &standby, BOUND);
    // The copy has read the first chunk, and not sent it.
    image.wait_for_waiting(1);
    assert_eq!(guest.write(0, 0, &[1; 512]), 0);
    assert_eq!(guest.zero(0, T_ZEROES, &[(8, 8, 0)]), 0);
    image.set(Gate::Open);
    primary.vmm.in_sync();
    equal_after_commit(&primary, &standby);
    assert_eq!(primary.content()[..512], [1; 512]);
}

#[test]
fn before_the_copy_is_complete_nothing_counts_as_uncommitted() {
    let (primary, image, mut guest, standby) = gated_pair();
    image.set(Gate::Reads);
    begin_mirror(&primary, &standby, 64 * 1024);
    image.wait_for_waiting(1);
    for i in 0..40 {
        assert_eq!(guest.write(0, i * 8, &[i as u8; 4096]), 0);
    }
    image.set(Gate::Open);
    primary.vmm.in_sync();
    equal_after_commit(&primary, &standby);
}

#[test]
fn a_stopped_ring_has_nothing_to_submit_again() {
    let host = Host::new(&[0; SIZE]);
    host.vmm.send(&Command::Start { in_flight: vec![InFlight { queue: 0, head: 3 }], macs: vec![] });
    assert_eq!(host.vmm.recv(), Report::Started);
    assert_eq!(host.vmm.seal(1).in_flight.len(), 1);
    let guest = Guest::connect(&host.served.socket, 1, 0);
    vhost::VhostBackend::get_vring_base(&guest.frontend, 0).unwrap();
    assert_eq!(host.vmm.seal(2).in_flight, []);
}

/// A burst of writes, discards and zeroings; waits until all are done, and does them to `model` too.
fn random_writes(rng: &mut Rng, guest: &mut Guest, model: &mut [u8]) {
    for _ in 0..rng.below(u64::from(SLOTS)) + 1 {
        post_random_write(rng, guest, model);
    }
    guest.kick(0);
    while guest.free_slots(0) < usize::from(SLOTS) {
        assert_eq!(guest.finish(0).1, 0);
    }
}

/// Offset and bytes of what was posted.
fn post_random_write(rng: &mut Rng, guest: &mut Guest, model: &mut [u8]) -> (usize, Vec<u8>) {
    let sectors = SIZE as u64 / 512;
    let count = rng.below(24) + 1;
    // Half of them in a hot corner, so that writes overlap.
    let area = if rng.below(2) == 0 { 32 } else { sectors - count };
    let sector = rng.below(area);
    let offset = (sector * 512) as usize;
    let len = (count * 512) as usize;
    let data = if rng.below(4) > 0 { rng.bytes(len) } else { vec![0; len] };
    model[offset..offset + len].copy_from_slice(&data);
    match rng.below(4) {
        0 if data.iter().all(|byte| *byte == 0) => {
            let kind = if rng.below(2) == 0 { T_DISCARD } else { T_ZEROES };
            guest.post(0, kind, 0, &zero_list(&[(sector, count as u32, 0)]), 0);
        }
        _ => drop(guest.post(0, T_OUT, sector, &data, 0)),
    }
    (offset, data)
}

#[test]
fn progress_is_told_and_the_rate_is_kept() {
    let primary = Host::new(&Rng(5).bytes(SIZE));
    let standby = Host::new(&[0; SIZE]);
    let (ours, theirs) = tcp_pair();
    standby.vmm.receive(BOUND, theirs);
    // Two megabytes at eight per second.
    let rate = 4 * SIZE as u64;
    let start = std::time::Instant::now();
    primary.vmm.send_with(&Command::Mirror { epoch: Epoch(1), max_uncommitted: BOUND, rate }, Some(ours));
    let mut progress = Vec::new();
    loop {
        match primary.vmm.try_recv(LIMIT).unwrap() {
            Report::Resync { done, total, .. } => {
                assert_eq!(total, SIZE as u64);
                progress.push(done);
            }
            report => {
                assert_eq!(report, Report::InSync);
                break;
            }
        }
    }
    // The last chunk is not waited for.
    assert!(start.elapsed() > Duration::from_millis(200), "{:?}", start.elapsed());
    assert!(progress.len() > 1 && progress.len() < 30 && progress.is_sorted(), "{progress:?}");
    assert_eq!(progress.last(), Some(&(SIZE as u64)));
}

#[test]
fn writes_are_applied_only_when_released_and_dropped_when_not() {
    let content = Rng(2).bytes(SIZE);
    let (primary, mut guest, standby) = pair(&content, BOUND);
    commit(&primary, &standby, 1);
    assert_eq!(guest.write(0, 0, &[2; 512]), 0);
    commit(&primary, &standby, 2);

    // Epoch 3 is complete on the standby, but not released; epoch 4 is open.
    assert_eq!(guest.write(0, 1, &[3; 512]), 0);
    assert_eq!(guest.write(0, 0, &[3; 512]), 0);
    primary.vmm.seal(3);
    primary.vmm.send(&Command::Resume);
    standby.vmm.complete(3);
    assert_eq!(guest.write(0, 2, &[4; 512]), 0);

    standby.vmm.discard(2);
    let mut expected = content;
    expected[..512].fill(2);
    assert!(standby.content() == expected);
    assert!(primary.vmm.mirror_lost().contains("closed"));
}

#[test]
fn takeover_submits_what_was_in_flight() {
    let dir = tempfile::tempdir().unwrap();
    let content = Rng(3).bytes(SIZE);
    let path = make_image(dir.path(), "disk", &content);
    let image = GatedImage::open(&path);
    let (vmm, fd) = Vmm::pair();
    let served = Served::new(image.clone(), Setup::default(), Some(fd));
    let mut guest = Guest::connect(&served.socket, 1, 0);
    let standby = Host::new(&vec![0; SIZE]);
    let (ours, theirs) = tcp_pair();
    standby.vmm.receive(BOUND, theirs);
    vmm.mirror(1, BOUND, ours);
    vmm.in_sync();

    assert_eq!(guest.read(0, 0, 512).0, 0);
    image.set(Gate::All);
    let read = guest.post(0, T_IN, 4, &[], 4096);
    let writes = [guest.post(0, T_OUT, 50, &[1; 1024], 0), guest.post(0, T_OUT, 51, &[2; 1024], 0)];
    guest.kick(0);
    image.wait_for_waiting(2);
    let sealed = vmm.seal(1);
    assert_eq!(sealed.in_flight.len(), 3);
    let memory = guest.snapshot();
    standby.vmm.complete(1);
    standby.vmm.send(&release(1));
    standby.vmm.discard(1);

    // Queues are set up before or after the start: here one seal comes in between, and nothing may be lost by
    // it.
    standby.vmm.send(&Command::Start { in_flight: sealed.in_flight.clone(), macs: vec![] });
    assert_eq!(standby.vmm.recv(), Report::Started);
    assert_eq!(standby.vmm.seal(2).in_flight, sealed.in_flight);
    standby.vmm.send(&Command::Resume);
    let mem = copy_memory(&memory);
    let mut heir = Guest::with_memory(&standby.served.socket, 1, 0, mem, &sealed.queues);
    for slot in [read, writes[0], writes[1]] {
        heir.take_slot(0, slot);
    }
    let mut done: Vec<u16> =
        (0..3).map(|_| heir.finish(0)).inspect(|done| assert_eq!(done.1, 0)).map(|d| d.0).collect();
    done.sort_unstable();
    let mut expected = vec![read, writes[0], writes[1]];
    expected.sort_unstable();
    assert_eq!(done, expected);
    assert_eq!(heir.data(0, read, 4096), content[2048..2048 + 4096]);
    assert_eq!(heir.read(0, 50, 1536).1, [vec![1; 512], vec![2; 1024]].concat());
    image.set(Gate::Open);
}

#[test]
fn a_standby_serves_no_guest_before_it_starts() {
    let host = Host::new(&Rng(1).bytes(SIZE));
    host.vmm.send(&Command::Standby(true));
    host.vmm.send(&Command::Hello { version: CTL_VERSION });
    assert!(matches!(host.vmm.recv(), Report::Ready { .. }));
    let mut guest = Guest::connect(&host.served.socket, 1, 0);
    let slot = guest.post(0, T_IN, 0, &[], 512);
    let before = guest.snapshot();
    guest.kick(0);
    assert_eq!(host.vmm.seal(1).queues[0].next_avail, 0);
    assert!(guest.snapshot() == before);
    host.vmm.send(&Command::Start { in_flight: vec![], macs: vec![] });
    assert_eq!(host.vmm.recv(), Report::Started);
    assert_eq!(guest.finish(0), (slot, 0, 513));
}

#[test]
fn garbage_in_flight_does_not_hurt() {
    let host = Host::new(&Rng(1).bytes(SIZE));
    let mut guest = Guest::connect(&host.served.socket, 1, 0);
    let in_flight =
        vec![InFlight { queue: 9, head: 1 }, InFlight { queue: 0, head: 60_000 }, InFlight { queue: 0, head: 96 }];
    host.vmm.send(&Command::Start { in_flight, macs: vec![] });
    assert_eq!(host.vmm.recv(), Report::Started);
    assert_eq!(guest.try_used(0, LIMIT), Some((96, 0)));
    assert_eq!(guest.read(0, 0, 512).0, 0);
}

#[test]
fn back_pressure_asks_once_and_loses_nothing() {
    let bound = 64 * 1024;
    let (primary, mut guest, standby) = pair(&vec![0; SIZE], bound);
    commit(&primary, &standby, 1);
    // 32 KiB may be uncommitted: 16 writes of 4 KiB do not fit.
    for i in 0..16 {
        guest.post(0, T_OUT, i * 8, &[i as u8 + 1; 4096], 0);
    }
    guest.kick(0);
    assert_eq!(primary.vmm.recv(), Report::Full { epoch: Epoch(2) });
    // Only once an epoch, however often the guest kicks and however many reads get through.
    guest.kick(0);
    primary.vmm.send(&Command::Protect { epoch: Epoch(2), hold: Hold::on() });
    primary.vmm.send(&Command::Seal { epoch: Epoch(2), cpu: None });
    assert!(matches!(primary.vmm.recv(), Report::Sealed { .. }));
    primary.vmm.send(&Command::Resume);
    assert_eq!(primary.vmm.recv(), Report::Full { epoch: Epoch(3) });
    let mut done = 0;
    for epoch in 3.. {
        let sealed = commit(&primary, &standby, epoch);
        assert!(sealed.held_bytes <= bound / 2, "{}", sealed.held_bytes);
        while guest.try_used(0, Duration::from_millis(100)).is_some() {
            done += 1;
        }
        if done == 16 {
            commit(&primary, &standby, epoch + 1);
            // The last one that it has something of.
            standby.vmm.discard(standby.vmm.told.get());
            break;
        }
    }
    assert!(standby.content() == primary.content());
    assert_eq!(standby.content()[15 * 4096], 16);
}

#[test]
fn a_lost_stream_does_not_stop_the_disk_and_protection_can_begin_again() {
    let content = Rng(6).bytes(SIZE);
    let (primary, mut guest, standby) = pair(&content, 64 * 1024);
    commit(&primary, &standby, 1);
    for round in 0..3_u64 {
        // The old standby goes away.
        let (ours, theirs) = tcp_pair();
        drop((ours, theirs));
        standby.vmm.receive(64 * 1024, tcp_pair().0);
        assert!(standby.vmm.mirror_lost().contains("closed"));
        assert!(primary.vmm.mirror_lost().contains("closed"));
        // Far more than the bound: nobody counts now.
        for i in 0..20 {
            assert_eq!(guest.write(0, i * 8 + round, &[round as u8; 8192]), 0);
        }
        let (ours, theirs) = tcp_pair();
        standby.vmm.receive(64 * 1024, theirs);
        primary.vmm.mirror(1, 64 * 1024, ours);
        primary.vmm.in_sync();
        assert_eq!(guest.write(0, 0, &[0xaa; 512]), 0);
        commit(&primary, &standby, 1);
        assert_eq!(guest.write(0, 0, &[0xbb; 512]), 0);
        commit(&primary, &standby, 2);
    }
    primary.vmm.send(&Command::Unmirror);
    assert!(standby.vmm.mirror_lost().contains("closed"));
    standby.vmm.discard(2);
    assert!(standby.content() == primary.content());
}

#[test]
fn the_standby_hears_only_of_epochs_with_writes_and_an_epoch_of_a_lost_stream_is_never_idle() {
    let (primary, mut guest, standby) = pair(&Rng(7).bytes(SIZE), 64 * 1024);
    assert!(!commit(&primary, &standby, 1).idle, "the base");
    assert!(commit(&primary, &standby, 2).idle);
    assert_eq!(guest.write(0, 0, &[1; 512]), 0);
    assert!(!commit(&primary, &standby, 3).idle);
    assert!(commit(&primary, &standby, 4).idle);
    // The old standby goes away.
    standby.vmm.receive(64 * 1024, tcp_pair().0);
    assert!(primary.vmm.mirror_lost().contains("closed"));
    assert_eq!(guest.write(0, 8, &[2; 512]), 0);
    for epoch in 5..8 {
        assert!(!primary.vmm.seal(epoch).idle, "epoch {epoch} would be committed without its disk");
        primary.vmm.send(&Command::Resume);
    }
}

#[test]
fn a_copy_that_is_not_complete_is_never_started_from() {
    let standby = Host::new(&[0; SIZE]);
    let (ours, theirs) = tcp_pair();
    standby.vmm.receive(BOUND, theirs);
    let mut peer = Peer::new(ours, SIZE);
    peer.begin(5);
    peer.write(5, 0, 1);
    peer.end(5);
    standby.vmm.complete(5);
    standby.vmm.send(&Command::Discard { after: Epoch(5) });
    assert!(standby.vmm.failed().contains("not complete"));

    // A copy that was complete only in epoch 6 has writes of epoch 6 in it: no checkpoint before that fits.
    let standby = Host::new(&[0; SIZE]);
    let (ours, theirs) = tcp_pair();
    standby.vmm.receive(BOUND, theirs);
    let mut peer = Peer::new(ours, SIZE);
    peer.begin(5);
    peer.end(5);
    peer.write(6, 0, 1);
    peer.send(Kind::SyncDone, 6, 0, 0, &[]);
    peer.end(6);
    standby.vmm.complete(6);
    standby.vmm.send(&Command::Discard { after: Epoch(5) });
    assert!(standby.vmm.failed().contains("only in epoch 6"));
}

#[test]
fn a_session_can_be_dropped_before_its_copy_is_complete_and_another_follows() {
    let standby = Host::new(&[0; SIZE]);
    let (ours, theirs) = tcp_pair();
    standby.vmm.receive(BOUND, theirs);
    let mut peer = Peer::new(ours, SIZE);
    peer.begin(1);
    peer.write(1, 0, 1);
    standby.vmm.discard(0);
    let (ours, theirs) = tcp_pair();
    standby.vmm.receive(BOUND, theirs);
    let mut peer = Peer::new(ours, SIZE);
    peer.begin(1);
    peer.end(1);
    standby.vmm.complete(1);
}

#[test]
fn malformed_commands_are_told() {
    let host = Host::new(&[0; SIZE]);
    host.vmm.send_bytes(&[0xff; 40], None);
    assert!(host.vmm.failed().contains("not a command"));
}

/// Random epochs against a model: at any end, the standby goes on from the last committed seal as the primary
/// would have.
#[test]
fn random_epochs_match_the_model() {
    let mut rng = Rng::from_env("random_epochs_match_the_model");
    for _ in 0..4 {
        let content = rng.bytes(SIZE);
        let (primary, mut guest, standby) = pair(&content, BOUND);
        let mut model = content.clone();
        let mut history = Vec::new();
        let mut committed = None;
        let last = rng.below(12) + 3;
        for epoch in 1..=last {
            for _ in 0..rng.below(20) {
                while guest.free_slots(0) == 0 {
                    assert_eq!(guest.finish(0).1, 0);
                }
                history.push(post_random_write(&mut rng, &mut guest, &mut model));
                if rng.below(3) == 0 {
                    guest.kick(0);
                }
            }
            let sealed = primary.vmm.seal(epoch);
            let used = usize::from(sealed.queues[0].next_used);
            assert_eq!(sealed.in_flight.len(), usize::from(sealed.queues[0].next_avail) - used);
            // Commits may lag by one epoch, and the last one or two are sometimes lost.
            let commits = rng.below(3) > 0 || committed.is_none();
            let memory = commits.then(|| guest.snapshot());
            primary.vmm.send(&Command::Resume);
            if !sealed.idle {
                standby.vmm.complete(epoch);
            }
            if let Some(memory) = memory {
                let told = standby.vmm.told.get();
                standby.vmm.send(&release(told));
                primary.vmm.send(&release(epoch));
                committed = Some((told, sealed, memory, history.len()));
            }
        }
        let (told, sealed, memory, posted) = committed.unwrap();
        standby.vmm.discard(told);
        standby.vmm.send(&Command::Start { in_flight: sealed.in_flight, macs: vec![] });
        assert_eq!(standby.vmm.recv(), Report::Started);
        let mut heir = Guest::with_memory(&standby.served.socket, 1, 0, copy_memory(&memory), &sealed.queues);
        heir.kick(0);
        // What was in flight, and what the guest had posted and the disk not seen.
        for _ in usize::from(sealed.queues[0].next_used)..posted {
            let (head, _) = heir.try_used(0, LIMIT).unwrap();
            assert_eq!(heir.status(0, head / 3), 0);
        }
        let mut expected = content;
        for (offset, data) in &history[..posted] {
            expected[*offset..offset + data.len()].copy_from_slice(data);
        }
        assert!(standby.content() == expected, "standby differs from the model");
        guest.kick(0);
        while guest.free_slots(0) < usize::from(SLOTS) {
            assert_eq!(guest.finish(0).1, 0);
        }
        assert!(primary.content() == model, "primary differs from the model");
    }
}
