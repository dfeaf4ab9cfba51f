//! The cases of `hostile` as the first process of a Linux guest.
//!
//! In: the words of the kernel's command line and of `/hostile.options`: `pollux.ip=ADDRESS/BITS` is ours,
//! `hostile.peer=ADDRESS` of somebody who answers ARP, `hostile.step=N` has every N-th case done,
//! `hostile.rounds=N` all of it N times. Out: a line for each case on the serial line, by its port: its
//! driver may not survive what is done to it. Never: a driver of virtio devices beside the cases.

mod machine;

use std::ffi::CString;
use std::fs;
use std::io;

use machine::Linux;

/// What we are told beside the kernel's command line.
const TOLD: &str = "/hostile.options";

fn main() {
    let outcome = prepare().and_then(|()| Linux::new(address("pollux.ip=")?, address("hostile.peer=")?));
    match outcome {
        Ok(mut machine) => {
            let [step, rounds] = ["hostile.step=", "hostile.rounds="].map(number);
            let failed: usize = (0..rounds).map(|_| hostile::run(&mut machine, 0..usize::MAX, step)).sum();
            machine::print(&format!("hostile: {failed} failed"));
        }
        Err(error) => machine::print(&format!("hostile: cannot start: {error}")),
    }
    // SAFETY: ends the machine, which is all that there is left to do.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
}

/// File systems, huge pages, and devices without drivers.
fn prepare() -> io::Result<()> {
    machine::open_ports()?;
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount(kind, place)?;
    }
    fs::write("/proc/sys/vm/nr_hugepages", "4")?;
    let driver = "/sys/bus/pci/drivers/virtio-pci";
    for entry in fs::read_dir(driver).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("0000:") {
            fs::write(format!("{driver}/unbind"), &name)?;
        }
    }
    Ok(())
}

fn mount(kind: &str, place: &str) -> io::Result<()> {
    let [kind, place] = [kind, place].map(CString::new);
    let (kind, place) = (kind?, place?);
    // SAFETY: terminated strings that live through the call.
    let done = unsafe { libc::mount(kind.as_ptr(), place.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    let error = io::Error::last_os_error();
    // The kernel has mounted some of them already.
    if done == 0 || error.raw_os_error() == Some(libc::EBUSY) { Ok(()) } else { Err(error) }
}

/// The number that follows `name` in what we are told; 1 if none does.
fn number(name: &str) -> usize {
    word(name).and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// What follows `name` in what we are told.
fn word(name: &str) -> Option<String> {
    let line = [TOLD, "/proc/cmdline"].map(|path| fs::read_to_string(path).unwrap_or_default()).join(" ");
    line.split_whitespace().find_map(|word| word.strip_prefix(name)).map(str::to_owned)
}

fn address(name: &str) -> io::Result<[u8; 4]> {
    let text = word(name).unwrap_or_default();
    let address = text.split('/').next().unwrap_or_default().parse::<std::net::Ipv4Addr>();
    address.map(|address| address.octets()).map_err(|_| io::Error::other(format!("no address in {name}{text}")))
}
