//! The real binary under ft-ctl: what is held, when it leaves, and what is never touched.

#![allow(missing_docs, clippy::unwrap_used)]

mod rig;

use std::os::fd::AsRawFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use device_api::counters::{NetCounters, Page};
use ft_proto::Epoch;
use ft_wire::device_ctl::{Command, Report};
use rig::*;

#[test]
fn held_frames_leave_by_epoch_in_order_and_not_before() {
    if !ready() {
        return;
    }
    let mut rig = Rig::new(MRG_RXBUF | EVENT_IDX, true, &[]);
    assert!(matches!(rig.link().sync().as_slice(), []));
    rig.output(0..3);
    rig.expect(0..3);
    rig.link().protect(1, true);
    rig.output(3..33);
    assert_eq!(rig.link().report(), Report::Held { epoch: Epoch(1) });
    let (queues, held, before) = rig.link().seal(1);
    assert_eq!((held, before.len()), (30, 0));
    assert_eq!(
        queues.iter().map(|q| (q.index, q.next_avail, q.next_used)).collect::<Vec<_>>(),
        [(0, 0, 0), (1, 33, 33)]
    );
    assert!(rig.wire.is_silent());
    rig.link().resume();

    rig.output(33..36);
    assert_eq!(rig.link().report(), Report::Held { epoch: Epoch(2) });
    rig.link().release(1);
    rig.expect(3..33);
    let (_, held, before) = rig.link().seal(2);
    assert_eq!((held, before.len()), (3, 0));
    assert!(rig.wire.is_silent());
    // The boundary does not keep committed frames back.
    rig.link().release(2);
    rig.expect(33..36);
    rig.link().resume();

    // The end of protection sends everything, and what follows goes straight through, behind it.
    rig.output(36..46);
    assert_eq!(rig.link().report(), Report::Held { epoch: Epoch(3) });
    rig.link().send_protect(3, false);
    rig.output(46..50);
    rig.expect(36..50);
    assert_eq!(rig.link().seal(3).1, 0);
    rig.link().resume();

    // So it is when old and new frames are there at the same moment.
    rig.link().protect(4, true);
    rig.output(50..90);
    rig.link().seal(4);
    (90..110).for_each(|id| rig.queue_output(0, &frame(id, 100 + id as usize)));
    rig.queues[1].kick();
    rig.device.signal(libc::SIGSTOP);
    rig.link().send_protect(5, false);
    rig.link().resume();
    rig.device.signal(libc::SIGCONT);
    rig.expect(50..110);
}

