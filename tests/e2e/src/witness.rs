//! The witness of a run: a file that both hosts see, or etcd in a place of its own that both reach over the
//! LAN.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
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
const ASK_LIMIT: Duration = Duration::from_secs(5);

/// What keeps the record.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Keeper {
    /// A file and its lock.
    File,
    /// A key in etcd.
    Etcd,
}

/// How it is out of reach.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Absence {
    /// It takes questions and answers none: a file server that hangs, an etcd that is stopped.
    Hangs,
    /// Nobody is there to be asked: no such folder, an etcd that is killed. It comes back with the record
    /// that it had.
    Gone,
}

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hangs => "hangs",
            Self::Gone => "is gone",
        })
    }
}

/// The witness while it runs; gone on drop.
#[derive(Debug)]
pub struct Witness {
    /// What the hosts are told.
    address: String,
    way: Way,
    away: Option<Absence>,
}

#[derive(Debug)]
enum Way {
    /// The folder of the record, and the lock.
    File(PathBuf, File),
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
                let folder = artifacts.path("witness");
                fs::create_dir(&folder).map_err(Error::file("create", &folder))?;
                let path = folder.join("vm1");
                let lock = path.with_added_extension("lock");
                let file = File::create(&lock).map_err(Error::file("create", &lock))?;
                Ok(Self { address: path.display().to_string(), way: Way::File(folder, file), away: None })
            }
            Keeper::Etcd => {
                let address = format!("etcd://{WITNESS}:{CLIENT_PORT}/pollux/vm1");
                Ok(Self { address, way: Way::Etcd(etcd(artifacts, topology)?), away: None })
            }
        }
    }

    /// What follows `witness=`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Another address where no record has ever been: what a host finds whose file system with the record is
    /// not mounted.
    ///
    /// # Errors
    /// When its folder cannot be made.
    pub fn empty_place(&self, artifacts: &Artifacts) -> Result<String> {
        match &self.way {
            Way::File(..) => {
                let folder = artifacts.path("unmounted");
                fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
                Ok(folder.join("vm1").display().to_string())
            }
            Way::Etcd(_) => Ok(format!("{}-nobody", self.address)),
        }
    }

    /// From here on nobody gets an answer.
    ///
    /// # Errors
    /// When it is away already, or its process cannot be signalled.
    pub fn leave(&mut self, how: Absence) -> Result<()> {
        match (&mut self.way, how) {
            (Way::File(_, lock), Absence::Hangs) => lock.lock().map_err(Error::io("cannot lock the witness"))?,
            (Way::File(folder, _), Absence::Gone) => rename(folder, &elsewhere(folder))?,
            (Way::Etcd(etcd), Absence::Hangs) => etcd.signal(Signal::SIGSTOP)?,
            (Way::Etcd(etcd), Absence::Gone) => {
                etcd.signal(Signal::SIGKILL)?;
                etcd.wait(START_LIMIT)?;
            }
        }
        self.away = Some(how);
        Ok(())
    }

    /// It answers again, if it was away.
    ///
    /// # Errors
    /// When it does not come up again.
    pub fn come_back(&mut self, artifacts: &Artifacts, topology: &Topology) -> Result<()> {
        match (&mut self.way, self.away.take()) {
            (_, None) => Ok(()),
            (Way::File(_, lock), Some(Absence::Hangs)) => lock.unlock().map_err(Error::io("cannot unlock the witness")),
            (Way::File(folder, _), Some(Absence::Gone)) => rename(&elsewhere(folder), folder),
            (Way::Etcd(etcd), Some(Absence::Hangs)) => etcd.signal(Signal::SIGCONT),
            (Way::Etcd(process), Some(Absence::Gone)) => {
                *process = etcd(artifacts, topology)?;
                Ok(())
            }
        }
    }
}

fn elsewhere(folder: &Path) -> PathBuf {
    folder.with_added_extension("away")
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::file("move", from))
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
    wait::until("a healthy etcd", START_LIMIT, || {
        if let Some(status) = process.ended()? {
            return Ok(Some(Err(Error::Command {
                command: ETCD.into(),
                status: status.to_string(),
                output: process.last_words(),
            })));
        }
        let health = topology.witness.run(|| health().map_err(Error::io("cannot ask etcd")))?;
        Ok(health.contains(r#""health":"true""#).then_some(Ok(())))
    })??;
    Ok(process)
}

/// What etcd says of itself. Its port is open before it serves.
fn health() -> io::Result<String> {
    let mut stream = TcpStream::connect((WITNESS, CLIENT_PORT))?;
    stream.set_read_timeout(Some(ASK_LIMIT))?;
    stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map(|_| answer)
}
