//! What is on stable storage before anybody is told that it is: after takeovers, and when a sync fails.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::hosts::*;
use common::*;
use ft_proto::Epoch;
use ft_wire::device_ctl::{Command, Report};
use vhost_user_blk_repl::record::{Record, Role, beside, decode};

const SIZE: usize = 1 << 20;
const IOERR: u8 = 1;
/// Long enough for an answer that must not come.
const MOMENT: Duration = Duration::from_millis(200);

fn gated_host() -> (Host, Arc<GatedImage>) {
    let mut image = None;
    let host = Host::with(&[0; SIZE], Setup::default(), |path| {
        let gated = GatedImage::open(path);
        image = Some(gated.clone());
        gated
    });
    (host, image.unwrap())
}

/// A disk, its guest, and its copy on the standby, whose image can be gated.
struct Mirrored {
    primary: Host,
    standby: Host,
    image: Arc<GatedImage>,
    guest: Guest,
}

fn mirrored() -> Mirrored {
    let (standby, image) = gated_host();
    let primary = Host::new(&[0; SIZE]);
    let guest = Guest::connect(&primary.served.socket, 1, 0);
    begin_mirror(&primary, &standby, BOUND);
    primary.vmm.in_sync();
    until_recorded(&standby.path, Role::Standby);
    Mirrored { primary, standby, image, guest }
}

fn recorded(image: &Path) -> Option<Record> {
    std::fs::read(beside(image)).ok().and_then(|bytes| decode(&bytes).ok()).map(|(_, record)| record)
}

/// Waits until the record says that the image was last used so.
fn until_recorded(image: &Path, role: Role) -> Record {
    soon(|| recorded(image).filter(|record| record.role == role))
}

#[test]
fn a_takeover_is_on_record_only_once_the_image_is_on_stable_storage() {
    for before in [Role::Syncing, Role::Standby] {
        let (standby, image) = gated_host();
        let primary = Host::new(&[0; SIZE]);
        let mut guest = Guest::connect(&primary.served.socket, 1, 0);
        if before == Role::Syncing {
            image.set(Gate::Syncs);
        }
        begin_mirror(&primary, &standby, BOUND);
        primary.vmm.in_sync();
        let record = until_recorded(&standby.path, before);
        image.set(Gate::Syncs);
        assert_eq!((guest.write(0, 8, &[7; 512]), guest.flush(0)), (0, 0));
        commit(&primary, &standby, 1);

        // Nobody waits for the disk to start the VM, and to read.
        standby.vmm.discard(1);
        standby.vmm.send(&Command::Start { in_flight: vec![], macs: vec![] });
        assert_eq!(standby.vmm.recv(), Report::Started);
        let mut heir = Guest::connect(&standby.served.socket, 1, 0);
        assert_eq!(heir.read(0, 8, 512), (0, vec![7; 512]));
        let mut waiting = [heir.post(0, T_FLUSH, 0, &[], 0), heir.post(0, T_OUT, 9, &[8; 512], 0)];
        heir.kick(0);
        assert_eq!(heir.try_used(0, MOMENT), None);
        let on_record = recorded(&standby.path).unwrap();
        assert_eq!((on_record.role, on_record.term, on_record.generation), (before, record.term, record.generation));

        image.set(Gate::Open);
        let mut done = [heir.finish(0), heir.finish(0)].map(|(slot, status, _)| (slot, status));
        waiting.sort_unstable();
        done.sort_unstable();
        assert_eq!(done, [(waiting[0], 0), (waiting[1], 0)]);
        let on_record = recorded(&standby.path).unwrap();
        assert_eq!((on_record.role, on_record.term), (Role::Alone, record.term.next()));
    }
}

