//! The disk behind a real vhost-user frontend, without fault tolerance.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::*;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost_user_blk_repl::image::{FileImage, Image};
use vm_memory::{Bytes, GuestMemoryBackend};

const SIZE: usize = 1 << 20;

fn with_image(content: &[u8], test: impl FnOnce(&std::path::Path)) {
    let dir = tempfile::tempdir().unwrap();
    test(&make_image(dir.path(), "disk", content));
}

/// Runs `test` with a guest on an image of random content, and returns the image's content afterwards.
fn with_guest(setup: Setup, drop_features: u64, test: impl FnOnce(&mut Guest, &[u8])) -> Vec<u8> {
    let mut after = Vec::new();
    let content = Rng(1).bytes(SIZE);
    with_image(&content, |path| {
        let queues = usize::from(setup.queues);
        let image = Arc::new(FileImage::open(path, setup.read_only, false).unwrap());
        let served = Served::new(image, setup, None);
        let mut guest = Guest::connect(&served.socket, queues, drop_features);
        test(&mut guest, &content);
        drop(guest);
        served.join();
        after = std::fs::read(path).unwrap();
    });
    after
}

#[test]
fn reads_writes_flushes_and_names_itself() {
    let after = with_guest(Setup::default(), 0, |guest, content| {
        assert_eq!(guest.read(0, 0, 512), (0, content[..512].to_vec()));
        assert_eq!(guest.read(0, 3, 64 * 1024), (0, content[1536..1536 + 64 * 1024].to_vec()));
        assert_eq!(guest.read(0, (SIZE / 512 - 1) as u64, 512), (0, content[SIZE - 512..].to_vec()));
        assert_eq!(guest.write(0, 8, &[0x5a; 4096]), 0);
        assert_eq!(guest.read(0, 8, 4096), (0, vec![0x5a; 4096]));
        assert_eq!(guest.flush(0), 0);
        let (status, id) = guest.get_id(0);
        assert_eq!((status, &id[..7]), (0, &b"disk-1\0"[..]));
    });
    assert_eq!(after[4096..8192], [0x5a; 4096]);
}

#[test]
fn without_event_idx_and_without_flush() {
    with_guest(Setup::default(), F_EVENT_IDX | F_FLUSH, |guest, _| {
        for i in 0..200_u64 {
            assert_eq!(guest.write(0, i % 64, &[i as u8; 512]), 0);
            assert_eq!(guest.read(0, i % 64, 512), (0, vec![i as u8; 512]));
        }
    });
}

#[test]
fn discards_and_writes_zeroes() {
    let after = with_guest(Setup::default(), 0, |guest, _| {
        assert_eq!(guest.zero(0, T_ZEROES, &[(16, 16, 0), (64, 1, 1)]), 0);
        assert_eq!(guest.zero(0, T_DISCARD, &[(128, 8, 0)]), 0);
        assert_eq!(guest.read(0, 16, 8192), (0, vec![0; 8192]));
        assert_eq!(guest.read(0, 64, 512), (0, vec![0; 512]));
        assert_eq!(guest.read(0, 128, 4096), (0, vec![0; 4096]));
        // Unknown flags, beyond the end, too long, no whole entry.
        assert_eq!(guest.zero(0, T_DISCARD, &[(0, 1, 1)]), 2);
        assert_eq!(guest.zero(0, T_ZEROES, &[(0, 1, 2)]), 2);
        assert_eq!(guest.zero(0, T_ZEROES, &[(2040, 16, 0)]), 1);
        assert_eq!(guest.zero(0, T_ZEROES, &[(u64::MAX, u32::MAX, 0)]), 1);
        assert_eq!(guest.zero(0, T_ZEROES, &[]), 1);
    });
    let mut expected = Rng(1).bytes(SIZE);
    for (sector, count) in [(16, 16), (64, 1), (128, 8)] {
        expected[sector * 512..(sector + count) * 512].fill(0);
    }
    assert!(after == expected);
}

