//! The word about an image: what `record IMAGE` tells, whatever files there are.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Output;

use common::program::program;
use common::*;
use ft_proto::witness::DiskState;
use ft_proto::{Term, VmId};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use vhost_user_blk_repl::record::show::inspect;
use vhost_user_blk_repl::record::{Record, Role, encode};

const SIZE: u64 = 1 << 20;

/// What the program says, if it says something in time.
fn run(args: &[&str]) -> Output {
    let mut command = program();
    command.args(args).stdout(std::process::Stdio::piped());
    let child = std::cell::RefCell::new(command.spawn().unwrap());
    let end = std::time::Instant::now() + LIMIT;
    while child.borrow_mut().try_wait().unwrap().is_none() {
        if std::time::Instant::now() > end {
            child.borrow_mut().kill().unwrap();
            panic!("{args:?} hangs");
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.into_inner().wait_with_output().unwrap()
}

fn put(image: &Path, record: &Record) {
    let slot = encode(record, 5);
    std::fs::write(image.with_extension("pollux"), [&slot[..], &slot].concat()).unwrap();
}

#[test]
fn files_that_are_no_record_are_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let image = make_image(dir.path(), "a", &[1; SIZE as usize]);
    let record = image.with_extension("pollux");
    type Make = fn(&Path);
    let cases: [(&str, Make, &str); 6] = [
        ("a FIFO", |path| mkfifo(path, Mode::from_bits_truncate(0o600)).unwrap(), "not a regular file"),
        ("a folder", |path| std::fs::create_dir(path).unwrap(), "not a regular file"),
        ("a device without an end", |path| symlink("/dev/zero", path).unwrap(), "not a regular file"),
        ("1 GiB", |path| File::create(path).unwrap().set_len(1 << 30).unwrap(), "1073741824 bytes"),
        ("damaged", |path| std::fs::write(path, [7; 8192]).unwrap(), "damaged"),
        ("empty", |path| std::fs::write(path, []).unwrap(), "damaged"),
    ];
    for (name, make, told) in cases {
        make(&record);
        let output = run(&["record", image.to_str().unwrap()]);
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(text.contains(told), "{name}: {text}");
        assert!(!output.status.success() || text.contains("state=unusable\n"), "{name}: {text}");
        let socket = dir.path().join("s");
        let output = run(&["--socket", socket.to_str().unwrap(), "--path", image.to_str().unwrap()]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(told) && text.contains("a.pollux"), "{name}: {text}");
        if record.is_dir() { std::fs::remove_dir(&record).unwrap() } else { std::fs::remove_file(&record).unwrap() }
    }
}

#[test]
fn images_that_are_none_are_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    mkfifo(&fifo, Mode::from_bits_truncate(0o600)).unwrap();
    for image in [&fifo, Path::new("/dev/zero"), dir.path()] {
        let output = run(&["record", "--json", image.to_str().unwrap()]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains("neither a regular file nor a block device"), "{text}");
    }
}

#[test]
fn what_an_image_is_good_for() {
    let dir = tempfile::tempdir().unwrap();
    let image = make_image(dir.path(), "a", &[1; SIZE as usize]);
    let state = |image: &Path| inspect(image, None).unwrap().state;
    assert_eq!(state(&image), DiskState::Fresh);
    let hole = dir.path().join("hole");
    File::create(&hole).unwrap().set_len(SIZE).unwrap();
    assert_eq!(state(&hole), DiskState::Hole);
    let of = |role, term, ended| Record {
        vm: Some(VmId(7)),
        role,
        term: Term(term),
        ended: Term(ended),
        ..Record::new(1, SIZE)
    };
    for (record, expected) in [
        (of(Role::Alone, 5, 0), DiskState::Alone(Term(5))),
        (of(Role::Alone, 5, 5), DiskState::Ended(Term(5))),
        (of(Role::Protected, 5, 0), DiskState::Protected(Term(5))),
        (of(Role::Protected, 5, 5), DiskState::Ended(Term(5))),
        (of(Role::Standby, 5, 0), DiskState::Copy(Term(5))),
        (of(Role::Syncing, 5, 0), DiskState::Unusable),
        (Record { altered: true, ..of(Role::Standby, 5, 0) }, DiskState::Unusable),
        (Record { altered: true, ..of(Role::Protected, 5, 0) }, DiskState::Unusable),
        (Record { altered: true, ..of(Role::Alone, 5, 0) }, DiskState::Alone(Term(5))),
        // Of an image of another size.
        (Record { marks: Record::new(1, 2 * SIZE).marks, ..of(Role::Standby, 5, 0) }, DiskState::Unusable),
    ] {
        put(&image, &record);
        let told = inspect(&image, None).unwrap();
        assert_eq!(told.state, expected, "{record:?}");
        assert_eq!(told.says.unwrap().vm, Some(VmId(7)));
        assert!(told.reason.is_some(), "where nothing is proven that is said");
    }
}

#[test]
fn a_record_is_found_and_kept_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let image = make_image(dir.path(), "a", &[1; SIZE as usize]);
    let elsewhere = dir.path().join("elsewhere");
    let slot = encode(&Record::new(1, 2 * SIZE), 5);
    // Of an image of another size.
    std::fs::write(&elsewhere, [&slot[..], &slot].concat()).unwrap();
    symlink(&elsewhere, image.with_extension("pollux")).unwrap();
    let host = common::program::Host::start(&image, &[]);
    host.vmm.send(&ft_wire::device_ctl::Command::Own { vm: VmId(7), term: Term(1) });
    assert_eq!(host.vmm.recv(), ft_wire::device_ctl::Report::Owned);
    host.end();
    assert!(image.with_extension("pollux").is_symlink(), "its name is what it was");
    assert_eq!(inspect(&image, None).unwrap().says.unwrap().vm, Some(VmId(7)));
}

#[test]
fn what_cannot_be_noted_is_not_said_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let image = make_image(dir.path(), "a", &[1; SIZE as usize]);
    let nowhere = dir.path().join("missing/record");
    let commands =
        [ft_wire::device_ctl::Command::Own { vm: VmId(7), term: Term(1) }, ft_wire::device_ctl::Command::End(Term(1))];
    for command in commands {
        let host = common::program::Host::start(&image, &["--record", nowhere.to_str().unwrap()]);
        host.vmm.send(&command);
        let told = host.vmm.failed();
        assert!(told.contains("missing/record"), "{told}");
        // The guest may write all the same: nobody takes another copy for equal.
        assert_eq!(host.guest().write(0, 0, &[1; 512]), 0);
    }
}
