//! From a device's configuration to the device: its process or its backend, and the connection to it.

use std::ffi::OsString;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use ft_wire::device_ctl::DeviceInfo;
use pollux_api::limits::DEVICE_QUEUES_MAX;

use crate::config::{DiskConfig, DiskPurpose, NetConfig, VhostMode};
use crate::devices::error::DeviceError;
use crate::machine::memory::guest::GuestRam;
use crate::process::{ChildExits, DISK_PROGRAM, DeviceProcess, NET_PROGRAM};
use crate::vhost_user::{DirtyLog, Kind, Link, NetOptions, VhostUserDevice, Watchdog};

/// Where a device's queues are served.
pub(super) enum Backend {
    /// By a process of ours that has been started and is to be greeted.
    Process(DeviceProcess),
    /// By somebody else's, at this socket.
    Other {
        /// Path of the socket.
        socket: String,
        /// Whether it connects to us.
        listen: bool,
    },
}

/// What a vhost-user device shares with all others.
pub(super) struct Shared<'a> {
    pub(super) ram: &'a GuestRam,
    pub(super) log: &'a Arc<DirtyLog>,
    pub(super) watchdog: &'a Arc<Watchdog>,
    pub(super) exits: &'a Arc<ChildExits>,
}

/// A device on its way.
pub(super) struct Planned {
    pub(super) id: String,
    pub(super) kind: Kind,
    /// Queues that the backend serves, and their size.
    pub(super) queues: (usize, u16),
    pub(super) wished_slot: Option<u8>,
    backend: Backend,
}

/// A device that is connected.
pub(super) struct Connected {
    pub(super) device: VhostUserDevice,
    /// If its process is ours: the process and what it says it is.
    pub(super) process: Option<(DeviceProcess, DeviceInfo)>,
}

impl Planned {
    /// Starts what serves disk number `index` of the configuration.
    pub(super) fn disk(index: usize, disk: &DiskConfig, shared: &Shared<'_>) -> Result<Self, DeviceError> {
        let id = disk.id.clone().unwrap_or_default();
        check_queues(&format!("disks[{index}].num_queues"), disk.num_queues, 1)?;
        let backend = match (disk.vhost_user, &disk.vhost_socket) {
            (true, Some(socket)) => Backend::Other { socket: socket.clone(), listen: false },
            (true, None) => return Err(missing(format!("disks[{index}].vhost_socket"))),
            (false, _) => {
                let path = disk.path.as_ref().ok_or_else(|| missing(format!("disks[{index}].path")))?;
                let arguments = disk_arguments(disk, path);
                Backend::Process(DeviceProcess::spawn(&id, DISK_PROGRAM, &arguments, shared.exits)?)
            }
        };
        let queues = (disk.num_queues, disk.queue_size);
        Ok(Self { id, kind: Kind::Disk, queues, wished_slot: disk.pci_device_id, backend })
    }

    /// Starts what serves network card number `index` of the configuration.
    pub(super) fn net(index: usize, net: &NetConfig, shared: &Shared<'_>) -> Result<Self, DeviceError> {
        let id = net.id.clone().unwrap_or_default();
        check_queues(&format!("net[{index}].num_queues"), net.num_queues, 2)?;
        let options = NetOptions {
            mac: net.mac.as_ref().map(|mac| mac.bytes()).unwrap_or_default(),
            mtu: net.mtu,
            pairs: (net.num_queues / 2) as u16,
            tso: net.offload_tso,
            ufo: net.offload_ufo,
            csum: net.offload_csum,
        };
        let backend = match (net.vhost_user, &net.vhost_socket) {
            (true, Some(socket)) => {
                Backend::Other { socket: socket.clone(), listen: net.vhost_mode == VhostMode::Server }
            }
            (true, None) => return Err(missing(format!("net[{index}].vhost_socket"))),
            (false, _) => {
                let arguments = net_arguments(net, options.pairs);
                Backend::Process(DeviceProcess::spawn(&id, NET_PROGRAM, &arguments, shared.exits)?)
            }
        };
        let queues = (net.num_queues, net.queue_size);
        Ok(Self { id, kind: Kind::Net(options), queues, wished_slot: net.pci_device_id, backend })
    }

    /// Waits for its process to be ready and makes the vhost-user connection.
    pub(super) fn connect(mut self, shared: &Shared<'_>) -> Result<Connected, DeviceError> {
        let (stream, name, process) = match self.backend {
            Backend::Process(mut process) => {
                let info = process.greet()?;
                if let (Kind::Net(options), DeviceInfo::Net { mtu, .. }) = (&mut self.kind, &info) {
                    // The guest is told the tap's, whoever has set it.
                    options.mtu = Some(*mtu);
                }
                let name = format!("process {}", process.pid());
                let stream = process.take_stream();
                (stream, name, Some((process, info)))
            }
            Backend::Other { socket, listen } => {
                let path = Path::new(&socket);
                let connect: fn(&str, &Path) -> Result<UnixStream, _> =
                    if listen { Link::accept } else { Link::connect };
                (Some(connect(&self.id, path)?), socket, None)
            }
        };
        let stream = stream.ok_or_else(|| missing(format!("connection of {}", self.id)))?;
        let link = Link::new(&self.id, &name, stream, self.queues.0, shared.ram, shared.watchdog.clone())?;
        let device = VhostUserDevice::new(&self.id, self.kind, link, self.queues, shared.ram, shared.log.clone())?;
        Ok(Connected { device, process })
    }
}

