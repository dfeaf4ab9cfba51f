//! Disks that fill up or fail: what the guest, the VMM and the peer get to know.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::hosts::*;
use common::*;
use ft_wire::device_ctl::{Command, Report};
use vhost_user_blk_repl::image::FileImage;

const SIZE: usize = 2 << 20;
const IOERR: u8 = 1;
/// Long enough for an answer that must not come.
const MOMENT: Duration = Duration::from_millis(200);

/// A file system of `bytes` bytes at `dir` that only this test sees, and that goes with its thread.
fn small_file_system(dir: &Path, bytes: usize) {
    let path = CString::new(dir.as_os_str().as_bytes()).unwrap();
    let size = CString::new(format!("size={bytes}")).unwrap();
    // SAFETY: all pointers are to strings that live through the calls.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0, "needs root");
        let private = libc::MS_REC | libc::MS_PRIVATE;
        assert_eq!(libc::mount(c"none".as_ptr(), c"/".as_ptr(), std::ptr::null(), private, std::ptr::null()), 0);
        let mounted = libc::mount(c"none".as_ptr(), path.as_ptr(), c"tmpfs".as_ptr(), 0, size.as_ptr().cast());
        assert_eq!(mounted, 0, "needs root");
    }
}

/// A host whose image is a hole on a file system with room for about half of it.
fn host_on_a_full_disk() -> (Host, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    small_file_system(dir.path(), SIZE / 2);
    let path = dir.path().join("disk");
    std::fs::File::create(&path).unwrap().set_len(SIZE as u64).unwrap();
    let mut host = Host::with(&[], Setup::default(), |_| Arc::new(FileImage::open(&path, false, false).unwrap()));
    host.path = path;
    (host, dir)
}

/// Writes from the start until the disk is full; the slot and offset of the write that is not answered, and
/// what is told of it.
fn fill(guest: &mut Guest, primary: &Host) -> (u16, u64, String) {
    for offset in (0..SIZE as u64).step_by(65536) {
        let slot = guest.post(0, T_OUT, offset / 512, &[7; 65536], 0);
        guest.kick(0);
        let start = Instant::now();
        loop {
            if let Some((head, _)) = guest.try_used(0, Duration::from_millis(10)) {
                assert_eq!((head, guest.status(0, slot)), (slot * 3, 0));
                guest.give_slot(0, slot);
                break;
            }
            if let Some(Report::Failed { reason }) = primary.vmm.try_recv(Duration::ZERO) {
                return (slot, offset, reason);
            }
            assert!(start.elapsed() < LIMIT, "neither an answer nor a failure at {offset}");
        }
    }
    panic!("the disk never filled up");
}

#[test]
fn a_full_disk_is_the_guests_error_only_when_nobody_can_take_over() {
    let (primary, _dir) = host_on_a_full_disk();
    let mut guest = Guest::connect(&primary.served.socket, 1, 0);
    let standby = Host::new(&[0; SIZE]);
    begin_mirror(&primary, &standby, BOUND);
    primary.vmm.in_sync();
    commit(&primary, &standby, 1);

    let (slot, offset, reason) = fill(&mut guest, &primary);
    assert!(reason.contains("No space left on device (os error 28)"), "{reason}");
    assert!(reason.contains(&format!("write of 65536 bytes at offset {offset} ")), "{reason}");
    let sealed = commit(&primary, &standby, 2);
    assert_eq!(sealed.in_flight.iter().map(|request| request.head).collect::<Vec<_>>(), [slot * 3]);
    let memory = guest.snapshot();

    // The standby goes on from there, and has room.
    standby.vmm.discard(2);
    standby.vmm.send(&Command::Start { in_flight: sealed.in_flight, macs: vec![] });
    assert_eq!(standby.vmm.recv(), Report::Started);
    let mut heir = Guest::with_memory(&standby.served.socket, 1, 0, copy_memory(&memory), &sealed.queues);
    heir.take_slot(0, slot);
    assert_eq!(heir.finish(0), (slot, 0, 1));
    let (at, content) = (offset as usize, standby.content());
    assert!(content[..at + 65536].iter().all(|byte| *byte == 7));
    assert!(content[at + 65536..].iter().all(|byte| *byte == 0));

    // Had nobody taken over, the error would be the guest's in the end.
    assert!(guest.try_used(0, Duration::ZERO).is_none_or(|_| guest.status(0, slot) == IOERR));
    primary.vmm.send(&Command::Unmirror);
    soon(|| (guest.status(0, slot) == IOERR).then_some(()));
}

