//! The two hosts of a chaos run: who is what as seen from outside, starting what has died, protecting again.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::small_disk::SmallDisk;
use crate::artifacts::{Artifacts, copy};
use crate::host::{Host, Pairing, Shape, letter};
use crate::topology::Topology;
use crate::witness::{Absence, Keeper, Witness};
use crate::{Error, Result, image, process, wait};

/// How long processes may take to be gone after a signal.
const GONE_LIMIT: Duration = Duration::from_secs(20);
/// How long the first host may take until the witness has given it the VM.
const START_LIMIT: Duration = Duration::from_secs(60);

/// What a host looks like from outside.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Seen {
    /// No VMM process.
    Dead,
    /// It may not run the VM any more, and has stopped it.
    Fenced,
    /// Its VMM is stopped by a signal.
    Frozen,
    /// Its API does not answer.
    Mute(String),
    /// It runs the VM.
    Runs {
        /// Whether the other host could go on with it.
        protected: bool,
        /// Its reign.
        term: u64,
    },
    /// It waits for a primary, or has one.
    StandsBy,
}

/// Both hosts and what they have in common.
pub struct Pair {
    hosts: [Host; 2],
    // After the hosts, whose images are on them, and before the folder in which they are mounted.
    disks: [SmallDisk; 2],
    witness: Witness,
    artifacts: Artifacts,
    shape: Shape,
    detect_ms: Option<u64>,
    /// Logs of earlier lives are numbered.
    lives: u32,
}

impl Pair {
    /// Boots the guest on host A and starts host B as its standby.
    ///
    /// # Errors
    /// When one does not come up.
    pub fn start(
        artifacts: Artifacts,
        topology: &Topology,
        shape: Shape,
        keeper: Keeper,
        detect_ms: Option<u64>,
    ) -> Result<Self> {
        let witness = Witness::start(keeper, &artifacts, topology)?;
        let size = artifacts.disk_size()?;
        let root = artifacts.path("root.img");
        let disks = ['a', 'b'].map(|host| SmallDisk::mount(artifacts.path(&format!("disk.{host}")), &root));
        let [one, other] = disks;
        let disks = [one?, other?];
        copy(&root, &place(&artifacts, 0, &disks[0])?, "the guest image has it")?;
        image::blank(&place(&artifacts, 1, &disks[1])?, size)?;
        let pairing = Pairing { witness: witness.address(), detect_ms };
        // The one with the guest's disk boots it. The other one, whose disk is one hole, never does, though
        // it is the first.
        let b = Host::member(&artifacts, topology, &shape, 1, &pairing)?;
        let a = Host::member(&artifacts, topology, &shape, 0, &pairing)?;
        wait::until("the VM on host a", START_LIMIT, || Ok(Seen::read(&a.ft_status()?).runs().then_some(())))?;
        Ok(Self { hosts: [a, b], disks, witness, artifacts, shape, detect_ms, lives: 0 })
    }

    /// A host.
    #[must_use]
    pub fn host(&self, index: u8) -> &Host {
        &self.hosts[usize::from(index)]
    }

    /// The file system that a host's image is on.
    #[must_use]
    pub fn disk(&self, index: u8) -> &SmallDisk {
        &self.disks[usize::from(index)]
    }

    /// The run's files.
    #[must_use]
    pub fn artifacts(&self) -> &Artifacts {
        &self.artifacts
    }

    /// What a host looks like now.
    pub fn look(&mut self, index: u8) -> Seen {
        let host = &mut self.hosts[usize::from(index)];
        if !matches!(host.vmm.ended(), Ok(None)) {
            return Seen::Dead;
        }
        if process::stopped(host.vmm.pid()) {
            return Seen::Frozen;
        }
        host.ft_status().map_or_else(|error| Seen::Mute(error.chain()), |status| Seen::read(&status))
    }

