//! The real binary behind a real vhost-user frontend and a real tap: what passes, and what bad input does.

#![allow(missing_docs, clippy::unwrap_used)]

mod rig;

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use ft_wire::device_ctl::Report;
use rig::*;
use vm_memory::{Bytes, GuestAddress};

#[test]
fn frames_pass_both_ways() {
    if !ready() {
        return;
    }
    let mut rig = Rig::new(MRG_RXBUF, false, &[]);
    // Header and frame apart, the frame in pieces.
    let sent = frame(1, 1514);
    let at = rig.room(8192);
    rig.guest.write(at, &[0; HEADER]);
    rig.guest.write(at + 100, &sent[..600]);
    rig.guest.write(at + 4000, &sent[600..]);
    let pieces = [(at, 12, 0), (at + 100, 600, 0), (at + 4000, 914, 0)];
    let head = rig.guest.add(&mut rig.queues[1], &pieces);
    rig.queues[1].kick();
    assert_eq!(rig.guest.used(&mut rig.queues[1], 1), [(head, 0)]);
    assert_eq!(rig.wire.next(), sent);
    rig.output(2..50);
    rig.expect(2..50);

    let offered: Vec<_> = (0..20).map(|_| rig.offer_input(0, 2048)).collect();
    rig.queues[0].kick();
    (0..20).for_each(|id| rig.wire.send(&frame(id, 60 + 70 * id as usize)));
    for (id, (used, (head, at))) in rig.guest.used(&mut rig.queues[0], 20).iter().zip(offered).enumerate() {
        let expected = frame(id as u32, 60 + 70 * id);
        assert_eq!(*used, (head, (HEADER + expected.len()) as u32));
        assert_eq!(rig.guest.read(at, HEADER), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(rig.guest.read(at + HEADER as u64, expected.len()), expected);
    }
}

/// QEMU enables the queues of a network card before it acknowledges features.
#[test]
fn queues_may_be_enabled_before_features() {
    use vhost::VhostBackend;
    use vhost::vhost_user::Frontend;
    if !ready() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let socket = format!("fd={}", listener.as_raw_fd());
    let mut device = Device::spawn(&["--socket", &socket], vec![listener.as_raw_fd()], Stdio::null());
    let mut stream = UnixStream::connect(&path).unwrap();
    drop(listener);
    for queue in 0..2_u32 {
        // SET_VRING_ENABLE, version 1, 8 bytes: queue and 1.
        let message: Vec<u8> = [18, 1, 8, queue, 1].iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
        stream.write_all(&message).unwrap();
    }
    let frontend = Frontend::from_stream(stream, 2);
    frontend.set_owner().unwrap();
    let features = frontend.get_features().unwrap();
    frontend.set_features(features).unwrap();
    assert_eq!(frontend.get_features().unwrap(), features);
    drop(frontend);
    assert_eq!(device.ended().code(), Some(0));
}

#[test]
fn a_frame_spans_several_receive_buffers() {
    if !ready() {
        return;
    }
    let mut rig = Rig::new(MRG_RXBUF, false, &[]);
    let offered: Vec<_> = (0..4).map(|_| rig.offer_input(0, 600)).collect();
    rig.queues[0].kick();
    let sent = frame(9, 1514);
    rig.wire.send(&sent);
    let used = rig.guest.used(&mut rig.queues[0], 3);
    assert_eq!(used, [(offered[0].0, 600), (offered[1].0, 600), (offered[2].0, 326)]);
    let got: Vec<u8> =
        used.iter().zip(&offered).flat_map(|((_, len), (_, at))| rig.guest.read(*at, *len as usize)).collect();
    assert_eq!(got[10..12], [3, 0]);
    assert_eq!(got[HEADER..], sent);

    // One buffer is left: the next large frame waits for more instead of being cut or lost.
    rig.wire.send(&frame(10, 1514));
    rig.wire.send(&frame(11, 60));
    for _ in 0..3 {
        rig.offer_input(0, 600);
    }
    rig.queues[0].kick();
    let lens: Vec<u32> = rig.guest.used(&mut rig.queues[0], 4).iter().map(|u| u.1).collect();
    assert_eq!(lens, [600, 600, 326, 72]);
}

#[test]
fn without_mergeable_buffers_a_frame_that_does_not_fit_is_lost_alone() {
    if !ready() {
        return;
    }
    let mut rig = Rig::new(0, false, &[]);
    let (head, at) = rig.offer_input(0, 600);
    rig.queues[0].kick();
    rig.wire.send(&frame(1, 1514));
    rig.wire.send(&frame(2, 500));
    assert_eq!(rig.guest.used(&mut rig.queues[0], 1), [(head, 512)]);
    assert_eq!(rig.guest.read(at + HEADER as u64, 500), frame(2, 500));
}

#[test]
fn without_receive_buffers_frames_wait_and_no_time_is_burnt() {
    if !ready() {
        return;
    }
    [0, EVENT_IDX].into_iter().for_each(starve);
}

fn starve(features: u64) {
    let mut rig = Rig::new(MRG_RXBUF | features, false, &[]);
    (0..20).for_each(|id| rig.wire.send(&frame(id, 200)));
    let cpu = |pid: i32| -> u64 {
        let mut total = 0;
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let text = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
            total += text.split(' ').next().unwrap().parse::<u64>().unwrap();
        }
        total
    };
    // Too little is as bad as nothing.
    let small = rig.offer_input(0, 100);
    rig.queues[0].kick();
    // A measurement, not a synchronisation: frames are waiting and there is nothing to be done.
    let before = cpu(rig.device.pid());
    std::thread::sleep(Duration::from_millis(150));
    let burnt = Duration::from_nanos(cpu(rig.device.pid()) - before);
    assert!(burnt < Duration::from_millis(20), "{burnt:?}");
    let (head, at) = rig.offer_input(0, 512);
    rig.queues[0].kick();
    assert_eq!(rig.guest.used(&mut rig.queues[0], 2), [(small.0, 100), (head, 112)]);
    assert_eq!(rig.guest.read(at, 112), frame(0, 200)[88..]);
    for id in 1..20 {
        let (_, at) = rig.offer_input(0, 512);
        rig.queues[0].kick();
        rig.guest.used(&mut rig.queues[0], 1);
        assert_eq!(rig.guest.read(at + HEADER as u64, 200), frame(id, 200));
    }
}

