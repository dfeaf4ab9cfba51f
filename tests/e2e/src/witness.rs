//! The witness of a run: a file that both hosts see, or etcd in a place of its own that both reach over the LAN.

use std::fs::File;
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;
use nix::sys::signal::Signal;

use crate::artifacts::Artifacts;
use crate::process::Process;
use crate::topology::{Topology, WITNESS};
use crate::{Error, Result, wait};

const ETCD: &str = "/usr/bin/etcd";
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
/// How long etcd may take to start: the machine may be emulated.
const START_LIMIT: Duration = Duration::from_secs(60);

/// What keeps the record.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Keeper {
    /// A file and its lock.
    File,
    /// A key in etcd.
    Etcd,
}

/// The witness while it runs; gone on drop.
#[derive(Debug)]
pub struct Witness {
    /// What the hosts are told.
    address: String,
    way: Way,
}

#[derive(Debug)]
enum Way {
    /// The lock; it is held while the witness hangs.
    File(File),
    Etcd(Process),
}

impl Witness {
    /// Starts it.
    ///
    /// # Errors
    /// When etcd does not come up, or the file cannot be made.
    pub fn start(keeper: Keeper, artifacts: &Artifacts, topology: &Topology) -> Result<Self> {
        match keeper {
            Keeper::File => {
                let path = artifacts.path("witness");
                let lock = path.with_added_extension("lock");
                let file = File::create(&lock).map_err(Error::file("create", &lock))?;
                Ok(Self { address: path.display().to_string(), way: Way::File(file) })
            }
            Keeper::Etcd => {
                let address = format!("etcd://{WITNESS}:{CLIENT_PORT}/pollux/vm1");
                Ok(Self { address, way: Way::Etcd(etcd(artifacts, topology)?) })
            }
        }
    }

    /// What follows `witness=`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// From here on it answers nobody, as a machine that hangs.
    ///
    /// # Errors
    /// When it is gone.
    pub fn hang(&self) -> Result<()> {
        match &self.way {
            Way::File(lock) => lock.lock().map_err(Error::io("cannot lock the witness")),
            Way::Etcd(etcd) => etcd.signal(Signal::SIGSTOP),
        }
    }

    /// It answers again.
    ///
    /// # Errors
    /// When it is gone.
    pub fn go_on(&self) -> Result<()> {
        match &self.way {
            Way::File(lock) => lock.unlock().map_err(Error::io("cannot unlock the witness")),
            Way::Etcd(etcd) => etcd.signal(Signal::SIGCONT),
        }
    }
}

fn etcd(artifacts: &Artifacts, topology: &Topology) -> Result<Process> {
    let program = Path::new(ETCD);
    if !program.exists() {
        return Err(Error::Missing { path: program.to_owned(), hint: "apt-get install etcd-server" });
    }
    let client = format!("http://{WITNESS}:{CLIENT_PORT}");
    let peer = format!("http://{WITNESS}:{PEER_PORT}");
    let cluster = format!("witness={peer}");
    let folder = artifacts.path("etcd").display().to_string();
    let args = [
        ["--name", "witness"],
        ["--data-dir", &folder],
        ["--listen-client-urls", &client],
        ["--advertise-client-urls", &client],
        ["--listen-peer-urls", &peer],
        ["--initial-advertise-peer-urls", &peer],
        ["--initial-cluster", &cluster],
        ["--log-level", "warn"],
    ];
    let mut process = Process::start(&topology.witness, program, args.as_flattened(), &artifacts.path("etcd.log"))?;
    wait::until("an open port of etcd", START_LIMIT, || {
        if let Some(status) = process.ended()? {
            return Ok(Some(Err(Error::Command {
                command: ETCD.into(),
                status: status.to_string(),
                output: process.last_words(),
            })));
        }
        let connect = || TcpStream::connect((WITNESS, CLIENT_PORT)).map_err(Error::io("cannot connect to etcd"));
        topology.witness.run(connect).map(|_| Some(Ok(())))
    })??;
    Ok(process)
}
