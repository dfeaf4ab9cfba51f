//! Kernel and firmware images: what passes the checks loads, and nothing is written where it does not belong.
//!
//! Input: settings, length of the command line and of the initramfs, these two, then the image.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use nix::sys::memfd::{MFdFlags, memfd_create};
use pollux_vmm::boot::kernel::{Entry, Payload};
use pollux_vmm::config::PayloadConfig;
use pollux_vmm::machine::memory::guest::{GuestMemory, RamOptions};
use pollux_vmm::machine::memory::layout::{CMDLINE, CMDLINE_MAX, HIGH_RAM_START};
use vm_memory::{Bytes as _, GuestAddress};

use crate::bytes::Bytes;

const RAM: u64 = 3 << 20;

struct Rig {
    image: File,
    initramfs: File,
    memory: GuestMemory,
}

thread_local! {
    static RIG: RefCell<Rig> = RefCell::new(Rig {
        image: memfd(),
        initramfs: memfd(),
        memory: GuestMemory::new(&RamOptions { size: RAM, ..RamOptions::default() }).unwrap(),
    });
}

fn memfd() -> File {
    memfd_create("fuzz", MFdFlags::MFD_CLOEXEC).unwrap().into()
}

/// Loads the image.
pub fn run(input: &[u8]) {
    RIG.with_borrow_mut(|rig| rig.load(Bytes::new(input)));
}

impl Rig {
    fn load(&mut self, mut bytes: Bytes<'_>) {
        let (settings, cmdline, initramfs) = (bytes.u8(), bytes.u8(), bytes.u8());
        let cmdline = String::from_utf8_lossy(bytes.take(cmdline.into())).into_owned();
        fill(&mut self.initramfs, bytes.take(initramfs.into()));
        fill(&mut self.image, bytes.rest());
        let image = Some(path(&self.image));
        let (kernel, firmware) = if settings & 1 == 0 { (image, None) } else { (None, image) };
        let initramfs = (settings & 2 != 0).then(|| path(&self.initramfs));
        let config = PayloadConfig { firmware, kernel, cmdline: Some(cmdline.clone()), initramfs };
        let Ok(mut payload) = Payload::open(&config) else { return };
        let Ok(place) = payload.place(&self.memory) else { return };
        let loaded = payload.load(&self.memory).expect("an image that passed the checks");
        assert_eq!(loaded.initramfs, place);
        if let Some(place) = place {
            assert!(place.address >= HIGH_RAM_START && place.address + place.size <= RAM);
        }
        let (Entry::Pvh { address } | Entry::Linux { address, .. }) = loaded.entry;
        assert!((HIGH_RAM_START..RAM).contains(&address), "entered at {address:#x}");
        self.check_low_memory(&cmdline);
        self.memory.clear().unwrap();
    }

    /// Below 1 MiB there is the command line only.
    fn check_low_memory(&self, cmdline: &str) {
        let mut low = vec![0; HIGH_RAM_START as usize];
        self.memory.ram().read_slice(&mut low, GuestAddress(0)).unwrap();
        let (before, rest) = low.split_at(CMDLINE as usize);
        let (text, after) = rest.split_at(CMDLINE_MAX as usize);
        assert_eq!(&text[..cmdline.len()], cmdline.as_bytes());
        assert!([before, &text[cmdline.len()..], after].iter().all(|part| part.iter().all(|byte| *byte == 0)));
    }
}

fn fill(file: &mut File, contents: &[u8]) {
    file.set_len(0).unwrap();
    file.rewind().unwrap();
    file.write_all(contents).unwrap();
}

fn path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}
