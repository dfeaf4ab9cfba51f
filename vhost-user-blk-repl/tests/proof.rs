//! Images that are not what their records are about: changed, replaced or taken back while nobody served
//! them. Real processes.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use common::hosts::{BOUND, commit_epoch};
use common::program::{Host, Resync, protect, take_over};
use common::*;
use ft_proto::{Term, VmId};
use ft_wire::device_ctl::{Command, Report, ResyncKind};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use vhost_user_blk_repl::image::stamp::stamp;
use vhost_user_blk_repl::record::proof::Proof;
use vhost_user_blk_repl::record::{Record, decode, encode};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;

fn record_of(image: &Path) -> PathBuf {
    image.with_extension("pollux")
}

fn recorded(image: &Path) -> Option<Record> {
    decode(&std::fs::read(record_of(image)).ok()?).ok().map(|(_, record)| record)
}

/// Writes a record that only a file system can leave.
fn put_record(image: &Path, change: impl FnOnce(&mut Record)) {
    let mut record = recorded(image).unwrap();
    change(&mut record);
    let slot = encode(&record, 1_000_000);
    std::fs::write(record_of(image), [&slot[..], &slot].concat()).unwrap();
}

/// What a file system that is taken back as a whole makes of image and record: they fit each other.
fn taken_back(image: &Path) {
    let stamp = stamp(&File::open(image).unwrap()).unwrap().expect("the file system of the tests keeps times");
    put_record(image, |record| record.proof = Some(Proof::Closed(stamp)));
}

fn settled(a: &Path, b: &Path) {
    let base = |image| recorded(image).and_then(|record| record.base);
    let former = |image| recorded(image).and_then(|record| record.former);
    soon(|| base(a).filter(|common| base(b) == Some(*common) && former(b).is_none()));
}

fn images(rng: &mut Rng) -> (TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| make_image(dir.path(), name, &rng.bytes(SIZE as usize)));
    (dir, a, b)
}

fn pair(a: &Path, b: &Path) -> (Host, Guest, Host) {
    let (primary, standby) = (Host::start(a, &[]), Host::start(b, &["--standby"]));
    let mut guest = primary.guest();
    protect(&primary, &standby, BOUND);
    assert_eq!(guest.write(0, 0, &[1; 4096]), 0);
    commit_epoch(&primary.vmm, &standby.vmm, 1);
    // What is released is applied in the background.
    soon(|| (first_byte(b) == 1).then_some(()));
    settled(a, b);
    (primary, guest, standby)
}

fn first_byte(image: &Path) -> u8 {
    let mut byte = [0];
    File::open(image).unwrap().read_exact_at(&mut byte, 0).unwrap();
    byte[0]
}

fn write_at(image: &Path, offset: u64) {
    File::options().write(true).open(image).unwrap().write_all_at(b"from a backup", offset).unwrap();
}

/// The standby is gone, and the primary goes on alone.
fn alone(primary: &Host) {
    loop {
        match primary.vmm.recv() {
            Report::MirrorLost { .. } => break,
            Report::Failed { reason } => panic!("{reason}"),
            _ => {}
        }
    }
    primary.vmm.send(&Command::Unmirror);
}

/// `primary` is protected by `image` again; both are equal then.
fn again(primary: &Host, image: &Path) -> Resync {
    let standby = Host::start(image, &["--standby"]);
    let resync = protect(primary, &standby, BOUND);
    commit_epoch(&primary.vmm, &standby.vmm, 1);
    standby.vmm.discard(1);
    let [ours, theirs] = [&primary.image, &standby.image].map(|image| std::fs::read(image).unwrap());
    assert!(ours == theirs, "in sync, and the images differ ({resync:?})");
    resync
}