#[test]
fn a_full_disk_alone_is_told_and_an_error_of_the_request() {
    let (host, _dir) = host_on_a_full_disk();
    let mut guest = Guest::connect(&host.served.socket, 1, 0);
    let statuses: Vec<u8> = (0..SIZE as u64 / 65536).map(|chunk| guest.write(0, chunk * 128, &[7; 65536])).collect();
    assert_eq!((statuses[0], statuses.last()), (0, Some(&IOERR)));
    assert_eq!(guest.read(0, 0, 512), (0, vec![7; 512]));
    assert!(host.vmm.failed().contains("No space left"));
}

#[test]
fn reads_that_fail_are_kept_from_the_guest_too() {
    let mut image = None;
    let primary = Host::with(&[3; SIZE], Setup::default(), |path| {
        let gated = GatedImage::open(path);
        image = Some(gated.clone());
        gated
    });
    let mut guest = Guest::connect(&primary.served.socket, 1, 0);
    let standby = Host::new(&[0; SIZE]);
    begin_mirror(&primary, &standby, BOUND);
    primary.vmm.in_sync();
    image.unwrap().fail_reads.store(true, std::sync::atomic::Ordering::Relaxed);
    let slot = guest.post(0, T_IN, 8, &[], 512);
    guest.kick(0);
    let reason = primary.vmm.failed();
    assert!(reason.contains("read of 512 bytes at offset 4096 "), "{reason}");
    assert_eq!(guest.try_used(0, MOMENT), None);
    // The guest resets the ring: nothing to wait for.
    assert_eq!(vhost::VhostBackend::get_vring_base(&guest.frontend, 0).unwrap(), 1);
    assert_eq!(guest.status(0, slot), 0xee);
}

#[test]
fn a_ring_is_stopped_also_when_its_last_request_fails_meanwhile() {
    let mut image = None;
    let primary = Host::with(&[3; SIZE], Setup::default(), |path| {
        let gated = GatedImage::open(path);
        image = Some(gated.clone());
        gated
    });
    let image = image.unwrap();
    let mut guest = Guest::connect(&primary.served.socket, 1, 0);
    let standby = Host::new(&[0; SIZE]);
    begin_mirror(&primary, &standby, BOUND);
    primary.vmm.in_sync();
    image.set(Gate::Reads);
    let slot = guest.post(0, T_IN, 8, &[], 512);
    guest.kick(0);
    image.wait_for_waiting(1);
    image.fail_reads.store(true, std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        let stopped = scope.spawn(|| vhost::VhostBackend::get_vring_base(&guest.frontend, 0));
        // The device waits for the request by then; if not, this test shows less than it might.
        std::thread::sleep(MOMENT);
        image.set(Gate::Open);
        assert_eq!(stopped.join().unwrap().unwrap(), 1);
    });
    assert_eq!(guest.status(0, slot), 0xee);
}

#[test]
fn a_standby_without_room_says_so_and_the_primary_goes_on() {
    let (standby, _dir) = host_on_a_full_disk();
    let primary = Host::new(&[0; SIZE]);
    let mut guest = Guest::connect(&primary.served.socket, 1, 0);
    begin_mirror(&primary, &standby, BOUND);
    primary.vmm.in_sync();
    for chunk in 0..SIZE as u64 / 65536 {
        assert_eq!(guest.write(0, chunk * 128, &[7; 65536]), 0);
    }
    commit(&primary, &standby, 1);
    let reason = standby.vmm.failed();
    assert!(reason.contains("No space left on device (os error 28)") && reason.contains("at offset "), "{reason}");
    // The VMM does not start it: the answer to this is missing.
    standby.vmm.send(&Command::Discard { after: ft_proto::Epoch(1) });
    assert_eq!(standby.vmm.try_recv(MOMENT), None);
    primary.vmm.send(&Command::Unmirror);
    assert_eq!(guest.write(0, 0, &[8; 512]), 0);
}
