//! Guests of a few instructions: 32-bit code in an ELF image with a PVH entry.

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use pollux_vmm::config::{ConsoleOutputMode, PayloadConfig, SerialConfig, VmConfig};
use pollux_vmm::legacy::serial::Earlier;
use pollux_vmm::machine::cpu::GuestEvent;
use pollux_vmm::vm::Vm;
use tempfile::TempDir;

/// Where the code is loaded and entered.
pub const CODE: u32 = 0x10_0000;
/// A page that guests count in.
pub const COUNTER: u32 = 0x30_0000;
/// How long a guest may take for what it does in microseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Code under construction.
#[derive(Default)]
pub struct Code(pub Vec<u8>);

impl Code {
    /// Appends instructions as bytes.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// `mov dx, port; mov al, value; out dx, al`
    pub fn out(self, port: u16, value: u8) -> Self {
        let [low, high] = port.to_le_bytes();
        self.raw(&[0x66, 0xba, low, high, 0xb0, value, 0xee])
    }

    /// Writes text to the serial line.
    pub fn print(self, text: &str) -> Self {
        text.bytes().fold(self, |code, byte| code.out(0x3f8, byte))
    }

    /// `mov dword [address], value`
    pub fn store(self, address: u32, value: u32) -> Self {
        self.raw(&[0xc7, 0x05]).raw(&address.to_le_bytes()).raw(&value.to_le_bytes())
    }

    /// `hlt; jmp -3`
    pub fn halt(self) -> Self {
        self.raw(&[0xf4, 0xeb, 0xfd])
    }

    /// ACPI power-off, then waits.
    pub fn power_off(self) -> Self {
        self.out(0x600, 5 << 2 | 1 << 5).halt()
    }
}

/// The image of a kernel with one segment of code, and the note that makes it bootable.
pub fn elf(code: &[u8]) -> Vec<u8> {
    let (headers, note) = (64 + 2 * 56, 20);
    let mut image = Vec::new();
    image.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    image.extend_from_slice(&[2_u16, 62].map(u16::to_le_bytes).concat());
    image.extend_from_slice(&1_u32.to_le_bytes());
    image.extend_from_slice(&[u64::from(CODE), 64, 0].map(u64::to_le_bytes).concat());
    image.extend_from_slice(&0_u32.to_le_bytes());
    image.extend_from_slice(&[64_u16, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
    let mut segment = |kind: u32, offset: u64, address: u64, len: u64, memory: u64| {
        image.extend_from_slice(&[kind, 7].map(u32::to_le_bytes).concat());
        image.extend_from_slice(&[offset, address, address, len, memory, 4].map(u64::to_le_bytes).concat());
    };
    let offset = headers + note;
    segment(4, headers, 0, note, note);
    segment(1, offset, CODE.into(), code.len() as u64, code.len() as u64 + 4096);
    image.extend_from_slice(&[4_u32, 4, 18].map(u32::to_le_bytes).concat());
    image.extend_from_slice(b"Xen\0");
    image.extend_from_slice(&CODE.to_le_bytes());
    image.extend_from_slice(code);
    image
}

/// A VM with its files and the events of its guest.
pub struct Tiny {
    pub vm: Vm,
    pub events: mpsc::Receiver<GuestEvent>,
    pub dir: TempDir,
}

/// A configuration that boots `code` on `vcpus` vCPUs.
pub fn config(dir: &Path, code: Code, vcpus: u32) -> VmConfig {
    let kernel = dir.join("kernel");
    std::fs::write(&kernel, elf(&code.0)).unwrap();
    let mut config = VmConfig::default();
    config.cpus.boot_vcpus = vcpus;
    config.cpus.max_vcpus = vcpus;
    config.memory.size = 64 << 20;
    config.payload = Some(PayloadConfig { kernel: Some(kernel), ..Default::default() });
    config.serial = SerialConfig { mode: ConsoleOutputMode::File, file: Some(dir.join("serial")), socket: None };
    config
}

impl Tiny {
    pub fn new(code: Code, vcpus: u32) -> Self {
        let dir = TempDir::new().unwrap();
        let config = config(dir.path(), code, vcpus);
        let (send, events) = mpsc::channel();
        let vm = Vm::new(config, Earlier::Removed, Arc::new(move |event| send.send(event).unwrap())).unwrap();
        Self { vm, events, dir }
    }

    pub fn serial(&self) -> PathBuf {
        self.dir.path().join("serial")
    }

    /// Everything the guest has printed.
    pub fn printed(&self) -> String {
        while self.vm.console().is_some_and(|console| !console.is_idle()) {
            std::thread::yield_now();
        }
        std::fs::read_to_string(self.serial()).unwrap()
    }

    /// The next thing the guest does to its machine.
    pub fn event(&self) -> GuestEvent {
        self.events.recv_timeout(PATIENCE).expect("the guest does nothing")
    }
}