#[test]
fn sockets_by_path_and_nothing_left_behind() {
    if !ready() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (vhost, ctl) = (dir.path().join("vhost"), dir.path().join("ctl"));
    // A socket file of a process that was killed is no obstacle.
    drop(std::os::unix::net::UnixListener::bind(&vhost).unwrap());
    let (socket, control) = (vhost.to_str().unwrap(), ctl.to_str().unwrap());
    let args = ["--socket", socket, "--ft-ctl", control, "--tap", TAP];
    let mut device = Device::spawn(&args, vec![], Stdio::piped());
    let mut lines = BufReader::new(device.stderr()).lines();
    assert!(lines.any(|line| line.unwrap().contains(TAP)));

    let said = Device::fails(&["--socket", socket, "--tap", "other"]);
    assert!(said.contains("--socket") && said.contains("in use"), "{said}");
    let said = Device::fails(&["--socket", dir.path().join("x").to_str().unwrap(), "--tap", TAP]);
    assert!(said.contains(TAP) && said.contains("in use"), "{said}");

    let link = {
        use std::os::fd::{FromRawFd, OwnedFd};
        // SAFETY: plain system calls; the descriptor is checked.
        let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0);
        // SAFETY: just made.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let address = nix::sys::socket::UnixAddr::new(&ctl).unwrap();
        nix::sys::socket::connect(fd.as_raw_fd(), &address).unwrap();
        Link(fd)
    };
    assert_eq!(link.sync(), []);
    assert!(!ctl.exists(), "one VMM is enough");
    device.signal(libc::SIGTERM);
    assert_eq!(device.ended().code(), Some(0));
    assert!(!vhost.exists());
}

