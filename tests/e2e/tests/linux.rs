//! A stock Debian kernel on the machine itself, without engine and API: it goes on in another VM, and it
//! resets.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use pollux_vmm::config::{ConsoleOutputMode, PayloadConfig, SerialConfig, VmConfig};
use pollux_vmm::legacy::serial::Earlier;
use pollux_vmm::machine::cpu::{Capture, GuestEvent};
use pollux_vmm::vm::Vm;
use tempfile::TempDir;

/// An emulated machine on a busy host is slow.
const PATIENCE: Duration = Duration::from_secs(240);

struct Linux {
    vm: Vm,
    events: mpsc::Receiver<GuestEvent>,
    serial: PathBuf,
    _dir: TempDir,
}

impl Linux {
    /// Only an initramfs: its init looks for a root disk for some seconds and powers off when there is none.
    fn new(kernel: &str, vcpus: u32, extra: &str) -> Self {
        let guest = guest_files();
        let payload = PayloadConfig {
            kernel: Some(guest.join(kernel)),
            initramfs: Some(guest.join("initramfs.gz")),
            // A vCPU that gets no processor for a while is no fault of the guest's.
            cmdline: Some(format!(
                "console=ttyS0 panic=-1 watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=120 {extra}"
            )),
            firmware: None,
        };
        Self::with(payload, vcpus)
    }

    fn with(payload: PayloadConfig, vcpus: u32) -> Self {
        Self::with_disks(payload, vcpus, &[])
    }

    fn with_disks(payload: PayloadConfig, vcpus: u32, images: &[PathBuf]) -> Self {
        let dir = TempDir::new().unwrap();
        let serial = dir.path().join("serial");
        let mut config = VmConfig::default();
        (config.cpus.boot_vcpus, config.cpus.max_vcpus) = (vcpus, vcpus);
        config.memory.size = 512 << 20;
        config.payload = Some(payload);
        let disk = |path: &PathBuf| serde_json::from_value(serde_json::json!({ "path": path }));
        config.disks = Some(images.iter().map(disk).collect::<Result<_, _>>().unwrap());
        config.serial = SerialConfig { mode: ConsoleOutputMode::File, file: Some(serial.clone()), socket: None };
        let (send, events) = mpsc::channel();
        let vm = Vm::new(config, Earlier::Removed, Arc::new(move |event| send.send(event).unwrap())).unwrap();
        Self { vm, events, serial, _dir: dir }
    }