#[test]
fn configuration_space() {
    let setup = Setup { queues: 2, ..Setup::default() };
    with_guest(setup, 0, |guest, _| {
        let mut config = |offset, len: u32| {
            let flags = VhostUserConfigFlags::empty();
            guest.frontend.get_config(offset, len, flags, &vec![0; len as usize]).unwrap().1
        };
        let bytes = config(0, 60);
        assert_eq!(bytes[..8], (SIZE as u64 / 512).to_le_bytes());
        assert_eq!(bytes[12..16], 126_u32.to_le_bytes());
        assert_eq!(bytes[20..24], 512_u32.to_le_bytes());
        assert_eq!(bytes[34..36], 2_u16.to_le_bytes());
        // A frontend with a longer structure.
        assert_eq!(config(0, 96)[60..], [0; 36]);
        assert_eq!(config(34, 2), 2_u16.to_le_bytes());
    });
}

#[test]
fn read_only_disks_refuse_writes() {
    let setup = Setup { read_only: true, ..Setup::default() };
    let after = with_guest(setup, 0, |guest, content| {
        assert_ne!(guest.features & 1 << 5, 0);
        assert_eq!(guest.read(0, 0, 512), (0, content[..512].to_vec()));
        assert_eq!(guest.write(0, 0, &[1; 512]), 1);
        assert_eq!(guest.zero(0, T_ZEROES, &[(0, 1, 0)]), 1);
        assert_eq!(guest.flush(0), 0);
    });
    assert!(after == Rng(1).bytes(SIZE));
}

#[test]
fn out_of_bounds_and_unknown_requests_fail_alone() {
    with_guest(Setup::default(), 0, |guest, content| {
        let end = (SIZE / 512) as u64;
        assert_eq!(guest.read(0, end, 512).0, 1);
        assert_eq!(guest.read(0, end - 1, 1024).0, 1);
        assert_eq!(guest.read(0, u64::MAX, 512).0, 1);
        assert_eq!(guest.write(0, end, &[1; 512]), 1);
        assert_eq!(guest.write(0, 0, &[1; 511]), 1);
        let slot = guest.post(0, 77, 0, &[], 0);
        guest.kick(0);
        assert_eq!(guest.finish(0), (slot, 2, 1));
        assert_eq!(guest.read(0, 0, 512), (0, content[..512].to_vec()));
    });
}

#[test]
fn indirect_descriptors() {
    with_guest(Setup::default(), 0, |guest, content| {
        guest.indirect = true;
        assert_eq!(guest.read(0, 1, 1024), (0, content[512..1536].to_vec()));
        assert_eq!(guest.write(0, 5, &[9; 512]), 0);
        assert_eq!(guest.read(0, 5, 512), (0, vec![9; 512]));
    });
}

#[test]
fn many_queues_at_once() {
    let setup = Setup { queues: 4, ..Setup::default() };
    with_guest(setup, 0, |guest, _| {
        for round in 0..50_u8 {
            for queue in 0..4 {
                for i in 0..8_u64 {
                    guest.post(queue, T_OUT, queue as u64 * 100 + i, &[round ^ queue as u8 ^ i as u8; 512], 0);
                }
                guest.kick(queue);
            }
            for queue in 0..4 {
                (0..8).for_each(|_| assert_eq!(guest.finish(queue).1, 0));
            }
        }
        for queue in 0..4_u64 {
            for i in 0..8_u64 {
                let expected = vec![49 ^ queue as u8 ^ i as u8; 512];
                assert_eq!(guest.read(3, queue * 100 + i, 512), (0, expected));
            }
        }
    });
}

#[test]
fn overlapping_writes_land_in_the_order_of_the_ring() {
    with_guest(Setup::default(), 0, |guest, _| {
        for round in 0..50_u8 {
            let last = (0..SLOTS as u8).map(|i| {
                let len = 512 * (1 + usize::from(i % 4));
                guest.post(0, T_OUT, u64::from(i % 3), &vec![round.wrapping_add(i); len], 0);
                round.wrapping_add(i)
            });
            let last = last.last().unwrap();
            guest.kick(0);
            (0..SLOTS).for_each(|_| assert_eq!(guest.finish(0).1, 0));
            // The last one was for sector 1, four sectors long.
            assert_eq!(guest.read(0, 1, 2048), (0, vec![last; 2048]));
        }
    });
}

