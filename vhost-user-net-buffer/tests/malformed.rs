//! Guests that break their rings: chains without an end, queues that make no sense.

#![allow(clippy::unwrap_used)] // Helpers of tests panic as tests do.

mod rig;

use std::time::{Duration, Instant};

use rig::*;

fn position(rig: &Rig, queue: usize) -> u16 {
    let (queues, ..) = rig.link().seal(1);
    rig.link().resume();
    queues[queue].next_avail
}

#[test]
fn chains_that_break_off_are_not_sent() {
    if !ready() {
        return;
    }
    let mut rig = Rig::new(MRG_RXBUF | INDIRECT_DESC, false, &[]);
    let at = rig.room(4096);
    rig.guest.write(at, &[0; HEADER]);
    rig.guest.write(at + HEADER as u64, &frame(1, 500));
    let table = |i| rig.queues[1].desc_at(i);
    // A loop, a way out of the table, an indirect table of half a descriptor, one within another, a buffer to
    // write.
    rig.guest.descriptor(table(0), at, 512, NEXT, 0);
    rig.guest.descriptor(table(1), at, 512, NEXT, QUEUE_SIZE);
    rig.guest.descriptor(table(2), at, 8, INDIRECT, 0);
    rig.guest.descriptor(table(3), at + 2048, 16, INDIRECT, 0);
    rig.guest.descriptor(at + 2048, at + 2048, 16, INDIRECT, 0);
    rig.guest.descriptor(table(4), at, 512, WRITE, 0);
    rig.guest.descriptor(table(5), (MEMORY - 100) as u64, 512, 0, 0);
    rig.guest.descriptor(table(6), at, 20, 0, 0);
    rig.guest.descriptor(table(7), at, 512, 0, 0);
    (0..8).for_each(|head| rig.guest.offer(&mut rig.queues[1], head));
    rig.queues[1].kick();
    let used: Vec<_> = (0..8).map(|head| (head, 0)).collect();
    assert_eq!(rig.guest.used(&mut rig.queues[1], 8), used);
    // Only the last one was a frame.
    assert_eq!(rig.wire.next(), frame(1, 500));
    assert!(rig.wire.is_silent());
}

#[test]
fn malformed_chains_cost_nothing_but_themselves() {
    if !ready() {
        return;
    }
    let seed: u64 = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0x00c0_ffee);
    println!("SEED={seed}");
    let mut state = seed | 1;
    let mut random = move |n: u64| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    };
    let mut rig = Rig::new(MRG_RXBUF | INDIRECT_DESC | EVENT_IDX, true, &[]);
    for round in 0..300 {
        let queue = (round % 2) as usize;
        // Never more than fits, which would be another story: see the end.
        let waiting = rig.queues[queue].avail.wrapping_sub(position(&rig, queue));
        let heads = (1 + random(16)).min(u64::from(QUEUE_SIZE - waiting));
        for i in 0..QUEUE_SIZE {
            let address = [random(1 << 24), random(u64::MAX), (1 << 24) - random(5000), 0][random(4) as usize];
            let len = [random(3000), random(1 << 32), 0, 16 * random(80)][random(4) as usize] as u32;
            let (flags, next) = (random(8) as u16, [random(64), random(65536)][random(2) as usize] as u16);
            // Rings and code of this test are spared: the guest may break itself, but not while it is the
            // judge.
            let address = if address < BUFFERS { address + BUFFERS } else { address };
            let at = rig.queues[queue].desc_at(i);
            rig.guest.descriptor(at, address, len, flags, next);
        }
        for _ in 0..heads {
            // One outside of the table would be the end of the queue: see below.
            let queue = &mut rig.queues[queue];
            rig.guest.offer(queue, random(64) as u16);
        }
        rig.queues[queue].kick();
        if queue == 0 {
            (0..heads).for_each(|id| rig.wire.send(&frame(id as u32, 200)));
        } else {
            let started = Instant::now();
            while position(&rig, 1) != rig.queues[1].avail {
                assert!(started.elapsed() < Duration::from_secs(60), "round {round}: stands still");
            }
        }
        assert!(rig.device.is_running());
    }
    // Positions as a VMM would take them over; then life goes on.
    let (queues, ..) = rig.link().seal(1);
    assert_eq!(queues[1].next_avail, rig.queues[1].avail);
    rig.queues[1].seen = queues[1].next_used;
    rig.link().resume();
    rig.link().sync();
    while rig.wire.within(0).is_some() {}
    rig.output(0..5);
    rig.expect(0..5);
}

#[test]
fn a_queue_that_makes_no_sense_is_told_and_left_alone_until_it_is_set_up_again() {
    if !ready() {
        return;
    }
    let mut rig = Rig::new(MRG_RXBUF | MQ, true, &["--num-queues", "2"]);
    let spoil: [fn(&mut Rig, usize); 2] = [
        // An index that runs away, and a head outside of the table.
        |rig, queue| rig.guest.put_u16(rig.queues[queue].avail_at() + 2, rig.queues[queue].avail.wrapping_add(1000)),
        |rig, queue| rig.guest.offer(&mut rig.queues[queue], QUEUE_SIZE),
    ];
    for spoil in spoil {
        // Receive, transmit, control.
        for queue in [0, 1, 4] {
            spoil(&mut rig, queue);
            rig.queues[queue].kick();
            rig.wire.send(&frame(1, 200));
            assert!(rig.queues[queue].is_broken(10_000), "queue {queue}");
            let used = rig.guest.used_idx(&rig.queues[queue]);
            let at = rig.room(4096);
            rig.guest.add(&mut rig.queues[queue], &[(at, 100, 0)]);
            rig.queues[queue].kick();
            rig.link().sync();
            assert_eq!(rig.guest.used_idx(&rig.queues[queue]), used);
            // Its own queue only.
            if queue != 1 {
                rig.output(0..5);
                rig.expect(0..5);
            }
            rig.restart();
            rig.output(5..10);
            rig.expect(5..10);
            assert!(!rig.queues[queue].is_broken(0));
        }
    }
}