fn terminate(mut host: Host) -> PathBuf {
    kill(Pid::from_raw(host.running.0.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(host.running.exit_code(), Some(0));
    host.image
}

type End = fn(Host) -> PathBuf;
const ENDS: [(&str, End); 3] = [("killed", Host::kill), ("closed link", Host::end), ("SIGTERM", terminate)];

#[test]
fn an_image_that_nobody_touched_is_still_the_one() {
    for (name, end) in ENDS {
        let (_dir, a, b) = images(&mut Rng(1));
        let (primary, _guest, standby) = pair(&a, &b);
        end(standby);
        alone(&primary);
        assert_eq!(again(&primary, &b).kind, ResyncKind::Incremental, "{name}");
    }
}

#[test]
fn an_image_that_was_changed_meanwhile_is_compared() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 6] = [
        ("in place", |image| write_at(image, 9 * MIB)),
        ("in place, with its old time", |image| {
            let before = std::fs::metadata(image).unwrap().modified().unwrap();
            write_at(image, 9 * MIB);
            File::options().write(true).open(image).unwrap().set_modified(before).unwrap();
        }),
        ("through a mapping", |image| {
            let file = File::options().read(true).write(true).open(image).unwrap();
            let map =
                vm_memory::MmapRegion::<()>::from_file(vm_memory::FileOffset::new(file, 0), SIZE as usize).unwrap();
            // SAFETY: the mapping is that long, and the test's alone.
            unsafe { map.as_ptr().add(9 * MIB as usize).write(!7) };
        }),
        ("by a hole", |image| {
            let mode =
                nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let file = File::options().write(true).open(image).unwrap();
            nix::fcntl::fallocate(&file, mode, 9 * MIB as i64, 4096).unwrap();
        }),
        ("replaced by a copy", |image| {
            let copy = image.with_extension("copy");
            std::fs::copy(image, &copy).unwrap();
            write_at(&copy, 9 * MIB);
            std::fs::rename(copy, image).unwrap();
        }),
        ("removed, and put there again", |image| {
            let mut content = std::fs::read(image).unwrap();
            content[9 * MIB as usize] ^= 1;
            let before = std::fs::metadata(image).unwrap().modified().unwrap();
            std::fs::remove_file(image).unwrap();
            std::fs::write(image, content).unwrap();
            File::options().write(true).open(image).unwrap().set_modified(before).unwrap();
        }),
    ];
    for (change_name, change) in changes {
        for (end_name, end) in ENDS {
            let (_dir, a, b) = images(&mut Rng(2));
            let (primary, _guest, standby) = pair(&a, &b);
            end(standby);
            // At once: nothing is to be hoped of the time that passes.
            change(&b);
            alone(&primary);
            assert_eq!(again(&primary, &b).kind, ResyncKind::Compare, "{end_name}, {change_name}");
        }
    }
}

/// The same of the side that ran the VM.
#[test]
fn a_primary_that_was_changed_meanwhile_is_compared() {
    for (name, end) in ENDS {
        let (_dir, a, b) = images(&mut Rng(3));
        let (primary, guest, standby) = pair(&a, &b);
        drop(guest);
        end(primary);
        write_at(&a, 9 * MIB);
        let _heir = take_over(&standby, 1);
        assert_eq!(again(&standby, &a).kind, ResyncKind::Compare, "{name}");
    }
}

/// The marks of what was written since then are missing in it.
#[test]
fn a_record_of_a_moment_ago_does_not_describe_the_image() {
    let (dir, a, b) = images(&mut Rng(7));
    let (primary, mut guest, standby) = pair(&a, &b);
    let (record, backup) = (record_of(&a), dir.path().join("backup"));
    std::fs::copy(&record, &backup).unwrap();
    // Where nothing was written before: the record is written first.
    assert_eq!(guest.write(0, 9 * MIB / 512, &[9; 4096]), 0);
    assert_ne!(std::fs::read(&record).unwrap(), std::fs::read(&backup).unwrap());
    drop(guest);
    primary.kill();
    std::fs::copy(&backup, &record).unwrap();
    let _heir = take_over(&standby, 1);
    assert_eq!(again(&standby, &a).kind, ResyncKind::Compare);
}