    fn printed(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.serial).unwrap()).into_owned()
    }

    fn wait_for(&self, text: &str, times: usize) {
        let start = Instant::now();
        while self.printed().matches(text).count() < times {
            assert!(start.elapsed() < PATIENCE, "no {text:?} in:\n{}", self.printed());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn event(&self) -> GuestEvent {
        self.events.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no event after:\n{}", self.printed()))
    }
}

fn guest_files() -> PathBuf {
    std::env::var("POLLUX_GUEST").expect("POLLUX_GUEST is the guest image's folder").into()
}

/// The kernel complains when time or memory are not as it left them.
fn assert_content(log: &str) {
    for complaint in ["BUG", "Oops", "Call Trace", "unstable", "soft lockup", "rcu_sched", "Corrupted"] {
        assert!(!log.contains(complaint), "{complaint} in:\n{log}");
    }
}

#[test]
fn linux_goes_on_in_another_vm() {
    goes_on_in_another_vm("");
}

/// A kernel that does not ask KVM for the TSC's frequency finds it in CPUID on Intel, and measures it by the
/// PM timer elsewhere; but not on an emulated host, where it must be told.
#[test]
fn linux_without_kvmclock_goes_on_in_another_vm() {
    let khz = Linux::new("vmlinux", 1, "").vm.cpus().features().tsc_khz;
    goes_on_in_another_vm(&format!("no-kvmclock clocksource=tsc tsc=reliable tsc_early_khz={khz}"));
}

fn goes_on_in_another_vm(extra: &str) {
    let mut old = Linux::new("vmlinux", 2, extra);
    old.vm.boot().unwrap();
    old.wait_for("Run /init", 1);
    for _ in 0..100 {
        old.vm.cpus().pause(Capture::Yes).unwrap();
        old.vm.cpus().resume();
    }
    let mut new = Linux::new("vmlinux", 2, extra);
    old.vm.cpus().pause(Capture::Yes).unwrap();
    let before = old.vm.parts().time().unwrap();
    let mut state = Vec::new();
    old.vm.save(&mut state).unwrap();
    let (from, to) = (old.vm.memory_view(), new.vm.memory_view());
    let mut page = vec![0; 4096];
    for gfn in old.vm.memory().populated().unwrap().into_iter().flatten() {
        from.copy_out(&[gfn], &mut page);
        assert!(to.write_page(gfn, &page));
    }
    assert_content(&old.printed());
    drop(old);
    new.vm.load(&state).unwrap();
    new.vm.cpus().pause(Capture::Yes).unwrap();
    let after = new.vm.parts().time().unwrap();
    new.vm.cpus().resume();
    // The clocks have not jumped, and not moved against each other by more than the guest tolerates.
    assert!((before.clock..before.clock + 5_000_000_000).contains(&after.clock), "{before:?} became {after:?}");
    let khz = new.vm.cpus().features().tsc_khz;
    let nanoseconds = (after.tsc.unwrap() - before.tsc.unwrap()) as i128 * 1_000_000 / i128::from(khz);
    let drift = nanoseconds - i128::from(after.clock) + i128::from(before.clock);
    assert!(drift.abs() < 100_000, "{before:?} became {after:?}, {drift} ns apart");
    new.vm.activate_restored().unwrap();
    new.vm.start_restored().unwrap();
    assert_eq!(new.event(), GuestEvent::Shutdown);
    let log = new.printed();
    assert!(log.contains("no /dev/vda"), "{log}");
    assert_content(&log);
}

#[test]
fn linux_resets_itself_and_boots_again() {
    // No init at all is a panic, and panic=-1 a reset.
    let mut linux = Linux::new("vmlinuz", 2, "rdinit=/none root=/none");
    linux.vm.boot().unwrap();
    assert_eq!(linux.event(), GuestEvent::Reset);
    linux.vm.reset().unwrap();
    assert_eq!(linux.event(), GuestEvent::Reset);
    assert_eq!(linux.printed().matches("Linux version").count(), 2);
}

/// `POLLUX_FIRMWARE` is CLOUDHV.fd of Debian's package cloudhv-efi-x86-64; without it there is nothing to
/// boot.
#[test]
fn uefi_firmware_looks_for_something_to_boot() {
    let Some(firmware) = std::env::var_os("POLLUX_FIRMWARE") else {
        println!("SKIPPED: POLLUX_FIRMWARE names no firmware");
        return;
    };
    let mut uefi = Linux::with(PayloadConfig { firmware: Some(firmware.into()), ..Default::default() }, 1);
    uefi.vm.boot().unwrap();
    uefi.wait_for("BdsDxe", 1);
}

/// Makes a disk that UEFI boots GRUB from, and GRUB the guest's kernel: `sh -c`, GUEST GRUB IMAGE.
const MAKE_BOOT_DISK: &str = r#"set -e
truncate -s 96M "$3"
mformat -i "$3" -F ::
mmd -i "$3" ::/EFI ::/EFI/BOOT ::/EFI/debian
mcopy -i "$3" "$2" ::/EFI/BOOT/BOOTX64.EFI
mcopy -i "$3" "$1/vmlinuz" "$1/initramfs.gz" ::/
printf 'linux /vmlinuz console=ttyS0 root=/dev/vdb panic=-1\ninitrd /initramfs.gz\nboot\n' | mcopy -i "$3" - ::/EFI/debian/grub.cfg
cp --sparse=always "$1/root.img" "$4""#;

/// `POLLUX_FIRMWARE` as above, `POLLUX_GRUB` is grubx64.efi.signed of Debian's package
/// grub-efi-amd64-signed, and mtools is installed.
#[test]
fn debian_boots_by_uefi_and_grub() {
    let (Some(firmware), Some(grub)) = (std::env::var_os("POLLUX_FIRMWARE"), std::env::var_os("POLLUX_GRUB")) else {
        println!("SKIPPED: POLLUX_FIRMWARE or POLLUX_GRUB names no file");
        return;
    };
    let dir = TempDir::new().unwrap();
    let images = ["boot.img", "root.img"].map(|name| dir.path().join(name));
    let mut make = Command::new("sh");
    make.args(["-c", MAKE_BOOT_DISK, "sh"]).arg(guest_files()).arg(grub).args(&images);
    assert!(make.status().unwrap().success(), "no boot disk: is mtools installed?");
    let payload = PayloadConfig { firmware: Some(firmware.into()), ..Default::default() };
    let mut debian = Linux::with_disks(payload, 1, &images);
    debian.vm.boot().unwrap();
    debian.wait_for("guest: ready", 1);
    debian.vm.power_button().unwrap();
    assert_eq!(debian.event(), GuestEvent::Shutdown);
    assert_content(&debian.printed());
}