fn missing(field: String) -> DeviceError {
    DeviceError::Config { field, problem: "must be given".to_owned() }
}

fn check_queues(field: &str, count: usize, unit: usize) -> Result<(), DeviceError> {
    if count == 0 || count > DEVICE_QUEUES_MAX || !count.is_multiple_of(unit) {
        let problem = format!("must be a multiple of {unit} from {unit} to {DEVICE_QUEUES_MAX}, not {count}");
        return Err(DeviceError::Config { field: field.to_owned(), problem });
    }
    Ok(())
}

fn disk_arguments(disk: &DiskConfig, path: &Path) -> Vec<OsString> {
    let mut arguments = Arguments::default();
    arguments.pair("--path", path);
    arguments.flag("--readonly", disk.readonly);
    arguments.flag("--direct", disk.direct);
    arguments.flag("--standby", disk.purpose == DiskPurpose::StandBy && !disk.readonly);
    arguments.flag("--elected", disk.purpose == DiskPurpose::RunElected);
    arguments.flag("--force", disk.force && disk.purpose != DiskPurpose::StandBy);
    if let Some(serial) = &disk.serial {
        arguments.pair("--serial", serial);
    }
    arguments.pair("--num-queues", disk.num_queues.to_string());
    arguments.pair("--queue-size", disk.queue_size.to_string());
    arguments.0
}

fn net_arguments(net: &NetConfig, pairs: u16) -> Vec<OsString> {
    let mut arguments = Arguments::default();
    if let Some(tap) = net.tap.as_ref().filter(|tap| !tap.is_empty()) {
        arguments.pair("--tap", tap);
    }
    for (flag, address) in [("--ip", &net.ip), ("--mask", &net.mask)] {
        if let Some(address) = address {
            arguments.pair(flag, address.to_string());
        }
    }
    for (flag, mac) in [("--mac", &net.host_mac), ("--guest-mac", &net.mac)] {
        if let Some(mac) = mac {
            arguments.pair(flag, mac.to_string());
        }
    }
    if let Some(mtu) = net.mtu {
        arguments.pair("--mtu", mtu.to_string());
    }
    arguments.pair("--num-queues", pairs.to_string());
    arguments.pair("--queue-size", net.queue_size.to_string());
    arguments.0
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn pair(&mut self, flag: &str, value: impl Into<OsString>) {
        self.0.push(flag.into());
        self.0.push(value.into());
    }

    fn flag(&mut self, flag: &str, on: bool) {
        if on {
            self.0.push(flag.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(arguments: Vec<OsString>) -> String {
        let arguments: Vec<_> = arguments.into_iter().map(|a| a.into_string().unwrap()).collect();
        arguments.join(" ")
    }

    #[test]
    fn command_lines() {
        let disk = DiskConfig { readonly: true, serial: Some("s1".to_owned()), num_queues: 2, ..Default::default() };
        assert_eq!(
            text(disk_arguments(&disk, Path::new("/a b"))),
            "--path /a b --readonly --serial s1 --num-queues 2 --queue-size 128"
        );
        let disk = DiskConfig { force: true, ..Default::default() };
        let standby = DiskConfig { purpose: DiskPurpose::StandBy, ..disk.clone() };
        let both = [disk, standby].map(|disk| text(disk_arguments(&disk, Path::new("/a"))));
        assert_eq!(both[0], "--path /a --force --num-queues 1 --queue-size 128");
        assert_eq!(both[1], "--path /a --standby --num-queues 1 --queue-size 128");
        let net = NetConfig {
            tap: Some("tap0".to_owned()),
            ip: Some([10, 0, 0, 1].into()),
            mac: Some("02:00:00:00:00:01".parse().unwrap()),
            ..Default::default()
        };
        assert_eq!(
            text(net_arguments(&net, 1)),
            "--tap tap0 --ip 10.0.0.1 --guest-mac 02:00:00:00:00:01 --num-queues 1 --queue-size 256"
        );
    }

    #[test]
    fn queue_counts_are_checked_by_name() {
        assert!(check_queues("disks[0].num_queues", 4, 1).is_ok());
        for (count, unit) in [(0, 1), (3, 2), (64, 2)] {
            let error = check_queues("net[0].num_queues", count, unit).unwrap_err();
            assert!(error.to_string().contains("net[0].num_queues"), "{error}");
        }
    }
}