    /// Waits until the two look as `right` says; what they look like then.
    ///
    /// # Errors
    /// When they do not within `limit`; the error tells what they look like.
    pub fn wait(&mut self, what: &str, limit: Duration, right: impl Fn(&[Seen; 2]) -> bool) -> Result<[Seen; 2]> {
        wait::until(what, limit, || {
            let seen = [self.look(0), self.look(1)];
            if right(&seen) {
                return Ok(Some(seen));
            }
            Err(Error::Protocol { from: "hosts".into(), answer: format!("a: {:?}, b: {:?}", seen[0], seen[1]) })
        })
    }

    /// Starts what has died, with the same command line, until host `runner` is protected by the other one
    /// again. Everything else is for the pair to do.
    ///
    /// # Errors
    /// When it is not protected within `limit`.
    pub fn recover(&mut self, runner: u8, topology: &Topology, limit: Duration) -> Result<()> {
        wait::until("protection", limit, || {
            if self.look(1 - runner) == Seen::Dead {
                self.revive(1 - runner, topology)?;
            }
            match self.look(runner) {
                Seen::Runs { protected: true, .. } => Ok(Some(())),
                seen => Err(Error::Protocol { from: format!("host {}", letter(runner)), answer: format!("{seen:?}") }),
            }
        })
    }

    /// Starts a dead host's VMM again.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn revive(&mut self, index: u8, topology: &Topology) -> Result<()> {
        let witness = self.witness.address().to_owned();
        self.revive_with(index, topology, &witness)
    }

    /// As [`Self::revive`], with another place for the witness.
    ///
    /// # Errors
    /// As `revive`.
    pub fn revive_with(&mut self, index: u8, topology: &Topology, witness: &str) -> Result<()> {
        self.put_logs_aside(index);
        let pairing = Pairing { witness, detect_ms: self.detect_ms };
        let started = Host::member(&self.artifacts, topology, &self.shape, index, &pairing)?;
        self.hosts[usize::from(index)] = started;
        Ok(())
    }

    /// Starts a dead host's VMM as `role`, which must not be granted: the exit code and what it said.
    ///
    /// # Errors
    /// When it does not end.
    pub fn refused(&mut self, index: u8, topology: &Topology, role: &str) -> Result<(Option<i32>, String)> {
        self.put_logs_aside(index);
        let pairing = Pairing { witness: self.witness.address(), detect_ms: self.detect_ms };
        let mut vmm = Host::launch(&self.artifacts, topology, &self.shape, index, role, &pairing)?;
        let status = vmm.wait(START_LIMIT)?;
        Ok((status.code(), vmm.last_words()))
    }

    /// What a host's VMM printed in an earlier life is kept beside what it prints in the next one.
    fn put_logs_aside(&mut self, index: u8) {
        let host = &self.hosts[usize::from(index)];
        self.lives += 1;
        for file in [host.vmm.log(), host.serial_file()] {
            let old = file.with_extension(format!("{}.{}", self.lives, extension(file)));
            // A host that never ran the guest has no serial line.
            let _ = fs::rename(file, old);
        }
    }

    /// Kills every process of a host in one blow, and waits until they are gone.
    ///
    /// # Errors
    /// When one is gone already, or stays.
    pub fn kill_host(&mut self, index: u8) -> Result<()> {
        let vmm = &mut self.hosts[usize::from(index)].vmm;
        let started: Vec<u32> = vmm.descendants().into_iter().map(|(pid, _)| pid).collect();
        vmm.signal_all(Signal::SIGKILL)?;
        wait_gone(&started)?;
        // The first thread of a process may be gone while others still give their memory back.
        vmm.wait(GONE_LIMIT).map(drop)
    }

    /// Who keeps the record.
    #[must_use]
    pub fn witness(&self) -> &Witness {
        &self.witness
    }

    /// Takes the witness away.
    ///
    /// # Errors
    /// As [`Witness::leave`].
    pub fn lose_witness(&mut self, how: Absence) -> Result<()> {
        self.witness.leave(how)
    }

    /// Gives the witness back, if it is away.
    ///
    /// # Errors
    /// As [`Witness::come_back`].
    pub fn return_witness(&mut self, topology: &Topology) -> Result<()> {
        self.witness.come_back(&self.artifacts, topology)
    }

    /// Copies logs and serial lines of all lives, and the events of both hosts, to a folder.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn keep_logs(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
        let all = self.artifacts.path("");
        for entry in fs::read_dir(&all).map_err(Error::file("list", &all))?.flatten() {
            let path = entry.path();
            if ["log", "serial"].contains(&extension(&path).as_str()) {
                let to = folder.join(entry.file_name());
                fs::copy(&path, &to).map_err(Error::file("copy to", &to))?;
            }
        }
        for host in &self.hosts {
            let events = host.ft_events().unwrap_or_default();
            let text: String = events.iter().map(|event| format!("{event}\n")).collect();
            let to = folder.join(format!("{}.events", letter(host.index)));
            fs::write(&to, text).map_err(Error::file("write", &to))?;
        }
        Ok(())
    }

    /// The end of everybody's words, for a person who looks for the reason of a failure.
    #[must_use]
    pub fn last_words(&self) -> String {
        let mut text = String::new();
        for host in &self.hosts {
            let name = letter(host.index);
            let events = host.ft_events().unwrap_or_default();
            let events: String = events.iter().rev().take(12).rev().map(|event| format!("{event}\n")).collect();
            let serial = host.serial();
            let lines: Vec<&str> = serial.lines().collect();
            let tail = lines[lines.len().saturating_sub(8)..].join("\n");
            let vmm = host.vmm.last_words();
            text.push_str(&format!("--- host {name}, events:\n{events}--- VMM:\n{vmm}\n--- serial:\n{tail}\n"));
        }
        text
    }

    /// For what a run has to do with a host itself.
    pub fn host_mut(&mut self, index: u8) -> &mut Host {
        &mut self.hosts[usize::from(index)]
    }
}