#[test]
fn malformed_chains_never_hurt() {
    let mut rng = Rng::from_env("malformed_chains_never_hurt");
    with_guest(Setup::default(), 0, |guest, _| {
        for _ in 0..400 {
            let mut expect = 0;
            for _ in 0..rng.below(8) + 1 {
                let head = rng.below(SLOTS.into()) as u16 * 3;
                for i in 0..3 {
                    random_descriptor(&mut rng, guest, 0x1_0000 + u64::from(head + i) * 16);
                }
                for i in 0..4 {
                    random_descriptor(&mut rng, guest, 0x1_8000 + i * 16);
                }
                let at = slot_at(0, head / 3);
                guest.write_mem([0, 1, 4, 8, 11, 13, 99][rng.below(7) as usize], at);
                guest.write_mem(if rng.below(4) == 0 { rng.next() } else { rng.below(SIZE as u64 / 512) }, at + 8);
                guest.push_avail(0, head);
                expect += 1;
            }
            // A head outside of the ring cannot be answered, and ends all sense of the ring; what came before
            // it is.
            let broken = rng.below(10) == 0;
            if broken {
                guest.push_avail(0, QUEUE_SIZE + rng.below(60_000) as u16);
            }
            guest.kick(0);
            for _ in 0..expect {
                assert!(guest.try_used(0, LIMIT).is_some(), "a request is lost");
            }
            if broken {
                assert!(guest.is_broken(0, LIMIT));
                guest.restart(0);
            }
        }
        assert_eq!(guest.read(0, 0, 512).0, 0);
    });
}

#[test]
fn a_ring_that_makes_no_sense_is_told_and_left_alone_until_it_is_set_up_again() {
    with_guest(Setup::default(), 0, |guest, content| {
        let spoil: [fn(&mut Guest); 2] =
            [|guest| guest.push_avail(0, QUEUE_SIZE), |guest| guest.set_avail_index(0, 9999)];
        for spoil in spoil {
            assert_eq!(guest.read(0, 0, 512), (0, content[..512].to_vec()));
            assert!(!guest.is_broken(0, Duration::ZERO));
            spoil(guest);
            guest.kick(0);
            assert!(guest.is_broken(0, LIMIT));
            let used = guest.used_index(0);
            guest.push_avail(0, 0);
            guest.kick(0);
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(guest.used_index(0), used);
            guest.restart(0);
        }
        assert_eq!(guest.read(0, 0, 512), (0, content[..512].to_vec()));
    });
}

#[test]
fn a_queue_of_any_size_that_virtio_knows_is_served() {
    with_guest(Setup::default(), 0, |guest, content| {
        for size in [4_u16, 1024, 32768] {
            let (table, avail, used, at) = (8 << 20, 10 << 20, 11 << 20, 12 << 20);
            let host = |addr| guest.mem.get_host_address(vm_memory::GuestAddress(addr)).unwrap() as u64;
            let config = vhost::VringConfigData {
                queue_max_size: size,
                queue_size: size,
                flags: 0,
                desc_table_addr: host(table),
                used_ring_addr: host(used),
                avail_ring_addr: host(avail),
                log_addr: None,
            };
            guest.frontend.get_vring_base(0).unwrap();
            guest.write_mem(0_u32, used);
            guest.frontend.set_vring_num(0, size).unwrap();
            guest.frontend.set_vring_addr(0, &config).unwrap();
            guest.frontend.set_vring_base(0, 0).unwrap();
            let kick = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
            guest.frontend.set_vring_kick(0, &kick).unwrap();
            guest.frontend.set_vring_enable(0, true).unwrap();
            // The last three descriptors, the last of them first.
            let last = size - 1;
            let place = |i: u16| table + u64::from(i) * 16;
            guest.write_mem([0_u64, 0], at);
            guest.desc(place(last), at, 16, 1, last - 1);
            guest.desc(place(last - 1), at + 4096, 512, 1 | 2, last - 2);
            guest.desc(place(last - 2), at + 16, 1, 2, 0);
            guest.write_mem(last, avail + 4);
            guest.write_mem([0_u16, 1], avail);
            kick.write(1).unwrap();
            let done = || guest.mem.read_obj::<u16>(vm_memory::GuestAddress(used + 2)).unwrap() == 1;
            soon(|| done().then_some(()));
            let mut data = vec![0; 512];
            guest.mem.read_slice(&mut data, vm_memory::GuestAddress(at + 4096)).unwrap();
            assert!(data == content[..512], "{size}");
        }
    });
}

