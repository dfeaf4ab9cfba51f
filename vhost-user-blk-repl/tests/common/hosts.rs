//! Hosts with a disk and its toy VMM each, and sessions between them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ft_wire::device_ctl::Command;
use tempfile::TempDir;
use vhost_user_blk_repl::image::{FileImage, Image};
use vhost_user_blk_repl::record::{Purpose, RecordFile, Refuse, beside};

use super::{Guest, Sealed, Served, Setup, Vmm, make_image, release, tcp_pair};

/// A bound that is not in the way, in bytes.
pub const BOUND: u64 = 64 << 20;

/// A disk with its VMM.
pub struct Host {
    pub vmm: Vmm,
    pub served: Served,
    pub path: PathBuf,
    _dir: TempDir,
}

impl Host {
    pub fn new(content: &[u8]) -> Self {
        Self::with(content, Setup::default(), |path| Arc::new(FileImage::open(path, false, false).unwrap()))
    }

    pub fn with(content: &[u8], setup: Setup, open: impl FnOnce(&Path) -> Arc<dyn Image>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = make_image(dir.path(), "disk", content);
        let (vmm, fd) = Vmm::pair();
        let image = open(&path);
        let record = RecordFile::open(&path, beside(&path), &*image, Purpose::Serve(Refuse::Stale)).unwrap();
        let served = Served::new(image, Setup { record: Some(record), ..setup }, Some(fd));
        Self { vmm, served, path, _dir: dir }
    }

    pub fn content(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }
}

/// Primary with a guest, standby in sync, epoch 1 running.
pub fn pair(content: &[u8], bound: u64) -> (Host, Guest, Host) {
    let primary = Host::new(content);
    let standby = Host::new(&vec![0xcc; content.len()]);
    let guest = Guest::connect(&primary.served.socket, 1, 0);
    begin_mirror(&primary, &standby, bound);
    primary.vmm.in_sync();
    (primary, guest, standby)
}

/// Ends an epoch and commits it, as the two VMMs do.
pub fn commit(primary: &Host, standby: &Host, epoch: u64) -> Sealed {
    commit_epoch(&primary.vmm, &standby.vmm, epoch)
}

/// As [`commit`].
pub fn commit_epoch(primary: &Vmm, standby: &Vmm, epoch: u64) -> Sealed {
    let sealed = primary.seal(epoch);
    primary.send(&Command::Resume);
    if !sealed.idle {
        standby.complete(epoch);
        standby.send(&release(epoch));
    }
    primary.send(&release(epoch));
    sealed
}

/// Begins a session between two hosts, in epoch 1.
pub fn begin_mirror(primary: &Host, standby: &Host, bound: u64) {
    let (ours, theirs) = tcp_pair();
    standby.vmm.receive(bound, theirs);
    primary.vmm.mirror(1, bound, ours);
}
