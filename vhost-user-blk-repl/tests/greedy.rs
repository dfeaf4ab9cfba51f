//! A guest that asks for more than its share: it gets what is left.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::*;
use ft_wire::device_ctl::{CTL_VERSION, Command, Report};
use vhost::VhostBackend;
use vhost_user_blk_repl::image::FileImage;

#[test]
fn a_queue_that_is_filled_as_fast_as_it_is_served_keeps_nobody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let path = make_image(dir.path(), "disk", &[7; 1 << 20]);
    let (vmm, fd) = Vmm::pair();
    let setup = Setup { queues: 2, ..Setup::default() };
    let served = Served::new(Arc::new(FileImage::open(&path, false, false).unwrap()), setup, Some(fd));
    let mut guest = Guest::connect(&served.socket, 2, 0);
    let flood = Flood::new(&guest, 0);
    for _ in 0..20 {
        // The VMM, another queue, and whoever stops the queue itself.
        vmm.send(&Command::Hello { version: CTL_VERSION });
        assert!(matches!(vmm.recv(), Report::Ready { .. }));
        assert_eq!(guest.read(1, 3, 4096), (0, vec![7; 4096]));
    }
    guest.frontend.get_vring_base(0).unwrap();
    drop(flood);
    guest.restart(0);
    assert_eq!(guest.read(0, 0, 512), (0, vec![7; 512]));
    drop((vmm, guest));
    served.join();
}
