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
const OPTIONS: &str = "hostile.peer=10.70.0.100 hostile.step=13\n";
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
fn make_hostile(initramfs: &Path) {
    let mut archive = fs::read(initramfs).expect("read the initramfs");
    archive.resize(archive.len().next_multiple_of(4), 0);
    append(&mut archive, "init", REGULAR_FILE, INIT);
    append(&mut archive, "hostile.options", REGULAR_FILE, OPTIONS.as_bytes());
    append(&mut archive, "TRAILER!!!", 0, &[]);
    fs::write(initramfs, archive).expect("write the initramfs");
}

/// Waits until a host's serial line has so many lines of cases, or the last line of all.
fn wait_for(host: &Host, cases: usize) {
    let done = || {
        let text = host.serial();
        let enough = text.lines().filter(|line| line.starts_with("case ")).count() >= cases;
        Ok((enough || text.contains("hostile: ")).then_some(()))
    };
    if let Err(error) = wait::until("cases of the hostile guest", LIMIT, done) {
        panic!("{}\n{}\n{}", error.chain(), host.serial(), host.vmm.last_words());
    }
}

/// The guest has ended, and nothing of it has failed.
fn check(mut host: Host) {
    wait_for(&host, usize::MAX);
    let text = host.serial();
    let failed: Vec<_> = text.lines().filter(|line| line.contains("FAILED")).collect();
    assert!(failed.is_empty() && text.contains("hostile: 0 failed"), "{failed:#?}\n{text}");
    host.wait_off(LIMIT).unwrap_or_else(|error| panic!("{}", error.chain()));
}

fn shape() -> Shape {
    Shape { cpus: 1, ..Shape::default() }
}

#[test]
fn a_hostile_linux_guest_breaks_nothing() {
    let artifacts = Artifacts::gather().expect("artifacts");
    make_hostile(&artifacts.path("initramfs.gz"));
    let topology = Topology::new().expect("network");
    check(Host::primary(&artifacts, &topology, &shape()).expect("host A"));
}

#[test]
fn a_hostile_linux_guest_is_taken_over() {
    let artifacts = Artifacts::gather().expect("artifacts");
    make_hostile(&artifacts.path("initramfs.gz"));
    let size = artifacts.disk_size().expect("size of the disk");
    let topology = Topology::new().expect("network");
    let witness = Witness::start(Keeper::File, &artifacts, &topology).expect("witness");
    let pairing = Pairing { witness: witness.address(), detect_ms: Some(LAB_TEST_DETECT_MS) };
    let a = Host::primary(&artifacts, &topology, &shape()).expect("host A");
    let b = Host::standby(&artifacts, &topology, &shape(), size, &pairing).expect("host B");
    a.api(&["ft", "protect", &protect_argument(&pairing)]).unwrap_or_else(|error| panic!("{}", error.chain()));
    wait::until("protection", LIMIT, || Ok((a.ft_status()?["state"] == "protected").then_some(())))
        .unwrap_or_else(|error| panic!("{}", error.chain()));
    let before = a.serial().lines().filter(|line| line.starts_with("case ")).count();
    wait_for(&a, before + 5);
    assert!(!a.serial().contains("hostile: "), "the guest was too fast to be taken over");
    a.kill_all().expect("kill host A");
    check(b);
}