#[test]
fn after_the_end_of_a_host_the_times_on_record_tell() {
    let another_boot = |image: &Path| {
        put_record(image, |record| match &mut record.proof {
            Some(Proof::Open { boot, .. }) => *boot ^= 1,
            proof => panic!("{proof:?}"),
        });
    };
    let (_dir, a, b) = images(&mut Rng(4));
    let (primary, _guest, standby) = pair(&a, &b);
    standby.kill();
    alone(&primary);
    another_boot(&b);
    assert_eq!(again(&primary, &b).kind, ResyncKind::Incremental);

    let (_dir, a, b) = images(&mut Rng(5));
    let (primary, _guest, standby) = pair(&a, &b);
    standby.kill();
    alone(&primary);
    another_boot(&b);
    // Longer than a record allows writes; no host is up again so soon.
    std::thread::sleep(Duration::from_secs(5));
    write_at(&b, 9 * MIB);
    assert_eq!(again(&primary, &b).kind, ResyncKind::Compare);
}

#[test]
fn a_clock_that_was_set_back_hides_nothing() {
    let (_dir, a, b) = images(&mut Rng(6));
    let (primary, _guest, standby) = pair(&a, &b);
    standby.kill();
    alone(&primary);
    // As if the change had been made by a clock that is behind: the record is of later times.
    put_record(&b, |record| match &mut record.proof {
        Some(Proof::Open { boot, since, until, .. }) => {
            *boot ^= 1;
            (*since, *until) = (since.plus(Duration::from_secs(3600)), until.plus(Duration::from_secs(3600)));
        }
        proof => panic!("{proof:?}"),
    });
    write_at(&b, 9 * MIB);
    assert_eq!(again(&primary, &b).kind, ResyncKind::Compare);
}

/// 2 GiB of holes, so that many regions are no work.
fn large_images() -> (TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    for image in [&a, &b] {
        File::create(image).unwrap().set_len(2048 * MIB).unwrap();
    }
    (dir, a, b)
}

fn back_up(image: &Path, to: &Path) {
    for (from, to) in [(image.to_owned(), to.to_owned()), (record_of(image), record_of(to))] {
        let status = std::process::Command::new("cp").arg("--sparse=always").args([from, to]).status().unwrap();
        assert!(status.success());
    }
}

/// Writes to regions and commits, until marks have been dropped for them.
fn write_until_marks_go(guest: &mut Guest, hosts: [&Host; 2]) -> u64 {
    let [primary, standby] = hosts;
    let marks = || recorded(&primary.image).map_or(0, |record| record.marks.count());
    let (mut epoch, mut most) = (1, 0);
    for region in 0..1900 {
        assert_eq!(guest.write(0, region * MIB / 512, &[9; 4096]), 0);
        if region % 50 == 49 {
            epoch += 1;
            commit_epoch(&primary.vmm, &standby.vmm, epoch);
            most = most.max(marks());
        }
    }
    let end = SystemTime::now() + LIMIT;
    while marks() >= most.max(1024) {
        assert!(SystemTime::now() < end, "{} marks", marks());
        epoch += 1;
        assert_eq!(guest.write(0, 0, &[10; 4096]), 0);
        commit_epoch(&primary.vmm, &standby.vmm, epoch);
    }
    epoch
}

fn same_regions(a: &Path, b: &Path) {
    let [a, b] = [a, b].map(|image| File::open(image).unwrap());
    let block = |image: &File, region: u64| {
        let mut bytes = [0; 4096];
        image.read_exact_at(&mut bytes, region * MIB).unwrap();
        bytes
    };
    let differ: Vec<u64> = (0..2048).filter(|region| block(&a, *region) != block(&b, *region)).collect();
    assert!(differ.is_empty(), "{} regions differ: {:?}…", differ.len(), &differ[..differ.len().min(5)]);
}