impl Seen {
    fn read(status: &Value) -> Self {
        let term = status["term"].as_u64().unwrap_or_default();
        match status["state"].as_str().unwrap_or_default() {
            "protected" => Self::Runs { protected: true, term },
            "solo" | "suspended" | "syncing" | "unprotected" => Self::Runs { protected: false, term },
            // The next failure would stop the VM.
            "degraded" | "leaving" => Self::Runs { protected: false, term },
            "awaiting-witness" if status["role"] == "primary" => Self::Runs { protected: false, term },
            "awaiting-witness" => Self::StandsBy,
            "fenced" => Self::Fenced,
            state if state.starts_with("standby") => Self::StandsBy,
            other => Self::Mute(format!("state {other:?}")),
        }
    }

    /// Whether this host runs the VM.
    #[must_use]
    pub fn runs(&self) -> bool {
        matches!(self, Self::Runs { .. })
    }
}

/// Waits until none of the processes exists.
///
/// # Errors
/// When one stays.
pub fn wait_gone(pids: &[u32]) -> Result<()> {
    wait::until("end of the processes that were killed", GONE_LIMIT, || {
        let left: Vec<&u32> = pids.iter().filter(|pid| process::alive(**pid)).collect();
        if left.is_empty() {
            return Ok(Some(()));
        }
        Err(Error::Protocol { from: "process list".into(), answer: format!("{left:?} are alive") })
    })
}

/// Where the image of host `index` lies, on its own disk; a link leads there.
fn place(artifacts: &Artifacts, index: u8, disk: &SmallDisk) -> Result<PathBuf> {
    let (link, there) = (artifacts.path(&format!("{}.img", letter(index))), disk.path("image"));
    std::os::unix::fs::symlink(&there, &link).map_err(Error::file("link", &link))?;
    Ok(there)
}

fn extension(path: &Path) -> String {
    path.extension().map(|end| end.to_string_lossy().into_owned()).unwrap_or_default()
}
