//! Images that part and become equal again, and copies that must not be used: real processes, killed and
//! ended.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::hosts::{BOUND, commit_epoch};
use common::program::{Host, protect, start, take_over};
use common::*;
use ft_proto::{Epoch, Term};
use ft_wire::device_ctl::{Command, Report, ResyncKind};
use tempfile::TempDir;
use vhost_user_blk_repl::record::show::show;
use vhost_user_blk_repl::record::{Role, decode};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;

/// Two images of random content, equal nowhere, and the place they are in.
fn images(rng: &mut Rng) -> (TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| make_image(dir.path(), name, &rng.bytes(SIZE as usize)));
    (dir, a, b)
}

fn record(image: &Path) -> PathBuf {
    image.with_extension("pollux")
}

fn equal(a: &Path, b: &Path) -> bool {
    std::fs::read(a).unwrap() == std::fs::read(b).unwrap()
}

/// Waits until both records name the same state: from then on a resynchronisation is incremental.
fn settle(a: &Path, b: &Path) {
    let base = |image| decode(&std::fs::read(record(image)).unwrap()).ok().and_then(|(_, record)| record.base);
    soon(|| base(a).filter(|common| base(b) == Some(*common)));
}

/// Waits until the record says that the VM runs from `image` and no other copy.
fn alone(image: &Path) {
    let role = || decode(&std::fs::read(record(image)).unwrap()).ok().map(|(_, record)| record.role);
    soon(|| (role() == Some(Role::Alone)).then_some(()));
}

/// A pair in sync with epoch 1 committed.
fn pair(a: &Path, b: &Path) -> (Host, Guest, Host) {
    let (primary, standby) = (Host::start(a, &[]), Host::start(b, &["--standby"]));
    let guest = primary.guest();
    protect(&primary, &standby, BOUND);
    commit_epoch(&primary.vmm, &standby.vmm, 1);
    settle(a, b);
    (primary, guest, standby)
}

/// Bytes in blocks of 4 KiB that differ.
fn difference(a: &Path, b: &Path) -> u64 {
    let (a, b) = (std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
    4096 * a.chunks(4096).zip(b.chunks(4096)).filter(|(a, b)| a != b).count() as u64
}

#[test]
fn a_returning_primary_gets_what_was_not_committed_and_what_was_written_since() {
    let mut rng = Rng(1);
    let (_dir, a, b) = images(&mut rng);
    let (primary, mut guest, standby) = pair(&a, &b);
    assert_eq!(guest.write(0, 0, &[1; 4096]), 0);
    commit_epoch(&primary.vmm, &standby.vmm, 2);
    // Not committed: the guest went on without it.
    assert_eq!(guest.write(0, 3 * MIB / 512, &[2; 4096]), 0);
    primary.kill();
    let mut heir = take_over(&standby, 2);
    assert_eq!(heir.write(0, 7 * MIB / 512, &[3; 4096]), 0);
    // The survivor's record outlives its process too.
    alone(&b);
    drop(heir);
    standby.end();
    let survivor = Host::start(&b, &[]);
    let mut heir = survivor.guest();
    assert_eq!(heir.write(0, 9 * MIB / 512, &[4; 4096]), 0);

    let differs = difference(&a, &b);
    assert_eq!(differs, 3 * 4096);
    let returned = Host::start(&a, &["--standby"]);
    let resync = protect(&survivor, &returned, BOUND);
    assert_eq!((resync.kind, resync.total), (ResyncKind::Incremental, 4 * MIB));
    assert!(resync.sent <= 2 * differs + resync.total / 100, "{resync:?}");
    commit_epoch(&survivor.vmm, &returned.vmm, 1);
    returned.vmm.discard(1);
    assert!(equal(&a, &b));
}

#[test]
fn the_end_of_the_vm_is_noted_where_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    for image in [&a, &b] {
        std::fs::File::create(image).unwrap().set_len(64 * MIB).unwrap();
    }
    let told = |image: &Path| show(image, None, false).unwrap();
    assert!(
        told(&a).contains("record=none\n") && told(&a).contains("state=hole\n"),
        "it was never protected: {}",
        told(&a)
    );
    let end = |host: &Host, term| {
        host.vmm.send(&Command::End(term));
        host.vmm.until(|report| (*report == Report::Ended).then_some(()));
    };
    let primary = Host::start(&a, &[]);
    end(&primary, Term(3));
    assert!(told(&a).contains("role=alone\n") && told(&a).contains("ended=3\n"), "{}", told(&a));
    primary.end();

    let (primary, standby) = (Host::start(&a, &[]), Host::start(&b, &["--standby"]));
    protect(&primary, &standby, BOUND);
    commit_epoch(&primary.vmm, &standby.vmm, 1);
    end(&primary, Term(5));
    assert!(told(&a).contains("ended=5\n") && told(&b).contains("ended=0\n"), "{} {}", told(&a), told(&b));
    let _heir = take_over(&standby, 1);
    end(&standby, Term(6));
    primary.end();
    // What it said of its end is not true any more.
    let returned = Host::start(&a, &["--standby"]);
    protect(&standby, &returned, BOUND);
    // With nothing to copy the primary is through before the standby has begun.
    commit_epoch(&standby.vmm, &returned.vmm, 1);
    assert!(told(&a).contains("ended=0\n") && told(&b).contains("ended=6\n"), "{} {}", told(&a), told(&b));
}