#[test]
fn a_copy_that_cannot_be_synced_is_not_said_to_be_the_newest() {
    let (standby, image) = gated_host();
    let primary = Host::new(&[0; SIZE]);
    begin_mirror(&primary, &standby, BOUND);
    primary.vmm.in_sync();
    until_recorded(&standby.path, Role::Standby);
    // The VM is started before the disk hears of it.
    image.set(Gate::Syncs);
    standby.vmm.discard(0);
    standby.vmm.send(&Command::Start { in_flight: vec![], macs: vec![] });
    assert_eq!(standby.vmm.recv(), Report::Started);
    let mut heir = Guest::connect(&standby.served.socket, 1, 0);
    let slot = heir.post(0, T_OUT, 9, &[8; 512], 0);
    heir.kick(0);
    image.fail_sync.store(true, Ordering::Relaxed);
    image.set(Gate::Open);
    assert!(standby.vmm.failed().contains("Input/output error"));
    assert_eq!(heir.flush(0), IOERR);
    assert_eq!(recorded(&standby.path).unwrap().role, Role::Standby);
    assert_eq!(heir.status(0, slot), 0xee);
}

#[test]
fn a_standby_puts_what_it_applies_on_stable_storage_unasked() {
    let Mirrored { primary, standby, image, mut guest } = mirrored();
    for epoch in 1..=2 {
        let before = image.syncs.load(Ordering::Relaxed);
        assert_eq!(guest.write(0, 8, &[epoch as u8; 512]), 0);
        commit(&primary, &standby, epoch);
        soon(|| (image.syncs.load(Ordering::Relaxed) > before).then_some(()));
    }
}

#[test]
fn after_a_sync_that_failed_no_flush_succeeds_and_nothing_is_replicated() {
    let (host, image) = gated_host();
    let mut guest = Guest::connect(&host.served.socket, 1, 0);
    assert_eq!(guest.flush(0), 0);
    image.fail_sync.store(true, Ordering::Relaxed);
    assert_eq!((guest.write(0, 8, &[7; 512]), guest.flush(0)), (0, IOERR));
    assert!(host.vmm.failed().contains("Input/output error"));
    assert_eq!((guest.flush(0), guest.write(0, 8, &[8; 512]), guest.flush(0)), (IOERR, 0, IOERR));

    host.vmm.mirror(1, BOUND, tcp_pair().0);
    assert!(host.vmm.mirror_lost().contains("Input/output error"));
    host.vmm.receive(BOUND, tcp_pair().0);
    assert!(host.vmm.mirror_lost().contains("Input/output error"));
}

#[test]
fn a_background_sync_that_fails_on_the_primary_is_the_guests_failure_too() {
    let (primary, image) = gated_host();
    let standby = Host::new(&[0; SIZE]);
    let mut guest = Guest::connect(&primary.served.socket, 1, 0);
    assert_eq!(guest.write(0, 8, &[7; 512]), 0);
    image.fail_sync.store(true, Ordering::Relaxed);
    begin_mirror(&primary, &standby, BOUND);
    primary.vmm.in_sync();
    // Both were to give the copy its name.
    assert!(primary.vmm.failed().contains("Input/output error"));
    let slot = guest.post(0, T_FLUSH, 0, &[], 0);
    guest.kick(0);
    assert_eq!(guest.try_used(0, MOMENT), None, "the standby answers that");
    primary.vmm.send(&Command::Unmirror);
    assert_eq!(guest.finish(0), (slot, IOERR, 1));
    assert_eq!(guest.flush(0), IOERR);
}

#[test]
fn a_standby_whose_copy_rots_leaves() {
    let Mirrored { primary, standby, image, mut guest } = mirrored();
    image.fail_sync.store(true, Ordering::Relaxed);
    assert_eq!(guest.write(0, 8, &[7; 512]), 0);
    commit(&primary, &standby, 1);
    assert!(standby.vmm.failed().contains("Input/output error"));
    // The VMM does not start it: the answer to this is missing.
    standby.vmm.send(&Command::Discard { after: Epoch(1) });
    standby.vmm.send(&Command::Start { in_flight: vec![], macs: vec![] });
    assert_eq!(standby.vmm.try_recv(MOMENT), None);
    assert_eq!(recorded(&standby.path).unwrap().role, Role::Standby);
}
