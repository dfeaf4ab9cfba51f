//! One request at a time, from the guest's kick until it is told, on an image that the host has in memory.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::sync::Arc;

use common::{Guest, Served, Setup, Vmm, make_image};
use criterion::Criterion;
use ft_proto::{Term, VmId};
use ft_wire::device_ctl::{Command, Report};
use vhost_user_blk_repl::image::FileImage;
use vhost_user_blk_repl::record::{Purpose, RecordFile, Refuse, beside};

const SIZE: usize = 16 << 20;
const SECTORS: u64 = SIZE as u64 / 512;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let dir = tempfile::tempdir().unwrap();
    let image = make_image(dir.path(), "disk", &vec![7; SIZE]);
    let image = Arc::new(FileImage::open(&image, false, false).unwrap());
    let served = Served::new(image, Setup::default(), None);
    let mut guest = Guest::connect(&served.socket, 1, 0);
    let mut group = criterion.benchmark_group("request");
    for len in [4096, 65536] {
        // Far apart, so that each is another page of the host.
        let mut sector = 0;
        let mut next = || {
            sector = (sector + 1040 * 8) % (SECTORS - 128);
            sector
        };
        group.bench_function(format!("read of {len} bytes"), |bencher| {
            bencher.iter(|| assert_eq!(guest.read(0, next(), len).0, 0));
        });
        let data = vec![1; len];
        group.bench_function(format!("write of {len} bytes"), |bencher| {
            bencher.iter(|| assert_eq!(guest.write(0, next(), &data), 0));
        });
    }
    drop(guest);
    // The same under a record, as in a VM that is, or was, protected.
    let path = make_image(dir.path(), "recorded", &vec![7; SIZE]);
    let image = Arc::new(FileImage::open(&path, false, false).unwrap());
    let record = RecordFile::open(&path, beside(&path), &*image, Purpose::Serve(Refuse::Stale)).unwrap();
    let (vmm, fd) = Vmm::pair();
    let served = Served::new(image, Setup { record: Some(record), ..Setup::default() }, Some(fd));
    vmm.send(&Command::Own { vm: VmId(1), term: Term(1) });
    assert_eq!(vmm.recv(), Report::Owned);
    let mut guest = Guest::connect(&served.socket, 1, 0);
    let (mut sector, data) = (0, vec![1; 4096]);
    group.bench_function("write of 4096 bytes under a record", |bencher| {
        bencher.iter(|| {
            sector = (sector + 1040 * 8) % (SECTORS - 128);
            assert_eq!(guest.write(0, sector, &data), 0);
        });
    });
    group.finish();
    drop(guest);
    criterion.final_summary();
}
