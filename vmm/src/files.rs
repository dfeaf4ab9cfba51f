//! Which of the host's files a VMM can use that limits itself (`--landlock`): those that its configuration
//! names, what every VMM needs, and what its operator adds.
//!
//! It holds for the calling thread and those that it starts, and for the launcher, and with it for device
//! processes, which limit themselves further.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use host_kit::landlock::{Access, Others, Place, around, folders, limit};

use crate::config::{ConsoleOutputMode, NetConfig, VhostMode, VmConfig};
use crate::ft_api::{self, NodeOptions};
use crate::process::{self, DISK_PROGRAM, NET_PROGRAM};

/// The processor and KVM, the load of CPUs, links, name services, who this host is, and sockets that are gone
/// at once.
const ALWAYS: [(&str, Access); 10] = [
    ("/dev/kvm", Access::Write),
    ("/dev/null", Access::Write),
    ("/proc", Access::Read),
    ("/sys", Access::Read),
    ("/etc", Access::Read),
    ("/run/systemd/resolve", Access::Read),
    ("/var/lib/dbus/machine-id", Access::Read),
    ("/lib", Access::Read),
    ("/lib64", Access::Read),
    ("/usr/lib", Access::Read),
];

/// What device processes need beside what VMMs do, whatever they serve: libraries, and what taps are made of.
const OF_DEVICES: [(&str, Access); 4] = [
    ("/lib", Access::Execute),
    ("/lib64", Access::Execute),
    ("/usr/lib", Access::Execute),
    ("/dev/net/tun", Access::Write),
];

/// Folders where disks' processes keep records of block devices, and what outlives them.
const STATE_OF_DEVICES: [&str; 2] = ["/var/lib/pollux", "/run/pollux"];

/// It may lead elsewhere.
const RESOLVER: &str = "/etc/resolv.conf";

/// Limits add up, so that a second VM would have what it shares with the first.
static DONE: AtomicBool = AtomicBool::new(false);

/// Leaves the calling thread what the VM of `config` needs, if that asks for it and it is the first; `own`:
/// files that the VMM itself makes and removes, whatever the VM is.
///
/// # Errors
/// When the kernel refuses.
pub fn limit_to(config: &VmConfig, options: Option<&NodeOptions>, own: &[PathBuf]) -> io::Result<()> {
    if !config.landlock_enable || DONE.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    let mut places = named(config);
    places.extend(ALWAYS.map(|(path, access)| (path.into(), access)));
    places.push((std::env::temp_dir(), Access::Write));
    places.extend(options.map(ft_api::places).unwrap_or_default());
    places.extend(own.iter().map(|file| (around(file), Access::Write)));
    places.extend(Path::new(RESOLVER).canonicalize().ok().map(|file| (around(&file), Access::Read)));
    process::limit_launcher(&of_devices(config))?;
    limit(&places, Others::Reachable)
}

/// What the device processes of `config` open.
fn of_devices(config: &VmConfig) -> Vec<Place> {
    let mut places: Vec<Place> =
        ALWAYS.into_iter().chain(OF_DEVICES).map(|(path, access)| (path.into(), access)).collect();
    for folder in STATE_OF_DEVICES {
        // A place must be there to be left; what is wrong with it is said by whoever wants to write to it.
        let _ = fs::create_dir_all(folder);
        places.push((folder.into(), Access::Write));
    }
    let programs = [DISK_PROGRAM, NET_PROGRAM].into_iter().filter_map(process::find_program);
    places.extend(programs.map(|program| (program, Access::Execute)));
    for image in config.disks.iter().flatten().filter_map(|disk| disk.path.as_deref()) {
        places.push((image.to_owned(), Access::Write));
        // The record of a file is beside it; that of a block device is not.
        if !fs::metadata(image).is_ok_and(|found| found.file_type().is_block_device()) {
            places.extend(folders(image).map(|folder| (folder, Access::Write)));
        }
    }
    places.extend(rules(config));
    places
}

/// What the configuration names and the VMM opens itself.
fn named(config: &VmConfig) -> Vec<Place> {
    let mut places = Vec::new();
    let payload = config.payload.iter().flat_map(|payload| [&payload.kernel, &payload.firmware, &payload.initramfs]);
    places.extend(payload.flatten().flat_map(|path| folders(path)).map(|folder| (folder, Access::Read)));
    places.push((config.rng.src.clone(), Access::Read));
    places.extend(config.serial.file.iter().map(|file| (around(file), Access::Write)));
    if config.serial.mode == ConsoleOutputMode::Pty {
        places.extend(["/dev/ptmx", "/dev/pts"].map(|path| (PathBuf::from(path), Access::Write)));
    }
    let made = |net: &&NetConfig| net.vhost_mode == VhostMode::Server;
    let sockets = config.net.iter().flatten().filter(made).filter_map(|net| net.vhost_socket.as_deref());
    places.extend(sockets.map(|socket| (around(Path::new(socket)), Access::Write)));
    places.extend(rules(config));
    places
}

/// What the operator adds.
fn rules(config: &VmConfig) -> impl Iterator<Item = Place> {
    config.landlock_rules.iter().flatten().map(|rule| {
        let access = if rule.is_writable() { Access::Write } else { Access::Read };
        (rule.path.clone(), access)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{LandlockConfig, PayloadConfig};

    #[test]
    fn what_is_named_is_left() {
        let payload = PayloadConfig { kernel: Some("/boot/k".into()), ..PayloadConfig::default() };
        let rules = [("/srv", "r"), ("/mnt", "rw")]
            .map(|(path, access)| LandlockConfig { path: path.into(), access: access.to_owned() });
        let mut config = VmConfig { payload: Some(payload), landlock_rules: Some(rules.into()), ..VmConfig::default() };
        config.serial.file = Some("/var/log/vm/serial".into());
        let places = named(&config);
        for (path, access) in [
            ("/boot", Access::Read),
            ("/dev/urandom", Access::Read),
            ("/var/log/vm", Access::Write),
            ("/srv", Access::Read),
            ("/mnt", Access::Write),
        ] {
            assert!(places.contains(&(path.into(), access)), "{path}: {places:?}");
        }
    }
}
