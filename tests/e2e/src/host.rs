//! One host of the pair: its VMM process, its image, and the `pollux` command pointed at its API.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::artifacts::Artifacts;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::topology::{GUEST, GUEST_MAC, LAN_BITS, TAP, Topology};
use crate::{Error, Result, image, wait};

const STREAM_PORT: u16 = 7171;
const BEAT_PORT: u16 = 7172;
/// How long an API call may take here: the machine may be emulated.
const UP_LIMIT: Duration = Duration::from_secs(20);

/// The guest's shape.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Virtual CPUs.
    pub cpus: u8,
    /// Memory, as the command line takes it.
    pub memory: String,
    /// Which kernel file boots: `vmlinuz` or `vmlinux`.
    pub kernel: &'static str,
}

impl Default for Shape {
    fn default() -> Self {
        Self { cpus: 2, memory: "512M".into(), kernel: "vmlinuz" }
    }
}

/// How the two hosts judge each other.
#[derive(Clone, Copy, Debug)]
pub struct Pairing<'a> {
    /// The witness's address.
    pub witness: &'a str,
    /// Silence that counts as death, in ms; `None`: the default.
    pub detect_ms: Option<u64>,
}

impl Pairing<'_> {
    /// The settings both hosts share, as `key=value,...`.
    fn settings(&self) -> String {
        let detect = self.detect_ms.map(|ms| format!(",detect_ms={ms}")).unwrap_or_default();
        format!("witness={}{detect}", self.witness)
    }
}

/// One host with its VMM running.
#[derive(Debug)]
pub struct Host {
    /// 0 is A, 1 is B.
    pub index: u8,
    /// The VMM and its device processes.
    pub vmm: Process,
    client: PathBuf,
    socket: PathBuf,
    image: PathBuf,
    serial: PathBuf,
}

impl Host {
    /// Starts host A's VMM with the guest on a fresh copy of the image.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn primary(artifacts: &Artifacts, topology: &Topology, shape: &Shape) -> Result<Self> {
        std::fs::rename(artifacts.path("root.img"), artifacts.path("a.img"))
            .map_err(Error::io("cannot name the image"))?;
        let mut args = common(artifacts, 0, shape);
        args.extend(payload(artifacts, shape));
        Self::start(artifacts, &topology.hosts[0], 0, &args)
    }

    /// Starts host B's VMM as the standby, with a blank image of the size of A's.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn standby(
        artifacts: &Artifacts,
        topology: &Topology,
        shape: &Shape,
        size: u64,
        pairing: &Pairing<'_>,
    ) -> Result<Self> {
        image::blank(&artifacts.path("b.img"), size)?;
        let mut args = common(artifacts, 1, shape);
        let ft =
            format!("role=standby,listen={},heartbeat={},{}", stream_address(1), beat_address(1), pairing.settings());
        args.extend(["--ft".into(), ft]);
        Self::start(artifacts, &topology.hosts[1], 1, &args)
    }

    /// Starts the VMM of host `index` with the command line that it has for good: whether it boots the guest
    /// or stands by is for the witness to say.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn member(
        artifacts: &Artifacts,
        topology: &Topology,
        shape: &Shape,
        index: u8,
        pairing: &Pairing<'_>,
    ) -> Result<Self> {
        let vmm = Self::launch(artifacts, topology, shape, index, "role=auto", pairing)?;
        Self::up(artifacts, index, vmm)
    }

    /// As [`Self::member`] as `role`, without waiting for it to come up.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(
        artifacts: &Artifacts,
        topology: &Topology,
        shape: &Shape,
        index: u8,
        role: &str,
        pairing: &Pairing<'_>,
    ) -> Result<Process> {
        let mut args = common(artifacts, index, shape);
        args.extend(payload(artifacts, shape));
        let [own, peer] = [index, 1 - index].map(|host| (stream_address(host), beat_address(host)));
        let addresses = format!("listen={},heartbeat={},standby-peers=[{}/{}]", own.0, own.1, peer.0, peer.1);
        args.extend(["--ft".into(), format!("{role},{addresses},{}", pairing.settings())]);
        process(artifacts, &topology.hosts[usize::from(index)], index, &args)
    }

    fn start(artifacts: &Artifacts, namespace: &Namespace, index: u8, args: &[String]) -> Result<Self> {
        Self::up(artifacts, index, process(artifacts, namespace, index, args)?)
    }

    fn up(artifacts: &Artifacts, index: u8, vmm: Process) -> Result<Self> {
        let letter = letter(index);
        let mut host = Self {
            index,
            vmm,
            client: artifacts.path("pollux"),
            socket: artifacts.path(&format!("{letter}.sock")),
            image: artifacts.path(&format!("{letter}.img")),
            serial: artifacts.path(&format!("{letter}.serial")),
        };
        let up = wait::until(&format!("answer of the API of host {letter}"), UP_LIMIT, || match host.vmm.ended()? {
            Some(status) => Ok(Some(Err(status))),
            None => host.api(&["ping"]).map(|_| Some(Ok(()))),
        })?;
        up.map_err(|status: ExitStatus| host.died(status))?;
        Ok(host)
    }

    /// Runs `pollux --api-socket SOCKET ARGS`.
    ///
    /// # Errors
    /// When the command fails.
    pub fn api(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.client);
        command.arg("--api-socket").arg(&self.socket).args(args);
        let output = command.output().map_err(Error::io("cannot run pollux"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(Error::Command {
            command: format!("pollux {} on host {}", args.join(" "), letter(self.index)),
            status: output.status.to_string(),
            output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    /// As [`Self::api`], for a command that prints JSON.
    ///
    /// # Errors
    /// When the command fails or prints something else.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let answer = self.api(args)?;
        serde_json::from_str(&answer)
            .map_err(|_| Error::Protocol { from: format!("pollux {}", args.join(" ")), answer })
    }

    /// `pollux ft status` as JSON.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub fn ft_status(&self) -> Result<Value> {
        self.json(&["ft", "status", "--json"])
    }

    /// What `ft events` has so far, oldest first.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub fn ft_events(&self) -> Result<Vec<Value>> {
        let answer = self.api(&["ft", "events", "--json"])?;
        let parse = |line: &str| {
            serde_json::from_str(line)
                .map_err(|_| Error::Protocol { from: "pollux ft events".into(), answer: line.into() })
        };
        answer.lines().filter(|line| !line.trim().is_empty()).map(parse).collect()
    }

    /// State of the VM as `info` tells it.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub fn state(&self) -> Result<String> {
        let info = self.json(&["info"])?;
        let state = info["state"].as_str().map(str::to_owned);
        state.ok_or_else(|| Error::Protocol { from: "pollux info".into(), answer: info.to_string() })
    }

    /// Kills the VMM and all its device processes in one blow.
    ///
    /// # Errors
    /// When they are gone already.
    pub fn kill_all(&self) -> Result<()> {
        self.vmm.signal_all(Signal::SIGKILL)
    }

    /// Waits for the VMM to end by itself, as it does after the guest has powered off.
    ///
    /// # Errors
    /// When it does not end, or ends with an error.
    pub fn wait_off(&mut self, limit: Duration) -> Result<()> {
        let status = self.vmm.wait(limit)?;
        if status.success() { Ok(()) } else { Err(self.died(status)) }
    }

    /// The image file.
    #[must_use]
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// What the guest wrote on its serial port at this host.
    #[must_use]
    pub fn serial(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.serial).unwrap_or_default()).into_owned()
    }

    /// The file with what the guest wrote on its serial port.
    #[must_use]
    pub fn serial_file(&self) -> &Path {
        &self.serial
    }

    /// The API socket's path.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    fn died(&self, status: ExitStatus) -> Error {
        Error::Command {
            command: format!("pollux-vmm on host {}", letter(self.index)),
            status: status.to_string(),
            output: self.vmm.last_words(),
        }
    }
}

