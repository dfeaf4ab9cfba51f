//! A pair repairs itself and changes roles with a stock guest: the same connection all the time, nothing
//! acknowledged lost, and nobody who says who is what.

use std::path::PathBuf;
use std::time::Duration;

use e2e::artifacts::Artifacts;
use e2e::host::{Host, Pairing, Shape};
use e2e::nfs::{FileServer, LEASE};
use e2e::scenario::{LAB_TEST_DETECT_MS, patience};
use e2e::topology::Topology;
use e2e::workload::{self, Workload};
use e2e::{Error, Result, image, wait};
use nix::sys::signal::Signal;

const BOOT_LIMIT: Duration = Duration::from_secs(240);
const STATE_LIMIT: Duration = Duration::from_secs(120);
const WRITES_LIMIT: Duration = Duration::from_secs(120);
const OFF_LIMIT: Duration = Duration::from_secs(60);
const ROUNDS: u64 = 100;

/// Two hosts with one command line each, and a client that writes all the time.
struct Rig {
    hosts: [Option<Host>; 2],
    workload: Workload,
    /// The witness as each host has it.
    witness: [PathBuf; 2],
    // After those who use it.
    _server: Option<FileServer>,
    topology: Topology,
    artifacts: Artifacts,
}

impl Rig {
    /// With the witness in a folder that both hosts see.
    fn start() -> Result<Self> {
        let (artifacts, topology) = (Artifacts::gather()?, Topology::new()?);
        let witness = artifacts.path("witness");
        Self::of(artifacts, topology, [witness.clone(), witness], None)
    }

    /// With the witness on a file server; `None`: there is none.
    fn with_file_server() -> Result<Option<Self>> {
        let (artifacts, topology) = (Artifacts::gather()?, Topology::new()?);
        let Some(server) = FileServer::start(&artifacts, &topology)? else { return Ok(None) };
        let witness = [0, 1].map(|host| server.mount(host).join("vm1"));
        Self::of(artifacts, topology, witness, Some(server)).map(Some)
    }

    fn of(artifacts: Artifacts, topology: Topology, witness: [PathBuf; 2], server: Option<FileServer>) -> Result<Self> {
        let size = artifacts.disk_size()?;
        std::fs::rename(artifacts.path("root.img"), artifacts.path("a.img"))
            .map_err(Error::io("cannot name an image"))?;
        image::blank(&artifacts.path("b.img"), size)?;
        let first = node(&artifacts, &topology, &witness, 0)?;
        let connection = workload::connect(&topology.client, BOOT_LIMIT)?;
        let second = node(&artifacts, &topology, &witness, 1)?;
        reach(&first, "protected")?;
        let workload = Workload::start(connection, Duration::from_millis(2))?;
        workload.progress(ROUNDS, WRITES_LIMIT)?;
        Ok(Self { hosts: [Some(first), Some(second)], workload, witness, _server: server, topology, artifacts })
    }

    fn host(&self, index: usize) -> &Host {
        self.hosts[index].as_ref().expect("a host that was started")
    }

    /// At once, while the VM is protected.
    fn kill(&mut self, index: usize) -> Result<()> {
        reach(self.host(index), "protected")?;
        let mut host = self.hosts[index].take().expect("a host that was started");
        host.kill_all()?;
        host.vmm.wait(OFF_LIMIT).map(|_| ())
    }

    /// As a service manager does it.
    fn restart(&mut self, index: u8) -> Result<()> {
        self.hosts[usize::from(index)] = Some(node(&self.artifacts, &self.topology, &self.witness, index)?);
        Ok(())
    }

    /// This host stands still, and so does its client of the file server, for longer than that waits for it.
    fn freeze_beyond_its_lease(&self, index: usize) -> Result<()> {
        self.topology.hosts[index].ip("link set up0 down\n")?;
        self.host(index).vmm.signal_all(Signal::SIGSTOP)?;
        self.progress()?;
        wait::pass(2 * LEASE)?;
        self.topology.hosts[index].ip("link set up0 up\n")?;
        self.host(index).vmm.signal_all(Signal::SIGCONT)
    }