#[test]
fn bad_input_is_told_clearly() {
    if !ready() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "data").unwrap();
    let said = Device::fails(&["--socket", file.to_str().unwrap()]);
    assert!(said.contains("not a socket") && file.exists(), "{said}");
    let said = Device::fails(&["--socket", "fd=99"]);
    assert!(said.contains("fd=99"), "{said}");
    let path = dir.path().join("s");
    let socket = path.to_str().unwrap();
    let said = Device::fails(&["--socket", socket, "--ft-ctl", "fd=99"]);
    assert!(said.contains("--ft-ctl") && !path.exists(), "{said}");
    let said = Device::fails(&["--socket", socket, "--counters", file.to_str().unwrap()]);
    assert!(said.contains("--counters") && said.contains("4096") && !path.exists(), "{said}");
    drop(persistent_tap());
    let said = Device::fails(&["--socket", socket, "--tap", TAP, "--num-queues", "2"]);
    assert!(said.contains("2 queue pairs") && !path.exists(), "{said}");
}

#[test]
fn written_pages_are_in_the_dirty_log() {
    if !ready() {
        return;
    }
    let mut rig = Rig::new(MRG_RXBUF, false, &[]);
    let log = rig.log();
    let dirty = |log: &vm_memory::GuestMemoryMmap| -> Vec<u64> {
        let mut pages = Vec::new();
        for byte in 0..MEMORY as u64 / 4096 / 8 {
            let bits: u8 = log.read_obj(GuestAddress(byte)).unwrap();
            log.write_obj(0_u8, GuestAddress(byte)).unwrap();
            pages.extend((0..8).filter(|bit| bits & (1 << bit) != 0).map(|bit| byte * 8 + bit));
        }
        pages
    };
    dirty(&log);
    rig.output(0..1);
    rig.expect(0..1);
    assert_eq!(dirty(&log), [rig.queues[1].used_at() / 4096]);

    let (_, first) = rig.offer_input(0, 4096);
    let (_, second) = rig.offer_input(0, 4096);
    rig.queues[0].kick();
    rig.wire.send(&frame(1, 1000));
    rig.guest.used(&mut rig.queues[0], 1);
    assert_eq!(dirty(&log), [rig.queues[0].used_at() / 4096, first / 4096]);
    rig.wire.send(&frame(2, 1000));
    rig.guest.used(&mut rig.queues[0], 1);
    assert_eq!(dirty(&log), [rig.queues[0].used_at() / 4096, second / 4096]);
}

#[test]
fn indirect_descriptors_both_ways() {
    if !ready() {
        return;
    }
    let mut rig = Rig::new(MRG_RXBUF | INDIRECT_DESC, false, &[]);
    let (table, data) = (rig.room(4096), rig.room(8192));
    let sent = frame(5, 900);
    rig.guest.write(data, &[0; HEADER]);
    rig.guest.write(data + 64, &sent[..400]);
    rig.guest.write(data + 1000, &sent[400..]);
    rig.guest.descriptor(table, data, 12, NEXT, 1);
    rig.guest.descriptor(table + 16, data + 64, 400, NEXT, 2);
    rig.guest.descriptor(table + 32, data + 1000, 500, 0, 0);
    let head = rig.guest.add(&mut rig.queues[1], &[(table, 48, INDIRECT)]);
    rig.queues[1].kick();
    assert_eq!(rig.guest.used(&mut rig.queues[1], 1), [(head, 0)]);
    assert_eq!(rig.wire.next(), sent);

    rig.guest.descriptor(table, data, 12, NEXT | WRITE, 1);
    rig.guest.descriptor(table + 16, data + 4096, 2000, WRITE, 0);
    let head = rig.guest.add(&mut rig.queues[0], &[(table, 32, INDIRECT)]);
    rig.queues[0].kick();
    rig.wire.send(&sent);
    assert_eq!(rig.guest.used(&mut rig.queues[0], 1), [(head, 912)]);
    assert_eq!(rig.guest.read(data + 4096, 900), sent);
}