/// What `ft protect` at host A needs to find host B.
#[must_use]
pub fn protect_argument(pairing: &Pairing<'_>) -> String {
    format!("peer={},heartbeat={},{}", stream_address(1), beat_address(1), pairing.settings())
}

/// Name of a host in messages and file names.
#[must_use]
pub fn letter(index: u8) -> char {
    char::from(b'a' + index)
}

fn process(artifacts: &Artifacts, namespace: &Namespace, index: u8, args: &[String]) -> Result<Process> {
    let log = artifacts.path(&format!("{}.log", letter(index)));
    Process::start(namespace, &artifacts.path("pollux-vmm"), args, &log)
}

/// Where a host's door is.
#[must_use]
pub fn stream_address(host: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Topology::replication(host)), STREAM_PORT)
}

/// Where a host hears the beats of the second link.
#[must_use]
pub fn beat_address(host: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Topology::heartbeat(host)), BEAT_PORT)
}

fn common(artifacts: &Artifacts, index: u8, shape: &Shape) -> Vec<String> {
    let letter = letter(index);
    let path = |end: &str| text(&artifacts.path(&format!("{letter}.{end}")));
    [
        ("--api-socket", path("sock")),
        ("--cpus", format!("boot={}", shape.cpus)),
        ("--memory", format!("size={},shared=on", shape.memory)),
        ("--disk", format!("path={},image_type=raw", path("img"))),
        ("--net", format!("tap={TAP},mac={GUEST_MAC}")),
        ("--serial", format!("file={}", path("serial"))),
        ("--console", "off".into()),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.to_owned(), value])
    .collect()
}

/// What the guest boots.
fn payload(artifacts: &Artifacts, shape: &Shape) -> Vec<String> {
    let cmdline = format!("console=ttyS0 root=/dev/vda rw quiet panic=-1 pollux.ip={GUEST}/{LAN_BITS}");
    let (kernel, initramfs) = (text(&artifacts.path(shape.kernel)), text(&artifacts.path("initramfs.gz")));
    ["--kernel".into(), kernel, "--initramfs".into(), initramfs, "--cmdline".into(), cmdline].into()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