#[test]
fn a_held_frame_does_not_count_as_sent() {
    if !ready() {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let page = Page::open(file.path()).unwrap();
    let count = |name| NetCounters::list(&page).iter().find(|counter| counter.0 == name).unwrap().1;
    let mut rig = Rig::new(MRG_RXBUF, true, &["--counters", file.path().to_str().unwrap()]);
    rig.link().protect(1, true);
    rig.output(0..3);
    assert_eq!(rig.link().report(), Report::Held { epoch: Epoch(1) });
    assert_eq!(rig.link().seal(1).1, 3);
    assert_eq!((count("tx_held"), count("tx_frames"), count("tx_bytes")), (3, 0, 0));
    rig.link().resume();
    rig.link().release(1);
    rig.expect(0..3);
    rig.link().sync();
    assert_eq!((count("tx_held"), count("tx_frames"), count("tx_bytes")), (3, 3, 303));

    rig.offer_input(0, 2048);
    rig.queues[0].kick();
    rig.wire.send(&frame(9, 77));
    rig.guest.used(&mut rig.queues[0], 1);
    rig.link().sync();
    assert_eq!((count("rx_frames"), count("rx_bytes"), count("malformed")), (1, 77, 0));
}

#[test]
fn a_full_buffer_stops_the_queue_until_the_next_release() {
    if !ready() {
        return;
    }
    let mut rig = Rig::new(0, true, &["--hold-frames", "4"]);
    rig.link().protect(1, true);
    (0..10).for_each(|id| rig.queue_output(0, &frame(id, 100 + id as usize)));
    rig.queues[1].kick();
    assert_eq!(rig.link().report(), Report::Held { epoch: Epoch(1) });
    assert_eq!(rig.link().report(), Report::Full { epoch: Epoch(1) });
    for (epoch, sent) in [(1, 4_u32), (2, 8), (3, 10)] {
        let (queues, held, _) = rig.link().seal(epoch);
        assert_eq!((queues[1].next_avail, queues[1].next_used), (sent as u16, sent as u16));
        assert_eq!(held, if epoch == 3 { 2 } else { 4 });
        assert_eq!(rig.guest.used_idx(&rig.queues[1]), sent as u16);
        assert!(rig.wire.is_silent());
        rig.link().resume();
        rig.link().release(epoch as u8);
        rig.expect(sent - held as u32..sent);
        // The queue is served again by itself.
        rig.guest.used(&mut rig.queues[1], held as u16);
        if epoch < 3 {
            rig.link().wait(|r| (*r == Report::Held { epoch: Epoch(epoch + 1) }).then_some(()));
            if epoch == 1 {
                rig.guest.used(&mut rig.queues[1], 4);
                rig.queues[1].seen -= 4;
            }
        }
    }
    assert!(rig.wire.is_silent());
}

#[test]
fn discard_drops_exactly_the_later_epochs() {
    if !ready() {
        return;
    }
    let mut rig = Rig::new(0, true, &[]);
    rig.link().protect(1, true);
    rig.output(0..2);
    rig.link().seal(1);
    rig.link().resume();
    rig.output(2..5);
    rig.link().send(&Command::Discard { after: Epoch(1) });
    rig.link().wait(|r| (*r == Report::Discarded).then_some(()));
    let (_, held, _) = rig.link().seal(2);
    assert_eq!(held, 2);
    assert!(rig.wire.is_silent());
    rig.link().resume();
    rig.link().release(1);
    rig.expect(0..2);
    rig.link().protect(3, false);
    rig.output(5..6);
    rig.expect(5..6);

    // A start from a checkpoint forgets what was held, too.
    rig.link().protect(4, true);
    rig.output(6..9);
    assert_eq!(rig.link().report(), Report::Held { epoch: Epoch(4) });
    rig.link().send(&Command::Start { in_flight: vec![], macs: vec![GUEST] });
    assert_eq!(rig.link().report(), Report::Started);
    assert_eq!(rig.wire.next(), rarp());
    rig.output(9..10);
    rig.expect(9..10);
}

#[test]
fn a_lost_link_ends_the_device_and_releases_nothing() {
    if !ready() {
        return;
    }
    type Ending = fn(&mut Rig);
    let endings: [(&str, Ending, Option<i32>); 5] = [
        ("the VMM dies", |rig| rig.link = None, Some(0)),
        ("the VMM talks nonsense", |rig| rig.link().send_raw(&[255; 9]), Some(0)),
        ("SIGTERM", |rig| rig.device.signal(libc::SIGTERM), Some(0)),
        ("SIGKILL", |rig| rig.device.signal(libc::SIGKILL), None),
        (
            "the frontend disconnects",
            |rig| {
                let stream = Frontend::from_stream(std::os::unix::net::UnixStream::pair().unwrap().0, 2);
                drop(std::mem::replace(&mut rig.frontend, stream));
            },
            Some(0),
        ),
    ];
    use vhost::vhost_user::Frontend;
    drop(persistent_tap());
    for (what, end, code) in endings {
        let mut rig = Rig::new(0, true, &[]);
        rig.link().protect(1, true);
        rig.output(0..5);
        let (_, held, _) = rig.link().seal(1);
        assert_eq!(held, 5);
        rig.link().resume();
        end(&mut rig);
        assert_eq!(rig.device.ended().code(), code, "{what}");
        assert!(rig.wire.is_silent(), "{what}");
    }
}

#[test]
fn a_device_without_a_frontend_ends_with_its_link() {
    if !ready() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let (link, theirs) = Link::pair();
    let (socket, ctl) = (path.to_str().unwrap(), format!("fd={}", theirs.as_raw_fd()));
    let args = ["--socket", socket, "--ft-ctl", &ctl];
    let mut device = Device::spawn(&args, vec![theirs.as_raw_fd()], Stdio::null());
    drop(theirs);
    link.send(&Command::Hello { version: 1 });
    // Without a name the kernel picks one.
    assert!(
        matches!(link.report(), Report::Ready { info: ft_wire::device_ctl::DeviceInfo::Net { tap, mtu: 1500 }, .. } if tap == "vmtap0")
    );
    assert!(path.exists());
    drop(link);
    assert_eq!(device.ended().code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn sealed_means_guest_memory_is_not_touched() {
    if !ready() {
        return;
    }
    let mut rig = Rig::new(MRG_RXBUF, true, &[]);
    rig.link().protect(1, true);
    for _ in 0..8 {
        rig.offer_input(0, 2048);
    }
    rig.queues[0].kick();
    rig.link().sync();
    let (queues, ..) = rig.link().seal(1);
    assert_eq!(queues.len(), 2);
    (0..4).for_each(|id| rig.queue_output(0, &frame(id, 300)));
    let before = rig.guest.read(0, MEMORY);
    rig.queues[1].kick();
    rig.queues[0].kick();
    for id in 0..8 {
        rig.wire.send(&frame(id, 500));
        // The device is awake and has looked at everything.
        assert_eq!(rig.link().sync(), []);
    }
    assert!(before == rig.guest.read(0, MEMORY), "guest memory has changed behind the seal");
    rig.link().resume();
    rig.guest.used(&mut rig.queues[0], 8);
    rig.guest.used(&mut rig.queues[1], 4);
    assert_eq!(rig.link().report(), Report::Held { epoch: Epoch(2) });
}

const GUEST: [u8; 6] = [0x12, 0x34, 0x56, 0x78, 0x90, 0xab];

fn rarp() -> Vec<u8> {
    vhost_user_net_buffer::announce::rarp(GUEST).to_vec()
}

#[test]
fn a_standby_drops_input_and_announces_when_it_starts() {
    if !ready() {
        return;
    }
    let mut rig = Rig::connected(MRG_RXBUF, true, &[]);
    rig.link().send(&Command::Standby(true));
    rig.link().sync();
    // More than a tap would keep: it is being read, until nothing is left.
    (0..3000).for_each(|id| rig.wire.send(&frame(id, 60)));
    let start = Instant::now();
    while taken() < 3000 {
        assert!(start.elapsed() < Duration::from_secs(60), "{} frames taken", taken());
        std::thread::yield_now();
    }
    rig.set_up_queues(None);
    let (_, at) = rig.offer_input(0, 2048);
    rig.queues[0].kick();
    rig.queue_output(0, &frame(0, 100));
    rig.queues[1].kick();
    // Sealing tells the positions: nothing was taken.
    let (queues, ..) = rig.link().seal(0);
    assert!(queues.iter().all(|q| q.next_avail == 0 && q.next_used == 0));
    rig.link().resume();
    rig.link().sync();

    rig.link().send(&Command::Start { in_flight: vec![], macs: vec![GUEST] });
    assert_eq!(rig.link().report(), Report::Started);
    rig.guest.used(&mut rig.queues[1], 1);
    let (mut announced, mut output) = (0, 0);
    while announced < 5 || output < 1 {
        let got = rig.wire.next();
        if got == rarp() {
            announced += 1;
        } else {
            assert_eq!(got, frame(0, 100));
            output += 1;
        }
    }
    // What the guest receives is news.
    rig.wire.send(&frame(7777, 300));
    rig.guest.used(&mut rig.queues[0], 1);
    assert_eq!(rig.guest.read(at + HEADER as u64, 300), frame(7777, 300));
}

#[test]
fn the_address_to_announce_is_given_or_learnt() {
    if !ready() {
        return;
    }
    for given in [true, false] {
        let extra: &[&str] = if given { &["--guest-mac", "12:34:56:78:90:ab"] } else { &[] };
        let mut rig = Rig::new(0, true, extra);
        rig.link().send(&Command::Standby(true));
        rig.link().send(&Command::Start { in_flight: vec![], macs: vec![] });
        assert_eq!(rig.link().report(), Report::Started);
        if !given {
            let mut sent = frame(0, 100);
            sent[6..12].copy_from_slice(&GUEST);
            rig.queue_output(0, &sent);
            rig.queues[1].kick();
            assert_eq!(rig.wire.next(), sent);
        }
        assert_eq!(rig.wire.next(), rarp());
    }
}

#[test]
fn a_takeover_goes_on_where_the_queues_stood() {
    if !ready() {
        return;
    }
    take_over(MRG_RXBUF);
}

#[test]
fn a_driver_that_has_taken_no_feature_at_all_is_taken_over() {
    if !ready() {
        return;
    }
    let mut rig = take_over(NO_VERSION_1);
    // Its header is shorter.
    let (head, at) = rig.offer_input(0, 2048);
    rig.queues[0].kick();
    rig.wire.send(&frame(2, 400));
    assert_eq!(rig.guest.used(&mut rig.queues[0], 1), [(head, 410)]);
    assert_eq!(rig.guest.read(at + 10, 400), frame(2, 400));
}

fn take_over(features: u64) -> Rig {
    let mut rig = Rig::connected(features, true, &[]);
    rig.link().send(&Command::Standby(true));
    // As if 40 frames had been sent by the other host.
    (0..40).for_each(|id| rig.queue_output(0, &frame(id, 100 + id as usize)));
    rig.guest.put_u16(rig.queues[1].used_at() + 2, 38);
    rig.queues[1].seen = 38;
    rig.set_up_queues(Some(&[0, 38]));
    rig.link().send(&Command::Start { in_flight: vec![], macs: vec![GUEST] });
    assert_eq!(rig.link().report(), Report::Started);
    rig.guest.used(&mut rig.queues[1], 2);
    assert_eq!([rig.wire.next(), rig.wire.next(), rig.wire.next()].iter().filter(|f| **f == rarp()).count(), 1);
    let (queues, ..) = rig.link().seal(0);
    assert_eq!((queues[1].next_avail, queues[1].next_used), (40, 40));
    rig.link().resume();
    rig
}

#[test]
fn a_seal_does_not_wait_for_the_work_in_front_of_it() {
    if !ready() {
        return;
    }
    let mut rig = Rig::new(0, true, &[]);
    let (mut times, mut left) = (Vec::new(), Vec::new());
    for epoch in 0..50 {
        // A full ring of work and the seal are there when the device looks.
        rig.device.stop();
        for _ in 0..QUEUE_SIZE - (rig.queues[1].avail - rig.guest.used_idx(&rig.queues[1])) {
            rig.queue_output(0, &frame(epoch as u32, 1400));
        }
        rig.queues[1].kick();
        rig.link().send(&Command::Seal { epoch: Epoch(epoch), cpu: None });
        let start = Instant::now();
        rig.device.signal(libc::SIGCONT);
        let (queues, ..) = rig.link().sealed(epoch);
        times.push(start.elapsed());
        left.push(rig.queues[1].avail - queues[1].next_avail);
        rig.link().resume();
    }
    times.sort();
    left.sort();
    println!("seal under load: p50 {:?}, worst {:?}; work left {left:?}", times[25], times[49]);
    assert!(left[25] >= QUEUE_SIZE / 2, "{left:?} of {QUEUE_SIZE}");
}