#[test]
fn event_index_saves_interrupts_and_kicks() {
    if !ready() {
        return;
    }
    let mut rig = Rig::new(MRG_RXBUF | EVENT_IDX, true, &[]);
    let size = u64::from(QUEUE_SIZE);
    // The guest wants to hear of the 20th only.
    let wish = rig.queues[1].avail_at() + 4 + 2 * size;
    rig.guest.put_u16(wish, 19);
    rig.queues[1].interrupts();
    for part in [0..10, 10..19, 19..20] {
        let last = part.end == 20;
        for id in part {
            rig.queue_output(0, &frame(id, 100 + id as usize));
            rig.queues[1].kick();
        }
        // The wire has it all, and so the ring; a seal makes sure that the interrupt, if any, is out as well.
        rig.expect(if last {
            19..20
        } else if rig.queues[1].avail == 10 {
            0..10
        } else {
            10..19
        });
        rig.link().seal(1);
        assert_eq!(rig.guest.used_idx(&rig.queues[1]), rig.queues[1].avail);
        assert_eq!(rig.queues[1].interrupts(), u64::from(last));
        rig.link().resume();
        rig.link().sync();
    }
    // The device wants a kick for what comes next.
    assert_eq!(rig.guest.u16(rig.queues[1].used_at() + 4 + 8 * size), 20);
}

#[test]
fn legacy_drivers_have_a_shorter_header() {
    if !ready() {
        return;
    }
    let mut rig = Rig::new(NO_VERSION_1, true, &[]);
    for hold in [false, true] {
        rig.link().protect(1, hold);
        let sent = frame(1, 300);
        let at = rig.room(4096);
        rig.guest.write(at, &[0; 10]);
        rig.guest.write(at + 10, &sent);
        rig.guest.add(&mut rig.queues[1], &[(at, 310, 0)]);
        rig.queues[1].kick();
        rig.guest.used(&mut rig.queues[1], 1);
        if hold {
            rig.link().release(1);
        }
        assert_eq!(rig.wire.next(), sent);
    }
    let (head, at) = rig.offer_input(0, 2048);
    rig.queues[0].kick();
    rig.wire.send(&frame(2, 400));
    assert_eq!(rig.guest.used(&mut rig.queues[0], 1), [(head, 410)]);
    assert_eq!(rig.guest.read(at + 10, 400), frame(2, 400));
}

#[test]
fn the_tap_is_as_asked_and_its_loss_is_told() {
    if !ready() {
        return;
    }
    let settings = ["--ip", "192.0.2.1", "--mask", "255.255.255.128", "--mac", "02:00:00:00:00:77", "--mtu", "9000"];
    let mut rig = Rig::new(MRG_RXBUF, true, &settings);
    let addresses: Vec<_> = nix::ifaddrs::getifaddrs().unwrap().filter(|a| a.interface_name == TAP).collect();
    let text = |a: Option<&nix::sys::socket::SockaddrStorage>| a.map(ToString::to_string).unwrap_or_default();
    assert!(
        addresses
            .iter()
            .any(|a| { text(a.address.as_ref()) == "192.0.2.1:0" && text(a.netmask.as_ref()) == "255.255.255.128:0" })
    );
    let mac = |a: &nix::ifaddrs::InterfaceAddress| a.address.and_then(|x| x.as_link_addr().and_then(|l| l.addr()));
    assert!(addresses.iter().any(|a| mac(a) == Some([2, 0, 0, 0, 0, 0x77])));
    assert!(addresses.iter().all(|a| a.flags.contains(nix::net::if_::InterfaceFlags::IFF_UP)));
    // The MTU shows: a frame of that size passes.
    rig.offer_input(0, 16384);
    rig.queues[0].kick();
    rig.wire.send(&frame(1, 9014));
    assert_eq!(rig.guest.used(&mut rig.queues[0], 1)[0].1, 9026);

    let deleted = std::process::Command::new("ip").args(["link", "del", TAP]).status();
    if !deleted.is_ok_and(|status| status.success()) {
        println!("SKIPPED in part: needs the ip command, to delete a tap");
        return;
    }
    assert!(matches!(rig.link().report(), Report::Failed { reason } if reason.contains(TAP)));
    rig.queue_output(0, &frame(2, 100));
    rig.queues[1].kick();
    rig.guest.used(&mut rig.queues[1], 1);
    rig.link().sync();
}