/// Half of the fields sensible, so that the deeper code is reached too.
fn random_descriptor(rng: &mut Rng, guest: &Guest, at: u64) {
    let slot = slot_at(0, rng.below(SLOTS.into()) as u16);
    let addr = match rng.below(6) {
        0 => rng.next(),
        1 => 0x1_8000,
        2 => MEM_SIZE - rng.below(1024),
        _ => slot + rng.below(2) * 4096,
    };
    let len = match rng.below(6) {
        0 => rng.next() as u32,
        1 => 0,
        2 => 64,
        3 => 1,
        _ => 512 * rng.below(16) as u32,
    };
    let flags = if rng.below(8) == 0 { rng.next() as u16 } else { [0, 1, 1, 2, 3, 4][rng.below(6) as usize] };
    let next = if rng.below(8) == 0 { rng.next() as u16 } else { rng.below(u64::from(SLOTS) * 3) as u16 };
    guest.desc(at, addr, len, flags, next);
}

#[test]
fn every_chain_with_a_head_in_the_ring_is_answered() {
    with_guest(Setup::default(), 0, |guest, content| {
        let table = 0x1_0000;
        let at = slot_at(0, 0);
        type Spoil = Box<dyn Fn(&Guest)>;
        let cases: [(&str, Spoil, u32); 6] = [
            ("loops", Box::new(move |g| g.desc(table, at, 16, 1, 0)), 0),
            ("next outside of the table", Box::new(move |g| g.desc(table, at, 16, 1, 5000)), 0),
            ("no status", Box::new(move |g| g.desc(table, at, 16, 0, 0)), 0),
            ("no header", Box::new(move |g| g.desc(table, at + 16, 1, 2, 0)), 1),
            ("indirect table of a wrong size", Box::new(move |g| g.desc(table, 0x1_8000, 40, 4, 0)), 0),
            ("table outside of memory", Box::new(move |g| g.desc(table, MEM_SIZE, 48, 4, 0)), 0),
        ];
        for (name, set, len) in cases {
            set(guest);
            guest.push_avail(0, 0);
            guest.kick(0);
            assert_eq!(guest.try_used(0, LIMIT), Some((0, len)), "{name}");
        }
        assert_eq!(guest.read(0, 0, 512), (0, content[..512].to_vec()));
    });
}

#[test]
fn a_stopped_ring_has_nothing_in_flight() {
    with_image(&Rng(2).bytes(SIZE), |path| {
        let image = GatedImage::open(path);
        let served = Served::new(image.clone(), Setup::default(), None);
        let mut guest = Guest::connect(&served.socket, 1, 0);
        image.set(Gate::All);
        for i in 0..8 {
            guest.post(0, T_OUT, i, &[1; 512], 0);
        }
        guest.kick(0);
        image.wait_for_waiting(4);
        let opener = std::thread::spawn(move || image.set(Gate::Open));
        assert_eq!(guest.frontend.get_vring_base(0).unwrap(), 8);
        assert_eq!(guest.used_index(0), 8);
        opener.join().unwrap();
        drop(guest);
        served.join();
    });
}