#[test]
fn without_a_usable_record_everything_is_compared() {
    type Spoil = fn(&Path);
    let cases: [(&str, Spoil); 4] = [
        ("removed", |image| std::fs::remove_file(record(image)).unwrap()),
        ("damaged", |image| std::fs::write(record(image), [7; 8192]).unwrap()),
        ("one slot damaged", |image| {
            let file = std::fs::File::options().write(true).open(record(image)).unwrap();
            file.write_all_at(&[7; 64], 4096).unwrap();
        }),
        ("image written by somebody else", |image| {
            let file = std::fs::File::options().write(true).open(image).unwrap();
            file.write_all_at(&[7; 64], 13 * MIB).unwrap();
        }),
    ];
    for (name, spoil) in cases {
        let mut rng = Rng(2);
        let (_dir, a, b) = images(&mut rng);
        let (primary, mut guest, standby) = pair(&a, &b);
        standby.end();
        spoil(&b);
        assert_eq!(guest.write(0, 5 * MIB / 512, &[3; 4096]), 0);
        assert!(primary.vmm.mirror_lost().contains("closed"));
        primary.vmm.send(&Command::Unmirror);
        let differs = difference(&a, &b);
        let returned = Host::start(&b, &["--standby"]);
        let resync = protect(&primary, &returned, BOUND);
        assert_eq!((resync.kind, resync.total), (ResyncKind::Compare, SIZE), "{name}");
        assert!(resync.sent <= 2 * differs + SIZE / 100, "{name}: {resync:?}");
        commit_epoch(&primary.vmm, &returned.vmm, 1);
        returned.vmm.discard(1);
        assert!(equal(&a, &b), "{name}");
    }
}

#[test]
fn an_empty_image_gets_the_data_and_no_hashes() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    for image in [&a, &b] {
        std::fs::File::create(image).unwrap().set_len(64 * MIB).unwrap();
    }
    std::fs::File::options().write(true).open(&a).unwrap().write_all_at(&[5; 4096], 40 * MIB).unwrap();
    let (primary, standby) = (Host::start(&a, &[]), Host::start(&b, &["--standby"]));
    let resync = protect(&primary, &standby, BOUND);
    assert_eq!((resync.kind, resync.total), (ResyncKind::Full, 64 * MIB));
    assert!(resync.sent < MIB, "{resync:?}");
    commit_epoch(&primary.vmm, &standby.vmm, 1);
    standby.vmm.discard(1);
    assert!(equal(&a, &b));
}

