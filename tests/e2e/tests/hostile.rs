//! The hostile guest under a Linux kernel, as its first process: alone, and while its host dies.

use std::fs;
use std::path::Path;
use std::time::Duration;

use e2e::artifacts::Artifacts;
use e2e::host::{Host, Pairing, Shape, protect_argument};
use e2e::scenario::LAB_TEST_DETECT_MS;
use e2e::topology::Topology;
use e2e::wait;
use e2e::witness::{Keeper, Witness};

const INIT: &[u8] = include_bytes!(env!("POLLUX_HOSTILE_INIT"));
/// A client that answers ARP, and every how manieth case is done: an emulated machine is slow.
const OPTIONS: &str = "hostile.peer=10.70.0.100 hostile.step=13";
/// Cases after a takeover.
const ENOUGH: usize = 60;
/// An emulated machine on a busy host is slow.
const LIMIT: Duration = Duration::from_secs(600);
const REGULAR_FILE: u32 = 0o100_755;

/// Appends a file to an archive in cpio's "new ASCII format".
fn append(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let fields = [0, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
    archive.extend(b"070701");
    fields.iter().for_each(|field| archive.extend(format!("{field:08x}").bytes()));
    for part in [&[name.as_bytes(), &[0]].concat(), content] {
        archive.extend(part);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
}

/// Puts the hostile guest into an initramfs: the last file of a name is the one that counts.
fn make_hostile(initramfs: &Path, rounds: usize) {
    let mut archive = fs::read(initramfs).expect("read the initramfs");
    archive.resize(archive.len().next_multiple_of(4), 0);
    append(&mut archive, "init", REGULAR_FILE, INIT);
    append(&mut archive, "hostile.options", REGULAR_FILE, format!("{OPTIONS} hostile.rounds={rounds}\n").as_bytes());
    append(&mut archive, "TRAILER!!!", 0, &[]);
    fs::write(initramfs, archive).expect("write the initramfs");
}

/// Lines about cases that a host's serial line has.
fn cases(host: &Host) -> usize {
    host.serial().lines().filter(|line| line.starts_with("case ")).count()
}

/// Waits until a host's serial line says so much.
fn wait_for(host: &Host, enough: impl Fn(&Host) -> bool) {
    let done = || Ok(enough(host).then_some(()));
    if let Err(error) = wait::until("cases of the hostile guest", LIMIT, done) {
        panic!("{}\n{}\n{}", error.chain(), host.serial(), host.vmm.last_words());
    }
    let text = host.serial();
    let failed: Vec<_> = text.lines().filter(|line| line.contains("FAILED")).collect();
    assert!(failed.is_empty() && !text.contains("cannot start"), "{failed:#?}\n{text}");
}

fn shape() -> Shape {
    Shape { cpus: 1, ..Shape::default() }
}

#[test]
fn a_hostile_linux_guest_breaks_nothing() {
    let artifacts = Artifacts::gather().expect("artifacts");
    make_hostile(&artifacts.path("initramfs.gz"), 1);
    let topology = Topology::new().expect("network");
    let mut host = Host::primary(&artifacts, &topology, &shape()).expect("host A");
    // The whole line: it comes in pieces.
    wait_for(&host, |host| host.serial().split_once("hostile: ").is_some_and(|(_, rest)| rest.contains('\n')));
    assert!(host.serial().contains("hostile: 0 failed"), "{}", host.serial());
    host.wait_off(LIMIT).unwrap_or_else(|error| panic!("{}", error.chain()));
}

/// The guest does its worst round after round, and its host dies in the middle of that.
#[test]
#[ignore = "has not been seen to end yet: run it in a lab that has nothing else to do"]
fn a_hostile_linux_guest_is_taken_over() {
    let artifacts = Artifacts::gather().expect("artifacts");
    make_hostile(&artifacts.path("initramfs.gz"), usize::MAX);
    let size = artifacts.disk_size().expect("size of the disk");
    let topology = Topology::new().expect("network");
    let witness = Witness::start(Keeper::File, &artifacts, &topology).expect("witness");
    let pairing = Pairing { witness: witness.address(), detect_ms: Some(LAB_TEST_DETECT_MS) };
    let a = Host::primary(&artifacts, &topology, &shape()).expect("host A");
    let b = Host::standby(&artifacts, &topology, &shape(), size, &pairing).expect("host B");
    wait_for(&a, |a| cases(a) > 0);
    a.api(&["ft", "protect", &protect_argument(&pairing)]).unwrap_or_else(|error| panic!("{}", error.chain()));
    wait::until("protection", LIMIT, || Ok((a.ft_status()?["state"] == "protected").then_some(())))
        .unwrap_or_else(|error| panic!("{}", error.chain()));
    let before = cases(&a);
    wait_for(&a, |a| cases(a) >= before + 5);
    a.kill_all().expect("kill host A");
    wait_for(&b, |b| cases(b) >= ENOUGH);
}
