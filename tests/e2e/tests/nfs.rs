//! The file witness on NFS: hosts whose clients of the file server are cut off and frozen for longer than the
//! server waits for them are granted nothing that others were granted meanwhile.
//!
//! Needs Debian's packages nfs-kernel-server and nfs-common; without them there is nothing to show.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use e2e::artifacts::Artifacts;
use e2e::nfs::{FileServer, LEASE};
use e2e::process::signal_one;
use e2e::topology::Topology;
use ft::witness::{FileWitness, Witness};
use ft_proto::witness::{Claim, Verdict};
use ft_proto::{NodeId, Term, VmId};
use nix::sys::signal::Signal;

const VM: VmId = VmId(7);
/// Where a racer finds the record, and which host it is.
const PLACE: &str = "POLLUX_RACER";
const FREEZES: u32 = 6;
/// By now the server has given up a client that it does not hear of, and granted its lock to others.
const LONGER_THAN_A_LEASE: Duration = LEASE.saturating_mul(2);

/// One of the claimants of [`claimants_that_are_frozen_are_granted_nothing_twice`], in a process of its own:
/// takes the record from whoever has it, as fast as it can, and prints each term that it is granted.
#[test]
fn racer() {
    let Ok(place) = std::env::var(PLACE) else { return };
    let (host, path) = place.split_once(':').unwrap();
    let node = NodeId::numbered(host.parse().unwrap(), 1);
    let mut witness = FileWitness::new(Path::new(path));
    loop {
        let Ok(Some(stored)) = witness.read() else { continue };
        let force = Claim::Force { node, term: stored.record.term() };
        // Not asked in time, by a client that was cut off, is as good as not granted.
        if let Ok(Verdict::Granted(record)) = witness.ask(VM, force) {
            println!("granted {}", record.term());
        }
    }
}

fn start(host: u32, record: &Path, output: &Path) -> Child {
    let mut racer = Command::new(std::env::current_exe().unwrap());
    racer.args(["--exact", "racer", "--nocapture"]).env(PLACE, format!("{host}:{}", record.display()));
    racer.stdin(Stdio::null()).stdout(File::create(output).unwrap()).spawn().unwrap()
}

fn terms(output: &Path) -> Vec<u64> {
    let text = fs::read_to_string(output).unwrap();
    text.lines().filter_map(|line| line.split_once("granted ")?.1.parse().ok()).collect()
}

#[test]
fn claimants_that_are_frozen_are_granted_nothing_twice() {
    let (artifacts, topology) = (Artifacts::gather().unwrap(), Topology::new().unwrap());
    let Some(server) = FileServer::start(&artifacts, &topology).unwrap() else {
        println!("SKIPPED: nfs-kernel-server is not installed");
        return;
    };
    let first = Claim::Own { node: NodeId::numbered(9, 1), term: Term(0), first: true };
    let granted = FileWitness::new(&server.mount(0).join("vm")).ask(VM, first).unwrap();
    assert!(matches!(granted, Verdict::Granted(_)), "{granted:?}");
    let outputs = ["racer-a", "racer-b"].map(|name| artifacts.path(name));
    let mut racers = [0, 1].map(|i| start(i as u32 + 1, &server.mount(i).join("vm"), &outputs[i]));
    let mut won_meanwhile = 0;
    for freeze in 0..FREEZES {
        let frozen = freeze as usize % 2;
        // At whatever it is doing then; mostly it waits for the server.
        sleep(Duration::from_millis(1500 + 37 * u64::from(freeze)));
        // The lease is the kernel's affair: a client that only has its process stopped keeps it.
        topology.hosts[frozen].ip("link set up0 down\n").unwrap();
        signal_one(racers[frozen].id(), Signal::SIGSTOP).unwrap();
        let before = terms(&outputs[1 - frozen]).len();
        sleep(LONGER_THAN_A_LEASE);
        won_meanwhile += usize::from(terms(&outputs[1 - frozen]).len() > before);
        topology.hosts[frozen].ip("link set up0 up\n").unwrap();
        signal_one(racers[frozen].id(), Signal::SIGCONT).unwrap();
    }
    sleep(LEASE);
    for racer in &mut racers {
        racer.kill().unwrap();
        racer.wait().unwrap();
    }
    let mut winners = BTreeMap::new();
    for (host, output) in outputs.iter().enumerate() {
        let terms = terms(output);
        assert!(terms.len() > 10, "host {host} was granted only {terms:?}");
        for term in terms {
            assert_eq!(winners.insert(term, host), None, "term {term} was given twice");
        }
    }
    println!("{} terms granted; in {won_meanwhile} of {FREEZES} freezes the other one went on", winners.len());
    assert!(won_meanwhile > 0, "no lease ever ended");
}