#[test]
fn a_standby_that_is_taken_back_to_before_marks_were_dropped_is_compared() {
    let (dir, a, b) = large_images();
    let (primary, mut guest, standby) = pair(&a, &b);
    let backup = dir.path().join("backup");
    back_up(&b, &backup);
    write_until_marks_go(&mut guest, [&primary, &standby]);
    standby.kill();
    back_up(&backup, &b);
    taken_back(&b);
    alone(&primary);
    let standby = Host::start(&b, &["--standby"]);
    let resync = protect(&primary, &standby, BOUND);
    assert_eq!(resync.kind, ResyncKind::Compare);
    commit_epoch(&primary.vmm, &standby.vmm, 1);
    standby.vmm.discard(1);
    same_regions(&a, &b);
}

/// Neither is known to be newer by the other one's marks: each has its own.
#[test]
fn whoever_is_taken_back_is_made_equal_whatever_was_marked() {
    for primary_returns in [true, false] {
        let (dir, a, b) = large_images();
        let (primary, mut guest, standby) = pair(&a, &b);
        let (backup, old) = (dir.path().join("backup"), if primary_returns { &a } else { &b });
        soon(|| recorded(&a).filter(|record| record.marks.count() > 0));
        back_up(old, &backup);
        for region in 100..200 {
            assert_eq!(guest.write(0, region * MIB / 512, &[3; 4096]), 0);
        }
        commit_epoch(&primary.vmm, &standby.vmm, 2);
        let (survivor, image, _guest) = if primary_returns {
            primary.kill();
            let heir = take_over(&standby, 2);
            (standby, &a, heir)
        } else {
            standby.kill();
            alone(&primary);
            (primary, &b, guest)
        };
        back_up(&backup, image);
        taken_back(image);
        let returned = Host::start(image, &["--standby"]);
        let resync = protect(&survivor, &returned, BOUND);
        assert_eq!(resync.kind, ResyncKind::Incremental, "it is known what it was");
        commit_epoch(&survivor.vmm, &returned.vmm, 1);
        returned.vmm.discard(1);
        same_regions(&a, &b);
    }
}

#[test]
fn every_orderly_end_is_on_record() {
    let (_dir, a, b) = images(&mut Rng(7));
    let closed = |image: &Path| matches!(recorded(image).unwrap().proof, Some(Proof::Closed(_)));
    let (primary, guest, standby) = pair(&a, &b);
    drop(guest);
    terminate(standby);
    terminate(primary);
    assert!(closed(&a) && closed(&b));
    let mut rng = Rng::from_env("every_orderly_end_is_on_record");
    for round in 0..20 {
        let host = Host::start(&a, &["--force"]);
        let mut guest = host.guest();
        // The end comes in the middle of something.
        for _ in 0..8 {
            guest.post(0, T_OUT, rng.below(SIZE / 512 - 8), &rng.bytes(4096), 0);
        }
        guest.kick(0);
        std::thread::sleep(Duration::from_micros(rng.below(2000)));
        terminate(host);
        assert!(closed(&a), "round {round}");
        let stamp = stamp(&File::open(&a).unwrap()).unwrap();
        assert_eq!(recorded(&a).unwrap().proof, stamp.map(Proof::Closed), "round {round}");
    }
}

#[test]
fn an_image_that_is_cut_off_under_its_process_is_an_error() {
    let (_dir, a, _) = images(&mut Rng(8));
    let host = Host::start(&a, &[]);
    let mut guest = host.guest();
    assert_eq!(guest.write(0, 0, &[1; 4096]), 0);
    File::options().write(true).open(&a).unwrap().set_len(4 * MIB).unwrap();
    assert_eq!(guest.write(0, 8 * MIB / 512, &[1; 4096]), 1);
    assert_eq!(guest.read(0, 8 * MIB / 512, 4096).0, 1);
    assert_eq!(std::fs::metadata(&a).unwrap().len(), 4 * MIB, "nobody has made it longer");
    assert!(host.vmm.failed().contains("it was truncated"));
}

fn own(host: &Host, vm: u128, term: u64) -> Report {
    host.vmm.send(&Command::Own { vm: VmId(vm), term: Term(term) });
    host.vmm.recv()
}