#[test]
fn large_segments_pass_whole() {
    if !ready() {
        return;
    }
    let mut rig = Rig::new(MRG_RXBUF | CSUM_TSO, true, &[]);
    rig.link().protect(1, true);
    for epoch in 1..3 {
        let segment = tcp_segment(20_000);
        let at = rig.room(HEADER + segment.len());
        // NEEDS_CSUM, TCPv4, header of 54 bytes, segments of 1448, checksum of the TCP header.
        rig.guest.write(at, &[1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]);
        rig.guest.write(at + HEADER as u64, &segment);
        rig.guest.add(&mut rig.queues[1], &[(at, (HEADER + segment.len()) as u32, 0)]);
        rig.queues[1].kick();
        rig.guest.used(&mut rig.queues[1], 1);
        if epoch == 1 {
            rig.link().seal(1);
            rig.link().resume();
            rig.link().release(1);
            assert!(rig.wire.next() == segment);
            // And once more without holding.
            rig.link().protect(2, false);
        } else {
            assert!(rig.wire.next() == segment);
        }
    }
}

/// An Ethernet frame with IPv4, TCP, and `len` bytes; the TCP checksum is left to the device.
fn tcp_segment(len: usize) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 0xaa, 8, 0]);
    let total = (40 + len) as u16;
    let mut ip = vec![0x45, 0, (total >> 8) as u8, total as u8, 0, 1, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
    let sum: u32 = ip.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(ip);
    frame.extend([0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend((0..len).map(|i| i as u8));
    frame
}

/// How far the device has come in a queue, as a seal tells.
#[test]
fn the_control_queue_is_where_the_negotiated_features_put_it() {
    if !ready() {
        return;
    }
    // Four queues and the control queue, but no MQ: the second pair is none, and queue 2 is the control
    // queue.
    let mut rig = Rig::without_mq(MRG_RXBUF, &["--num-queues", "2"]);
    let command = rig.room(4096);
    rig.guest.write(command, &[4, 0, 1, 0]);
    rig.guest.add(&mut rig.queues[2], &[(command, 4, 0), (command + 64, 1, WRITE)]);
    rig.queues[2].kick();
    assert_eq!(rig.guest.used(&mut rig.queues[2], 1), [(0, 1)]);
    assert_eq!(rig.guest.read(command + 64, 1), [0]);
    // It is no receive queue, whatever tap queue the kernel chooses.
    (0..32).for_each(|_| _ = rig.offer_input(0, 2048));
    (0..4).for_each(|_| _ = rig.offer_input(1, 2048));
    rig.queues[0].kick();
    (0..32).for_each(|port| rig.wire.send(&flow(port)));
    rig.guest.used(&mut rig.queues[0], 32);
}

#[test]
fn a_queue_of_any_size_that_virtio_knows_is_served() {
    use vhost::VhostBackend;
    if !ready() {
        return;
    }
    let rig = Rig::new(0, false, &[]);
    for size in [2, 1024, 32768] {
        rig.frontend.get_vring_base(1).unwrap();
        rig.frontend.set_vring_num(1, size).unwrap();
    }
}

/// An IPv4/UDP frame of flow `port`.
fn flow(port: u16) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 9, 192, 0, 2, 8]);
    frame.extend(port.to_be_bytes());
    frame.extend([0, 7, 0, 26, 0, 0]);
    frame.extend([0; 18]);
    frame
}