#[test]
fn marks_go_when_both_hosts_have_the_writes_on_stable_storage() {
    const REGIONS: u64 = 2048;
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    for image in [&a, &b] {
        std::fs::File::create(image).unwrap().set_len(REGIONS * MIB).unwrap();
    }
    let (primary, mut guest, standby) = pair(&a, &b);
    let marks = || decode(&std::fs::read(record(&a)).unwrap()).map_or(0, |(_, record)| record.marks.count());
    let (mut epoch, mut region, mut most) = (1, 0, 0);
    let start = Instant::now();
    while most <= 1024 || marks() >= 1024 {
        // With so many marks they must become fewer, and not because of more of them.
        region += u64::from(most <= 1024);
        assert!(region < REGIONS && start.elapsed() < Duration::from_secs(120), "{} marks", marks());
        assert_eq!(guest.write(0, region * MIB / 512, &[9; 4096]), 0);
        if region % 50 == 0 || most > 1024 {
            epoch += 1;
            commit_epoch(&primary.vmm, &standby.vmm, epoch);
        }
        most = most.max(marks());
    }
    // Neither what is marked no longer nor what still is gets lost.
    primary.kill();
    let _heir = take_over(&standby, epoch);
    let returned = Host::start(&a, &["--standby"]);
    let resync = protect(&standby, &returned, BOUND);
    assert_eq!(resync.kind, ResyncKind::Incremental);
    assert!(resync.total < 1100 * MIB, "{resync:?}");
    commit_epoch(&standby.vmm, &returned.vmm, 1);
    returned.vmm.discard(1);
    let block = |image, region| {
        let mut bytes = [0; 4096];
        std::fs::File::open(image).unwrap().read_exact_at(&mut bytes, region * MIB).unwrap();
        bytes
    };
    assert!((0..REGIONS).all(|region| block(&a, region) == block(&b, region)));
    assert_eq!(block(&a, epoch / 2), [9; 4096]);
}

/// What the program says when it is to serve `image`; `None` when it does.
fn refusal(image: &Path, flags: &[&str]) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let mut command = common::program::program();
    command.args(["--socket", socket.to_str().unwrap(), "--path", image.to_str().unwrap()]).args(flags);
    let mut child = command.spawn().unwrap();
    let served = soon(|| if socket.exists() { Some(true) } else { child_ended(child.id()).then_some(false) });
    if served {
        child.kill().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    (!served).then(|| String::from_utf8(output.stderr).unwrap())
}

/// Whether a child has ended and is not reaped.
fn child_ended(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().trim_start().starts_with('Z')
}

#[test]
fn a_copy_that_may_be_stale_is_refused_unless_forced() {
    let mut rng = Rng(3);
    let (_dir, a, b) = images(&mut rng);
    let (primary, guest, standby) = pair(&a, &b);
    drop(guest);
    primary.kill();
    standby.end();
    for (image, why) in [(&a, "its standby may have taken over"), (&b, "was a standby's")] {
        for flags in [&[][..], &["--readonly"]] {
            let told = refusal(image, flags).unwrap();
            assert!(
                told.contains(why) && told.contains(image.to_str().unwrap()) && told.contains("force=on"),
                "{told}"
            );
        }
        assert_eq!(refusal(image, &["--standby"]), None);
    }
    for image in [&a, &b] {
        assert_eq!(refusal(image, &["--elected", "--readonly"]), None);
    }
    Host::start(&b, &["--force"]).kill();
    // From here on it is the copy to go on with.
    assert_eq!(refusal(&b, &[]), None);
    std::fs::write(record(&b), b"what is this").unwrap();
    let told = refusal(&b, &[]).unwrap();
    assert!(told.contains("it is damaged") && told.contains("force=on"), "{told}");
    assert_eq!(refusal(&b, &["--force"]), None);
}

#[test]
fn half_a_copy_is_refused_until_it_is_whole() {
    let mut rng = Rng(4);
    let (_dir, a, b) = images(&mut rng);
    let (primary, standby) = (Host::start(&a, &[]), Host::start(&b, &["--standby"]));
    let (ours, theirs) = tcp_pair();
    standby.vmm.receive(BOUND, theirs);
    let mirror = Command::Mirror { epoch: Epoch(1), max_uncommitted: BOUND, rate: MIB };
    primary.vmm.send_with(&mirror, Some(ours));
    loop {
        if let Some(Report::Resync { done: 1.., .. }) = primary.vmm.try_recv(LIMIT) {
            break;
        }
    }
    standby.kill();
    assert!(refusal(&b, &[]).unwrap().contains("half-synchronised"));
    assert!(refusal(&b, &["--elected"]).unwrap().contains("half-synchronised"));
    // The primary was never protected.
    primary.kill();
    assert_eq!(refusal(&a, &[]), None);
    let (primary, _guest, standby) = pair(&a, &b);
    standby.kill();
    drop(primary);
    assert!(refusal(&b, &[]).unwrap().contains("was a standby's"));
}