#[test]
fn an_image_is_one_vms() {
    let (_dir, a, b) = images(&mut Rng(9));
    let primary = Host::start(&a, &[]);
    assert_eq!(own(&primary, 7, 3), Report::Owned);
    let record = recorded(&a).unwrap();
    assert_eq!((record.vm, record.term), (Some(VmId(7)), Term(3)), "on stable storage before the answer");
    assert_eq!(own(&primary, 7, 3), Report::Owned);
    let standby = Host::start(&b, &["--standby"]);
    protect(&primary, &standby, BOUND);
    commit_epoch(&primary.vmm, &standby.vmm, 1);
    settled(&a, &b);
    let copy = recorded(&b).unwrap();
    assert_eq!((copy.vm, copy.term), (Some(VmId(7)), Term(3)));
    primary.kill();
    // Who takes over is in the next term.
    let heir = take_over(&standby, 1);
    soon(|| recorded(&b).filter(|record| record.term == Term(4)));
    assert!(
        matches!(own(&standby, 7, 2), Report::Failed { reason } if reason.contains("term 4") && reason.contains("term 2"))
    );
    standby.kill();
    drop(heir);

    let stranger = Host::start(&b, &[]);
    let told = match own(&stranger, 8, 9) {
        Report::Failed { reason } => reason,
        report => panic!("{report:?}"),
    };
    assert!(told.contains(&VmId(7).to_string()) && told.contains(&VmId(8).to_string()), "{told}");
    stranger.kill();
    // An operator's word counts.
    let forced = Host::start(&b, &["--force"]);
    assert_eq!(own(&forced, 8, 1), Report::Owned);
    forced.kill();

    let (primary, standby) = (Host::start(&b, &[]), Host::start(&a, &["--standby"]));
    let (ours, theirs) = tcp_pair();
    standby.vmm.receive(BOUND, theirs);
    primary.vmm.mirror(1, BOUND, ours);
    for told in [primary.vmm.mirror_lost(), standby.vmm.mirror_lost()] {
        assert!(told.contains(&VmId(7).to_string()) && told.contains(&VmId(8).to_string()), "{told}");
    }
}

#[test]
fn what_is_elected_is_a_copy_until_it_is_owned_or_written() {
    let (_dir, a, b) = images(&mut Rng(10));
    let (primary, guest, standby) = pair(&a, &b);
    drop(guest);
    primary.kill();
    standby.kill();
    let elected = Host::start(&b, &["--elected"]);
    elected.kill();
    assert_eq!(recorded(&b).unwrap().role, vhost_user_blk_repl::record::Role::Standby);
    let elected = Host::start(&b, &["--elected"]);
    assert_eq!(own(&elected, 7, 3), Report::Owned);
    elected.kill();
    assert_eq!(recorded(&b).unwrap().role, vhost_user_blk_repl::record::Role::Alone);
    let elected = Host::start(&a, &["--elected"]);
    assert_eq!(elected.guest().write(0, 0, &[7; 512]), 0);
    elected.kill();
    let record = recorded(&a).unwrap();
    assert_eq!((record.role, record.term), (vhost_user_blk_repl::record::Role::Alone, Term(0)));
}

#[test]
fn a_copy_that_somebody_else_has_changed_is_no_whole_copy() {
    let (_dir, a, b) = images(&mut Rng(11));
    let (primary, guest, standby) = pair(&a, &b);
    drop(guest);
    primary.kill();
    standby.kill();
    let told = |image: &Path| vhost_user_blk_repl::record::show::inspect(image, None).unwrap();
    assert_eq!(told(&b).state, ft_proto::witness::DiskState::Copy(Term(0)));
    write_at(&b, 9 * MIB);
    for _ in 0..2 {
        assert_eq!(told(&b).state, ft_proto::witness::DiskState::Unusable);
        assert!(told(&b).reason.unwrap().contains("whole copy"));
        // It does not become one by waiting as a standby.
        Host::start(&b, &["--standby"]).end();
    }
}