#[test]
fn two_queue_pairs() {
    if !ready() {
        return;
    }
    let mut rig = Rig::new(MRG_RXBUF | MQ, true, &["--num-queues", "2"]);
    // Until the driver uses the second pair, the first one receives everything.
    (0..32).for_each(|_| _ = rig.offer_input(0, 2048));
    rig.queues[0].kick();
    (0..32).for_each(|port| rig.wire.send(&flow(port)));
    rig.guest.used(&mut rig.queues[0], 32);

    let command = rig.room(4096);
    let ask = |rig: &mut Rig, bytes: &[u8]| {
        rig.guest.write(command, bytes);
        rig.guest.write(command + 64, &[9]);
        let pieces = [(command, 2, 0), (command + 2, bytes.len() as u32 - 2, 0), (command + 64, 1, WRITE)];
        rig.guest.add(&mut rig.queues[4], &pieces);
        rig.queues[4].kick();
        rig.guest.used(&mut rig.queues[4], 1);
        rig.guest.read(command + 64, 1)[0]
    };
    assert_eq!(ask(&mut rig, &[4, 0, 3, 0]), 1, "more pairs than there are");
    assert_eq!(ask(&mut rig, &[4, 0, 0, 0]), 1, "no pairs");
    assert_eq!(ask(&mut rig, &[1, 0, 1]), 1, "receive mode");
    assert_eq!(ask(&mut rig, &[4, 0, 2, 0]), 0);

    for pair in 0..2 {
        (0..64).for_each(|_| _ = rig.offer_input(pair, 2048));
        rig.queues[2 * pair].kick();
    }
    (0..64).for_each(|port| rig.wire.send(&flow(port)));
    let counts = |rig: &Rig| [0, 2].map(|q| rig.guest.used_idx(&rig.queues[q]).wrapping_sub(rig.queues[q].seen));
    let started = Instant::now();
    while counts(&rig).iter().sum::<u16>() < 64 {
        // Each round trip lets the device look at its taps once more.
        rig.link().sync();
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", counts(&rig));
    }
    assert!(counts(&rig).iter().all(|n| *n > 0), "{:?}", counts(&rig));

    rig.link().protect(1, true);
    for id in 0..20 {
        rig.queue_output(id as usize % 2, &frame(id, 100));
        rig.queues[1 + 2 * (id as usize % 2)].kick();
    }
    rig.guest.used(&mut rig.queues[1], 10);
    rig.guest.used(&mut rig.queues[3], 10);
    let (queues, held, _) = rig.link().seal(1);
    assert_eq!((queues.len(), held), (5, 20));
    assert!(rig.wire.is_silent());
    rig.link().release(1);
    let got: Vec<_> = (0..20).map(|_| rig.wire.next()).collect();
    for parity in 0..2 {
        let ours: Vec<_> = got.iter().filter(|f| f[17] % 2 == parity).cloned().collect();
        let expected: Vec<_> = (0..20).filter(|id| id % 2 == u32::from(parity)).map(|id| frame(id, 100)).collect();
        assert_eq!(ours, expected, "order within a queue");
    }
}

#[test]
fn a_disabled_queue_is_left_alone() {
    use vhost::vhost_user::VhostUserFrontend;
    if !ready() {
        return;
    }
    let mut rig = Rig::new(MRG_RXBUF, true, &[]);
    for queue in 0..2 {
        rig.frontend.set_vring_enable(queue, false).unwrap();
    }
    rig.offer_input(0, 2048);
    rig.queue_output(0, &frame(0, 100));
    let before = rig.guest.read(0, MEMORY);
    rig.queues[0].kick();
    rig.queues[1].kick();
    rig.wire.send(&frame(1, 100));
    rig.link().sync();
    assert!(before == rig.guest.read(0, MEMORY));
    for queue in 0..2 {
        rig.frontend.set_vring_enable(queue, true).unwrap();
    }
    rig.guest.used(&mut rig.queues[0], 1);
    rig.guest.used(&mut rig.queues[1], 1);
    assert_eq!(rig.wire.next(), frame(0, 100));
}