#[test]
fn plain_use_leaves_nothing_behind_but_keeps_a_record_true() {
    let mut rng = Rng(5);
    let (_dir, a, b) = images(&mut rng);
    let plain = Host::start(&a, &[]);
    assert_eq!(plain.guest().write(0, 0, &[1; 512]), 0);
    plain.end();
    assert!(!record(&a).exists());

    let (primary, guest, standby) = pair(&a, &b);
    primary.vmm.send(&Command::Unmirror);
    alone(&a);
    drop(guest);
    primary.end();
    standby.end();
    let plain = Host::start(&a, &[]);
    assert_eq!(plain.guest().write(0, 11 * MIB / 512, &[6; 512]), 0);
    plain.kill();
    let (primary, standby) = (Host::start(&a, &[]), Host::start(&b, &["--standby"]));
    assert_eq!(protect(&primary, &standby, BOUND).kind, ResyncKind::Incremental);
    commit_epoch(&primary.vmm, &standby.vmm, 1);
    standby.vmm.discard(1);
    assert!(equal(&a, &b));
}

#[test]
fn a_record_that_cannot_be_written_is_told() {
    let mut rng = Rng(6);
    let (dir, a, b) = images(&mut rng);
    let nowhere = dir.path().join("missing/record");
    let primary = Host::start(&a, &["--record", nowhere.to_str().unwrap()]);
    let standby = Host::start(&b, &["--standby"]);
    let (ours, theirs) = tcp_pair();
    standby.vmm.receive(BOUND, theirs);
    primary.vmm.mirror(1, BOUND, ours);
    let reason = primary.vmm.until(|report| match report {
        Report::MirrorLost { reason } | Report::Failed { reason } => Some(reason.clone()),
        _ => None,
    });
    assert!(reason.contains("cannot write the record") && reason.contains("missing/record"), "{reason}");
}

/// Rounds of writes, kills at any moment, takeovers and returns: images that were in sync are equal, and what
/// was committed is there.
#[test]
fn killed_at_any_moment_the_images_become_equal_again() {
    let mut rng = Rng::from_env("killed_at_any_moment_the_images_become_equal_again");
    let (_dir, mut a, mut b) = images(&mut rng);
    let mut primary = Host::start(&a, &[]);
    let mut guest = primary.guest();
    for round in 0..8 {
        let standby = Host::start(&b, &["--standby"]);
        let resync = protect(&primary, &standby, BOUND);
        let expected = if round == 0 { ResyncKind::Compare } else { ResyncKind::Incremental };
        assert_eq!(resync.kind, expected, "round {round}");
        let epochs = rng.below(4) + 1;
        for epoch in 1..=epochs {
            some_writes(&mut rng, &mut guest);
            commit_epoch(&primary.vmm, &standby.vmm, epoch);
        }
        settle(&a, &b);
        post_writes(&mut rng, &mut guest);
        std::thread::sleep(Duration::from_micros(rng.below(3000)));
        if rng.below(2) == 0 {
            // The standby dies; the primary goes on, and dies too before it returns.
            standby.kill();
            primary.vmm.send(&Command::Unmirror);
            alone(&a);
            post_writes(&mut rng, &mut guest);
            primary.kill();
            primary = Host::start(&a, &[]);
            guest = primary.guest();
        } else {
            primary.kill();
            guest = take_over(&standby, epochs);
            post_writes(&mut rng, &mut guest);
            std::thread::sleep(Duration::from_micros(rng.below(3000)));
            if rng.below(2) == 0 {
                alone(&b);
                standby.kill();
                primary = Host::start(&b, &[]);
                guest = primary.guest();
            } else {
                primary = standby;
            }
            std::mem::swap(&mut a, &mut b);
        }
    }
    let standby = Host::start(&b, &["--standby"]);
    protect(&primary, &standby, BOUND);
    some_writes(&mut rng, &mut guest);
    commit_epoch(&primary.vmm, &standby.vmm, 1);
    standby.vmm.discard(1);
    assert!(equal(&a, &b), "images differ in {} bytes", difference(&a, &b));
}

fn random_write(rng: &mut Rng, guest: &mut Guest) {
    let count = rng.below(24) + 1;
    let sector = rng.below(SIZE / 512 - count);
    let data = rng.bytes(count as usize * 512);
    guest.post(0, T_OUT, sector, &data, 0);
}