    fn progress(&self) -> Result<()> {
        self.workload.progress(ROUNDS, WRITES_LIMIT)
    }

    /// What the client was told is there, over the connection that it has had from the beginning; then the
    /// image is sound.
    fn reckon(mut self, runner: usize) -> Result<()> {
        let mut record = self.workload.stop();
        assert_eq!(record.broken, None);
        assert_eq!(record.first_jump(), None, "a counter that jumps");
        let back = record.read_back()?;
        assert_eq!(back.client_id, record.client_id, "another connection");
        assert!(back.missing.is_empty(), "acknowledged and missing: {:?}", back.missing);
        eprintln!("{} acknowledged writes, all there", record.counter.len() as u64 + record.keys);
        let mut host = self.hosts[runner].take().expect("the host that runs the VM");
        host.api(&["power-button"])?;
        host.wait_off(OFF_LIMIT)?;
        let (sound, said) = image::fsck(host.image())?;
        assert!(sound, "{said}");
        Ok(())
    }

    fn words(&self) -> String {
        let words = self.hosts.iter().flatten().map(|host| format!("host {}:\n{}", host.index, host.vmm.last_words()));
        words.collect::<Vec<_>>().join("\n")
    }
}

fn node(artifacts: &Artifacts, topology: &Topology, witness: &[PathBuf; 2], index: u8) -> Result<Host> {
    let witness = witness[usize::from(index)].display().to_string();
    let pairing = Pairing { witness: &witness, detect_ms: patience(LAB_TEST_DETECT_MS) };
    Host::member(artifacts, topology, &Shape::default(), index, &pairing)
}

fn reach(host: &Host, state: &str) -> Result<()> {
    wait::until(&format!("{state} on host {}", host.index), STATE_LIMIT, || {
        let status = host.ft_status()?;
        if status["state"] == state {
            return Ok(Some(()));
        }
        Err(Error::Protocol { from: "ft status".into(), answer: status.to_string() })
    })
}

fn succeeds(act: impl FnOnce(&mut Rig) -> Result<usize>) {
    let rig = Rig::start().unwrap_or_else(|error| panic!("{}", error.chain()));
    succeeds_with(rig, act);
}

fn succeeds_with(mut rig: Rig, act: impl FnOnce(&mut Rig) -> Result<usize>) {
    let ended = act(&mut rig);
    let words = rig.words();
    ended.and_then(|runner| rig.reckon(runner)).unwrap_or_else(|error| panic!("{}\n{words}", error.chain()));
}

#[test]
fn host_dies_and_comes_back() {
    succeeds(|rig| {
        rig.kill(0)?;
        rig.progress()?;
        rig.restart(0)?;
        reach(rig.host(1), "protected")?;
        eprintln!("protected again, by the host that had died");
        rig.progress()?;
        rig.kill(1)?;
        rig.progress()?;
        reach(rig.host(0), "solo")?;
        Ok(0)
    });
}

#[test]
fn switchover() {
    succeeds(|rig| {
        for (runner, other) in [(0, 1), (1, 0)] {
            reach(rig.host(runner), "protected")?;
            let account = rig.host(runner).api(&["ft", "switchover"])?;
            eprintln!("{account}");
            assert!(account.contains("gap: ") && account.contains("protected again"), "{account}");
            reach(rig.host(other), "protected")?;
            rig.progress()?;
        }
        Ok(0)
    });
}

#[test]
fn witness_on_a_file_server() {
    let rig = Rig::with_file_server().unwrap_or_else(|error| panic!("{}", error.chain()));
    let Some(rig) = rig else { return println!("SKIPPED: nfs-kernel-server is not installed") };
    succeeds_with(rig, |rig| {
        rig.kill(0)?;
        rig.progress()?;
        reach(rig.host(1), "solo")?;
        rig.restart(0)?;
        reach(rig.host(1), "protected")?;
        rig.progress()?;
        // The other host takes over; this one, with locks that are nobody's any more, must not go on.
        rig.freeze_beyond_its_lease(1)?;
        reach(rig.host(0), "protected")?;
        rig.progress()?;
        Ok(0)
    });
}