#[test]
fn failed_writes_are_told() {
    with_image(&Rng(2).bytes(SIZE), |path| {
        let image = GatedImage::open(path);
        let (vmm, fd) = Vmm::pair();
        let served = Served::new(image.clone(), Setup::default(), Some(fd));
        let mut guest = Guest::connect(&served.socket, 1, 0);
        image.fail_writes.store(true, Ordering::Relaxed);
        assert_eq!(guest.write(0, 0, &[1; 512]), 1);
        assert_eq!(guest.write(0, 0, &[1; 512]), 1);
        assert!(vmm.failed().contains("made to fail"));
        assert_eq!(vmm.try_recv(Duration::ZERO), None);
        image.fail_writes.store(false, Ordering::Relaxed);
        assert_eq!(guest.write(0, 0, &[1; 512]), 0);
        drop(guest);
        served.join();
    });
}

#[test]
fn dirty_log_has_exactly_the_pages_written() {
    with_guest(Setup::default(), 0, |guest, _| {
        // The device looks at a ring once when it is enabled, and writes to it then.
        assert_eq!(guest.read(0, 0, 512).0, 0);
        guest.start_log();
        assert_eq!(guest.dirty_pages(), Vec::<u64>::new());
        let slot = guest.post(0, T_IN, 0, &[], 8192);
        guest.kick(0);
        assert_eq!(guest.finish(0).1, 0);
        let status_page = slot_at(0, slot) / 4096;
        let used_page = 0x1_3000 / 4096;
        assert_eq!(guest.dirty_pages(), [used_page, status_page, status_page + 1, status_page + 2]);
        // A write makes no data page dirty.
        let slot = guest.post(0, T_OUT, 0, &[1; 4096], 0);
        guest.kick(0);
        assert_eq!(guest.finish(0).1, 0);
        assert!(!guest.dirty_pages().contains(&(slot_data(0, slot) / 4096 + 3)));
    });
}

#[test]
fn memory_can_be_taken_away_under_a_request() {
    with_image(&Rng(2).bytes(SIZE), |path| {
        let image = GatedImage::open(path);
        let served = Served::new(image.clone(), Setup::default(), None);
        let mut guest = Guest::connect(&served.socket, 1, 0);
        image.set(Gate::All);
        guest.post(0, T_IN, 0, &[], 4096);
        guest.kick(0);
        image.wait_for_waiting(1);
        let region = guest.mem.clone();
        let file = vm_memory::GuestMemoryBackend::find_region(&*region, vm_memory::GuestAddress(0)).unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(vm_memory::GuestMemoryRegion::file_offset(file).unwrap().file());
        // Only the rings are left: the data of the read has nowhere to go.
        let info = region_info(1 << 20, file.as_ptr() as u64, fd);
        guest.frontend.set_mem_table(&[info]).unwrap();
        image.set(Gate::Open);
        assert!(guest.try_used(0, LIMIT).is_some());
        drop(guest);
        served.join();
    });
}

#[test]
fn direct_io_where_the_file_system_has_it() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = make_image(dir.path(), "disk", &Rng(3).bytes(SIZE));
    let Ok(image) = FileImage::open(&path, false, true) else {
        return println!("no direct I/O here: not tested");
    };
    let block = image.block_size() as usize;
    image.write_at(0, &vec![7; block]).unwrap_or_else(|_| println!("needs aligned buffers, as the device has them"));
    assert!(block == 512 || block == 4096);
}

#[test]
fn flush_is_durable_and_so_is_every_write_without_it() {
    for (drop_features, after_write) in [(0, 0), (F_FLUSH, 1)] {
        with_image(&Rng(2).bytes(SIZE), |path| {
            let image = GatedImage::open(path);
            let served = Served::new(image.clone(), Setup::default(), None);
            let mut guest = Guest::connect(&served.socket, 1, drop_features);
            assert_eq!(guest.write(0, 0, &[1; 512]), 0);
            assert_eq!(image.syncs.load(Ordering::Relaxed), after_write);
            assert_eq!(guest.flush(0), 0);
            assert_eq!(image.syncs.load(Ordering::Relaxed), after_write + 1);
            drop(guest);
            served.join();
        });
    }
}