fn some_writes(rng: &mut Rng, guest: &mut Guest) {
    post_writes(rng, guest);
    while guest.free_slots(0) < usize::from(SLOTS) {
        assert_eq!(guest.finish(0).1, 0);
    }
}

fn post_writes(rng: &mut Rng, guest: &mut Guest) {
    for _ in 0..rng.below(20) {
        if guest.free_slots(0) == 0 {
            break;
        }
        random_write(rng, guest);
    }
    guest.kick(0);
}

const LARGE: u64 = 2048 * MIB;

/// Random writes all over a large disk for some seconds, as many at once as fit; how many epochs it took.
fn write_on(rng: &mut Rng, guest: &mut Guest, vmms: Option<[&Vmm; 2]>, seconds: u64) -> u64 {
    let (begun, mut writes, mut epochs) = (Instant::now(), 0, 0);
    while begun.elapsed() < Duration::from_secs(seconds) {
        while guest.free_slots(0) > 0 {
            guest.post(0, T_OUT, rng.below(LARGE / 4096) * 8, &rng.bytes(4096), 0);
        }
        guest.kick(0);
        while guest.free_slots(0) < usize::from(SLOTS) {
            assert_eq!(guest.finish(0).1, 0);
            writes += 1;
        }
        if let Some([primary, standby]) = vmms {
            epochs += 1;
            commit_epoch(primary, standby, epochs);
        }
    }
    println!("{} random writes of 4 KiB per second", writes / seconds);
    epochs
}

/// Figures of a resynchronisation: `cargo test --release -p vhost-user-blk-repl --test resync -- --ignored
/// --nocapture`.
#[test]
#[ignore = "takes a minute; prints figures"]
fn figures_of_a_primary_that_returns_after_ten_seconds() {
    let mut rng = Rng::from_env("figures_of_a_primary_that_returns_after_ten_seconds");
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    for image in [&a, &b] {
        std::fs::File::create(image).unwrap().set_len(LARGE).unwrap();
    }
    let (primary, standby) = (Host::start(&a, &[]), Host::start(&b, &["--standby"]));
    let mut guest = primary.guest();
    protect(&primary, &standby, BOUND);
    let epoch = write_on(&mut rng, &mut guest, Some([&primary.vmm, &standby.vmm]), 5);
    primary.kill();
    let mut heir = take_over(&standby, epoch);
    write_on(&mut rng, &mut heir, None, 10);
    let begun = Instant::now();
    let returned = Host::start(&a, &["--standby"]);
    let differs = difference(&a, &b);
    let resync = protect(&standby, &returned, BOUND);
    println!("resynchronised in {:?} including the check of what differs", begun.elapsed());
    let ratio = resync.sent as f64 / differs as f64;
    println!("{resync:?}; {differs} bytes differ: {ratio:.3} of that were sent");
    commit_epoch(&standby.vmm, &returned.vmm, 1);
    returned.vmm.discard(1);
    assert!(resync.sent <= 2 * differs);
    assert_eq!(difference(&a, &b), 0);
}

/// What it costs that nothing is proven: all of two equal images is read and hashed.
#[test]
#[ignore = "takes a minute; prints figures"]
fn figures_of_a_comparison() {
    let mut rng = Rng::from_env("figures_of_a_comparison");
    let dir = tempfile::tempdir().unwrap();
    let content = rng.bytes(LARGE as usize);
    let [a, b] = ["a", "b"].map(|name| make_image(dir.path(), name, &content));
    let (primary, standby) = (Host::start(&a, &[]), Host::start(&b, &["--standby"]));
    let begun = Instant::now();
    let resync = protect(&primary, &standby, BOUND);
    let seconds = begun.elapsed().as_secs_f64();
    println!("{resync:?} in {seconds:.2} s: {:.0} MB/s", LARGE as f64 / seconds / 1e6);
    assert_eq!(resync.kind, ResyncKind::Compare);
}

#[test]
fn a_record_is_not_left_to_a_process_that_never_began() {
    let mut rng = Rng(8);
    let (_dir, a, _) = images(&mut rng);
    drop(start(&["--socket", "fd=10", "--path", a.to_str().unwrap()], vec![]));
    assert!(!record(&a).exists());
}
